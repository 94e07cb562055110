//! The floor of the guest benchmarks: QEMU alone, without the platform. Kernel, initramfs, image,
//! disk, processor and devices are the capsule's, and a namespace has a tap.
//!
//! A measurement lasts until envd's `/health` answers. QEMU boots, or restores the memory and state
//! of the platform's own machine, and saves by its own means.

use crate::inside::Inside;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tests::{Platform, processes_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Time between two looks at `/health`, the same as the agent's.
const POLL: Duration = Duration::from_millis(10);
/// Time that a connection attempt may take.
const PATIENCE: Duration = Duration::from_millis(30);

/// Parameters of the bare machines.
pub(crate) struct Bare {
    images: PathBuf,
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

/// A namespace with a tap, like a capsule's.
pub(crate) struct Namespace {
    name: String,
    inside: Inside,
}

impl Bare {
    /// Copies the parameters of a running capsule's machine. Copies memory and state too if that
    /// machine was restored.
    pub(crate) fn like(platform: &Platform, capsule: &str) -> Self {
        let pid = processes_of(capsule)[0];
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
        let images = platform.dir().join("images");
        let dir = tempfile::Builder::new().prefix("wrenn-bare-").tempdir_in("/dev/shm").unwrap();
        let saved = after("-incoming").map(|_| Saved::of(platform, pid, &size, dir.path()));
        let command_line = command_line.unwrap_or_default();
        Self { images, dir, taken, command_line, size, saved }
    }

    fn command(&self, name: &str, disk: &Path) -> Command {
        let image = self.images.join("templates/base/rootfs.erofs").display().to_string();
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
        let mut inside = Command::new("ip");
        // The saved state, if there is one, is open as descriptor 3.
        let state = self.saved.as_ref().map_or(Path::new("/dev/null"), |saved| &saved.state);
        inside.args(["netns", "exec", &at.name, "sh", "-c", "exec \"$@\" 3<\"$0\""]);
        inside.arg(state).arg(command.get_program()).args(command.get_args());
        inside.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        let process = inside.spawn().unwrap();
        // Each look at `/health` dials anew, so no connection to an earlier machine is reused.
        let machine = Machine { process, socket: self.dir.path().join(name) };
        at.wait_healthy();
        (machine, started.elapsed())
    }

    /// Boots a machine and returns the time until its guest answers.
    pub(crate) fn boot(&self, at: &Namespace) -> Duration {
        let disk = self.dir.path().join("disk.ext4");
        make_disk(&disk);
        let mut command = self.command("boot.sock", &disk);
        let file = |name: &str| self.images.join(name).display().to_string();
        command.args(["-kernel", &file("boot/vmlinux"), "-initrd", &file("boot/initramfs")]);
        command.args(&self.command_line);
        command.args(["-object", &format!("memory-backend-ram,id=m0,size={}M", self.size)]);
        let (machine, took) = self.start(at, "boot.sock", &command);
        machine.end();
        took
    }

    /// Restores a machine. Returns it and the time until its guest answers.
    pub(crate) fn restore(&self, at: &Namespace, name: &str) -> (Machine, Duration) {
        let saved = self.saved.as_ref().unwrap();
        let disk = self.dir.path().join(format!("{name}.disk"));
        copy_disk(&saved.disk, &disk);
        let mut command = self.command(name, &disk);
        let path = saved.memory.display();
        let memory =
            format!("memory-backend-file,id=m0,size={}M,mem-path={path},share=off", self.size);
        command.args(["-object", &memory]);
        command.args(["-incoming", "fd:3"]);
        self.start(at, name, &command)
    }
}

impl Saved {
    fn of(platform: &Platform, pid: i32, size: &str, dir: &Path) -> Self {
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
        let template_snapshot = template_snapshot(platform, size);
        Self {
            memory,
            state: template_snapshot.join("state"),
            disk: template_snapshot.join("disk.ext4"),
        }
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

impl Namespace {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("wrenn-bench-{name}");
        ip(&format!("netns del {name}"));
        for command in [
            format!("netns add {name}"),
            format!("-n {name} tuntap add tap0 mode tap vnet_hdr"),
            format!("-n {name} link set tap0 address 02:57:52:00:00:01 up"),
            format!("-n {name} addr add 169.254.0.1/30 dev tap0"),
            format!("-n {name} neigh add 169.254.0.2 lladdr 52:54:00:00:00:02 dev tap0"),
        ] {
            assert!(ip(&command), "ip {command}");
        }
        let inside = Inside::enter(Path::new(&format!("/run/netns/{name}")));
        Self { name, inside }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the namespace's machine answers.
    pub(crate) fn wait_healthy(&self) {
        self.inside.run(|runtime, _| runtime.block_on(wait_healthy()));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.name));
    }
}

async fn wait_healthy() {
    let limit = Instant::now() + Duration::from_secs(60);
    while Instant::now() < limit {
        // Packets sent before the machine has its tap are lost. Their retransmission would come
        // late, so each attempt is short.
        let dialled = tokio::net::TcpStream::connect(("169.254.0.2", 49983));
        if let Ok(Ok(mut stream)) = tokio::time::timeout(PATIENCE, dialled).await {
            let asked = stream.write_all(b"GET /health HTTP/1.1\r\nhost: envd\r\n\r\n").await;
            let mut answer = [0; 12];
            if asked.is_ok() && stream.read_exact(&mut answer).await.is_ok() {
                assert_eq!(&answer, b"HTTP/1.1 204");
                return;
            }
        }
        tokio::time::sleep(POLL).await;
    }
    panic!("the bare machine did not get up");
}

/// Returns the folder of the template snapshot with `size` MiB of memory.
pub(crate) fn template_snapshot(platform: &Platform, size: &str) -> PathBuf {
    let dirs = std::fs::read_dir(platform.dir().join("golden")).unwrap().flatten();
    // The benchmarks' restored capsules all have the default disk size.
    let wanted = format!("\"memory_mib\":{size},\"disk_mib\":5120");
    let mut dirs = dirs.map(|entry| entry.path()).filter(|dir| {
        std::fs::read_to_string(dir.join("manifest.json")).is_ok_and(|m| m.contains(&wanted))
    });
    dirs.next().unwrap()
}

/// Copies a disk that no machine uses.
pub(crate) fn copy_disk(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("--sparse=always").args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// Makes a capsule's own disk with the agent's options.
fn make_disk(path: &Path) {
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

fn ip(command: &str) -> bool {
    let out = Command::new("ip").args(command.split(' ')).output().unwrap();
    out.status.success()
}
