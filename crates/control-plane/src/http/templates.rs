//! `/v1/templates`: the templates that capsules start from.

use super::extract::{Json as Body, Path};
use crate::app::App;
use crate::audit::Entry;
use crate::auth::{Caller, Operator};
use crate::db;
use crate::db::templates::Template;
use crate::error::{Error, Result};
use axum::Json;
use axum::extract::State;
use serde_json::json;
use std::sync::Arc;
use types::{Isolation, PLATFORM_TEAM, TemplateId};

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
    let items = db::templates::list(&app.db, caller.team).await?;
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
    Operator(by): Operator,
    Path(name): Path<String>,
    Body(wanted): Body<api::ChangeTemplate>,
) -> Result<Json<api::Template>> {
    let tier: Isolation = wanted.isolation.parse()?;
    let mut tx = app.db.begin().await?;
    let changed = db::templates::set_isolation(&mut *tx, &name, tier).await?;
    let changed = changed.ok_or(Error::NotFound("template"))?;
    let entry = Entry::new(PLATFORM_TEAM, by, "template.set_isolation", TemplateId(changed.id));
    let entry = entry.with(json!({ "name": name, "isolation": tier.as_str() }));
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    Ok(Json(to_api(changed)))
}

fn to_api(template: Template) -> api::Template {
    api::Template {
        id: TemplateId(template.id).to_string(),
        name: template.name,
        vcpus: template.vcpus,
        memory_mb: template.memory_mib,
        disk_mb: template.disk_mib,
        isolation: template.isolation,
        shared: template.team_id == PLATFORM_TEAM.0,
        created_at: template.created_at,
    }
}
