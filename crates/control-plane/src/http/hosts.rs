//! `/v1/hosts`: the machines that run capsules.

use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::error::Result;
use axum::Json;
use axum::extract::State;
use std::sync::Arc;

/// List the hosts, each with its driver and isolation tier.
#[utoipa::path(
    operation_id = "list_hosts",
    get, path = "/v1/hosts", tag = "hosts",
    responses((status = 200, body = api::HostList), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    _caller: Caller,
) -> Result<Json<api::HostList>> {
    Ok(Json(api::HostList { items: db::hosts::list(&app.db).await? }))
}
