//! The process of the fork server, and the lines that it speaks over a socket.
//!
//! ```text
//! ▶ {"start": {"id", "connection_file", "cwd", "envs"}}    forks, from the server's imports
//! ◀ {"started": ID, "pid": N}                              the child waits
//! ▶ {"go": ID}                                             the child becomes a kernel
//! ▶ {"drop": ID}                                           the child ends
//! ◀ {"failed": ID, "why": TEXT, "folder": PATH}            the child could not
//! ◀ {"ended": ID, "status": N}                             raw wait status
//! ▶ {"epoch": HEX}                                         seeds further children
//! ◀ {"ready": true, "folders": [PATH]}                     first line: folders of packages
//! ```
//! The server is the user's, so its lines are not trusted: each has a limit, and a pid is checked.

use crate::kernel::tail::Tail;
use crate::lock::lock;
use crate::process::{FolderError, Process, Program, User};
use crate::settings;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Pair;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Time for the server's imports.
const READY_TIME: Duration = Duration::from_secs(120);
/// Time for a fork.
const FORK_TIME: Duration = Duration::from_secs(30);
/// Longest look at the folders of packages.
const LOOK_TIME: Duration = Duration::from_secs(2);
/// Most bytes of a line.
const LINE_MAX: u64 = 64 << 10;
/// Most folders of packages that are watched.
const FOLDERS_MAX: usize = 64;
/// Name of the server's control group.
const GROUP: &str = "python";
/// `PATH` of the server itself. Its kernels have their own.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running fork server.
pub(super) struct Server {
    /// Ends the server with the last reference to it.
    _process: Process,
    outbox: mpsc::UnboundedSender<String>,
    shared: Arc<Mutex<Shared>>,
    /// Folders of packages, and when they were changed last.
    folders: Vec<PathBuf>,
    changed: Option<Vec<Option<SystemTime>>>,
    errors: Tail,
}

/// State that the reader of the server's lines changes.
#[derive(Default)]
struct Shared {
    ended: bool,
    starts: HashMap<String, oneshot::Sender<Result<i32, ForkError>>>,
    /// Kernels that run. Each keeps the server alive, which reports its end.
    kernels: HashMap<String, (oneshot::Sender<i32>, Arc<Server>)>,
}

/// A fork that nobody has taken yet. A drop gives it up, also in the middle of a wait.
struct Pending<'a> {
    server: &'a Arc<Server>,
    id: &'a str,
    taken: bool,
}

impl Pending<'_> {
    /// Takes the outcome of the fork.
    fn take(mut self, outcome: Result<i32, ForkError>) -> Result<i32, ForkError> {
        self.taken = outcome.is_ok();
        outcome
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut shared = lock(&self.server.shared);
        let removed = (shared.starts.remove(self.id), shared.kernels.remove(self.id));
        drop(shared);
        drop(removed);
        self.server.abandon(self.id);
    }
}

/// A forked process, which waits.
pub(super) struct Forked {
    pub pid: i32,
    /// Raw wait status of its end.
    pub status: oneshot::Receiver<i32>,
}

/// Reason why a fork did not become a kernel.
#[derive(Debug)]
pub(super) enum ForkError {
    Folder(FolderError),
    Other(String),
    /// The server has ended.
    Ended,
    Late,
}

impl ForkError {
    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Folder(error) => io::Error::new(ErrorKind::NotFound, error),
            Self::Other(why) => io::Error::other(why),
            Self::Ended => io::Error::new(ErrorKind::UnexpectedEof, "the fork server ended"),
            Self::Late => io::Error::new(ErrorKind::TimedOut, "the fork server does not answer"),
        }
    }
}

/// A line of the server.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    ready: bool,
    folders: Vec<PathBuf>,
    started: Option<String>,
    pid: i32,
    failed: Option<String>,
    why: String,
    folder: Option<String>,
    ended: Option<String>,
    status: i32,
}

impl Server {
    /// Starts a server and waits for its imports.
    ///
    /// # Errors
    /// Returns an error with the server's last words if it ends, or takes too long.
    pub(super) async fn start(python: &settings::Python, user: &User) -> io::Result<Arc<Self>> {
        let (ours, theirs) = Pair::pair()?;
        ours.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(ours)?.into_split();
        let (errors, ends) = Tail::pipe()?;
        let program = program(python, user, theirs.into(), ends.writer);
        let process = Process::start(program, user, GROUP).await?;
        let mut reader = BufReader::new(reader);
        let folders = match timeout(READY_TIME, ready(&mut reader)).await {
            Ok(Some(folders)) => folders,
            Ok(None) => return Err(not_started("ended", &errors).await),
            Err(_) => return Err(not_started("was not ready in time", &errors).await),
        };
        let folders: Vec<PathBuf> = folders.into_iter().take(FOLDERS_MAX).collect();
        let changed = changes(folders.clone()).await;
        let (outbox, queue) = mpsc::unbounded_channel();
        let shared = Arc::<Mutex<Shared>>::default();
        tokio::spawn(write(writer, queue));
        tokio::spawn(read(reader, Arc::clone(&shared)));
        Ok(Arc::new(Self { _process: process, outbox, shared, folders, changed, errors }))
    }

    pub(super) fn has_ended(&self) -> bool {
        lock(&self.shared).ended
    }

    /// Reports whether the server runs, and has imported what is installed.
    pub(super) async fn is_current(&self) -> bool {
        let now = changes(self.folders.clone()).await;
        let is_same = now.is_none() || self.changed.is_none() || now == self.changed;
        is_same && !self.has_ended()
    }

    /// Returns the server's last words, as an addition to an error's text.
    pub(super) async fn explain(&self) -> String {
        self.errors.explain().await
    }

    /// Sends a line. A server that has ended gets none.
    pub(super) fn send(&self, line: &Value) {
        let _ = self.outbox.send(format!("{line}\n"));
    }

    /// Asks for a fork, and waits for its pid.
    pub(super) async fn fork(
        self: &Arc<Self>,
        id: &str,
        request: &Value,
    ) -> Result<Forked, ForkError> {
        let (started, pid) = oneshot::channel();
        let (ended, status) = oneshot::channel();
        {
            let mut shared = lock(&self.shared);
            if shared.ended {
                return Err(ForkError::Ended);
            }
            shared.starts.insert(id.to_owned(), started);
            shared.kernels.insert(id.to_owned(), (ended, Arc::clone(self)));
        }
        let pending = Pending { server: self, id, taken: false };
        self.send(request);
        match timeout(FORK_TIME, pid).await {
            Ok(Ok(outcome)) => Ok(Forked { pid: pending.take(outcome)?, status }),
            Ok(Err(_)) => Err(ForkError::Ended),
            Err(_) => Err(ForkError::Late),
        }
    }

    /// Ends a fork that still waits.
    pub(super) fn abandon(&self, id: &str) {
        self.send(&json!({"drop": id}));
    }
}

/// Makes the server's program. Only the server itself gets the folder of our package.
fn program(python: &settings::Python, user: &User, socket: OwnedFd, errors: OwnedFd) -> Program {
    let home = user.home.display().to_string();
    let path = python.path.display().to_string();
    let envs = [
        ("PATH", PATH),
        ("HOME", home.as_str()),
        ("USER", user.name.as_str()),
        ("LANG", "C.UTF-8"),
        ("PYTHONPATH", path.as_str()),
    ];
    let mut command = python.command.iter().map(OsString::from);
    Program {
        path: command.next().unwrap_or_default(),
        args: command.chain(python.preload.iter().map(OsString::from)).collect(),
        envs: BTreeMap::from(envs.map(|(name, value)| (name.to_owned(), value.to_owned()))),
        cwd: "/".into(),
        files: vec![Some(socket), None, Some(errors)],
        oom_score: 0,
    }
}

async fn not_started(what: &str, errors: &Tail) -> io::Error {
    io::Error::other(format!("the fork server {what}{}", errors.explain().await))
}

/// Waits for the server's first line, and returns its folders of packages.
async fn ready(reader: &mut BufReader<OwnedReadHalf>) -> Option<Vec<PathBuf>> {
    let line = next_line(reader).await?;
    line.ready.then_some(line.folders)
}

/// Reads a line. Returns `None` at the end, and for a line that is too long or none of ours.
async fn next_line(reader: &mut BufReader<OwnedReadHalf>) -> Option<Line> {
    let mut bytes = Vec::new();
    reader.take(LINE_MAX).read_until(b'\n', &mut bytes).await.ok()?;
    serde_json::from_slice(bytes.strip_suffix(b"\n")?).ok()
}

async fn write(mut writer: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<String>) {
    while let Some(line) = queue.recv().await {
        if writer.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Hands the server's lines on until its end. Then nobody waits for it any longer.
async fn read(mut reader: BufReader<OwnedReadHalf>, shared: Arc<Mutex<Shared>>) {
    while let Some(line) = next_line(&mut reader).await {
        let done = lock(&shared).take(line);
        drop(done);
    }
    let mut shared = lock(&shared);
    shared.ended = true;
    let (starts, kernels) =
        (std::mem::take(&mut shared.starts), std::mem::take(&mut shared.kernels));
    drop(shared);
    // The last reference to the server may be among them.
    drop((starts, kernels));
}

impl Shared {
    /// Takes a line. Returns a server whose kernel has ended, to be dropped without the lock.
    fn take(&mut self, line: Line) -> Option<Arc<Server>> {
        if let Some(sender) = line.started.and_then(|id| self.starts.remove(&id)) {
            let _ = sender.send(Ok(line.pid));
        }
        if let Some(sender) = line.failed.and_then(|id| self.starts.remove(&id)) {
            let why = line.why;
            let error = match line.folder {
                Some(folder) => ForkError::Folder(FolderError { folder, why }),
                None => ForkError::Other(why),
            };
            let _ = sender.send(Err(error));
        }
        let ended = line.ended?;
        if let Some(sender) = self.starts.remove(&ended) {
            let _ = sender.send(Err(ForkError::Other("its process ended at once".to_owned())));
        }
        let (sender, server) = self.kernels.remove(&ended)?;
        let _ = sender.send(line.status);
        Some(server)
    }
}

/// Returns the times at which folders were changed. Returns `None` if a file system of the guest
/// does not answer.
async fn changes(folders: Vec<PathBuf>) -> Option<Vec<Option<SystemTime>>> {
    let changed = |path: &PathBuf| std::fs::metadata(path).and_then(|found| found.modified()).ok();
    let look = tokio::task::spawn_blocking(move || folders.iter().map(changed).collect());
    timeout(LOOK_TIME, look).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts a server that is a shell script.
    async fn server(script: &str) -> io::Result<Arc<Server>> {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let python = settings::Python { command, path: "/none".into(), preload: vec![] };
        Server::start(&python, &User::current()).await
    }

    #[tokio::test]
    async fn server_that_ends_at_once_is_an_error_with_its_last_words() {
        let error = server("echo no module >&2; exit 1").await.err().unwrap().to_string();
        assert_eq!(error, "the fork server ended; it wrote: no module");
    }

    #[tokio::test]
    async fn fork_waits_for_its_own_line_and_ends_with_the_server() {
        let script = r#"exec >&0; echo '{"ready":true,"folders":["/tmp","/no/such"]}'
            read line; echo '{"started":"other","pid":9}'; echo '{"started":"a","pid":7}'
            echo '{"ended":"a","status":256}'
            read line; echo '{"failed":"b","why":"denied","folder":"/x"}'
            read line; read line; echo '{"ended":"k","status":9}'
            read line"#;
        let server = server(script).await.unwrap();
        assert!(!server.has_ended());
        let forked = server.fork("a", &Value::Null).await.ok().unwrap();
        assert_eq!((forked.pid, forked.status.await), (7, Ok(256)));
        let failed = server.fork("b", &Value::Null).await.err().unwrap().into_io();
        assert_eq!(failed.to_string(), "folder '/x' cannot be entered: denied");
        let killed = server.fork("k", &Value::Null).await.err().unwrap().into_io();
        assert_eq!(killed.to_string(), "its process ended at once");
        let ended = server.fork("c", &Value::Null).await.err().unwrap();
        assert!(matches!(ended, ForkError::Ended), "{ended:?}");
        assert!(server.has_ended() && !server.is_current().await);
        assert!(matches!(server.fork("d", &Value::Null).await, Err(ForkError::Ended)));
    }

    #[tokio::test]
    async fn changed_folder_of_packages_makes_the_server_old() {
        let folder = tempfile::tempdir().unwrap();
        let folders = format!("[\"{}\"]", folder.path().display());
        let script = format!("echo '{{\"ready\":true,\"folders\":{folders}}}' >&0; read line");
        let server = server(&script).await.unwrap();
        assert!(server.is_current().await);
        let time = SystemTime::now() + Duration::from_secs(9);
        std::fs::File::open(folder.path()).unwrap().set_modified(time).unwrap();
        assert!(!server.is_current().await);
    }
}
