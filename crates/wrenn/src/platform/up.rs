//! `wrenn up`: runs a private PostgreSQL, the host agent and the control plane in one process. It
//! also makes a key for the commands. `wrenn stop` and `wrenn clean` undo it. Capsules outlive the
//! process: a stop leaves them, the next start adopts them, and a clean ends them.

use super::postgres::{self, Postgres};
use super::tls::Https;
use super::{listen, members, pki};
use crate::client_file::ClientFile;
use crate::output::{self, Progress};
use crate::settings::{Agent as AgentSettings, ControlPlane, Listening, Plaintext};
use crate::{images, sys};
use anyhow::Context;
use control_plane::App;
use daemon::Tasks;
use host_agent::Agent;
use host_agent::membership::{About, Membership, Registration};
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

const STOP: Duration = Duration::from_secs(30);
/// Time limit for the kernel to end a killed process.
const DYING: Duration = Duration::from_secs(5);
/// Time between two attempts to take a lock.
const LOOK: Duration = Duration::from_millis(20);

/// Settings of `wrenn up`.
pub(crate) struct Up {
    pub dir: PathBuf,
    pub envd: Option<PathBuf>,
    pub agent: AgentSettings,
    pub control_plane: ControlPlane,
    pub plaintext: Plaintext,
    pub client_file: PathBuf,
}

/// Runs the platform until a signal stops it.
pub(crate) async fn up(up: Up) -> anyhow::Result<()> {
    make_dir(&up.dir)?;
    let _running = Lock::wait(&up.dir, DYING)
        .await?
        .with_context(|| format!("a platform is already running in {}", up.dir.display()))?;
    let config = up.agent.config(&up.dir)?;
    let api = listen(up.control_plane.listen, "WRENN_CP_LISTEN_ADDR").await?;
    let https = Https::listen(&up.control_plane.tls).await?;
    let internal = listen(up.agent.listens(None), "WRENN_AGENT_LISTEN_ADDR").await?;
    if let (Some(envd), true) = (up.envd, config.driver.boots_images()) {
        let dir = up.dir.clone();
        tokio::task::spawn_blocking(move || images::build(&dir, &envd, false)).await??;
    }
    // The following steps write to the disk. On a full disk, they may use the reserve.
    host_agent::make_room(&up.dir);
    let postgres = match up.control_plane.database()? {
        Some(_) => None,
        None => Some(Postgres::start(&up.dir).await?),
    };
    let database = match &postgres {
        Some(private) => private.options(),
        None => up.control_plane.database()?.context("DATABASE_URL")?,
    };
    let tasks = Tasks::default();
    let authority = match up.control_plane.ca.read()? {
        Some(given) => given,
        None => pki::own(&up.dir)?,
    };
    tracing::info!(agent = %internal.local_addr()?, "the host agent listens");
    let agent = host_agent::start(config, &tasks).await?;
    let own = Own::serve(&up.dir, agent, &authority.0, internal, (up.plaintext, &tasks))?;
    let (plaintext, listens) = (up.plaintext, Listening::of(&api, https.as_ref())?);
    let settings = up.control_plane.to_settings(
        database,
        Some(authority),
        plaintext,
        listens,
        Some(&up.dir),
    )?;
    let app = App::start(settings, &tasks).await?;
    let url = reachable(listens.plain);
    introduce(&app, &url, &up.client_file).await?;
    if let Some(https) = https {
        https.serve(&app, &tasks)?;
    }
    hop::serve(api, app.clone().server(), app.limits(), &tasks);
    own.join(&app, &up.dir, &url, (plaintext, &tasks)).await?;
    app.wait_online().await?;
    output::line(&format!("Wrenn serves {url}"));
    daemon::terminated().await?;
    tasks.finish().await;
    // PostgreSQL stops last, so that everything the tasks wrote is kept.
    tokio::task::spawn_blocking(move || drop(postgres)).await?;
    Ok(())
}

/// Host agent in the same process as the control plane.
struct Own {
    about: About,
    address: String,
    serving: Serving,
}

enum Serving {
    /// The agent serves with credentials from an earlier start.
    Before(Box<Membership>),
    /// The agent has yet to register.
    Not(TcpListener, Agent),
}

impl Own {
    /// Serves the agent at once if it has valid credentials for its address. Thus the control plane
    /// finds its own host from the first request on.
    fn serve(
        dir: &Path,
        agent: Agent,
        trust: &str,
        listener: TcpListener,
        (plaintext, tasks): (Plaintext, &Tasks),
    ) -> anyhow::Result<Self> {
        let (about, address) = (agent.about(), members::own_address(&listener)?);
        let serving = match Membership::standing(dir, trust, &address) {
            Some(member) => {
                members::serve(listener, agent, &member, plaintext, tasks)?;
                Serving::Before(Box::new(member))
            }
            None => Serving::Not(listener, agent),
        };
        Ok(Self { about, address, serving })
    }

    /// Makes the agent a member of the platform. A host that was registered before keeps its
    /// identity.
    async fn join(
        self,
        app: &App,
        dir: &Path,
        url: &str,
        (plaintext, tasks): (Plaintext, &Tasks),
    ) -> anyhow::Result<()> {
        let Self { about, address, serving } = self;
        let asked = async |before: Option<&str>| {
            let (address, control_plane) = (address.clone(), url.to_owned());
            let token = app.invite_local(before).await?;
            anyhow::Ok(Registration { token, address, control_plane })
        };
        let member = match serving {
            Serving::Before(mut member) => {
                let cert = member.fingerprint().unwrap_or_default();
                if !app.has_enrolled(member.host(), &cert, &address).await? {
                    let asked = asked(Some(member.host())).await?;
                    member.register_anew(&asked, &about).await?;
                }
                *member
            }
            Serving::Not(listener, agent) => {
                let before = Membership::load(dir).ok();
                let asked = asked(before.as_ref().map(Membership::host)).await?;
                let member = Membership::register(dir, &asked, &about, &listener).await?;
                members::serve(listener, agent, &member, plaintext, tasks)?;
                member
            }
        };
        member.spawn(about.clone(), Some(url.to_owned()), tasks);
        anyhow::ensure!(
            about.is_member().await,
            "the platform did not accept the host agent; see the log"
        );
        Ok(())
    }
}

fn make_dir(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir)
        .with_context(|| format!("cannot create WRENN_DIR {}", dir.display()))?;
    // Mode 0711: PostgreSQL's user may pass through, and only we may list the folder.
    Ok(fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?)
}

/// Creates the platform's first key, or another key when the commands' file lost its own, and
/// writes the file. The first key is printed only on a terminal, since other outputs end in logs.
pub(super) async fn introduce(app: &App, url: &str, path: &Path) -> anyhow::Result<()> {
    let known = ClientFile::load(path);
    let api_key = match (app.bootstrap().await?, known.clone()) {
        (Some(first), _) => {
            if output::on_terminal() {
                output::line(&format!("API key (shown only once): {first}"));
            }
            first
        }
        (None, Some(ClientFile { api_key: Some(key), url: before, .. }))
            if app.accepts(&key).await? =>
        {
            if before == url {
                return Ok(());
            }
            key
        }
        (None, _) => app.add_key("commands on this machine").await?,
    };
    // The user's session and team belong to the platform, wherever it listens.
    let (session, team) = known.map_or((None, None), |known| (known.session, known.team));
    ClientFile { url: url.to_owned(), api_key: Some(api_key), session, team }.save(path)?;
    output::line(&format!("Commands on this machine use the key in {}", path.display()));
    Ok(())
}

/// Returns the URL at which clients on this machine reach a listener. An unspecified address
/// becomes loopback.
pub(super) fn reachable(listening: SocketAddr) -> String {
    let ip = listening.ip();
    let mut at = listening;
    if ip.is_unspecified() {
        at.set_ip(if ip.is_ipv4() {
            [127, 0, 0, 1].into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    format!("http://{at}")
}

/// Lock of a folder, held while a platform runs there. The kernel releases it however the process
/// ends.
struct Lock(File);

impl Lock {
    /// Takes the lock. Returns `None` when another process holds it.
    fn take(dir: &Path) -> anyhow::Result<Option<Self>> {
        let mut file = open_lock(dir)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        file.set_len(0)?;
        write!(file, "{}", std::process::id())?;
        Ok(Some(Self(file)))
    }

    /// Takes the lock, and waits for it up to `limit`: a killed process holds the lock until its
    /// end. Returns `None` when another process still holds it then.
    async fn wait(dir: &Path, limit: Duration) -> anyhow::Result<Option<Self>> {
        let begun = Instant::now();
        loop {
            let taken = Self::take(dir)?;
            if taken.is_some() || begun.elapsed() >= limit {
                return Ok(taken);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns the id of the process that holds the lock.
    fn holder(dir: &Path) -> anyhow::Result<i32> {
        let mut text = String::new();
        open_lock(dir)?.read_to_string(&mut text)?;
        text.trim().parse().context("the lock file contains no process id")
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.rewind().and_then(|()| self.0.set_len(0));
    }
}

fn open_lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("up.lock");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

/// Stops the platform that runs in `dir`; its capsules keep running. Returns whether a platform
/// ran.
pub(crate) fn stop(dir: &Path) -> anyhow::Result<bool> {
    if !dir.exists() {
        return Ok(false);
    }
    let mut ran = false;
    if Lock::take(dir)?.is_none() {
        ran = true;
        let progress = Progress::start("stopping the platform");
        sys::signal(Lock::holder(dir)?, rustix::process::Signal::TERM)?;
        let limit = Instant::now() + STOP;
        while Lock::take(dir)?.is_none() {
            anyhow::ensure!(Instant::now() < limit, "the platform did not stop; see its log");
            std::thread::sleep(LOOK);
        }
        progress.done();
    }
    postgres::stop_leftover(dir)?;
    Ok(ran)
}

/// Stops the platform, ends its capsules and removes everything that it made on this machine.
pub(crate) async fn clean(
    dir: &Path,
    agent: &AgentSettings,
    client_file: &Path,
) -> anyhow::Result<()> {
    let at = dir.to_owned();
    tokio::task::spawn_blocking(move || stop(&at)).await??;
    if !dir.exists() {
        return Ok(());
    }
    let progress = Progress::start("removing capsules, networks and files");
    host_agent::clean(agent.config(dir)?).await?;
    remove(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    let _ = fs::remove_file(client_file);
    // The folder may hold files of others, so it is removed only when empty.
    let _ = client_file.parent().map(fs::remove_dir);
    progress.done();
    Ok(())
}

/// Removes a folder with its contents. A folder that a disk is mounted at is emptied and stays.
fn remove(dir: &Path) -> io::Result<()> {
    let is_empty = || fs::read_dir(dir).is_ok_and(|mut left| left.next().is_none());
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy && is_empty() => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_platform_runs_per_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::take(dir.path()).unwrap();
        assert!(held.is_some());
        assert!(Lock::take(dir.path()).unwrap().is_none());
        let ours = i32::try_from(std::process::id()).unwrap();
        assert_eq!(Lock::holder(dir.path()).unwrap(), ours);
        drop(held);
        assert!(Lock::take(dir.path()).unwrap().is_some());
    }

    #[tokio::test]
    async fn platform_waits_for_a_lock_holder_that_ends() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::take(dir.path()).unwrap();
        assert!(Lock::wait(dir.path(), Duration::ZERO).await.unwrap().is_none());
        // The first attempt finds the lock held, and a later attempt takes it.
        let ends = async {
            tokio::task::yield_now().await;
            drop(held);
        };
        let (waited, ()) = tokio::join!(Lock::wait(dir.path(), DYING), ends);
        assert!(waited.unwrap().is_some());
    }

    #[test]
    fn unspecified_listen_address_is_reached_on_loopback() {
        let url = |at: &str| reachable(at.parse().unwrap());
        assert_eq!(url("0.0.0.0:80"), "http://127.0.0.1:80");
        assert_eq!(url("[::]:80"), "http://[::1]:80");
        assert_eq!(url("10.1.2.3:80"), "http://10.1.2.3:80");
    }
}
