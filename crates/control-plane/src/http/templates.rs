//! `/v1/templates`: the templates that capsules start from, their tags and versions.

use super::extract::{Json as Body, Path, Query};
use super::paging::{Page, paged};
use crate::app::App;
use crate::auth::{Caller, Operator};
use crate::db::builds::BuildState;
use crate::db::tags::Tag;
use crate::error::{Error, Result};
use crate::{builds, tags, templates};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use std::sync::Arc;
use types::Isolation;

/// Lists the team's templates and the templates that all teams share.
#[utoipa::path(
    operation_id = "list_templates",
    get, path = "/v1/templates", tag = "templates",
    responses((status = 200, body = api::TemplateList), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<api::TemplateList>> {
    let items = templates::list(&app, caller).await?;
    let items = items.into_iter().map(|row| templates::to_api(row, caller.team)).collect();
    Ok(Json(api::TemplateList { items }))
}

/// Returns one template: the team's own, a shared one, or another team's public one by its id or as
/// `NAMESPACE/NAME`.
#[utoipa::path(
    operation_id = "get_template",
    get, path = "/v1/templates/{name}", tag = "templates",
    params(("name" = String, Path, description = "Name or id of the template")),
    responses((status = 200, body = api::Template), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<api::Template>> {
    let found = templates::get(&app, caller, &name).await?;
    Ok(Json(templates::to_api(found, caller.team)))
}

/// Makes a template of the team public or private. Operators also make it common, and change the
/// lowest isolation tier on which capsules of a shared template start.
#[utoipa::path(
    operation_id = "change_template",
    patch, path = "/v1/templates/{name}", tag = "templates",
    request_body = api::ChangeTemplate,
    params(("name" = String, Path, description = "Name of the template")),
    responses((status = 200, body = api::Template), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Body(wanted): Body<api::ChangeTemplate>,
) -> Result<Json<api::Template>> {
    let changed = match (wanted.isolation, wanted.public, wanted.common) {
        (Some(isolation), None, None) => {
            let tier: Isolation = isolation.parse()?;
            if !caller.operator {
                return Err(Error::Forbidden("platform"));
            }
            templates::set_isolation(&app, Operator(caller.by), &name, tier).await?
        }
        (None, Some(public), None) => templates::set_public(&app, caller, &name, public).await?,
        (None, None, Some(common)) => templates::set_common(&app, caller, &name, common).await?,
        _ => {
            let message = "must change exactly one of `public`, `common` and `isolation`";
            return Err(Error::invalid("body", message));
        }
    };
    Ok(Json(templates::to_api(changed, caller.team)))
}

/// Deletes a template of the team with all of its versions and tags. A template that a capsule, a
/// snapshot, a build or another template uses stays; the error names what uses it.
#[utoipa::path(
    operation_id = "delete_template",
    delete, path = "/v1/templates/{name}", tag = "templates",
    params(("name" = String, Path, description = "Name or id of the template")),
    responses(
        (status = 204), (status = 409, description = "The template is in use", body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode> {
    templates::delete(&app, caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the versions of a team's template, newest first: its ready builds.
#[utoipa::path(
    operation_id = "list_template_versions",
    get, path = "/v1/templates/{name}/versions", tag = "templates",
    params(("name" = String, Path, description = "Name or id of the template"), Page),
    responses((status = 200, body = api::BuildPage), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn versions(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(page): Query<Page>,
) -> Result<Json<api::BuildPage>> {
    let (before, limit) = page.read("a build")?;
    let ready = Some(BuildState::Ready);
    let rows = builds::list(&app, caller, Some(&name), ready, before, limit + 1).await?;
    let rows = builds::to_api(&app, rows, false).await?;
    let (items, next) = paged(rows, limit, |row| row, |row| row.id.clone());
    Ok(Json(api::BuildPage { items, next }))
}

/// Lists the tags of a team's template, each with its newest assignment. A tag stands for the
/// newest assignment whose build is ready.
#[utoipa::path(
    operation_id = "list_template_tags",
    get, path = "/v1/templates/{name}/tags", tag = "templates",
    params(("name" = String, Path, description = "Name or id of the template")),
    responses((status = 200, body = api::TemplateTags), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list_tags(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<api::TemplateTags>> {
    let (_, rows) = tags::list(&app, caller, &name).await?;
    Ok(Json(tags_to_api(rows)))
}

/// Gives tags to a ready version of a team's template. Returns all tags of the template.
#[utoipa::path(
    operation_id = "assign_template_tags",
    post, path = "/v1/templates/{name}/tags", tag = "templates", request_body = api::AssignTags,
    params(("name" = String, Path, description = "Name or id of the template")),
    responses((status = 201, body = api::TemplateTags), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn assign_tags(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Body(wanted): Body<api::AssignTags>,
) -> Result<(StatusCode, Json<api::TemplateTags>)> {
    let version = tags::read_version(&wanted.version)?;
    tags::assign(&app, caller, &name, &version, wanted.tags).await?;
    let (_, rows) = tags::list(&app, caller, &name).await?;
    Ok((StatusCode::CREATED, Json(tags_to_api(rows))))
}

/// Deletes a tag of a team's template. Its versions stay. The tag `default` cannot be deleted.
#[utoipa::path(
    operation_id = "delete_template_tag",
    delete, path = "/v1/templates/{name}/tags/{tag}", tag = "templates",
    params(
        ("name" = String, Path, description = "Name or id of the template"),
        ("tag" = String, Path, description = "Tag"),
    ),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn delete_tag(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, tag)): Path<(String, String)>,
) -> Result<StatusCode> {
    let gone = tags::delete(&app, caller, &name, vec![tag]).await?;
    match gone.is_empty() {
        true => Err(Error::NotFound("tag")),
        false => Ok(StatusCode::NO_CONTENT),
    }
}

fn tags_to_api(rows: Vec<Tag>) -> api::TemplateTags {
    let to_api = |row: Tag| api::TemplateTag {
        tag: row.tag,
        build: row.build_id.to_string(),
        assigned_at: row.assigned_at,
    };
    api::TemplateTags { items: rows.into_iter().map(to_api).collect() }
}
