//! Snapshots of sandboxes: creation, lists and removal.

use super::wire::{NewSnapshot, Snapshot};
use super::{names, sandbox_id};
use crate::app::App;
use crate::auth::Caller;
use crate::error::Result;
use crate::http::extract::{Json as Body, Path, Query};
use crate::http::paging::cursor;
use crate::{capsules, snapshots};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use std::sync::Arc;

/// Takes a snapshot. An earlier snapshot of the same name loses its name to the new one.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<NewSnapshot>,
) -> Result<(StatusCode, Json<Snapshot>)> {
    let name = wanted.name.map(|name| names::untagged(&name).to_owned());
    let wanted = api::CreateSnapshot {
        capsule_id: sandbox_id(&id)?.to_string(),
        name,
        overwrite: true,
        memory: wanted.memory,
    };
    let taken = capsules::snapshot(&app, caller, wanted).await?;
    Ok((StatusCode::CREATED, Json(taken.into())))
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Asked {
    #[serde(rename = "sandboxID")]
    sandbox_id: Option<String>,
    name: Option<String>,
    limit: Option<u32>,
    next_token: Option<String>,
}

pub(super) async fn page(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(asked): Query<Asked>,
) -> Result<Response> {
    let (before, limit) = cursor(asked.next_token.as_deref(), asked.limit, "a snapshot")?;
    if let Some(name) = asked.name.filter(|name| !name.is_empty()) {
        let name = names::untagged(&name);
        let found = snapshots::find(&app, caller, name).await?;
        let found: Vec<Snapshot> = found.into_iter().map(Snapshot::from).collect();
        return Ok(Json(found).into_response());
    }
    // An id that is no sandbox's has no snapshots.
    let of = asked.sandbox_id.map(|id| sandbox_id(&id));
    let of = match of {
        Some(Err(_)) => return Ok(Json(Vec::<Snapshot>::new()).into_response()),
        Some(Ok(id)) => Some(id),
        None => None,
    };
    let rows = snapshots::list(&app, caller, of, before, limit + 1).await?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok(super::paged::<_, Snapshot>(rows, limit, |row| row.id.to_string()))
}
