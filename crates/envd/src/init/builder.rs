//! PID 1 of a builder: a guest that runs the steps of a build. It holds the drives and the disk, and
//! starts one server after another, each in a root of its own. Between two roots it ends every other
//! process and writes the disk, so that nothing of a step but its files remains.

use super::mounts::{self, make_dir};
use super::{drives, modules, power, reset, step};
use crate::build::{Build, FAILED, NEXT, Next, Told};
use crate::console::console;
use crate::guest::Held;
use crate::root::Root;
use crate::{cgroup, sys};
use anyhow::Context;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, WaitStatus};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Longest message of a root's process, in bytes.
const TOLD_MAX: u64 = 1 << 20;
/// Time in which folders that nobody needs are removed. The host waits longer for a root.
const TIDY: Duration = Duration::from_secs(20);
/// Time in which all processes of a root must end.
const END: Duration = Duration::from_secs(30);

/// Mounts the drives and the disk. Returns the disk.
pub(super) fn prepare() -> anyhow::Result<OwnedFd> {
    if let Err(error) = mounts::image() {
        console(&format!("envd: this builder has no image of its own: {error:#}"));
    }
    drives::mount_all()?;
    let disk = mounts::disk()?;
    mounts::control_groups()?;
    if let Err(error) = modules::load_common() {
        console(&format!("envd: cannot load some kernel modules: {error:#}"));
    }
    mounts::free_initramfs();
    step::prepare()?;
    make_dir(crate::build::copy::ORIGINS)?;
    Ok(disk)
}

/// Starts a server for each root that is asked for. Returns in each of these processes.
pub(super) fn supervise(disk: OwnedFd) -> Held {
    let (mut next, mut error) = (Next::default(), None);
    loop {
        let (told, tell) = pipe_with(PipeFlags::CLOEXEC)
            .unwrap_or_else(|error| give_up("cannot make a pipe", &error));
        match sys::fork() {
            Ok(None) => {
                drop(told);
                return begin(&next, error, disk, tell.into());
            }
            Ok(Some(server)) => {
                drop(tell);
                let status = wait(server);
                if let Err(error) = clear(&disk) {
                    give_up("cannot end a root", &error);
                }
                (next, error) = decide(status, told.into());
            }
            Err(error) => give_up("cannot start the server", &error),
        }
    }
}

fn give_up(doing: &str, error: &dyn std::fmt::Display) -> ! {
    console(&format!("envd: {doing}: {error}"));
    reset()
}

/// Makes the root of a new process. Ends the process if this fails.
fn begin(next: &Next, error: Option<String>, disk: OwnedFd, tell: File) -> Held {
    let made = match next.folder {
        0 => {
            tidy(next);
            Root::open("/").map(|outside| Held {
                disk,
                ids: None,
                build: Some(Build::new(0, outside, tell, None, error)),
            })
        }
        _ => tell.try_clone().context("cannot copy the pipe").and_then(|tell_failure| {
            step::enter(next, disk, tell).inspect_err(|error| {
                let told = Told::Failed(format!("the root {}: {error:#}", next.folder));
                let _ = told.write(&tell_failure);
            })
        }),
    };
    let held = made.unwrap_or_else(|error| {
        console(&format!("envd: cannot make the root {}: {error:#}", next.folder));
        std::process::exit(FAILED)
    });
    power::watch();
    held
}

/// Removes folders that the request for a neutral root names, and the caches. A folder that stays
/// costs space alone, since nothing refers to it. So a large one holds up the build's end only for
/// some time.
fn tidy(next: &Next) {
    let numbers = next.remove.clone();
    let (done, removed) = std::sync::mpsc::channel();
    let remove = move || {
        if let Err(error) = step::remove(&numbers).and_then(|()| step::remove_scratch()) {
            console(&format!("envd: cannot remove the folder of a step: {error:#}"));
        }
        let _ = done.send(());
    };
    if std::thread::Builder::new().name("tidy".to_owned()).spawn(remove).is_ok() {
        let _ = removed.recv_timeout(TIDY);
    }
}

/// Waits for the end of the server, and reaps all other processes until then.
fn wait(server: Pid) -> WaitStatus {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == server => return status,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => give_up("cannot wait for child processes", &error),
        }
    }
}

/// Ends all processes of a root, removes their control groups and writes the disk.
fn clear(disk: &OwnedFd) -> anyhow::Result<()> {
    let until = Instant::now() + END;
    let mut pause = Duration::from_millis(1);
    sys::kill_others();
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Err(Errno::CHILD) => break,
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => {
                anyhow::ensure!(Instant::now() < until, "a process did not end within {END:?}");
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
                sys::kill_others();
            }
            Err(error) => return Err(error).context("cannot wait for child processes"),
        }
    }
    cgroup::clean();
    rustix::fs::syncfs(disk).context("cannot write the disk")
}

/// Decides on the root after a server's end. The machine ends unless the server asked for a root, or
/// could not make its own.
fn decide(status: WaitStatus, told: File) -> (Next, Option<String>) {
    let mut message = Vec::new();
    let read = told.take(TOLD_MAX).read_to_end(&mut message);
    let message = read.ok().and_then(|_| serde_json::from_slice(&message).ok());
    match (status.exit_status(), message) {
        (Some(NEXT), Some(Told::Next(next))) => (next, None),
        (Some(FAILED), Some(Told::Failed(error))) => (Next::default(), Some(error)),
        _ => give_up("the server ended", &format!("{status:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe_with(message: &Told) -> File {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        message.write(&writer.into()).unwrap();
        reader.into()
    }

    fn exited(code: i32) -> WaitStatus {
        let status = std::process::Command::new("sh").args(["-c", &format!("exit {code}")]).spawn();
        let pid = Pid::from_raw(i32::try_from(status.unwrap().id()).unwrap());
        rustix::process::waitpid(pid, WaitOptions::empty()).unwrap().unwrap().1
    }

    #[test]
    fn next_root_follows_a_request_and_a_failed_root_leads_to_the_neutral_one() {
        let next = Next { folder: 4, image: Some(0), ..Next::default() };
        let decided = decide(exited(NEXT), pipe_with(&Told::Next(next.clone())));
        assert_eq!(decided, (next, None));
        let decided = decide(exited(FAILED), pipe_with(&Told::Failed("why".into())));
        assert_eq!(decided, (Next::default(), Some("why".into())));
    }
}
