//! The private PostgreSQL: a cluster in the platform's folder, made by the system's programs. It
//! runs as an unprivileged user. Clients reach it by a Unix socket in a folder that only this user
//! and root can enter.
//!
//! The server is a child of this process and is restarted when it dies. A server that an earlier
//! process left is stopped first, so at most one runs.

use crate::output::Progress;
use crate::sys::{self, Run};
use anyhow::Context;
use daemon::lock;
use rustix::process::Signal;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const NAME: &str = "wrenn";
/// Maximum length of a Unix socket's path, in bytes (`unix(7)`).
const SOCKET_MAX: usize = 107;
const READY: Duration = Duration::from_secs(60);
/// Time after which a full disk is logged as the reason why the server does not answer yet.
const TOLD: Duration = Duration::from_secs(2);
/// Time between the server's end and its next start.
const AGAIN: Duration = Duration::from_millis(500);
/// Number of bytes of the server's log that are reported when it ends.
const WORDS: usize = 1000;
const SETTINGS: [&str; 6] = [
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "shared_buffers=32MB",
    "max_connections=64",
    "logging_collector=off",
    "log_min_error_statement=panic",
];

/// A running cluster.
pub(super) struct Postgres {
    state: Arc<Mutex<State>>,
    watcher: Option<JoinHandle<()>>,
    cluster: Cluster,
}

#[derive(Default)]
struct State {
    pid: i32,
    stopping: bool,
}

#[derive(Clone)]
struct Cluster {
    programs: PathBuf,
    home: PathBuf,
    owner: Option<(u32, u32)>,
}

impl Postgres {
    /// Starts the cluster in `dir` and waits until it answers. Creates the cluster first if
    /// necessary.
    ///
    /// # Errors
    /// When something is missing, with the fix, or when PostgreSQL fails, with its message.
    pub(super) async fn start(dir: &Path) -> anyhow::Result<Self> {
        let cluster = Cluster::find(dir)?;
        let made = cluster.clone();
        let child = tokio::task::spawn_blocking(move || {
            made.ensure()?;
            made.end_leftover()?;
            made.spawn()
        });
        let child = child.await??;
        let state = Arc::new(Mutex::new(State { pid: pid(&child), stopping: false }));
        let (watched, at) = (Arc::clone(&state), cluster.clone());
        let watcher = std::thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(move || watch(&at, &watched, child))?;
        let this = Self { state, watcher: Some(watcher), cluster };
        this.wait_ready().await?;
        Ok(this)
    }

    /// Returns the options for a connection to the platform's database.
    pub(super) fn options(&self) -> PgConnectOptions {
        self.cluster.options(NAME)
    }

    /// Waits until the server answers, and creates the database if necessary. The time limit
    /// restarts while the disk is full: the watcher starts the server again until there is room.
    async fn wait_ready(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let (mut limit, mut told) = (begun + READY, false);
        loop {
            match self.cluster.options("postgres").connect().await {
                Ok(mut connection) => {
                    let known = "SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = 'wrenn')";
                    if !sqlx::query_scalar(known).fetch_one(&mut connection).await? {
                        sqlx::query("CREATE DATABASE wrenn").execute(&mut connection).await?;
                    }
                    return Ok(connection.close().await?);
                }
                Err(_) if host_agent::is_full(&self.cluster.home) => {
                    limit = Instant::now() + READY;
                    if !told && begun.elapsed() > TOLD {
                        told = true;
                        tracing::error!(
                            dir = %self.cluster.home.display(),
                            "the disk is full; the private PostgreSQL waits for free space"
                        );
                    }
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) if Instant::now() > limit => {
                    let log = self.cluster.log();
                    return Err(error).context(format!(
                        "the private PostgreSQL does not answer; see its log {}",
                        log.display()
                    ));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(30)).await,
            }
        }
    }
}

impl Drop for Postgres {
    /// Stops the server in its "fast" mode: it rolls transactions back and writes everything to
    /// disk.
    fn drop(&mut self) {
        let pid = {
            let mut state = lock(&self.state);
            state.stopping = true;
            state.pid
        };
        let _ = sys::signal(pid, Signal::INT);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

/// Waits for the server's end and restarts it, until told to stop. A failed start, for example on a
/// full disk, is repeated for as long as necessary.
fn watch(cluster: &Cluster, state: &Mutex<State>, child: Child) {
    let mut running = Some(child);
    loop {
        if let Some(mut child) = running.take() {
            let ended = child.wait();
            if lock(state).stopping {
                return;
            }
            tracing::error!(
                ?ended,
                said = cluster.last_words(),
                "PostgreSQL ended; starting it again"
            );
        }
        // Workers of the ended server may hold its shared memory for a moment.
        std::thread::sleep(AGAIN);
        host_agent::make_room(cluster.home.parent().unwrap_or(&cluster.home));
        let mut state = lock(state);
        if state.stopping {
            return;
        }
        match cluster.spawn() {
            Ok(started) => {
                state.pid = pid(&started);
                running = Some(started);
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "cannot start PostgreSQL");
            }
        }
    }
}

/// Stops a server of the cluster in `dir` that an earlier process left.
pub(super) fn stop_leftover(dir: &Path) -> anyhow::Result<()> {
    if !dir.join("postgres").exists() {
        return Ok(());
    }
    Cluster::find(dir)?.end_leftover()
}

impl Cluster {
    fn find(dir: &Path) -> anyhow::Result<Self> {
        let home = std::path::absolute(dir)?.join("postgres");
        let socket = home.join("run/.s.PGSQL.5432");
        anyhow::ensure!(
            socket.as_os_str().len() <= SOCKET_MAX,
            "the path WRENN_DIR {} is too long for PostgreSQL's socket; choose a shorter path",
            dir.display()
        );
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let versions = versions.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let made = fs::read_to_string(home.join("data/PG_VERSION")).ok();
        let version = match made.and_then(|text| text.trim().parse().ok()) {
            Some(version) => Some(version),
            None => versions.max(),
        };
        let programs = version.map(|v| PathBuf::from(format!("/usr/lib/postgresql/{v}/bin")));
        let programs = programs.filter(|dir| dir.join("postgres").exists()).context(
            "PostgreSQL is not installed; run `apt-get install postgresql`, or set DATABASE_URL",
        )?;
        Ok(Self { programs, home, owner: unprivileged() })
    }

    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    fn log(&self) -> PathBuf {
        self.home.join("postgres.log")
    }

    fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(self.home.join("run"))
            .port(5432)
            .username(NAME)
            .database(database)
    }

    /// Creates the cluster in a staging folder, unless it exists.
    fn ensure(&self) -> anyhow::Result<()> {
        let run = self.home.join("run");
        fs::create_dir_all(&run).with_context(|| format!("cannot create {}", run.display()))?;
        for dir in [&self.home, &run] {
            self.give(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        }
        if self.data().exists() {
            return Ok(());
        }
        let progress = Progress::start("creating a private PostgreSQL");
        let staged = self.home.join("data.new");
        if staged.exists() {
            fs::remove_dir_all(&staged)?;
        }
        // Local connections need no password, since only the folder's owner and root can reach the
        // socket.
        let args =
            ["-U", NAME, "-E", "UTF8", "--locale=C", "--auth-local=trust", "--auth-host=reject"];
        Run::new(&self.programs.join("initdb"), &args)
            .arg("-D")
            .arg(staged.to_str().context("WRENN_DIR is not valid UTF-8")?)
            .dir(&self.home)
            .user(self.owner)
            .output()?;
        fs::rename(&staged, self.data())?;
        File::open(&self.home)?.sync_all()?;
        progress.done();
        Ok(())
    }

    fn give(&self, path: &Path) -> anyhow::Result<()> {
        let (uid, gid) = self.owner.unzip();
        Ok(std::os::unix::fs::chown(path, uid, gid)?)
    }

    /// Returns the end of the server's log, on one line.
    fn last_words(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let last = String::from_utf8_lossy(&log[log.len().saturating_sub(WORDS)..]).into_owned();
        last.trim().lines().collect::<Vec<_>>().join("; ")
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let log = File::create(self.log())?;
        let data = self.data();
        let run = self.home.join("run");
        let text = |path: &Path| Some(path.to_str()?.to_owned());
        let program = self.programs.join("postgres");
        let mut server = Run::new(&program, &[]).dir(&self.home).user(self.owner);
        for (flag, path) in [("-D", &data), ("-k", &run)] {
            server = server.arg(flag).arg(text(path).context("WRENN_DIR is not valid UTF-8")?);
        }
        for setting in SETTINGS {
            server = server.arg("-c").arg(setting);
        }
        server.spawn(log)
    }

    /// Stops a server of this cluster that another process started.
    fn end_leftover(&self) -> anyhow::Result<()> {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let Some(pid) = file.lines().next().and_then(|line| line.trim().parse::<i32>().ok()) else {
            return Ok(());
        };
        let limit = Instant::now() + Duration::from_secs(30);
        if self.is_ours(pid) {
            tracing::info!(pid, "stopping the PostgreSQL of an earlier process");
            sys::signal(pid, Signal::INT)?;
        }
        while self.is_ours(pid) {
            anyhow::ensure!(Instant::now() < limit, "PostgreSQL (process {pid}) did not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn is_ours(&self, pid: i32) -> bool {
        let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let data = self.data();
        args.split(|byte| *byte == 0).any(|arg| arg == data.as_os_str().as_encoded_bytes())
    }
}

/// Returns the user and group that the server runs as. `None` keeps ours, which is not root:
/// PostgreSQL refuses root.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = users.lines().find_map(|line| {
        let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    Some(user.unwrap_or((65_534, 65_534)))
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap_or(0)
}
