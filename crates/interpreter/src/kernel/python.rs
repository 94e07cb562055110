//! Client of the fork server of Python's kernels. The server is a process of the user's with
//! libraries imported. A new kernel is a fork of it, and answers in a fraction of the time that
//! Python's imports take.
//!
//! The server is started anew after its end, and after a change of installed packages. An old server
//! lives on until the last of its kernels has ended, since it reports the status of their ends.

mod server;

use super::jupyter::{self, Dialect, Facts, Files, InterruptMode, Transport};
use super::launch::failed;
use super::{SEED, StartError, StartSpec, Started};
use crate::kernel::message::hex;
use crate::lock::lock;
use crate::process::{Process, User};
use crate::settings::Settings;
use serde_json::json;
use server::{ForkError, Server};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// Starts Python's kernels.
pub(super) struct Python {
    settings: Arc<Settings>,
    state: Mutex<State>,
    /// Held while a server starts, so that only one does.
    starting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    server: Option<Arc<Server>>,
    /// Randomness of the machine's newest epoch, as hex digits.
    seed: Option<String>,
}

impl Python {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Self { settings, state: Mutex::default(), starting: tokio::sync::Mutex::default() }
    }

    /// Starts a kernel. A server that dies meanwhile is replaced once.
    pub(super) async fn start(&self, spec: &StartSpec) -> Result<Started, StartError> {
        let fail = |error| failed(spec, error, "");
        let user = User::of(self.settings.user.as_deref()).map_err(fail)?;
        let mut server = self.server(&user).await.map_err(fail)?;
        let mut outcome = self.fork(&server, spec, &user).await;
        if outcome.is_err() && server.has_ended() {
            server = self.server(&user).await.map_err(fail)?;
            outcome = self.fork(&server, spec, &user).await;
        }
        match outcome {
            Ok(started) => Ok(started),
            Err(error) => Err(failed(spec, error, &server.explain().await)),
        }
    }

    /// Waits until the server is up.
    pub(super) async fn ready(&self) -> Result<(), StartError> {
        let made = match User::of(self.settings.user.as_deref()) {
            Ok(user) => self.server(&user).await.map(|_| ()),
            Err(error) => Err(error),
        };
        let failure = |error: io::Error| StartError::Failed {
            language: "python".into(),
            why: error.to_string(),
        };
        made.map_err(failure)
    }

    /// Tells the server that its machine is a copy.
    pub(super) fn epoch(&self, seed: [u8; SEED]) {
        let mut state = self.state();
        let seed = hex(&seed);
        if let Some(server) = &state.server {
            server.send(&json!({"epoch": seed}));
        }
        state.seed = Some(seed);
    }

    /// Returns the server, started anew if it must be.
    async fn server(&self, user: &User) -> io::Result<Arc<Server>> {
        let _held = self.starting.lock().await;
        let known = self.state().server.clone();
        if let Some(server) = known
            && server.is_current().await
        {
            return Ok(server);
        }
        let server = Server::start(&self.settings.python, user).await?;
        let mut state = self.state();
        if let Some(seed) = &state.seed {
            server.send(&json!({"epoch": seed}));
        }
        state.server = Some(Arc::clone(&server));
        Ok(server)
    }

    /// Forks a kernel and waits until it answers.
    async fn fork(
        &self,
        server: &Arc<Server>,
        spec: &StartSpec,
        user: &User,
    ) -> io::Result<Started> {
        let files = Files::make(&self.settings.run, &spec.id)?;
        let unused = files.unused();
        let (process, connection) = fork(server, spec, user, &files).await?;
        unused.keep();
        let (interrupt, dialect) = (InterruptMode::Signal, Dialect::Python);
        jupyter::open(process, Facts { connection, files, interrupt, dialect }, &spec.envs).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Forks a kernel, moves it into its control group, and lets it go on.
async fn fork(
    server: &Arc<Server>,
    spec: &StartSpec,
    user: &User,
    files: &Files,
) -> io::Result<(Process, jupyter::Connection)> {
    let connection = files.connect(Transport::Ipc, user)?;
    let id = files.id();
    let request = json!({"start": {
        "id": id, "connection_file": files.connection_file(), "cwd": spec.cwd, "envs": spec.envs,
    }});
    let forked = server.fork(&id, &request).await.map_err(ForkError::into_io)?;
    let attached = Process::attach(forked.pid, user, &spec.id, forked.status);
    let process = attached.inspect_err(|_| server.abandon(&id))?;
    server.send(&json!({"go": id}));
    Ok((process, connection))
}
