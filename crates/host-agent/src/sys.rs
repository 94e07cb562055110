//! System calls: ioctls, raw commands and, with `sys/`, all unsafe code.
#![expect(unsafe_code, reason = "namespaces, exec hooks, taps and libnftables have no safe form")]

pub(crate) mod jail;
pub(crate) mod userfault;

use daemon::lock;
use rustix::process::{Pid, PidfdFlags, Signal};
use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Environment variable with the capsule's id, in every process of its machine. It identifies
/// processes that were started and never written down.
const CAPSULE_VAR: &str = "WRENN_CAPSULE";
const DIR_VAR: &str = "WRENN_CAPSULE_DIR";

/// First descriptor number at which a started VMM finds its resources.
pub(crate) const FIRST_FD: RawFd = 3;

/// A VMM process to be started.
pub(crate) struct VmmCommand<'a> {
    pub program: &'a Path,
    pub capsule: &'a str,
    /// Folder of the capsule.
    pub dir: &'a Path,
    /// Working directory.
    pub cwd: &'a Path,
    pub args: Vec<String>,
    /// Files that become descriptors 3, 4, … of the process.
    pub fds: Vec<OwnedFd>,
    /// User and group of the process; `None` for a program that drops its rights itself.
    pub identity: Option<Identity>,
    /// Network namespace; `None` is a new, empty namespace.
    pub namespace: Option<File>,
    /// `cgroup.procs` files to enter.
    pub cgroups: Vec<File>,
    /// Standard output; `None` discards it.
    pub out: Option<File>,
    /// Standard error.
    pub log: File,
}

/// User and groups of a process.
pub(crate) struct Identity {
    /// User and group id; unprivileged.
    pub id: u32,
    /// Further group, such as the group of `/dev/kvm`.
    pub group: Option<u32>,
}

/// Starts a VMM that outlives the agent, in a session of its own. The VMM has empty IPC and UTS
/// namespaces, and a network that is empty or the capsule's. It has no privileges, and only the
/// given descriptors.
pub(crate) fn spawn_vmm(vmm: VmmCommand<'_>) -> io::Result<Child> {
    let mut command = Command::new(vmm.program);
    command.args(&vmm.args).env_clear().env(CAPSULE_VAR, vmm.capsule).env(DIR_VAR, vmm.dir);
    let out = vmm.out.map_or_else(Stdio::null, Stdio::from);
    command.current_dir(vmm.cwd).stdin(Stdio::null()).stdout(out).stderr(Stdio::from(vmm.log));
    // The copies are above their final numbers, so that no copy overwrites another.
    let floor = FIRST_FD + 32;
    let fds: Vec<OwnedFd> = vmm
        .fds
        .iter()
        .map(|fd| Ok(rustix::io::fcntl_dupfd_cloexec(fd, floor)?))
        .collect::<io::Result<_>>()?;
    let identity = vmm.identity.map(|who| (who.id, Vec::from_iter(who.group)));
    let (namespace, cgroups) = (vmm.namespace, vmm.cgroups);
    let hook = move || {
        for procs in &cgroups {
            rustix::io::write(procs, b"0")?;
        }
        rustix::process::setsid()?;
        let ok =
            |result: c_int| if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) };
        // SAFETY: plain system calls on numbers and live memory; nothing allocates.
        unsafe {
            match &namespace {
                Some(namespace) => ok(libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET))?,
                None => ok(libc::unshare(libc::CLONE_NEWNET))?,
            }
            ok(libc::unshare(libc::CLONE_NEWIPC | libc::CLONE_NEWUTS))?;
            for (number, fd) in (FIRST_FD..).zip(&fds) {
                ok(libc::dup2(fd.as_raw_fd(), number))?;
            }
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            ok(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;
            if let Some((id, groups)) = &identity {
                ok(libc::setgroups(groups.len(), groups.as_ptr()))?;
                ok(libc::setgid(*id))?;
                ok(libc::setuid(*id))?;
            }
            ok(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        }
    };
    // SAFETY: the hook makes only system calls that are safe after a fork.
    unsafe { command.pre_exec(hook) };
    command.spawn()
}

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// Fails when the program cannot be run. A failed program's standard error is in the error.
pub(crate) fn run(program: &str, args: &[&str]) -> io::Result<String> {
    let out = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(io::Error::other(format!("{program}: {}: {}", out.status, said.trim())))
}

/// Starts `envd --port N` on this machine, for the fake driver.
#[cfg(any(test, feature = "test-drivers"))]
pub(crate) fn spawn_envd(envd: &Path, port: u16, capsule: &str, dir: &Path) -> io::Result<Child> {
    let mut command = Command::new(envd);
    command.args(["--port", &port.to_string()]).current_dir(dir).env(CAPSULE_VAR, capsule);
    command.env(DIR_VAR, dir);
    // The process has a group of its own, so that a terminal's signals reach only the agent.
    command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// Runs `work` in the network namespace `ns`, on a thread that ends with it.
pub(crate) fn in_namespace<T: Send + 'static>(
    ns: &File,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let ns = ns.try_clone()?;
    on_new_thread(move || {
        // SAFETY: changes the namespace of this thread alone, which ends after `work`.
        if unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNET) } == -1 {
            return Err(io::Error::last_os_error());
        }
        work()
    })
}

/// Makes a network namespace and returns the result of `work` inside it.
pub(crate) fn in_new_namespace<T: Send + 'static>(
    work: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    on_new_thread(move || {
        // SAFETY: changes the namespace of this thread alone, which ends after `work`.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } == -1 {
            return Err(io::Error::last_os_error());
        }
        work(&File::open("/proc/thread-self/ns/net")?)
    })
}

fn on_new_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("netns".into()).spawn(work)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a network thread panicked")))
}

/// Opens the tap `name` of the current namespace, with room for virtio's header.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
    let tap = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().take(15).zip(name.bytes()) {
        *slot = byte.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    let header: c_int = 12;
    // SAFETY: both requests read the structures passed, which live through the calls.
    let failed = unsafe {
        libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw const request) == -1
            || libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const header) == -1
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(tap.into()) }
}

/// Lets a user open a tap by its name. The tap then outlives its descriptor.
pub(crate) fn give_tap(tap: &OwnedFd, uid: u32) -> io::Result<()> {
    const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
    const TUNSETOWNER: libc::c_ulong = 0x4004_54cc;
    // SAFETY: both requests take numbers.
    let failed = unsafe {
        libc::ioctl(tap.as_raw_fd(), TUNSETOWNER, libc::c_ulong::from(uid)) == -1
            || libc::ioctl(tap.as_raw_fd(), TUNSETPERSIST, 1 as libc::c_ulong) == -1
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[repr(C)]
struct NftContext {
    _opaque: [u8; 0],
}

#[link(name = "nftables")]
unsafe extern "C" {
    fn nft_ctx_new(flags: u32) -> *mut NftContext;
    fn nft_ctx_free(context: *mut NftContext);
    fn nft_ctx_buffer_error(context: *mut NftContext) -> c_int;
    fn nft_ctx_get_error_buffer(context: *mut NftContext) -> *const c_char;
    fn nft_run_cmd_from_buffer(context: *mut NftContext, buffer: *const c_char) -> c_int;
}

/// Applies a ruleset as one batch, all or nothing, in the current network namespace.
pub(crate) fn apply_nft(ruleset: &str) -> io::Result<()> {
    // The library keeps state for the whole process, so one batch runs at a time.
    static ONE: Mutex<()> = Mutex::new(());
    let _guard = lock(&ONE);
    let ruleset = CString::new(ruleset).map_err(io::Error::other)?;
    on_new_thread(move || {
        close_descriptors()?;
        run_nft(&ruleset)
    })
}

/// Gives this thread a table of descriptors of its own, with only standard input, output and error.
/// libnftables waits by `select`, which ends the process for a descriptor of 1,024 or more.
fn close_descriptors() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    let (last, own) = (libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE);
    // SAFETY: other threads keep their table. The caller's thread is new and owns no descriptor.
    match unsafe { libc::syscall(libc::SYS_close_range, FIRST, last, own) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn run_nft(ruleset: &CStr) -> io::Result<()> {
    // SAFETY: this thread alone uses the context, and frees it once. The error buffer is copied
    // before that. The ruleset ends with NUL and outlives the call.
    unsafe {
        let context = nft_ctx_new(0);
        if context.is_null() {
            return Err(io::Error::other("nftables: cannot create a context"));
        }
        nft_ctx_buffer_error(context);
        let result = nft_run_cmd_from_buffer(context, ruleset.as_ptr());
        let said = nft_ctx_get_error_buffer(context);
        let said = if said.is_null() { c"" } else { CStr::from_ptr(said) };
        let outcome = if result == 0 {
            Ok(())
        } else {
            Err(io::Error::other(format!("nftables: {}", said.to_string_lossy().trim())))
        };
        nft_ctx_free(context);
        outcome
    }
}

/// Maps a file copy-on-write, as a VMM maps its guest's memory; it stays mapped.
#[cfg(test)]
pub(crate) fn map_private(file: &File, length: usize) -> io::Result<u64> {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new mapping, at an address that the kernel chooses; nothing refers to it.
    let at = unsafe { mmap(std::ptr::null_mut(), length, prot, flags, file, 0) }?;
    Ok(at as u64)
}

/// Returns random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    // Requests of up to 256 bytes are answered whole (`getrandom(2)`).
    if got == N { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Measures the processor's time stamp counter, in ticks per millisecond.
pub(crate) fn tsc_khz() -> u64 {
    // SAFETY: every x86-64 has the instruction.
    let ticks = || unsafe { core::arch::x86_64::_rdtsc() };
    let (start, first) = (Instant::now(), ticks());
    std::thread::sleep(Duration::from_millis(50));
    let (elapsed, last) = (start.elapsed(), ticks());
    let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
    last.wrapping_sub(first).saturating_mul(1000) / micros
}

/// Waits until a process ends; returns at once when it has ended. `started` guards against another
/// process that has the number by now.
pub(crate) async fn wait_end(pid: i32, started: u64) -> io::Result<()> {
    let Some(handle) = open_process(pid, started)? else { return Ok(()) };
    // SAFETY: the descriptor is owned by the registration and closed with it.
    let handle = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }?;
    let _ = handle.readable().await?;
    reap(pid, started);
    Ok(())
}

/// Reaps a process that has ended, if it is a child of this agent.
pub(crate) fn reap(pid: i32, started: u64) {
    let ended = start_time(pid) == Some(started) && is_zombie(pid);
    if let Some(pid) = Pid::from_raw(pid).filter(|_| ended) {
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
    }
}

/// Returns the exit status of an ended child of this agent, without reaping it. Returns `None` for
/// a process that runs, or that is no child of this agent.
pub(crate) fn exit_status(pid: i32) -> Option<String> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let ended = waitid(WaitId::Pid(Pid::from_raw(pid)?), options).ok()??;
    let status = ended.exit_status().map(|code| format!("exit status {code}"));
    status.or_else(|| Some(format!("signal {}", ended.terminating_signal()?)))
}

/// Kills a process if it is still the one that began at `started`.
pub(crate) fn kill_process(pid: i32, started: u64) -> io::Result<()> {
    let Some(handle) = open_process(pid, started)? else { return Ok(()) };
    match rustix::process::pidfd_send_signal(handle.as_fd(), Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Opens the process that began at `started`; `None` when it is gone.
///
/// # Errors
/// Fails when the check is not possible, for example without a free descriptor.
fn open_process(pid: i32, started: u64) -> io::Result<Option<OwnedFd>> {
    let Some(id) = Pid::from_raw(pid) else { return Ok(None) };
    let handle = match rustix::process::pidfd_open(id, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        opened => opened?,
    };
    // The comparison comes after the opening, so the handle refers to the compared process.
    Ok(is_there(pid, started)?.then_some(handle))
}

/// Reports whether the process that began at `started` is there, ended or not.
///
/// # Errors
/// Fails when the check is not possible, for example without a free descriptor.
pub(crate) fn is_there(pid: i32, started: u64) -> io::Result<bool> {
    let line = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            return Ok(false);
        }
        read => read?,
    };
    Ok(word(&line, STARTED).is_some_and(|found| found.parse() == Ok(started)))
}

/// Returns the model of this machine's processor. The model is read once, since the kernel may ask
/// each processor for its speed at each read.
pub(crate) fn cpu_model() -> String {
    static MODEL: OnceLock<String> = OnceLock::new();
    if let Some(model) = MODEL.get() {
        return model.clone();
    }
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map(|(_, name)| name.trim().to_owned()).unwrap_or_default();
    if model.is_empty() { model } else { MODEL.get_or_init(|| model).clone() }
}

/// Returns the id of this boot of the machine. The id is read once. Otherwise a process without a
/// free descriptor would count every machine as one of another boot.
pub(crate) fn boot_id() -> String {
    static ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = ID.get() {
        return id.clone();
    }
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let id = id.trim().to_owned();
    if id.is_empty() { id } else { ID.get_or_init(|| id).clone() }
}

/// Returns the memory that programs can get without swapping, in MiB (`MemAvailable`).
pub(crate) fn available_memory_mib() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// Returns the bytes of memory that belong to a process alone and to no file, with swapped pages
/// (`proc(5)`).
pub(crate) fn own_memory(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    Some((kib("RssAnon:")? + kib("VmSwap:")?) * 1024)
}

/// Index of the start time among the words after the second of a `stat` line (`proc(5)`, field 22).
const STARTED: usize = 19;

/// Returns the start time of a process, in clock ticks since the boot.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    stat(pid, STARTED)?.parse().ok()
}

/// Reports whether a process has ended and its parent has not reaped it yet.
pub(crate) fn is_zombie(pid: i32) -> bool {
    stat(pid, 0).is_some_and(|state| matches!(state.as_str(), "Z" | "X"))
}

/// Returns a word of a process's `stat` line, counted from the third.
fn stat(pid: i32, word: usize) -> Option<String> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    self::word(&line, word).map(str::to_owned)
}

/// Returns a word of a `stat` line, counted from the third.
fn word(line: &str, number: usize) -> Option<&str> {
    // The second word may hold spaces and parentheses; the last `)` ends it.
    line.rsplit_once(')')?.1.split_whitespace().nth(number)
}

/// Lists the processes of a capsule's machine in a folder. The environment at their start
/// identifies them. A jailer removes the environment, so a root directory below the folder
/// identifies its processes: `jails` holds such roots. Another agent on this machine may have a
/// machine of the same capsule.
pub(crate) fn processes_of(capsule: &str, dir: &Path, jails: &Path) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let wanted = format!("{CAPSULE_VAR}={capsule}");
    let (folder, here) = (format!("{DIR_VAR}="), dir.as_os_str().as_encoded_bytes());
    let roots = roots(jails);
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let vars = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let mut vars = vars.split(|byte| *byte == 0);
            let mut elsewhere = vars.clone().filter_map(|v| v.strip_prefix(folder.as_bytes()));
            let named =
                vars.any(|var| var == wanted.as_bytes()) && !elsewhere.any(|dir| dir != here);
            named || file_id(format!("/proc/{pid}/root")).is_some_and(|root| roots.contains(&root))
        })
        .collect()
}

/// Returns the ids of the folders named `root` below a folder.
fn roots(own: &Path) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut below = vec![(own.to_owned(), 0)];
    while let Some((dir, depth)) = below.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name() == "root" {
                found.extend(file_id(entry.path()));
            } else if depth < 3 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                below.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

/// Returns device and inode, which identify a file on this machine.
fn file_id(path: impl AsRef<Path>) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Resource, getrlimit, setrlimit};

    #[test]
    fn ruleset_is_applied_while_more_descriptors_are_open_than_select_can_take() {
        if !rustix::process::getuid().is_root() {
            return;
        }
        let limit = getrlimit(Resource::Nofile);
        let wide = rustix::process::Rlimit { current: Some(2048), ..limit };
        setrlimit(Resource::Nofile, wide).unwrap();
        let open: Vec<File> = (0..1100).map(|_| File::open("/dev/null").unwrap()).collect();
        in_new_namespace(|_| {
            apply_nft("add table ip many\n")?;
            let refused = apply_nft("add rule ip many inward accept\n").unwrap_err().to_string();
            assert!(refused.contains("No such file"), "{refused}");
            apply_nft("delete table ip many\n")
        })
        .unwrap();
        assert!(open.iter().all(|file| rustix::fs::fstat(file).is_ok()), "a file was closed");
    }
}
