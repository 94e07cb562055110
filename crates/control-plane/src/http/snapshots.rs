//! `/v1/snapshots`: translates between the wire and the domain.

use super::extract::{Json as Body, Path, Query};
use super::paging::{cursor, paged};
use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::{capsules, snapshots};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use std::sync::Arc;

/// Takes a named snapshot of a capsule's memory and disk. The capsule keeps its state.
#[utoipa::path(
    operation_id = "create_snapshot",
    post, path = "/v1/snapshots", tag = "snapshots", request_body = api::CreateSnapshot,
    responses(
        (status = 201, body = api::Snapshot),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(wanted): Body<api::CreateSnapshot>,
) -> Result<(StatusCode, Json<api::Snapshot>)> {
    let snapshot = capsules::snapshot(&app, caller, wanted).await?;
    Ok((StatusCode::CREATED, Json(snapshots::to_api(snapshot))))
}

#[derive(serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// Id or name of a capsule, to list only its snapshots.
    capsule_id: Option<String>,
    /// Value of `next` from the previous page.
    before: Option<String>,
    /// Number of snapshots, 1 to 100. The default is 100.
    limit: Option<u32>,
}

/// Lists the team's snapshots, newest first.
#[utoipa::path(
    operation_id = "list_snapshots",
    get, path = "/v1/snapshots", tag = "snapshots", params(Page),
    responses((status = 200, body = api::SnapshotPage), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(page): Query<Page>,
) -> Result<Json<api::SnapshotPage>> {
    let (before, limit) = cursor(page.before.as_deref(), page.limit, "a snapshot")?;
    let bad = || Error::invalid("capsule_id", "is not the id or name of a capsule");
    let capsule = match &page.capsule_id {
        Some(text) => Some(capsules::find_id(&app, caller, text).await?.ok_or_else(bad)?),
        None => None,
    };
    let listed = snapshots::list(&app, caller, capsule, before, limit + 1).await?;
    let (items, next) = paged(listed, limit, snapshots::to_api, |s| s.id.clone());
    Ok(Json(api::SnapshotPage { items, next }))
}

/// Returns one snapshot.
#[utoipa::path(
    operation_id = "get_snapshot",
    get, path = "/v1/snapshots/{name}", tag = "snapshots",
    params(("name" = String, Path, description = "Name or id of the snapshot")),
    responses((status = 200, body = api::Snapshot), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<api::Snapshot>> {
    Ok(Json(snapshots::to_api(snapshots::get(&app, caller, &name).await?)))
}

/// Removes a snapshot. Capsules that started from it continue.
#[utoipa::path(
    operation_id = "delete_snapshot",
    delete, path = "/v1/snapshots/{name}", tag = "snapshots",
    params(("name" = String, Path, description = "Name or id of the snapshot")),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode> {
    snapshots::delete(&app, caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
