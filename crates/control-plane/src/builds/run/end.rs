//! The end of a build: its version is complete, or its reason is told. Capsules go in either case.
//! A death in between leaves capsules to `sweep`, and the host's events to `versions`.

use super::decide::End;
use crate::app::App;
use crate::audit::{Actor, Entry};
use crate::db::build_logs::Level;
use crate::db::build_runs::{Files, Line};
use crate::db::builds::Build;
use crate::error::Result;
use crate::{capsules, db};
use futures::StreamExt;
use serde_json::json;
use std::time::Duration;
use time::OffsetDateTime;

/// Time that the end of a build waits for its host to end the work, and for its capsules to go. A
/// removal that takes longer goes on by itself.
const CLEAR: Duration = Duration::from_millis(1500);
/// Most capsules that are removed at once.
const AT_ONCE: usize = 4;

/// Makes the version of a build ready. Returns `false` when another change was faster.
pub(super) async fn complete(
    app: &App,
    build: &Build,
    template: &str,
    files: &Files,
) -> Result<bool> {
    super::failpoint("control.build.complete")?;
    let entry = entry(build, "template.build_ready").with(json!({ "template": template,
        "build": build.id.to_string() }));
    let done = db::build_runs::complete(&app.db, build, files, &entry).await?;
    super::failpoint("control.build.completed")?;
    Ok(done)
}

/// Ends a build with a reason: first its work, then its row. Returns `false` when another change
/// was faster.
pub(super) async fn fail(app: &App, build: &Build, template: &str, end: &End) -> Result<bool> {
    super::failpoint("control.build.fail")?;
    let cancel = async {
        if let Some(host) = build.host_id
            && let Err(error) = app.agent(host).cancel_build(build.id).await
        {
            tracing::warn!(id = %build.id, %error, "cannot end a build on its host");
        }
    };
    let (at, id) = (app.clone(), build.id);
    let removing = app.tasks.detached(async move { remove_capsules(&at, id).await });
    let clearing = async { tokio::join!(cancel, removing) };
    let _ = tokio::time::timeout(CLEAR, clearing).await;
    super::failpoint("control.build.failing")?;
    let reason = end.reason();
    let line = end.is_news().then(|| Line {
        at: OffsetDateTime::now_utc(),
        level: Level::Error,
        step: None,
        text: format!("Build failed: {}", reason.message),
    });
    let entry = entry(build, "template.build_failed").with(json!({ "template": template,
        "build": build.id.to_string(), "error": reason.message }));
    let done = db::build_runs::fail(&app.db, build, &reason, line.as_ref(), &entry).await?;
    super::failpoint("control.build.failed")?;
    Ok(done)
}

fn entry(build: &Build, action: &'static str) -> Entry {
    Entry::new(build.team_id, Actor::SYSTEM, action, build.template_id)
}

/// Clears up after a build that has ended. Whatever fails here is repeated by others.
pub(super) async fn clear(app: &App, build: &Build) {
    remove_capsules(app, build.id).await;
    if let Some(host) = build.host_id
        && let Err(error) = app.agent(host).forget_build(build.id).await
    {
        tracing::debug!(id = %build.id, %error, "the host has yet to forget a build");
    }
}

/// Removes all capsules of a build.
async fn remove_capsules(app: &App, build: types::BuildId) {
    match db::build_runs::list_capsules(&app.db, build).await {
        Ok(rows) => remove_all(app, rows).await,
        Err(error) => tracing::warn!(%build, %error, "cannot list the capsules of a build"),
    }
}

/// Removes the capsules that ended builds left, and those that builds no longer name.
pub(super) async fn sweep(app: &App) -> Result<()> {
    let rows = db::build_runs::list_left_capsules(&app.db).await?;
    remove_all(app, rows).await;
    Ok(())
}

async fn remove_all(app: &App, rows: Vec<db::capsules::Capsule>) {
    let removing = rows.into_iter().map(|row| async move {
        if let Err(error) = capsules::remove(app, &row, Actor::SYSTEM).await {
            tracing::debug!(id = %row.id, %error, "a build's capsule is not removed yet");
        }
    });
    futures::stream::iter(removing).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}
