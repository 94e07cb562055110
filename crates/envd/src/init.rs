//! Brings the guest up as PID 1, then leaves two processes. PID 1 reaps orphans, and resets a
//! machine that its kernel cannot power off. Its child serves.
//!
//! No failure here is silent: a fatal error is written to the console, which the host keeps, and
//! the machine is reset.

mod builder;
mod drives;
mod folders;
mod image;
mod limits;
mod modules;
mod mounts;
mod names;
pub(crate) mod network;
mod power;
mod step;

use crate::console::console;
use crate::guest::Held;
use crate::{identity, sys};
use drives::Words;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Time for the last write of every file system's data.
const SYNC: Duration = Duration::from_secs(5);

/// Prepares the guest. Returns the guest's own files, in the child that is to serve.
pub(crate) fn bring_up() -> Held {
    let prepared = prepare().unwrap_or_else(|error| {
        console(&format!("envd: cannot start the guest: {error:#}"));
        reset()
    });
    let held = match prepared {
        Prepared::Capsule(held) => *held,
        Prepared::Builder(disk) => return builder::supervise(disk),
    };
    match sys::fork() {
        Ok(None) => held,
        Ok(Some(server)) => {
            power::watch();
            reap(server)
        }
        Err(error) => {
            console(&format!("envd: cannot start the server: {error}"));
            reset();
        }
    }
}

/// A prepared guest of one of two kinds.
enum Prepared {
    Capsule(Box<Held>),
    /// A guest that runs the steps of a build, with its own disk.
    Builder(OwnedFd),
}

fn prepare() -> anyhow::Result<Prepared> {
    mounts::kernel_file_systems()?;
    modules::load()?;
    let words = Words::read()?;
    let disk = match words.builds {
        true => builder::prepare()?,
        false => mounts::enter_root(&words)?,
    };
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    raise_file_limit();
    if words.builds {
        network::configure()?;
        limits::set();
        return Ok(Prepared::Builder(disk));
    }
    mounts::runtime_file_systems()?;
    modules::make_devices();
    network::configure()?;
    names::update(&disk, &network::servers());
    let ids = identity::show()?;
    limits::set();
    Ok(Prepared::Capsule(Box::new(Held { disk, ids: Some(ids), build: None })))
}

fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = Rlimit { current: Some(65_536), maximum: Some(1_048_576) };
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Waits for every child, for ever. Resets the machine when the server ends.
fn reap(server: rustix::process::Pid) -> ! {
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == server => {
                console(&format!("envd: the server ended: {status:?}"));
                reset();
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                console(&format!("envd: cannot wait for child processes: {error}"));
                reset();
            }
        }
    }
}

/// Resets the machine, which the host sees as the guest's end. A hanging file system does not hold
/// the reset up.
fn reset() -> ! {
    let (done, written) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("sync".to_owned()).stack_size(64 * 1024);
    let started = thread.spawn(move || {
        rustix::fs::sync();
        let _ = done.send(());
    });
    if started.is_ok() {
        let _ = written.recv_timeout(SYNC);
    }
    restart()
}

/// Resets the machine without a write to its disks, which may be gone.
fn restart() -> ! {
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
