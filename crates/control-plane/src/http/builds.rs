//! `/v1/builds`: builds of templates, and the files that their COPY steps need. `build_logs` has
//! their logs.

use super::extract::{LargeSent, Path, Query, idempotency_key};
use super::paging::{cursor, paged};
use crate::app::App;
use crate::auth::Caller;
use crate::db::templates::Template;
use crate::error::{Error, Result};
use crate::policy::{Action, Resource};
use crate::{build_files, builds, templates};
use axum::Json;
use axum::extract::{Request, State};
use http::{HeaderMap, StatusCode, header};
use std::sync::Arc;
use types::BuildId;

/// Parses a build's id from a path. Any other text is a build that does not exist.
pub(super) fn build_id(text: &str) -> Result<BuildId> {
    text.parse().map_err(|_| Error::NotFound("build"))
}

/// Begins a build of a template. The answer comes at once; the build's status tells its end. The
/// template is made if it is new.
#[utoipa::path(
    operation_id = "create_build",
    post, path = "/v1/builds", tag = "builds", request_body = api::CreateBuild,
    params(("Idempotency-Key" = Option<String>, Header, description = "Key of 1 to 255 \
        lower-case letters, digits and hyphens. For a day, repeated requests with the key get the \
        first build")),
    responses(
        (status = 201, body = api::Build),
        (status = 429, description = "The team has as many builds under way as it may", body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    LargeSent(mut wanted, body): LargeSent<api::CreateBuild>,
) -> Result<(StatusCode, Json<api::Build>)> {
    let key = idempotency_key(&headers, &body)?;
    builds::of_capsule::resolve(&app, caller, &mut wanted).await?;
    let build = match builds::of_capsule::source(&wanted)? {
        Some(capsule) => {
            let declared = builds::of_capsule::read(&wanted)?;
            let making = builds::of_capsule::create(&app, caller, declared, capsule, key);
            Box::pin(making).await?
        }
        None => Box::pin(builds::create(&app, caller, builds::read_request(wanted)?, key)).await?,
    };
    Ok((StatusCode::CREATED, Json(one(&app, build).await?)))
}

async fn one(app: &App, build: crate::db::builds::Build) -> Result<api::Build> {
    let shown = builds::to_api(app, vec![build], true).await?;
    shown.into_iter().next().ok_or(Error::NotFound("build"))
}

#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Listed {
    /// Name or id of the only template whose builds are listed.
    template: Option<String>,
    /// Only status that is listed: `waiting`, `building`, `ready` or `error`.
    status: Option<String>,
    /// Value of `next` from the previous page.
    before: Option<String>,
    /// Number of items, 1 to 100. The default is 100.
    limit: Option<u32>,
}

/// Lists the team's builds, newest first.
#[utoipa::path(
    operation_id = "list_builds",
    get, path = "/v1/builds", tag = "builds", params(Listed),
    responses((status = 200, body = api::BuildPage), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(asked): Query<Listed>,
) -> Result<Json<api::BuildPage>> {
    let (before, limit) = cursor(asked.before.as_deref(), asked.limit, "a build")?;
    let state = asked.status.as_deref().map(str::parse).transpose()?;
    let template = asked.template.as_deref();
    let rows = builds::list(&app, caller, template, state, before, limit + 1).await?;
    let rows = builds::to_api(&app, rows, false).await?;
    let (items, next) = paged(rows, limit, |row| row, |row| row.id.clone());
    Ok(Json(api::BuildPage { items, next }))
}

/// Returns one build, with the record of its making once it is ready.
#[utoipa::path(
    operation_id = "get_build",
    get, path = "/v1/builds/{id}", tag = "builds",
    params(("id" = String, Path, description = "Id of the build")),
    responses((status = 200, body = api::Build), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<api::Build>> {
    let build = builds::get(&app, caller, build_id(&id)?).await?;
    Ok(Json(one(&app, build).await?))
}

/// Ends a build within seconds. Its finished steps stay in the cache. A build that has ended stays
/// as it is.
#[utoipa::path(
    operation_id = "cancel_build",
    post, path = "/v1/builds/{id}/cancel", tag = "builds",
    params(("id" = String, Path, description = "Id of the build")),
    responses((status = 200, body = api::Build), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<api::Build>> {
    let build = builds::cancel(&app, caller, build_id(&id)?).await?;
    Ok(Json(one(&app, build).await?))
}

#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Files {
    /// Name of the template that the files are for. Its host keeps them. The template may be new.
    template: Option<String>,
}

impl Files {
    /// Finds the template that the query names. A template that does not exist yet is none.
    async fn find(&self, app: &App, caller: Caller) -> Result<Option<Template>> {
        let Some(name) = &self.template else {
            caller.may(Action::CapsulesAdmin, Resource::Team)?;
            return Ok(None);
        };
        let reference = templates::read_name("template", name)?;
        let found = templates::find_template(app, caller.team, &reference).await?;
        let found = found.filter(|found| found.team_id == caller.team);
        match &found {
            Some(found) => caller.may(Action::CapsulesAdmin, Resource::Template(found.id))?,
            None => caller.may(Action::CapsulesAdmin, Resource::Team)?,
        }
        Ok(found)
    }
}

/// Tells whether the team has uploaded files with a hash, for `GET` and `HEAD`.
#[utoipa::path(
    operation_id = "get_build_files",
    get, path = "/v1/builds/files/{hash}", tag = "builds",
    params(("hash" = String, Path, description = "Hash of the files: 64 lower-case hexadecimal digits, which the client chooses"), Files),
    responses((status = 200, body = api::BuildFiles), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn files(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(hash): Path<String>,
    Query(asked): Query<Files>,
) -> Result<Json<api::BuildFiles>> {
    let template = asked.find(&app, caller).await?;
    let found = build_files::find(&app, caller.team, template.as_ref(), &hash).await?;
    let bytes = found.ok_or(Error::NotFound("files"))?;
    Ok(Json(api::BuildFiles { hash, bytes }))
}

/// Uploads the files of COPY steps as a tar archive, plain or compressed by gzip, of at most 2 GiB.
#[utoipa::path(
    operation_id = "put_build_files",
    put, path = "/v1/builds/files/{hash}", tag = "builds",
    params(("hash" = String, Path, description = "Hash of the files: 64 lower-case hexadecimal digits, which the client chooses"), Files),
    request_body(content_type = "application/x-tar"),
    responses(
        (status = 200, body = api::BuildFiles),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn put_files(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(hash): Path<String>,
    Query(asked): Query<Files>,
    request: Request,
) -> Result<Json<api::BuildFiles>> {
    let template = asked.find(&app, caller).await?;
    let length = content_length(request.headers())?;
    let (team, template) = (caller.team, template.as_ref());
    let body = request.into_body();
    let bytes = build_files::put(&app, team, template, &hash, length, body).await?;
    Ok(Json(api::BuildFiles { hash, bytes }))
}

/// Reads the length that a request states for its body.
pub(super) fn content_length(headers: &HeaderMap) -> Result<Option<u64>> {
    let Some(length) = headers.get(header::CONTENT_LENGTH) else { return Ok(None) };
    let length = length.to_str().ok().and_then(|length| length.parse().ok());
    length.map(Some).ok_or_else(|| Error::invalid("Content-Length", "must be a number"))
}
