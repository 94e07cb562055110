//! A jail that a process puts itself into before it reads hostile bytes. Only descriptors that are
//! open already remain of use: no path, no network, no other program.
//!
//! Each of the walls holds alone: an empty root in a mount namespace, an unprivileged user, a
//! ruleset of Landlock without any path, and a list of system calls. Landlock is missing on some
//! kernels, and then the other walls stand.
#![expect(unsafe_code, reason = "namespaces, Landlock and seccomp have no safe form")]

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{Gid, Uid, UnshareFlags};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// User and group of jailed processes: above the ids that distributions and capsules use.
const JAILED: u32 = 2_000_000_019;
/// Most memory of a jailed process, in bytes of its address space.
const MEMORY: u64 = 1 << 30;
/// Most seconds of a processor.
const PROCESSOR: u64 = 30 * 60;
/// Bytes that a file may have beyond its limit, so that the limit is reported and not enforced.
const SLACK: u64 = 64 << 20;
/// Step down in the scheduler's weight.
const NICE: i32 = 10;

/// Puts this process, which has one thread, into the jail. No file grows beyond `file_bytes`.
///
/// # Errors
/// Fails with the wall that cannot be built. The process must then end.
pub(crate) fn enter(file_bytes: u64) -> io::Result<()> {
    let told =
        |what: &'static str| move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    // The kernel ends this process before others, and prefers others for the processor.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let _ = rustix::process::nice(NICE);
    namespaces().map_err(told("namespaces"))?;
    if rustix::process::getuid().is_root() {
        let give_up = || {
            rustix::thread::set_thread_groups(&[])?;
            rustix::thread::set_thread_gid(Gid::from_raw(JAILED))?;
            rustix::thread::set_thread_uid(Uid::from_raw(JAILED))
        };
        give_up().map_err(|e| told("user")(e.into()))?;
    }
    rustix::thread::set_no_new_privs(true).map_err(|e| told("privileges")(e.into()))?;
    landlock().map_err(told("Landlock"))?;
    // Landlock needed a descriptor, and from here on there are no more.
    limits(file_bytes).map_err(|e| told("limits")(e.into()))?;
    seccomp().map_err(told("seccomp"))
}

/// Leaves the machine's network and files. Without root's rights, a user namespace may be refused.
/// The list of system calls then stands alone.
fn namespaces() -> io::Result<()> {
    let own =
        UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    let is_root = rustix::process::getuid().is_root();
    let flags = if is_root { own } else { own | UnshareFlags::NEWUSER };
    // SAFETY: no descriptor table is shared by this, and the process has one thread.
    match unsafe { rustix::thread::unshare_unsafe(flags) } {
        Err(_) if !is_root => return Ok(()),
        done => done?,
    }
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // The folder only carries the empty root. It exists, since this program was started through it.
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("none", "/proc", "tmpfs", flags, c"size=4k,mode=0555")?;
    rustix::process::chdir("/proc")?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

fn limits(file_bytes: u64) -> rustix::io::Result<()> {
    for (resource, most) in [
        (Resource::As, MEMORY),
        (Resource::Fsize, file_bytes.saturating_add(SLACK)),
        (Resource::Cpu, PROCESSOR),
        (Resource::Nofile, 3),
        (Resource::Nproc, 0),
        (Resource::Core, 0),
    ] {
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}

/// Makes an empty ruleset of Landlock hold: no path may be opened, and no port used.
fn landlock() -> io::Result<()> {
    /// `struct landlock_ruleset_attr` of the kernel's `landlock.h`.
    #[repr(C)]
    struct Ruleset {
        files: u64,
        network: u64,
        scoped: u64,
    }
    const ASK_VERSION: libc::c_ulong = 1;
    let none = std::ptr::null::<Ruleset>();
    // SAFETY: with this flag the call takes no structure, and returns a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, ASK_VERSION) };
    // Rights by version: 13 at first, then REFER, TRUNCATE, and (with version 5) IOCTL_DEV.
    let (rights, size): (u32, usize) = match version {
        ..=0 => return Ok(()),
        1 => (13, 8),
        2 => (14, 8),
        3 => (15, 8),
        4 => (15, 16),
        5 => (16, 16),
        6.. => (16, 24),
    };
    let ruleset = Ruleset { files: (1 << rights) - 1, network: 3, scoped: 3 };
    // SAFETY: the structure lives through the call, and `size` bytes of it are known to this kernel.
    let made =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const ruleset, size, 0) };
    let made = RawFd::try_from(made).map_err(io::Error::other)?;
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else owns it.
    let made = unsafe { OwnedFd::from_raw_fd(made) };
    let number = std::os::fd::AsRawFd::as_raw_fd(&made);
    // SAFETY: the call takes two numbers.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, number, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// System calls of a jailed process. They act on open descriptors, own memory and time alone.
const CALLS: [libc::c_long; 28] = [
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_poll,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
/// System calls that are allowed unless they make memory executable.
const MAPPINGS: [libc::c_long; 2] = [libc::SYS_mmap, libc::SYS_mprotect];

/// Makes a filter hold: all calls but those of the lists fail with `EPERM`.
fn seccomp() -> io::Result<()> {
    let program = filter();
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    let (set, all_threads) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
    // SAFETY: the kernel copies the program, which lives through the call.
    match unsafe { libc::syscall(libc::SYS_seccomp, set, all_threads, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the filter as instructions of BPF. It reads `struct seccomp_data` of the kernel's
/// `seccomp.h`: the call's number at 0, the architecture at 4, the third argument at 32.
fn filter() -> Vec<libc::sock_filter> {
    /// `AUDIT_ARCH_X86_64` of the kernel's `audit.h`.
    const X86_64: u32 = 0xC000_003E;
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let step = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt,
        jf,
        k,
    };
    let number = |call: libc::c_long| u32::try_from(call).unwrap_or(u32::MAX);
    let mut program = vec![
        step(LOAD, 4, 0, 0),
        step(EQUAL, X86_64, 1, 0),
        step(RETURN, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
        step(LOAD, 0, 0, 0),
    ];
    for call in CALLS {
        program.push(step(EQUAL, number(call), 0, 1));
        program.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    }
    for call in MAPPINGS {
        program.push(step(EQUAL, number(call), 0, 4));
        program.push(step(LOAD, 32, 0, 0));
        program.push(step(ANY_BIT, libc::PROT_EXEC.cast_unsigned(), 0, 1));
        program.push(step(RETURN, refused, 0, 0));
        program.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    }
    program.push(step(RETURN, refused, 0, 0));
    program
}
