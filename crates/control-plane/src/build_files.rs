//! Files that clients upload for COPY steps. A host keeps them, and the database knows which. A team
//! has bounded room on a host: archives that no build under way needs leave for new ones, those first
//! that were not used for the longest time.

use crate::app::App;
use crate::audit::Actor;
use crate::db;
use crate::db::build_files::Wanted;
use crate::db::templates::Template;
use crate::error::{Error, Result};
use crate::scheduler::{Holders, PlacementRequest, ResourceAmounts};
use axum::body::Body;
use futures::StreamExt;
use recipe::steps::is_hash;
use sqlx::PgConnection;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use types::resources::Resources;
use types::{HostId, TeamId};

/// Most bytes of one archive, and of a team's archives on one host.
pub(crate) const FILE_MAX: u64 = 2 << 30;
const TEAM_MAX: u64 = 10 << 30;
/// Time in which a host removes archives that made room. The host removes the rest by its own rule.
const REMOVE: Duration = Duration::from_secs(10);
/// Most archives that are removed at once.
const AT_ONCE: usize = 4;

/// Checks the form of a hash.
pub(crate) fn check_hash(hash: &str) -> Result<()> {
    match is_hash(hash) {
        true => Ok(()),
        false => Err(Error::invalid_as_e2b("files hash")),
    }
}

/// Returns the size of a team's archive, if a host says that it has it. A template is built where it
/// was built before, so its host must have the archive.
pub(crate) async fn find(
    app: &App,
    team: TeamId,
    template: Option<&Template>,
    hash: &str,
) -> Result<Option<u64>> {
    check_hash(hash)?;
    let wanted = template.and_then(|template| template.build_host_id);
    let wanted = wanted.filter(|host| is_online(app, *host));
    let hosts = db::build_files::hosts(&app.db, team, hash).await?;
    let fits = |host| is_online(app, host) && wanted.is_none_or(|wanted| wanted == host);
    for (host, bytes) in hosts.into_iter().filter(|(host, _)| fits(*host)) {
        // The host may have removed the archive since its last report.
        if matches!(app.agent(host).has_build_files(team, hash).await, Ok(true)) {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// Streams an archive to the host that builds, and records it there. Returns its size.
pub(crate) async fn put(
    app: &App,
    team: TeamId,
    template: Option<&Template>,
    hash: &str,
    length: Option<u64>,
    body: Body,
) -> Result<u64> {
    check_hash(hash)?;
    if length.is_some_and(|length| length > FILE_MAX) {
        return Err(too_large());
    }
    let _share = app.load.team(team)?;
    let host = host(app, team, template).await?;
    make_room(app, Wanted { team, hash, host, bytes: length.unwrap_or(0) }).await?;
    let bytes = send(app, host, team, hash, length, body).await?;
    let recorded = record(app, Wanted { team, hash, host, bytes }, template).await;
    if matches!(recorded, Err(Error::LimitReached(..))) {
        remove(app, host, team, vec![hash.to_owned()]).await;
    }
    recorded.map(|()| bytes)
}

/// Makes room for an archive before it is sent.
async fn make_room(app: &App, wanted: Wanted<'_>) -> Result<()> {
    let mut tx = app.db.begin().await?;
    let evicted = claim(&mut tx, wanted).await?;
    tx.commit().await?;
    remove(app, wanted.host, wanted.team, evicted).await;
    Ok(())
}

/// Records an archive that a host has. Other uploads may have taken the room meanwhile, so the room
/// is made anew in the same transaction.
async fn record(app: &App, wanted: Wanted<'_>, template: Option<&Template>) -> Result<()> {
    let Wanted { team, hash, host, bytes } = wanted;
    let mut tx = app.db.begin().await?;
    let evicted = claim(&mut tx, wanted).await?;
    db::build_files::insert(&mut *tx, team, hash, host, bytes).await?;
    if let Some(template) = template {
        db::templates::set_build_host(&mut *tx, template.id, host).await?;
    }
    tx.commit().await?;
    remove(app, host, team, evicted).await;
    Ok(())
}

/// Removes the rows of the archives that make room. Refuses an archive that does not fit beside
/// those that builds under way need.
async fn claim(tx: &mut PgConnection, wanted: Wanted<'_>) -> Result<Vec<String>> {
    // Files have no events, so their transactions need no actor.
    db::limits::hold(tx, wanted.team, &Actor::SYSTEM).await?;
    let room = db::build_files::make_room(tx, wanted, TEAM_MAX).await?;
    if room.used.saturating_add(wanted.bytes) > TEAM_MAX {
        let (used, most) = (room.used >> 20, TEAM_MAX >> 20);
        let what = format!("builds under way use {used} of {most} MiB of uploaded files");
        return Err(Error::LimitReached("the team", what));
    }
    Ok(room.evicted)
}

/// Has a host remove archives. A host that keeps some reports them, and they count again.
async fn remove(app: &App, host: HostId, team: TeamId, hashes: Vec<String>) {
    let removing = hashes.into_iter().map(|hash| async move {
        if let Err(error) = app.agent(host).remove_build_files(team, &hash).await {
            tracing::warn!(%host, %error, "cannot remove uploaded files");
        }
    });
    let removing = futures::stream::iter(removing).buffer_unordered(AT_ONCE).collect::<Vec<()>>();
    let _ = tokio::time::timeout(REMOVE, removing).await;
}

/// Streams an archive to a host, and counts its bytes.
async fn send(
    app: &App,
    host: HostId,
    team: TeamId,
    hash: &str,
    length: Option<u64>,
    body: Body,
) -> Result<u64> {
    let seen = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&seen);
    let counted = body.into_data_stream().map(move |part| {
        let part = part.map_err(|error| error.into_inner())?;
        let bytes = u64::try_from(part.len()).unwrap_or(u64::MAX);
        let before = counter.fetch_add(bytes, Ordering::Relaxed);
        match before.saturating_add(bytes) > FILE_MAX {
            true => Err("the archive is too large".into()),
            false => Ok::<_, hop::BoxError>(part),
        }
    });
    let agent = app.agent(host);
    let sent = agent.put_build_files(team, hash, length, Body::from_stream(counted)).await;
    let bytes = seen.load(Ordering::Relaxed);
    if bytes > FILE_MAX {
        return Err(too_large());
    }
    match sent? {
        Some(length) if length != bytes => Err(Error::broken_body()),
        _ => Ok(bytes),
    }
}

fn too_large() -> Error {
    Error::TooLarge(usize::try_from(FILE_MAX).unwrap_or(usize::MAX))
}

/// Chooses the host of an upload: where the template was built, else where the team's last upload
/// is, else any with room. All files of a build must be on one host.
async fn host(app: &App, team: TeamId, template: Option<&Template>) -> Result<HostId> {
    let sticky = template.and_then(|template| template.build_host_id);
    if let Some(host) = sticky.filter(|host| accepts(app, *host)) {
        return Ok(host);
    }
    let last = db::build_files::last_host(&app.db, team).await?;
    if let Some(host) = last.filter(|host| accepts(app, *host)) {
        return Ok(host);
    }
    let size = Resources::default();
    let size = ResourceAmounts {
        vcpus: size.vcpus.into(),
        memory_mib: size.memory_mib.into(),
        disk_mib: size.disk_mib.into(),
    };
    let isolation = app.directory.limits(team).await?.isolation;
    let request = PlacementRequest {
        team,
        size,
        origin: Holders::Anywhere { near: &[] },
        tags: &[],
        isolation,
        excluded: &[],
    };
    app.fleet.place(&request).await
}

fn is_online(app: &App, host: HostId) -> bool {
    app.fleet.known(host).is_some_and(|host| host.online)
}

fn accepts(app: &App, host: HostId) -> bool {
    app.fleet.known(host).is_some_and(|host| host.online && !host.draining)
}
