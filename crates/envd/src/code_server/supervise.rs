//! Starts the interpreter, and starts it again after its end.

use super::link::{self, QUEUE};
use crate::console::console;
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::open::{OPEN_FLAGS, open_regular};
use crate::process::child::Child;
use crate::sys::spawn::{self, Plan};
use crate::sys::spawner::{Outcome, Request};
use crate::{jobs, users};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Settings of the interpreter. An image with this file has one.
const SETTINGS: &str = "/etc/wrenn/interpreter.json";
/// Executable of this process, in whatever file system it is.
const SELF: &str = "/proc/self/exe";
/// Time between an end and the next start. Each end in a row doubles it, up to the longest.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Time after which a running interpreter counts as healthy.
const HEALTHY: Duration = Duration::from_secs(60);

/// Runs the interpreter as long as the guest lives, if the image has one. Call it before the first
/// program runs. The port is bound at once, so that early requests wait instead of failing.
pub(crate) fn spawn(guest: &Arc<Guest>) {
    if !guest.in_guest || guest.build.is_some() || open_regular(Path::new(SETTINGS)).is_err() {
        return;
    }
    match listen() {
        Ok(listener) => {
            let guest = Arc::clone(guest);
            tokio::spawn(async move { run(&guest, &listener).await });
        }
        Err(error) => console(&format!("envd: cannot listen for the code interpreter: {error}")),
    }
}

/// Listens at the interpreter's port. The socket outlives each interpreter.
fn listen() -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, protocol::INTERPRETER_PORT))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Starts the interpreter again and again. Its kernels outlive it, and the next one finds them.
async fn run(guest: &Guest, listener: &TcpListener) {
    let mut pause = PAUSE;
    loop {
        let started = tokio::time::Instant::now();
        match begin(guest, listener).await {
            Ok((child, stream)) => serve(guest, &child, stream).await,
            Err(error) => console(&format!("envd: cannot start the code interpreter: {error}")),
        }
        if started.elapsed() > HEALTHY {
            pause = PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Talks to a running interpreter until its end.
async fn serve(guest: &Guest, child: &Child, stream: UnixStream) {
    let (queue, requests) = mpsc::channel(QUEUE);
    guest.code.set_queue(Some(queue));
    tell_settings(guest);
    let (ended, ()) = tokio::join!(child.wait(), link::talk(stream, requests));
    guest.code.set_queue(None);
    console(&match ended {
        Ok(status) => format!("envd: the code interpreter ended: {status}"),
        Err(error) => format!("envd: cannot wait for the code interpreter: {error}"),
    });
}

/// Tells the interpreter the settings that `/init` may change.
pub(crate) fn tell_settings(guest: &Guest) {
    let settings = guest.settings();
    guest.code.tell(json!({ "settings": {
        "token": settings.token,
        "envs": settings.envs,
        "workdir": settings.default_workdir,
        "path": settings.template_path,
    } }));
}

/// Starts the interpreter as root, in envd's own control group. Its descriptors are the socket of
/// the conversation, the listening socket and the console.
async fn begin(guest: &Guest, listener: &TcpListener) -> Result<(Child, UnixStream)> {
    let fail = |error: std::io::Error| Error::internal(error.to_string());
    let flags = SocketFlags::CLOEXEC;
    let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let (ours, theirs) = pair.map_err(|error| fail(error.into()))?;
    let console = console_or_null(guest).await?;
    let request = Request {
        plan: Box::new(plan),
        stdio: [theirs.as_raw_fd(), listener.as_raw_fd(), console.as_raw_fd()],
        cgroup: None,
        place: guest.jobs.starts.free_place().await?,
    };
    let outcome = guest.spawner.ask(request)?.outcome().await;
    drop((theirs, console));
    let pid = match outcome {
        Some(Outcome::Runs(pid)) => pid,
        Some(Outcome::Failed(failure, _)) => return Err(fail(failure.error)),
        Some(Outcome::Refused(error)) => return Err(error),
        None => return Err(Error::internal("the thread that starts programs has failed")),
    };
    let stream = std::os::unix::net::UnixStream::from(ours);
    stream.set_nonblocking(true).map_err(fail)?;
    Ok((Child::new(pid), UnixStream::from_std(stream).map_err(fail)?))
}

fn plan() -> Result<Plan> {
    let envs = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
    let lives = spawn::Child { terminal: false, alone: false };
    let root = users::get("0:0")?;
    let plan = Plan::new(SELF, &["interpreter".to_owned()], &envs, Path::new("/"), root, lives);
    plan.map_err(|_| Error::internal("the plan of the code interpreter contains a NUL"))
}

/// Opens the guest's console, where the host reads why an interpreter ended.
async fn console_or_null(guest: &Guest) -> Result<OwnedFd> {
    let open = || {
        let mut options = std::fs::File::options();
        // Root in the guest may have put a named pipe there.
        options.write(true).custom_flags(OPEN_FLAGS);
        let opened = options.open("/dev/console").or_else(|_| options.open("/dev/null"));
        opened.map(OwnedFd::from).map_err(|error| Error::internal(error.to_string()))
    };
    guest.jobs.looks.run(jobs::LIMIT, open).await
}
