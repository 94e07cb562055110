//! Hosts as this replica knows them: identity, address and load.
//!
//! ```text
//!  enrol::invite         enrol::register        mark_unreachable: silent for 90 s
//!  ────────────▶ pending ──────────────▶ online ─────────────────────────────────┐
//!                                         ▲  │  disown: a refresh token           ▼
//!                                         │  └───────────────────────────▶ unreachable
//!                                         │     was used twice                    │
//!                                         └───────────────────────────────────────┘
//!                                            lifecycle::heartbeat, enrol::register
//!
//!  any status ── lifecycle::delete ──▶ no row
//! ```
//! After `disown`, a host needs a new registration token (`enrol::invite_again`). `draining` is a
//! flag beside the status. A draining host gets no new capsules. `lifecycle::empty` pauses
//! its running capsules.
//!
//! Rows are read from the database every other second and whenever a host changes. A placement of
//! this replica counts at once. Several replicas together may place more on a host than fits. The
//! host then refuses, and another one is asked. For `SUSPECT`, placement avoids a host that did not
//! answer a create, if another one fits.

pub(crate) mod enrol;
mod jwt;
pub(crate) mod lifecycle;
pub(crate) mod tls;

pub(crate) use jwt::{Enrolled, Signer};

use crate::db;
use crate::error::{Error, Result};
use crate::scheduler::{self, HostView, NoFit, PlacementRequest, ResourceAmounts};
use daemon::{Tasks, lock};
use http::uri::Authority;
use sqlx::PgPool;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use types::{HostId, HostState};

/// Longest time between two reads.
const REFRESH: Duration = Duration::from_secs(2);
/// Shortest time between two reads, however often hosts change.
const GAP: Duration = Duration::from_millis(100);
/// Time for which a host that did not answer is avoided.
const SUSPECT: Duration = Duration::from_secs(10);

/// A host that has enrolled.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub id: HostId,
    /// Address, as host name and port.
    pub authority: Authority,
    /// Fingerprints of the certificates that the host may present.
    pub fingerprints: Vec<String>,
    /// Set if the host has reported lately.
    pub online: bool,
    pub draining: bool,
    pub templates: Vec<String>,
}

/// All hosts that have enrolled.
pub(crate) struct Fleet {
    db: PgPool,
    view: Mutex<View>,
    changed: Notify,
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct View {
    hosts: HashMap<HostId, Arc<Host>>,
    candidates: Vec<HostView>,
    /// Start of the last read.
    read: Option<Instant>,
    /// Placements that the last read may have missed.
    placed: Vec<(Instant, HostId, ResourceAmounts)>,
    suspects: HashMap<HostId, Instant>,
    picks: u64,
}

impl Fleet {
    pub(crate) fn new(db: PgPool) -> Self {
        Self { db, view: Mutex::default(), changed: Notify::new(), reading: Default::default() }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.view)
    }

    /// Keeps the hosts up to date: reads them periodically, and when a host changes.
    pub(crate) fn spawn_refresh(self: &Arc<Self>, tasks: &Tasks) {
        let (this, at) = (Arc::clone(self), tasks.clone());
        tasks.spawn(async move {
            loop {
                if let Err(error) = this.read().await {
                    tracing::warn!(%error, "cannot read the hosts from the database");
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

    /// Tells the reading task that a host has changed.
    pub(crate) fn tell(&self) {
        self.changed.notify_one();
    }

    /// Reads the hosts from the database. Skips the read if another one began after this call.
    pub(crate) async fn read(&self) -> sqlx::Result<()> {
        let asked = Instant::now();
        let _turn = self.reading.lock().await;
        if self.view().read.is_some_and(|began| began >= asked) {
            return Ok(());
        }
        let began = Instant::now();
        let rows = db::hosts::list(&self.db).await?;
        let (mut hosts, mut candidates) = (HashMap::new(), Vec::new());
        for row in rows {
            let id = row.id;
            // A host without an address has not enrolled.
            let Ok(authority) = row.address.parse::<Authority>() else { continue };
            let online = row.state == HostState::Online;
            candidates.push(HostView {
                id,
                open: online && !row.draining,
                team: row.team_id,
                room: row.room(),
                used: row.used(),
                tags: row.tags,
                isolation: row.isolation,
                templates: row.templates.clone(),
                store: row.store,
            });
            let fingerprints = row.cert_fingerprint.into_iter().chain(row.cert_previous).collect();
            let (draining, templates) = (row.draining, row.templates);
            let host = Host { id, authority, fingerprints, online, draining, templates };
            hosts.insert(id, Arc::new(host));
        }
        let mut view = self.view();
        // A row is written right after its host is picked, so the read covers earlier picks.
        view.placed.retain(|(at, ..)| *at > began);
        view.suspects.retain(|_, since| since.elapsed() < SUSPECT);
        (view.hosts, view.candidates, view.read) = (hosts, candidates, Some(began));
        let placed = view.placed.clone();
        for (_, host, size) in placed {
            view.count(host, size);
        }
        Ok(())
    }

    /// Returns an enrolled host. Reads the hosts again if this replica does not know it.
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

    /// Returns every host that has enrolled.
    pub(crate) fn all(&self) -> Vec<Arc<Host>> {
        self.view().hosts.values().cloned().collect()
    }

    /// Picks a host and counts the placement on it. Reads the hosts again before it reports that
    /// none fits.
    pub(crate) async fn place(&self, request: &PlacementRequest<'_>) -> Result<HostId> {
        if let Ok(host) = self.pick(request) {
            return Ok(host);
        }
        self.read().await?;
        self.pick(request).map_err(|why| Error::NoCapacity(why.to_string()))
    }

    fn pick(&self, request: &PlacementRequest<'_>) -> std::result::Result<HostId, NoFit> {
        let mut view = self.view();
        view.picks = view.picks.wrapping_add(1);
        let mut excluded = request.excluded.to_vec();
        excluded.extend(view.suspects.keys());
        let salt = view.picks ^ u64::from(std::process::id()).rotate_left(32);
        let trusted = PlacementRequest { excluded: &excluded, ..request.clone() };
        let picked = scheduler::pick(&view.candidates, &trusted, salt);
        // If no other host fits, a host that did not answer before may answer now.
        let id = picked.or_else(|_| scheduler::pick(&view.candidates, request, salt))?;
        view.placed.push((Instant::now(), id, request.size));
        view.count(id, request.size);
        Ok(id)
    }

    /// Returns an open host that has the store.
    pub(crate) fn with_store(&self) -> Option<HostId> {
        let view = self.view();
        view.candidates
            .iter()
            .find(|candidate| candidate.open && candidate.store)
            .map(|candidate| candidate.id)
    }

    /// Notes that a host did not answer.
    pub(crate) fn suspect(&self, id: HostId) {
        self.view().suspects.insert(id, Instant::now());
    }
}

impl View {
    fn count(&mut self, host: HostId, size: ResourceAmounts) {
        if let Some(candidate) = self.candidates.iter_mut().find(|candidate| candidate.id == host) {
            candidate.used.add(size);
        }
    }
}
