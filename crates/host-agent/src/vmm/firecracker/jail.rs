//! The jail of a Firecracker process: a folder that becomes its root, with links to the few files
//! that it opens. The jailer adds a chroot, namespaces, limits and a user of the capsule's own.
//! Without the jailer, the folder is only the working directory.
//!
//! The folder belongs to the machine, so an attacker who broke out of a guest may put anything
//! there. So no file in it is opened by following a link, and files are moved out before they are
//! kept.

use super::files::{LOG, METRICS, SOCKET, open};
use super::output::Output;
use crate::storage;
use crate::sys::{self, Identity, VmmCommand};
use crate::vmm::{OWN, VmmRecord, kvm};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Most open files of the machine.
const FILES_MAX: u32 = 1024;
/// The least log level at which Firecracker gives the reason why it ended. At this level it logs no
/// metadata, which belongs to the guest.
const LEVEL: &str = "Info";
/// Time limit for the jailer.
const JAILER: Duration = Duration::from_secs(30);

/// Programs that start a machine.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub firecracker: PathBuf,
    /// Path of the jailer; `None` when the agent runs without it.
    pub jailer: Option<PathBuf>,
}

/// The jail of one machine.
#[derive(Debug, Clone)]
pub(super) struct Jail {
    /// Id of the capsule, or name of the probe.
    pub name: String,
    pub uid: u32,
    /// Folder of the driver, out of the machine's reach.
    pub own: PathBuf,
    /// Root of the machine.
    pub root: PathBuf,
}

impl Jail {
    pub(super) fn of(programs: &Programs, dir: &Path, name: &str, uid: u32) -> Self {
        let own = dir.join(OWN);
        let program = programs.firecracker.file_name().unwrap_or_default();
        // The jailer makes the root at this path.
        let root = own.join("jail").join(program).join(name).join("root");
        Self { name: name.to_owned(), uid, own, root }
    }

    /// Returns the jail of a running machine, whatever the name of the program that it runs.
    pub(super) fn found(dir: &Path, name: &str, uid: u32) -> io::Result<Self> {
        let own = dir.join(OWN);
        let program = fs::read_dir(own.join("jail"))?.next().ok_or(io::ErrorKind::NotFound)??;
        let root = program.path().join(name).join("root");
        Ok(Self { name: name.to_owned(), uid, own, root })
    }

    /// Returns the jail after its capsule's folder became `dir`.
    pub(super) fn moved(&self, dir: &Path) -> Self {
        let own = dir.join(OWN);
        let root = self.root.strip_prefix(&self.own).map_or_else(|_| own.clone(), |r| own.join(r));
        Self { own, root, ..self.clone() }
    }

    /// Makes the folders, empty.
    pub(super) fn make(&self) -> io::Result<()> {
        storage::remove_all(&self.own)?;
        fs::create_dir_all(&self.root)?;
        rustix::fs::chmod(&self.root, Mode::RWXU)?;
        self.chown(&self.root)
    }

    /// Links a file into the root, for the machine to read. A file on another file system is
    /// copied.
    pub(super) fn link(&self, from: &Path, name: &str) -> io::Result<()> {
        let (from, to) = (from.canonicalize()?, self.root.join(name));
        match fs::hard_link(&from, &to) {
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => fs::copy(from, to).map(|_| ()),
            linked => linked,
        }
    }

    /// Makes the machine's user the owner of a file.
    pub(super) fn chown(&self, path: &Path) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.uid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::chownat(CWD, path, Some(uid), Some(gid), flags)?)
    }

    /// Makes a named pipe that the machine owns.
    pub(super) fn pipe(&self, path: &Path) -> io::Result<()> {
        rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        self.chown(path)
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

    /// Starts Firecracker in the jail and returns the record of its process.
    pub(super) fn start(
        &self,
        programs: &Programs,
        with: Start,
        console: &Output,
    ) -> io::Result<VmmRecord> {
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
            // The jailer itself changes to the user, after it has made the root.
            Some(_) => None,
            None => Some(Identity { id: self.uid, group: kvm::group() }),
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
        VmmRecord::of(pid, None).ok_or_else(|| failed("Firecracker ended at once", console))
    }

    /// Waits for the jailer's end, and returns the process that it left in the jail.
    fn jailed(&self, mut jailer: std::process::Child, console: &Output) -> io::Result<i32> {
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
        // The jailer writes the file as the agent's own user.
        let agent = rustix::process::geteuid().as_raw();
        let file = open(&self.root.join(name), OFlags::RDONLY, FileType::RegularFile, agent)?;
        let mut text = String::new();
        file.take(32).read_to_string(&mut text)?;
        text.trim().parse().map_err(|_| io::Error::other("the jailer wrote an invalid process id"))
    }
}

/// Parameters of a machine's start, besides its files.
pub(super) struct Start {
    /// Network namespace; `None` is a new, empty namespace.
    pub namespace: Option<File>,
    pub cgroups: Vec<File>,
    /// Most bytes that a file of the machine may have.
    pub file_max: u64,
}

fn failed(what: &str, console: &Output) -> io::Error {
    let said = String::from_utf8_lossy(&console.read()).trim().to_owned();
    io::Error::other(if said.is_empty() { what.to_owned() } else { format!("{what}: {said}") })
}
