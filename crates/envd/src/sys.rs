//! System calls for which rustix has no safe form. No other module has unsafe code.
#![expect(unsafe_code, reason = "fork, exec hooks and network ioctls have no safe form")]

pub(crate) mod spawn;
pub(crate) mod spawner;

use rustix::process::{Pid, Signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use tokio::io::unix::AsyncFd;

/// Makes the kernel end this process early when memory runs out. Allocates nothing.
fn write_oom_score() {
    const PATH: &CStr = c"/proc/self/oom_score_adj";
    // SAFETY: the path ends with NUL, the buffer outlives the call, the descriptor is ours.
    unsafe {
        let fd = libc::open(PATH.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, c"100".as_ptr().cast(), 3);
            libc::close(fd);
        }
    }
}

/// Blocks signals of the calling thread. The programs that it starts inherit this until they have
/// their own memory.
fn block_signals() {
    // SAFETY: plain system calls on a set that lives here.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}

/// Gives the allocator's free memory back to the kernel.
pub(crate) fn trim_memory() {
    // SAFETY: the call has no conditions.
    unsafe { libc::malloc_trim(0) };
}

/// Registers a descriptor for readiness with the runtime.
pub(crate) fn async_fd<T: AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: each owner passed here owns its descriptor, and never changes or closes it before it
    // is dropped. The registration is dropped first.
    Ok(unsafe { AsyncFd::register(owner) }?)
}

/// Mixes bytes into the kernel's randomness and reseeds all its generators (`random(4)`).
pub(crate) fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    const MOST: usize = 512;
    #[repr(C)]
    struct Pool {
        bits: libc::c_int,
        size: libc::c_int,
        bytes: [u8; MOST],
    }
    if bytes.len() < 32 || bytes.len() > MOST {
        return Err(io::Error::other("randomness must be 32 to 512 bytes"));
    }
    let size = i32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut pool = Pool { bits: size * 8, size, bytes: [0; MOST] };
    pool.bytes[..bytes.len()].copy_from_slice(bytes);
    let random = File::options().write(true).custom_flags(libc::O_NONBLOCK).open("/dev/urandom")?;
    ioctl(&random, RNDADDENTROPY, &mut pool)?;
    ioctl(&random, RNDRESEEDCRNG, &mut 0_i32)
}

/// Freezes a file system (`FIFREEZE`). The kernel first writes all its data to the disk.
pub(crate) fn freeze_file_system(root: &impl AsFd) -> io::Result<()> {
    ioctl(root, 0xC004_5877, &mut 0_i32)
}

/// Thaws a frozen file system (`FITHAW`).
pub(crate) fn thaw_file_system(root: &impl AsFd) -> io::Result<()> {
    ioctl(root, 0xC004_5878, &mut 0_i32)
}

/// Forks the process. Only for a process with a single thread.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: called while the process has one thread, so the child's memory is consistent.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Kills every process but this one, which must be the first.
pub(crate) fn kill_others() {
    // SAFETY: a plain system call.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Gives the process mounts and System V memory of its own. Only for a process with a single
/// thread.
pub(crate) fn own_mounts() -> io::Result<()> {
    // SAFETY: called while the process has one thread, which shares its memory with no other.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWIPC) }?)
}

/// Gives the calling thread a working folder of its own.
pub(crate) fn own_folder() -> io::Result<()> {
    // SAFETY: the thread's folder, root and mask become its own. Nothing else changes.
    Ok(unsafe { unshare_unsafe(UnshareFlags::FS) }?)
}

/// Loads a kernel module from an open file.
pub(crate) fn load_module(file: &File) -> io::Result<()> {
    rustix::system::finit_module(file, c"", 0)?;
    Ok(())
}

/// Signals a whole process group.
pub(crate) fn kill_group(leader: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(leader).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(rustix::process::kill_process_group(pid, signal)?)
}

/// Gives an interface an address and a netmask, and brings it up.
pub(crate) fn configure_interface(name: &str, address: [u8; 4], mask: [u8; 4]) -> io::Result<()> {
    let socket = control_socket()?;
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_addr = socket_address(address);
    ioctl(&socket, libc::SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_addr = socket_address(mask);
    ioctl(&socket, libc::SIOCSIFNETMASK, &mut request)?;
    raise_interface(name)
}

/// Brings an interface up.
pub(crate) fn raise_interface(name: &str) -> io::Result<()> {
    let socket = control_socket()?;
    let mut request = interface_request(name);
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or(i16::MAX);
    ioctl(&socket, libc::SIOCSIFFLAGS, &mut request)
}

/// Makes `gateway` the default route.
pub(crate) fn default_route(gateway: [u8; 4]) -> io::Result<()> {
    let socket = control_socket()?;
    // SAFETY: all-zero is a valid rtentry.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address([0; 4]);
    route.rt_genmask = socket_address([0; 4]);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    ioctl(&socket, libc::SIOCADDRT, &mut route)
}

fn control_socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketType, socket};
    Ok(socket(AddressFamily::INET, SocketType::DGRAM, None)?)
}

fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = CString::new(name).unwrap_or_default();
    for (slot, byte) in request.ifr_name.iter_mut().take(15).zip(name.as_bytes()) {
        *slot = byte.cast_signed();
    }
    request
}

fn socket_address(address: [u8; 4]) -> libc::sockaddr {
    // SAFETY: all-zero is a valid sockaddr.
    let mut out: libc::sockaddr = unsafe { std::mem::zeroed() };
    out.sa_family = 2; // AF_INET
    for (slot, byte) in out.sa_data[2..6].iter_mut().zip(address) {
        *slot = byte.cast_signed();
    }
    out
}

fn ioctl<T>(socket: &impl AsFd, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    let fd: RawFd = socket.as_fd().as_raw_fd();
    // SAFETY: each caller passes the structure that its request reads, alive for the call.
    match unsafe { libc::ioctl(fd, request, std::ptr::from_mut(argument)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Sets the kernel's host name.
pub(crate) fn set_host_name(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}
