//! `/v1/templates`: the templates that capsules start from.

use super::extract::{Json as Body, Path};
use crate::app::App;
use crate::auth::{Caller, Operator};
use crate::db::templates::Template;
use crate::error::Result;
use crate::templates;
use axum::Json;
use axum::extract::State;
use std::sync::Arc;
use types::{Isolation, PLATFORM_TEAM};

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
    Ok(Json(api::TemplateList { items: items.into_iter().map(to_api).collect() }))
}

/// Changes the lowest isolation tier on which capsules of a shared template start.
#[utoipa::path(
    operation_id = "change_template",
    patch, path = "/v1/templates/{name}", tag = "templates", request_body = api::ChangeTemplate,
    params(("name" = String, Path, description = "Name of the template")),
    responses((status = 200, body = api::Template), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(name): Path<String>,
    Body(wanted): Body<api::ChangeTemplate>,
) -> Result<Json<api::Template>> {
    let tier: Isolation = wanted.isolation.parse()?;
    Ok(Json(to_api(templates::set_isolation(&app, operator, &name, tier).await?)))
}

fn to_api(template: Template) -> api::Template {
    api::Template {
        id: template.id.to_string(),
        name: template.name,
        vcpus: template.vcpus.cast_signed(),
        memory_mib: template.memory_mib.cast_signed(),
        disk_mib: template.disk_mib.cast_signed(),
        isolation: template.isolation.to_string(),
        shared: template.team_id == PLATFORM_TEAM,
        created_at: template.created_at,
    }
}
