//! What a Firecracker is locked into: a folder that becomes its root, with links to the few files
//! that it opens. The jailer makes of it a root, namespaces, limits and a user of the capsule's
//! own; where the agent is told to do without one, the folder is only where it works.
//!
//! The folder is the machine's: whoever broke out of a guest may put there what they like. So
//! nothing in it is opened by following a link, and what is kept of it is taken out first.

use super::words::Words;
use super::{LEVEL, LOG, METRICS, SOCKET};
use crate::sys::{self, Identity, VmmCommand};
use crate::vmm::Record;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Open files of the machine.
const FILES_MAX: u32 = 1024;
/// How long the jailer may take.
const JAILER: Duration = Duration::from_secs(30);

/// The programs.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub firecracker: PathBuf,
    /// None when the agent is told to do without.
    pub jailer: Option<PathBuf>,
}

/// The place of one machine.
#[derive(Debug, Clone)]
pub(super) struct Jail {
    /// The capsule's id, or the probe's.
    pub name: String,
    pub uid: u32,
    /// The driver's own folder: out of the machine's reach.
    pub own: PathBuf,
    /// The machine's root.
    pub root: PathBuf,
}

impl Jail {
    pub(super) fn of(programs: &Programs, dir: &Path, name: &str, uid: u32) -> Self {
        let own = dir.join(super::super::OWN);
        let program = programs.firecracker.file_name().unwrap_or_default();
        // Where the jailer looks for it.
        let root = own.join("jail").join(program).join(name).join("root");
        Self { name: name.to_owned(), uid, own, root }
    }

    /// That of a machine that runs, whatever the program was called that it was started with.
    pub(super) fn found(dir: &Path, name: &str, uid: u32) -> io::Result<Self> {
        let own = dir.join(super::super::OWN);
        let program = fs::read_dir(own.join("jail"))?.next().ok_or(io::ErrorKind::NotFound)??;
        let root = program.path().join(name).join("root");
        Ok(Self { name: name.to_owned(), uid, own, root })
    }

    /// Makes the folders, empty.
    pub(super) fn make(&self) -> io::Result<()> {
        crate::snapshot::remove_all(&self.own)?;
        fs::create_dir_all(&self.root)?;
        rustix::fs::chmod(&self.root, Mode::RWXU)?;
        self.give(&self.root)
    }

    /// Puts a file there, for the machine to read; where it is on another file system, a copy.
    pub(super) fn link(&self, from: &Path, name: &str) -> io::Result<()> {
        let (from, to) = (from.canonicalize()?, self.root.join(name));
        match fs::hard_link(&from, &to) {
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => fs::copy(from, to).map(|_| ()),
            linked => linked,
        }
    }

    /// Makes a file the machine's own.
    pub(super) fn give(&self, path: &Path) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.uid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::chownat(CWD, path, Some(uid), Some(gid), flags)?)
    }

    /// Makes a pipe with a name, which holds what is written until it is read.
    pub(super) fn pipe(&self, path: &Path) -> io::Result<()> {
        rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        self.give(path)
    }

    /// Opens a regular file that the machine has written.
    pub(super) fn open(&self, name: &str) -> io::Result<File> {
        open(&self.root.join(name), OFlags::RDONLY, FileType::RegularFile, self.uid)
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.root.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Starts Firecracker in it and waits until the process stands.
    pub(super) fn start(
        &self,
        programs: &Programs,
        with: Start,
        console: &Words,
    ) -> io::Result<Record> {
        let mut args: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| args.extend(words.iter().map(|&word| word.to_owned()));
        let (uid, file_max) = (self.uid.to_string(), with.file_max.to_string());
        let jail = self.own.join("jail");
        let text =
            |path: &Path| path.to_str().map(str::to_owned).ok_or(io::ErrorKind::InvalidInput);
        let (program, jail) = (text(&programs.firecracker)?, text(&jail)?);
        if programs.jailer.is_some() {
            add(&["--id", &self.name, "--exec-file", &program, "--uid", &uid, "--gid", &uid]);
            add(&["--chroot-base-dir", &jail, "--new-pid-ns"]);
            add(&["--resource-limit", &format!("fsize={file_max}")]);
            add(&["--resource-limit", &format!("no-file={FILES_MAX}"), "--"]);
        } else {
            add(&["--id", &self.name]);
        }
        add(&[
            "--api-sock",
            SOCKET,
            "--log-path",
            LOG,
            "--level",
            LEVEL,
            "--metrics-path",
            METRICS,
        ]);
        let identity = match programs.jailer {
            // The jailer changes to the user, when it has made the root.
            Some(_) => None,
            None => Some(Identity { id: self.uid, group: super::super::kvm::group() }),
        };
        let child = sys::spawn_vmm(VmmCommand {
            program: programs.jailer.as_ref().unwrap_or(&programs.firecracker),
            capsule: &self.name,
            dir: self.own.parent().unwrap_or(&self.own),
            cwd: if programs.jailer.is_some() { Path::new("/") } else { &self.root },
            args,
            fds: Vec::new(),
            identity,
            namespace: with.namespace,
            cgroups: with.cgroups,
            out: Some(console.writer()?),
            log: console.writer()?,
        })?;
        let pid = match programs.jailer {
            None => i32::try_from(child.id()).map_err(io::Error::other)?,
            Some(_) => self.jailed(child, console)?,
        };
        Record::of(pid, None).ok_or_else(|| failed("Firecracker ended at once", console))
    }

    /// The process that the jailer left in the jail, when it has ended.
    fn jailed(&self, mut jailer: std::process::Child, console: &Words) -> io::Result<i32> {
        let limit = Instant::now() + JAILER;
        let status = loop {
            match jailer.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > limit => {
                    jailer.kill()?;
                    jailer.wait()?;
                    return Err(io::Error::other("the jailer took too long"));
                }
                None => std::thread::sleep(Duration::from_micros(500)),
            }
        };
        if !status.success() {
            return Err(failed(&format!("the jailer failed ({status})"), console));
        }
        let program = self.root.parent().and_then(Path::parent).and_then(Path::file_name);
        let name = format!("{}.pid", program.unwrap_or_default().to_string_lossy());
        // The jailer writes it as the agent's own user.
        let agent = rustix::process::geteuid().as_raw();
        let file = open(&self.root.join(name), OFlags::RDONLY, FileType::RegularFile, agent)?;
        let mut text = String::new();
        file.take(32).read_to_string(&mut text)?;
        text.trim().parse().map_err(|_| io::Error::other("the jailer wrote no process's number"))
    }
}

/// Opens a file that a machine may have replaced. Follows no link, waits for no other end, and
/// refuses a file of another kind, of another owner, or with a second name.
pub(super) fn open(path: &Path, access: OFlags, kind: FileType, owner: u32) -> io::Result<File> {
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let found = rustix::fs::fstat(&file)?;
    let same_kind = FileType::from_raw_mode(found.st_mode) == kind;
    if same_kind && found.st_uid == owner && found.st_nlink == 1 {
        return Ok(file);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Err(io::Error::other(format!("{name} is not the file that was expected there")))
}

/// What a machine is started with, besides its files.
pub(super) struct Start {
    /// The network namespace; an empty one where none is given.
    pub namespace: Option<File>,
    pub cgroups: Vec<File>,
    /// Bytes that a file may come to have.
    pub file_max: u64,
}

fn failed(what: &str, console: &Words) -> io::Error {
    let said = String::from_utf8_lossy(&console.read()).trim().to_owned();
    io::Error::other(if said.is_empty() { what.to_owned() } else { format!("{what}: {said}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_of_another_kind_owner_or_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        let [file, pipe, link] = ["file", "pipe", "link"].map(|name| dir.path().join(name));
        let plain = |path: &Path, uid| open(path, OFlags::RDONLY, FileType::RegularFile, uid);
        fs::write(&file, "kept").unwrap();
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        plain(&file, own).unwrap();
        open(&pipe, OFlags::RDWR, FileType::Fifo, own).unwrap();
        assert!(plain(&file, own + 1).is_err());
        assert!(plain(&link, own).is_err());
        // Nobody has opened its other end.
        assert!(plain(&pipe, own).is_err());
        assert!(open(&file, OFlags::RDWR, FileType::Fifo, own).is_err());
        fs::hard_link(&file, dir.path().join("second")).unwrap();
        assert!(plain(&file, own).is_err());
    }
}
