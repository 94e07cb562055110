//! `…/terminals`: the open terminals of a capsule, which clients can attach to.

use super::extract::{Path, Query, capsule_id};
use super::passive::Passive;
use crate::app::App;
use crate::auth::Caller;
use crate::error::Result;
use crate::processes::Processes;
use axum::Json;
use axum::extract::State;
use std::sync::Arc;

/// Lists the open terminals, by pid. A terminal stays open without clients, until its program ends.
/// The request is always passive: it resumes no capsule and does not count as activity.
#[utoipa::path(
    operation_id = "list_terminals",
    get, path = "/v1/capsules/{id}/terminals", tag = "processes",
    params(("id" = String, Path, description = "Id or name of the capsule"), Passive),
    responses(
        (status = 200, body = api::TerminalList),
        (status = 501, description = "The capsule's envd is too old", body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    _passive: Query<Passive>,
) -> Result<Json<api::TerminalList>> {
    let processes = Processes::for_read(&app, caller, capsule_id(&id)?, true).await?;
    let terminals = processes.terminals().await?;
    Ok(Json(api::TerminalList { terminals }))
}
