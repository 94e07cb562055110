//! `/v1/templates`: what capsules start from.

use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::templates::Template;
use crate::error::Result;
use axum::Json;
use axum::extract::State;
use std::sync::Arc;
use types::{PLATFORM_TEAM, TemplateId};

/// List the team's templates and those that all teams share.
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
    Ok(Json(api::TemplateList { items: items.into_iter().map(shown).collect() }))
}

fn shown(template: Template) -> api::Template {
    api::Template {
        id: TemplateId(template.id).to_string(),
        name: template.name,
        vcpus: template.vcpus,
        memory_mb: template.memory_mib,
        disk_mb: template.disk_mib,
        shared: template.team_id == PLATFORM_TEAM.0,
        created_at: template.created_at,
    }
}
