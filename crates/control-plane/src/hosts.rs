//! The hosts, as this replica knows them: who they are, where they are, how full they are.
//!
//! Read from the database every other second and whenever a host changes; what this replica
//! places meanwhile is counted at once. Several replicas may place more on a host than fits: the
//! host has the last word, and another is asked.

pub(crate) mod enrol;
mod jwt;
pub(crate) mod life;
pub(crate) mod tls;

pub(crate) use jwt::{Enrolled, Signer};

use crate::db;
use crate::error::{Error, Result};
use crate::scheduler::{self, Ask, Machine, NoFit, Size};
use daemon::Tasks;
use http::uri::Authority;
use sqlx::PgPool;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use types::{HostId, TeamId};

/// Between two readings.
const REFRESH: Duration = Duration::from_secs(2);
/// And at least, however often hosts change.
const GAP: Duration = Duration::from_millis(100);
/// How long nothing is placed on a host that did not answer.
const SUSPECT: Duration = Duration::from_secs(10);

/// A host that has enrolled.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub id: HostId,
    /// Where it is reached.
    pub authority: Authority,
    /// Certificates that it may show.
    pub fingerprints: Vec<String>,
    /// Whether it was heard of lately.
    pub online: bool,
    pub draining: bool,
    pub templates: Vec<String>,
}

/// Every host.
pub(crate) struct Fleet {
    db: PgPool,
    view: Mutex<View>,
    changed: Notify,
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct View {
    hosts: HashMap<HostId, Arc<Host>>,
    machines: Vec<Machine>,
    /// When the last reading began.
    read: Option<Instant>,
    /// What was placed and may not have been read yet.
    placed: Vec<(Instant, HostId, Size)>,
    suspects: HashMap<HostId, Instant>,
    picks: u64,
}

impl Fleet {
    pub(crate) fn new(db: PgPool) -> Self {
        Self { db, view: Mutex::default(), changed: Notify::new(), reading: Default::default() }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads it anew, now and then and when it is told of a change.
    pub(crate) fn keep_true(self: &Arc<Self>, tasks: &Tasks) {
        let (this, at) = (Arc::clone(self), tasks.clone());
        tasks.spawn(async move {
            loop {
                if let Err(error) = this.read().await {
                    tracing::warn!(%error, "reading the hosts");
                }
                tokio::time::sleep(GAP).await;
                tokio::select! {
                    () = this.changed.notified() => {}
                    () = tokio::time::sleep(REFRESH) => {}
                    () = at.stopping() => return,
                }
            }
        });
    }

    /// Says that a host has changed.
    pub(crate) fn tell(&self) {
        self.changed.notify_one();
    }

    /// Reads it anew, unless another has begun to since this was asked for.
    pub(crate) async fn read(&self) -> sqlx::Result<()> {
        let asked = Instant::now();
        let _turn = self.reading.lock().await;
        if self.view().read.is_some_and(|began| began >= asked) {
            return Ok(());
        }
        let began = Instant::now();
        let rows = db::hosts::list(&self.db).await?;
        let (mut hosts, mut machines) = (HashMap::new(), Vec::new());
        for row in rows {
            let id = row.id();
            // One without an address has not enrolled.
            let Ok(authority) = row.address.parse::<Authority>() else { continue };
            let online = row.status == "online";
            machines.push(Machine {
                id,
                open: online && !row.draining,
                team: row.team_id.map(TeamId),
                room: row.room(),
                used: row.used(),
                tags: row.tags,
                isolation: row.isolation.parse().unwrap_or_default(),
                templates: row.templates.clone(),
                store: row.store,
            });
            let fingerprints = row.cert_fingerprint.into_iter().chain(row.cert_previous).collect();
            let (draining, templates) = (row.draining, row.templates);
            let host = Host { id, authority, fingerprints, online, draining, templates };
            hosts.insert(id, Arc::new(host));
        }
        let mut view = self.view();
        // Rows are entered right after a host was picked: those before were read.
        view.placed.retain(|(at, ..)| *at > began);
        view.suspects.retain(|_, since| since.elapsed() < SUSPECT);
        (view.hosts, view.machines, view.read) = (hosts, machines, Some(began));
        let placed = view.placed.clone();
        for (_, host, size) in placed {
            view.count(host, size);
        }
        Ok(())
    }

    /// A host that has enrolled; one that this replica has not heard of is looked for.
    pub(crate) async fn find(&self, id: HostId) -> Result<Arc<Host>> {
        if let Some(host) = self.known(id) {
            return Ok(host);
        }
        self.read().await?;
        self.known(id).ok_or(Error::HostUnavailable)
    }

    pub(crate) fn known(&self, id: HostId) -> Option<Arc<Host>> {
        self.view().hosts.get(&id).cloned()
    }

    /// Every host that has enrolled.
    pub(crate) fn all(&self) -> Vec<Arc<Host>> {
        self.view().hosts.values().cloned().collect()
    }

    /// Picks a host and counts what is placed on it. Before it is said that there is none, it is
    /// looked whether there is one by now.
    pub(crate) async fn place(&self, ask: &Ask<'_>) -> Result<HostId> {
        if let Ok(host) = self.pick(ask) {
            return Ok(host);
        }
        self.read().await?;
        self.pick(ask).map_err(|why| Error::NoCapacity(why.to_string()))
    }

    fn pick(&self, ask: &Ask<'_>) -> std::result::Result<HostId, NoFit> {
        let mut view = self.view();
        view.picks = view.picks.wrapping_add(1);
        let mut without = ask.without.to_vec();
        without.extend(view.suspects.keys());
        let salt = view.picks ^ u64::from(std::process::id()).rotate_left(32);
        let trusted = Ask { without: &without, ..ask.clone() };
        let picked = scheduler::pick(&view.machines, &trusted, salt);
        // Where nobody else can take it, one that did not answer may answer now.
        let id = picked.or_else(|_| scheduler::pick(&view.machines, ask, salt))?;
        view.placed.push((Instant::now(), id, ask.size));
        view.count(id, ask.size);
        Ok(id)
    }

    /// A host that has the store.
    pub(crate) fn with_store(&self) -> Option<HostId> {
        let view = self.view();
        view.machines.iter().find(|machine| machine.open && machine.store).map(|machine| machine.id)
    }

    /// Notes that a host did not answer.
    pub(crate) fn suspect(&self, id: HostId) {
        self.view().suspects.insert(id, Instant::now());
    }
}

impl View {
    fn count(&mut self, host: HostId, size: Size) {
        if let Some(machine) = self.machines.iter_mut().find(|machine| machine.id == host) {
            machine.used.add(size);
        }
    }
}
