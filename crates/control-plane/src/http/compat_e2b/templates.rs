//! Templates, listed and looked up by their names, and the caller's teams.

use super::names;
use super::wire::Team;
use crate::app::App;
use crate::auth::Caller;
use crate::db::templates::Template as Row;
use crate::error::{Error, Result};
use crate::http::extract::Path;
use crate::{snapshots, teams, templates};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::sync::Arc;
use time::OffsetDateTime;
use types::PLATFORM_TEAM;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Template {
    #[serde(rename = "templateID")]
    template_id: String,
    /// The template's only build.
    #[serde(rename = "buildID")]
    build_id: String,
    build_status: &'static str,
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u32,
    public: bool,
    aliases: [String; 1],
    names: [String; 1],
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
    envd_version: &'static str,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<Template>>> {
    let to_api = |row: Row| Template {
        template_id: row.id.to_string(),
        build_id: row.id.0.to_string(),
        build_status: "ready",
        cpu_count: row.vcpus,
        memory_mb: row.memory_mib,
        disk_size_mb: row.disk_mib,
        public: row.team_id == PLATFORM_TEAM,
        aliases: [row.name.clone()],
        names: [row.name],
        created_at: row.created_at,
        updated_at: row.created_at,
        envd_version: protocol::ENVD_VERSION,
    };
    let rows = templates::list(&app, caller).await?;
    Ok(Json(rows.into_iter().map(to_api).collect()))
}

#[derive(Serialize)]
pub(super) struct Alias {
    #[serde(rename = "templateID")]
    template_id: String,
    public: bool,
}

/// Resolves a name to a template or, failing that, to a snapshot.
pub(super) async fn alias(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(alias): Path<String>,
) -> Result<Json<Alias>> {
    let name = names::untagged(&alias);
    if let Some(found) = templates::find(&app, caller, name).await? {
        let public = found.team_id == PLATFORM_TEAM;
        return Ok(Json(Alias { template_id: found.id.to_string(), public }));
    }
    let found = snapshots::find(&app, caller, name).await?;
    let found = found.ok_or(Error::NotFound("template"))?;
    Ok(Json(Alias { template_id: found.id.to_string(), public: false }))
}

/// Lists the caller's teams. A key has only the team that it belongs to.
pub(super) async fn teams(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Vec<Team>>> {
    let teams = teams::list(&app, caller).await?;
    Ok(Json(teams.into_iter().map(Team::from).collect()))
}
