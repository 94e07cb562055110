//! `…/processes`: the processes of a capsule, and signals to them.

use super::extract::{Path, Query, capsule_id};
use crate::app::App;
use crate::auth::Caller;
use crate::error::Result;
use crate::load::UnderWay;
use crate::processes::{Processes, Selector};
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use std::sync::Arc;

#[derive(serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct List {
    /// True to list all processes of the guest, as a tree.
    #[serde(default)]
    all: bool,
    /// True to read without side effects. The request then does not resume a paused capsule: the
    /// answer is 409 `capsule_paused`. A passive request does not count as activity.
    #[serde(default)]
    passive: bool,
}

/// Lists the processes that were started over the API or, with `all`, all processes of the guest.
#[utoipa::path(
    operation_id = "list_processes",
    get, path = "/v1/capsules/{id}/processes", tag = "processes",
    params(("id" = String, Path, description = "Id or name of the capsule"), List),
    responses(
        (status = 200, body = api::Processes),
        (status = 501, description = "The capsule's envd is too old for `all`", body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Extension(under_way): Extension<UnderWay>,
    Query(list): Query<List>,
) -> Result<Json<api::Processes>> {
    let processes = Processes::for_read(&app, caller, capsule_id(&id)?, list.passive).await?;
    Ok(Json(match list.all {
        true => api::Processes::All(processes.all(caller, &under_way).await?),
        false => {
            let processes = processes.list().await?;
            api::Processes::Started(api::ProcessList { processes })
        }
    }))
}

#[derive(serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Kill {
    /// Signal to send: `TERM`, `KILL`, `INT`, `HUP`, `STOP`, `CONT`, `USR1` or `USR2`, with or
    /// without `SIG`. The default is `KILL`.
    signal: Option<String>,
}

/// Sends a signal to a process. A process that was started over the API gets it with its whole
/// group. Any other process of the guest gets it alone.
#[utoipa::path(
    operation_id = "signal_process",
    delete, path = "/v1/capsules/{id}/processes/{selector}", tag = "processes",
    params(
        ("id" = String, Path, description = "Id or name of the capsule"),
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
    let signal = kill.signal.as_deref().unwrap_or("KILL");
    processes.signal(&Selector::parse(&selector), signal).await?;
    Ok(StatusCode::NO_CONTENT)
}
