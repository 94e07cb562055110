//! Compares the versions, builds and uploaded files of a host with the rows. The host says what it
//! has, and the rows say what it should have.

pub(crate) mod watch;

use crate::agent::{Agent, HostBuilds};
use crate::app::App;
use crate::db;
use crate::db::versions::{HostVersion, Place};
use crate::error::Result;
use futures::StreamExt;
use std::collections::HashSet;
use types::{BuildId, HostId, TeamId};

/// Most versions of a deleted template that are removed at once.
const AT_ONCE: usize = 4;

/// Compares one host, if its last comparison is some time ago.
pub(crate) async fn reconcile(app: &App, host: HostId) -> Result<()> {
    if !app.version_watch.is_due(host) {
        return Ok(());
    }
    // Rows are read before the host is asked. A row that is written meanwhile is then no difference.
    let known = db::versions::list_by_host(&app.db, host).await?;
    let known_files = db::versions::files_of_host(&app.db, host).await?;
    let agent = app.agent(host);
    let Some(HostBuilds { builds, versions, files }) = agent.list_builds().await? else {
        return Ok(());
    };
    let has: Vec<BuildId> = versions.iter().map(|version| version.id).collect();
    db::versions::follow(&app.db, host, &versions, &gone(known, &has)).await?;
    let has: Vec<(TeamId, String)> = files.iter().map(|f| (f.team, f.hash.clone())).collect();
    db::versions::follow_files(&app.db, host, &files, &gone(known_files, &has)).await?;
    forget_builds(app, &agent, host, &builds).await?;
    remove_versions(app, &agent, host, &versions).await
}

/// Returns what the database knows and the host no longer has. Pure.
fn gone<T: Eq + std::hash::Hash>(known: Vec<T>, has: &[T]) -> Vec<T> {
    let has: HashSet<&T> = has.iter().collect();
    known.into_iter().filter(|one| !has.contains(one)).collect()
}

/// Has the host forget builds that no longer run there. A build that was placed elsewhere meanwhile
/// may still work, so it is ended first.
async fn forget_builds(app: &App, agent: &Agent, host: HostId, builds: &[BuildId]) -> Result<()> {
    let running = db::versions::running_on(&app.db, host, builds).await?;
    for id in gone(builds.to_vec(), &running) {
        agent.cancel_build(id).await?;
        agent.forget_build(id).await?;
    }
    Ok(())
}

/// Removes versions without a row from the host and from the store.
async fn remove_versions(
    app: &App,
    agent: &Agent,
    host: HostId,
    versions: &[HostVersion],
) -> Result<()> {
    let ids: Vec<BuildId> = versions.iter().map(|version| version.id).collect();
    let wanted = db::versions::wanted(&app.db, &ids).await?;
    let over = app.version_watch.over(host, &gone(ids, &wanted));
    for version in versions.iter().filter(|version| over.contains(&version.id)) {
        let HostVersion { id, team, .. } = *version;
        tracing::info!(%id, %host, "removing a version without a row");
        // The next comparison tries again.
        if let Err(error) = agent.delete_version(id, team).await {
            tracing::warn!(%id, %host, %error, "cannot remove a version");
        }
    }
    Ok(())
}

/// Has each place remove the versions of a template that was deleted. The caller does not wait. The
/// comparisons remove what a silent host keeps.
pub(crate) fn remove_deleted(app: &App, places: Vec<Place>) {
    let at = app.clone();
    app.tasks.spawn(async move {
        tokio::select! {
            () = remove_places(&at, places) => {}
            () = at.tasks.stopping() => {}
        }
    });
}

async fn remove_places(app: &App, places: Vec<Place>) {
    let removing = places.into_iter().map(|(id, team, host)| async move {
        // Every host with the store can remove what the store alone has.
        let Some(host) = host.or_else(|| app.fleet.with_store()) else { return };
        if let Err(error) = app.agent(host).delete_version(id, team).await {
            tracing::warn!(%id, %host, %error, "cannot remove a version of a deleted template yet");
        }
    });
    futures::stream::iter(removing).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_entries_that_the_host_lacks_are_gone() {
        assert_eq!(gone(vec![1, 2, 3], &[2, 4]), [1, 3]);
        assert!(gone(Vec::<u8>::new(), &[1]).is_empty());
    }
}
