//! `…/processes`: the processes of a capsule, and signals to them.

use super::extract::{Path, Query, capsule_id};
use crate::app::App;
use crate::auth::Caller;
use crate::error::Result;
use crate::processes::{Processes, Selector};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use std::sync::Arc;

/// Lists the processes that were started over the API.
#[utoipa::path(
    operation_id = "list_processes",
    get, path = "/v1/capsules/{id}/processes", tag = "processes",
    params(("id" = String, Path, description = "Id of the capsule")),
    responses((status = 200, body = api::ProcessList), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<api::ProcessList>> {
    let processes = Processes::of(&app, caller, capsule_id(&id)?).await?.list().await?;
    Ok(Json(api::ProcessList { processes }))
}

#[derive(serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Kill {
    /// Signal to send: `SIGKILL`, the default, or `SIGTERM`.
    signal: Option<String>,
}

/// Sends a signal to a process and its whole group.
#[utoipa::path(
    operation_id = "signal_process",
    delete, path = "/v1/capsules/{id}/processes/{selector}", tag = "processes",
    params(
        ("id" = String, Path, description = "Id of the capsule"),
        ("selector" = String, Path, description = "Process id or tag of the process"),
        Kill
    ),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn kill(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, selector)): Path<(String, String)>,
    Query(kill): Query<Kill>,
) -> Result<StatusCode> {
    let processes = Processes::of(&app, caller, capsule_id(&id)?).await?;
    let signal = kill.signal.as_deref().unwrap_or("SIGKILL");
    processes.signal(&Selector::parse(&selector), signal).await?;
    Ok(StatusCode::NO_CONTENT)
}
