//! The floor of the guest benchmarks: QEMU alone, without the platform. Kernel, initramfs, image,
//! disk, processor and devices are the capsule's, and a namespace has a tap.
//!
//! A measurement lasts until envd's `/health` answers. QEMU boots, or restores the memory and state
//! of the platform's own machine, and saves by its own means.

mod namespace;

pub(crate) use namespace::Namespace;

use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tests::Platform;

/// The operator's own template, and the default size of a capsule's disk.
const BASE: &str = "base";
const DISK_MIB: u32 = 5120;

/// Parameters of the bare machines.
pub(crate) struct Bare {
    /// Folder of kernel and initramfs.
    boot: PathBuf,
    /// Root image of the capsule's template.
    image: PathBuf,
    dir: tempfile::TempDir,
    /// QEMU's arguments for a capsule.
    taken: Vec<String>,
    command_line: Vec<String>,
    size: String,
    saved: Option<Saved>,
}

/// Memory, state and disk of a template snapshot.
struct Saved {
    memory: PathBuf,
    state: PathBuf,
    disk: PathBuf,
}

/// A running bare machine.
pub(crate) struct Machine {
    process: Child,
    socket: PathBuf,
}

impl Bare {
    /// Copies the parameters of a running capsule's machine. Copies memory and state too if that
    /// machine was restored. The capsule is of `base`. A restored one has the default disk size.
    pub(crate) fn like(platform: &Platform, capsule: &str) -> Self {
        Self::of_template(platform, capsule, BASE, DISK_MIB)
    }

    /// Copies the parameters of a capsule of any template whose build had no steps.
    pub(crate) fn of_template(
        platform: &Platform,
        capsule: &str,
        template: &str,
        disk_mib: u32,
    ) -> Self {
        let pid = crate::guests::machine_of(platform, capsule);
        let args = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let args: Vec<String> =
            args.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
        let after = |flag: &str| {
            let at = args.iter().position(|arg| arg == flag)?;
            Some(args[at + 1].clone())
        };
        let mut taken = Vec::new();
        for flag in ["-M", "-global", "-accel", "-cpu", "-smp", "-m"] {
            taken.extend([flag.to_owned(), after(flag).unwrap()]);
        }
        let command_line = after("-append").map(|line| vec!["-append".to_owned(), line]);
        let size = after("-m").unwrap();
        // A platform's folder may name the images of all platforms, which outlive it.
        let images = platform.dir().join("images").canonicalize().unwrap();
        let dir = tempfile::Builder::new().prefix("wrenn-bare-").tempdir_in("/dev/shm").unwrap();
        let kept = after("-incoming").map(|_| snapshot_of(platform, template, &size, disk_mib));
        let version = kept.as_deref().and_then(version_of).unwrap_or_else(|| BASE.to_owned());
        let image = images.join("templates").join(version).join("rootfs.erofs");
        let saved = kept.map(|kept| Saved::of(pid, &size, dir.path(), &kept));
        let command_line = command_line.unwrap_or_default();
        Self { boot: images.join("boot"), image, dir, taken, command_line, size, saved }
    }

    /// Folder of the kernel `vmlinux` and of `initramfs`.
    pub(crate) fn boot_dir(&self) -> &Path {
        &self.boot
    }

    /// Root image of the capsule's template.
    pub(crate) fn image(&self) -> &Path {
        &self.image
    }

    /// Command line of the guest's kernel. Empty if the capsule was restored.
    pub(crate) fn kernel_line(&self) -> &str {
        self.command_line.get(1).map_or("", String::as_str)
    }

    fn command(&self, name: &str, disk: &Path) -> Command {
        let image = self.image.display().to_string();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(&self.taken).args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-no-reboot", "-serial", "null"]);
        let socket = self.dir.path().join(name).display().to_string();
        command.args(["-qmp", &format!("unix:{socket},server=on,wait=off")]);
        let spares = ["spare_0", "spare_1"].map(|name| self.dir.path().join(name));
        spares.iter().for_each(|path| File::create(path).unwrap().set_len(4096).unwrap());
        let [read_only, writable] = spares.map(|path| path.display().to_string());
        for (id, drive) in [
            ("d0", format!("id=d0,file={image},format=raw,if=none,readonly=on")),
            ("d1", format!("id=d1,file={},format=raw,if=none,discard=unmap", disk.display())),
            // A saved machine has the agent's placeholder drives. Machines run at once, so no file
            // is locked.
            ("d2", format!("id=d2,file={read_only},format=raw,if=none,readonly=on")),
            ("d3", format!("id=d3,file={writable},format=raw,if=none,file.locking=off")),
        ] {
            command.args(["-drive", &drive, "-device", &format!("virtio-blk-device,drive={id}")]);
        }
        command.args(["-netdev", "tap,id=net0,ifname=tap0,script=no,downscript=no"]);
        command.args(["-device", "virtio-net-device,netdev=net0,mac=52:54:00:00:00:02"]);
        command
    }

    fn start(&self, at: &Namespace, name: &str, command: &Command) -> (Machine, Duration) {
        let started = Instant::now();
        let machine = self.spawn(at, name, command);
        // Each look at `/health` dials anew, so no connection to an earlier machine is reused.
        at.wait_healthy();
        (machine, started.elapsed())
    }

    fn spawn(&self, at: &Namespace, name: &str, command: &Command) -> Machine {
        let mut inside = Command::new("ip");
        // The saved state, if there is one, is open as descriptor 3.
        let state = self.saved.as_ref().map_or(Path::new("/dev/null"), |saved| &saved.state);
        inside.args(["netns", "exec", at.name(), "sh", "-c", "exec \"$@\" 3<\"$0\""]);
        inside.arg(state).arg(command.get_program()).args(command.get_args());
        inside.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = inside.spawn().unwrap();
        Machine { process, socket: self.dir.path().join(name) }
    }

    /// Boots a machine and returns the time until its guest answers.
    pub(crate) fn boot(&self, at: &Namespace) -> Duration {
        let (machine, took) = self.start(at, "boot.sock", &self.booting("boot.sock"));
        machine.end();
        took
    }

    /// Boots a machine under a name of its own. Fails if its guest does not answer within `limit`.
    pub(crate) fn boot_within(
        &self,
        at: &Namespace,
        name: &str,
        limit: Duration,
    ) -> Result<Machine, String> {
        let machine = self.spawn(at, name, &self.booting(name));
        match at.is_healthy_within(limit) {
            true => Ok(machine),
            false => Err(format!("the machine {name} did not get up within {limit:?}")),
        }
    }

    /// Makes an empty disk. Returns the command that boots a machine on it.
    fn booting(&self, name: &str) -> Command {
        let disk = self.dir.path().join(format!("{name}.disk"));
        make_disk(&disk);
        let mut command = self.command(name, &disk);
        let file = |name: &str| self.boot.join(name).display().to_string();
        command.args(["-kernel", &file("vmlinux"), "-initrd", &file("initramfs")]);
        command.args(&self.command_line);
        command.args(["-object", &format!("memory-backend-ram,id=m0,size={}M", self.size)]);
        command
    }

    /// Restores a machine. Returns it and the time until its guest answers.
    pub(crate) fn restore(&self, at: &Namespace, name: &str) -> (Machine, Duration) {
        self.start(at, name, &self.restoring(name))
    }

    /// Restores a machine in each namespace, all at once, and ends them after the last answer.
    /// Returns the time of each. The disks are copied before.
    pub(crate) fn restore_all(&self, places: &[Namespace]) -> Vec<Duration> {
        let name = |number: usize| format!("at-once-{number}.sock");
        let commands: Vec<Command> =
            (0..places.len()).map(|number| self.restoring(&name(number))).collect();
        let started: Vec<(Machine, Duration)> = std::thread::scope(|scope| {
            let each = places.iter().zip(&commands).enumerate();
            let threads: Vec<_> = each
                .map(|(number, (at, command))| {
                    scope.spawn(move || self.start(at, &name(number), command))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        started.into_iter().map(|(_, took)| took).collect()
    }

    /// Copies the saved disk. Returns the command that restores a machine on the copy.
    fn restoring(&self, name: &str) -> Command {
        let saved = self.saved.as_ref().unwrap();
        let disk = self.dir.path().join(format!("{name}.disk"));
        copy_disk(&saved.disk, &disk);
        let mut command = self.command(name, &disk);
        let path = saved.memory.display();
        let memory =
            format!("memory-backend-file,id=m0,size={}M,mem-path={path},share=off", self.size);
        command.args(["-object", &memory]);
        command.args(["-incoming", "fd:3"]);
        command
    }
}

impl Saved {
    fn of(pid: i32, size: &str, dir: &Path, kept: &Path) -> Self {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let range = maps.lines().find(|line| line.contains("wrenn-memory")).unwrap();
        let range = range.split(' ').next().unwrap();
        let mut image = File::open(format!("/proc/{pid}/map_files/{range}")).unwrap();
        let memory = dir.join("memory");
        let mut copy = File::create(&memory).unwrap();
        copy.set_len(size.parse::<u64>().unwrap() << 20).unwrap();
        let (mut page, mut at) = (vec![0; 4096], 0);
        while image.read_exact(&mut page).is_ok() {
            if page.iter().any(|byte| *byte != 0) {
                copy.seek(SeekFrom::Start(at)).unwrap();
                copy.write_all(&page).unwrap();
            }
            at += 4096;
        }
        Self { memory, state: kept.join("state"), disk: kept.join("disk.ext4") }
    }
}

impl Machine {
    fn qmp(&self) -> Qmp {
        let mut qmp = Qmp(BufReader::new(UnixStream::connect(&self.socket).unwrap()));
        qmp.read();
        qmp.command("qmp_capabilities", json!({}));
        qmp
    }

    /// Stops the machine, writes its memory and state to a file by QEMU's own migration, and
    /// continues it. Syncs the file when `synced`. Returns the time that all of it takes.
    pub(crate) fn save(&self, to: &Path, synced: bool) -> Duration {
        let mut qmp = self.qmp();
        // QEMU's default limit of bandwidth would slow the migration.
        qmp.command("migrate-set-parameters", json!({ "max-bandwidth": 100_u64 << 30 }));
        let started = Instant::now();
        qmp.command("stop", json!({}));
        qmp.command("migrate", json!({ "uri": format!("exec:cat > {}", to.display()) }));
        while qmp.command("query-migrate", json!({}))["status"] != "completed" {
            std::thread::sleep(Duration::from_millis(1));
        }
        if synced {
            File::open(to).unwrap().sync_all().unwrap();
        }
        qmp.command("cont", json!({}));
        started.elapsed()
    }

    /// Ends the machine, by dropping it.
    pub(crate) fn end(self) {}
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let disk = PathBuf::from(format!("{}.disk", self.socket.display()));
        for file in [&self.socket, &disk] {
            let _ = std::fs::remove_file(file);
        }
    }
}

struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn command(&mut self, name: &str, arguments: Value) -> Value {
        let line = json!({ "execute": name, "arguments": arguments }).to_string() + "\n";
        self.0.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let mut answer = self.read();
            assert!(answer.get("error").is_none(), "{name}: {answer}");
            if let Some(value) = answer.get_mut("return") {
                return value.take();
            }
        }
    }
}

/// Returns the folder of the snapshot of `base` with `size` MiB of memory and the default disk.
pub(crate) fn template_snapshot(platform: &Platform, size: &str) -> PathBuf {
    snapshot_of(platform, BASE, size, DISK_MIB)
}

/// Returns the folder of the template snapshot of a template and size.
fn snapshot_of(platform: &Platform, template: &str, size: &str, disk_mib: u32) -> PathBuf {
    let dirs = std::fs::read_dir(platform.dir().join("golden")).unwrap().flatten();
    let wanted = [
        format!("\"template\":\"{template}\""),
        format!("\"memory_mib\":{size},\"disk_mib\":{disk_mib}"),
    ];
    let mut dirs = dirs.map(|entry| entry.path()).filter(|dir| {
        let manifest = std::fs::read_to_string(dir.join("manifest.json")).unwrap_or_default();
        wanted.iter().all(|part| manifest.contains(part))
    });
    dirs.next().unwrap_or_else(|| panic!("no snapshot of {template} has {wanted:?}"))
}

/// Returns the version in a template snapshot's manifest. `None` for a template of the operator's.
fn version_of(snapshot: &Path) -> Option<String> {
    let manifest = std::fs::read_to_string(snapshot.join("manifest.json")).unwrap();
    // The first line is the hash of the rest.
    let (_, body) = manifest.split_once('\n').unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    Some(body["version"]["id"].as_str()?.to_owned())
}

/// Copies a disk that no machine uses.
pub(crate) fn copy_disk(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("--sparse=always").args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// Makes a capsule's own disk with the agent's options.
pub(crate) fn make_disk(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(5 << 30).unwrap();
    let options = ["-q", "-F", "-O", "^resize_inode", "-m", "0", "-i", "16384", "-E"];
    let made = Command::new("mkfs.ext4")
        .args(options)
        .arg("nodiscard,assume_storage_prezeroed=1")
        .arg(path)
        .status();
    assert!(made.unwrap().success());
}
