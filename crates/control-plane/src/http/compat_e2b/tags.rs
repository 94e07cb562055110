//! Tags of templates. Statuses and texts are those that E2B's clients look for.

use super::names;
use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::http::extract::{Json as Body, Path};
use crate::tags;
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use recipe::names::Reference;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use time::OffsetDateTime;

#[derive(Deserialize)]
pub(super) struct Assign {
    /// Template with the tag or build that gets the new tags.
    target: String,
    tags: Option<Vec<String>>,
}

#[derive(Serialize)]
pub(super) struct Assigned {
    tags: Vec<String>,
    #[serde(rename = "buildID")]
    build_id: String,
}

pub(super) async fn assign(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(wanted): Body<Assign>,
) -> Result<(StatusCode, Json<Assigned>)> {
    let target = names::read(&wanted.target)?;
    let tags = read(wanted.tags)?;
    let version = names::selector(&target);
    let (_, build) = tags::assign(&app, caller, &path(&target), &version, tags.clone()).await?;
    let build_id = build.id.0.to_string();
    Ok((StatusCode::CREATED, Json(Assigned { tags, build_id })))
}

#[derive(Deserialize)]
pub(super) struct Remove {
    name: String,
    tags: Option<Vec<String>>,
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(wanted): Body<Remove>,
) -> Result<StatusCode> {
    let target = names::read(&wanted.name)?;
    if target.selector.is_some() {
        let message = "name should not contain a tag, use the 'tags' field instead";
        return Err(Error::invalid("Template", message));
    }
    tags::delete(&app, caller, &path(&target), read(wanted.tags)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tag {
    tag: String,
    #[serde(rename = "buildID")]
    build_id: String,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

/// Lists the newest assignment of each tag.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Vec<Tag>>> {
    let (_, rows) = tags::list(&app, caller, &names::plain(&id)).await?;
    let to_wire = |row: crate::db::tags::Tag| Tag {
        tag: row.tag,
        build_id: row.build_id.0.to_string(),
        created_at: row.assigned_at,
    };
    Ok(Json(rows.into_iter().map(to_wire).collect()))
}

fn read(tags: Option<Vec<String>>) -> Result<Vec<String>> {
    let tags = tags.unwrap_or_default();
    if tags.is_empty() {
        return Err(Error::invalid("At", "least one tag is required"));
    }
    tags.iter().map(|tag| names::read_tag(tag)).collect()
}

/// Returns a template's name with its namespace.
fn path(reference: &Reference) -> String {
    Reference { selector: None, ..reference.clone() }.to_string()
}
