//! Templates, listed and looked up by their names, changed and removed; and the caller's teams.

use super::wire::Team;
use super::{NEXT_TOKEN, names};
use crate::app::App;
use crate::auth::Caller;
use crate::db::builds::Build as BuildRow;
use crate::db::templates::Overview;
use crate::error::{Error, Result};
use crate::http::extract::{Json as Body, Path, Query};
use crate::http::paging::cursor;
use crate::{builds, snapshots, teams, templates};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode};
use recipe::names::Selector;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use time::OffsetDateTime;
use types::{BuildId, PLATFORM_TEAM, TemplateId};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Template {
    #[serde(rename = "templateID")]
    template_id: String,
    /// The newest build. A template of the operator's has its own UUID here.
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
    /// Always `null`: the platform does not name people to others.
    created_by: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    last_spawned_at: Option<OffsetDateTime>,
    spawn_count: u64,
    build_count: u64,
    envd_version: &'static str,
}

impl Template {
    fn new(row: Overview, caller: Caller) -> Self {
        let own = row.template.team_id == caller.team;
        let template = row.template;
        Self {
            template_id: template.id.to_string(),
            build_id: row.newest_build.map_or(template.id.0, |id| id.0).to_string(),
            build_status: row.newest_state.map_or("ready", |state| state.as_str()),
            cpu_count: template.vcpus,
            memory_mb: template.memory_mib,
            disk_size_mb: template.disk_mib,
            public: template.public || template.team_id == PLATFORM_TEAM,
            aliases: [template.name.clone()],
            names: [template.name],
            created_at: template.created_at,
            updated_at: template.updated_at,
            created_by: None,
            last_spawned_at: template.last_spawned_at.filter(|_| own),
            spawn_count: if own { template.spawn_count } else { 0 },
            build_count: row.builds,
            envd_version: protocol::ENVD_VERSION,
        }
    }
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<Template>>> {
    let rows = templates::list(&app, caller).await?;
    Ok(Json(rows.into_iter().map(|row| Template::new(row, caller)).collect()))
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Paged {
    limit: Option<u32>,
    next_token: Option<String>,
}

/// Lists a page of the templates. The token of a page is the id of its last template.
pub(super) async fn page(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(asked): Query<Paged>,
) -> Result<Response> {
    let after = asked.next_token.as_deref();
    let (after, limit): (Option<TemplateId>, i64) = cursor(after, asked.limit, "a template")?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let rows = templates::list(&app, caller).await?;
    let known = after.and_then(|id| rows.iter().position(|row| row.template.id == id));
    let skip = known.map_or(0, |at| at + 1);
    let rest: Vec<Overview> = rows.into_iter().skip(skip).take(limit + 1).collect();
    let next = rest.get(limit).and(rest.get(limit.wrapping_sub(1)));
    let next = next.map(|row| row.template.id.to_string());
    let shown: Vec<Template> =
        rest.into_iter().take(limit).map(|row| Template::new(row, caller)).collect();
    let mut answer = Json(shown).into_response();
    if let Some(next) = next.and_then(|next| HeaderValue::from_str(&next).ok()) {
        answer.headers_mut().insert(NEXT_TOKEN, next);
    }
    Ok(answer)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Build {
    #[serde(rename = "buildID")]
    build_id: String,
    status: &'static str,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    finished_at: Option<OffsetDateTime>,
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u32,
    envd_version: &'static str,
}

impl From<BuildRow> for Build {
    fn from(row: BuildRow) -> Self {
        Self {
            build_id: row.id.0.to_string(),
            status: row.state.as_str(),
            created_at: row.created_at,
            updated_at: row.ended_at.or(row.started_at).unwrap_or(row.created_at),
            finished_at: row.ended_at,
            cpu_count: row.vcpus,
            memory_mb: row.memory_mib,
            disk_size_mb: row.disk_mib,
            envd_version: protocol::ENVD_VERSION,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Detail {
    #[serde(rename = "templateID")]
    template_id: String,
    public: bool,
    aliases: [String; 1],
    names: [String; 1],
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    last_spawned_at: Option<OffsetDateTime>,
    spawn_count: u64,
    builds: Vec<Build>,
}

/// Describes a template of the team with a page of its builds.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(asked): Query<Paged>,
) -> Result<Response> {
    let before = asked.next_token.as_deref();
    let (before, limit): (Option<BuildId>, i64) = cursor(before, asked.limit, "a build")?;
    let found = templates::get(&app, caller, &names::plain(&id)).await?.template;
    let own = found.team_id == caller.team;
    let name = found.id.to_string();
    let mut rows = match own {
        true => builds::list(&app, caller, Some(&name), None, before, limit + 1).await?,
        false => Vec::new(),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|row| row.id.to_string());
    let detail = Detail {
        template_id: name,
        public: found.public || found.team_id == PLATFORM_TEAM,
        aliases: [found.name.clone()],
        names: [found.name],
        created_at: found.created_at,
        updated_at: found.updated_at,
        last_spawned_at: found.last_spawned_at.filter(|_| own),
        spawn_count: if own { found.spawn_count } else { 0 },
        builds: rows.into_iter().map(Build::from).collect(),
    };
    let mut answer = Json(detail).into_response();
    if let Some(next) = next.and_then(|next| HeaderValue::from_str(&next).ok()) {
        answer.headers_mut().insert(NEXT_TOKEN, next);
    }
    Ok(answer)
}

#[derive(Deserialize)]
pub(super) struct Change {
    public: Option<bool>,
}

#[derive(Serialize)]
pub(super) struct Names {
    names: [String; 1],
}

/// Makes a template public or private.
pub(super) async fn change(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<Change>,
) -> Result<Json<Names>> {
    let name = names::plain(&id);
    let changed = match wanted.public {
        Some(public) => templates::set_public(&app, caller, &name, public).await?,
        None => templates::get(&app, caller, &name).await?,
    };
    Ok(Json(Names { names: [changed.template.name] }))
}

/// Makes a template public or private, for older clients, which get no body.
pub(super) async fn change_v1(
    state: State<Arc<App>>,
    caller: Caller,
    id: Path<String>,
    wanted: Body<Change>,
) -> Result<StatusCode> {
    change(state, caller, id, wanted).await.map(|_| StatusCode::OK)
}

/// Removes a template or, failing that, a snapshot. E2B calls both templates.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode> {
    match templates::delete(&app, caller, &names::plain(&name)).await {
        Err(Error::NotFound("template")) => {
            snapshots::delete(&app, caller, names::untagged(&name)).await?;
        }
        done => done?,
    }
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Serialize)]
pub(super) struct Alias {
    #[serde(rename = "templateID")]
    template_id: String,
    public: bool,
}

/// Resolves a name to a template or, failing that, to a snapshot. A tag in the name must exist.
pub(super) async fn alias(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(alias): Path<String>,
) -> Result<Json<Alias>> {
    let native = names::template(&alias);
    let reference = recipe::names::Reference::native(&native);
    let found = match &reference {
        Ok(reference) => templates::find_template(&app, caller.team, reference).await?,
        Err(_) => None,
    };
    if let (Some(found), Ok(reference)) = (found, &reference) {
        if let Some(Selector::Tag(_) | Selector::Build(_)) = &reference.selector {
            templates::resolve(&app, caller.team, reference).await?;
        }
        let public = found.public || found.team_id == PLATFORM_TEAM;
        return Ok(Json(Alias { template_id: found.id.to_string(), public }));
    }
    let found = snapshots::find(&app, caller, names::untagged(&alias)).await?;
    let found = found.ok_or(Error::NotFound("template"))?;
    Ok(Json(Alias { template_id: found.id.to_string(), public: false }))
}

/// Lists the caller's teams. A key has only the team that it belongs to.
pub(super) async fn teams(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Vec<Team>>> {
    let teams = teams::list(&app, caller).await?;
    Ok(Json(teams.into_iter().map(Team::from).collect()))
}
