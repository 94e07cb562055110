//! `/files`: streams contents of any size up and down, and joins files. No file is held whole in
//! memory.
//!
//! A job of its own reads or writes each piece, so a slow client holds no thread. A file system
//! that does not answer ends the transfer after the limit of a job.

mod download;
#[cfg(test)]
mod tests;
mod upload;

pub(super) use download::download;
pub(super) use upload::upload;

use crate::error::{Error, Result};
use crate::filesystem::LONG;
use crate::filesystem::sink::{Order, Sink};
use crate::filesystem::source::Source;
use crate::guest::Guest;
use crate::jobs::{LIMIT, Pool};
use crate::open::identify;
use crate::paths::Caller;
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A stored file, as answers describe it.
#[derive(serde::Serialize)]
pub(super) struct Stored {
    path: String,
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

fn stored(path: &Path, metadata: &BTreeMap<String, String>) -> Stored {
    Stored {
        path: path.to_string_lossy().into_owned(),
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        r#type: "file",
        metadata: metadata.clone(),
    }
}

/// Body of `/files/compose`: the parts of a file, in order, and the file's path.
#[derive(serde::Deserialize)]
pub(super) struct Compose {
    sources: Vec<String>,
    destination: String,
    username: Option<String>,
}

/// Joins files into one and removes the parts.
pub(super) async fn compose(
    State(guest): State<Arc<Guest>>,
    headers: HeaderMap,
    request: std::result::Result<Json<Compose>, JsonRejection>,
) -> Result<Response> {
    let Json(request) = request?;
    let caller = Caller::of(&guest, &headers, request.username.as_deref());
    let files = guest.jobs.files.clone();
    let pool = files.clone();
    let begin = move || begin_compose(&caller, &request, &pool);
    let (mut sink, destination, sources) = files.run(LIMIT, begin).await?;
    for path in sources.clone() {
        let pool = files.clone();
        let open = move || Source::open(&path).map(|source| source.closed_by(&pool));
        let mut source = files.run(LIMIT, open).await?;
        let mut more = true;
        while more {
            let step = move || -> Result<_> {
                let more = sink.copy(&mut source)?;
                Ok((sink, source, more))
            };
            (sink, source, more) = files.run(LIMIT, step).await?;
        }
    }
    files.run(LONG, move || sink.commit()).await?;
    let remove = move || sources.iter().try_for_each(|source| remove_part(source));
    files.run(LONG, remove).await?;
    Ok(Json(stored(&destination, &BTreeMap::new())).into_response())
}

/// Checks the parts, and opens their destination.
fn begin_compose(
    caller: &Caller,
    request: &Compose,
    pool: &Pool,
) -> Result<(Sink, PathBuf, Vec<PathBuf>)> {
    let user = caller.user()?;
    let destination = caller.resolve_file(&request.destination, &user)?;
    let sources = request.sources.iter().map(|path| caller.resolve_file(path, &user));
    let sources: Vec<PathBuf> = sources.collect::<Result<_>>()?;
    let same = || Error::invalid("sources must not contain the destination");
    if sources.is_empty() {
        return Err(Error::invalid("sources must name at least one file"));
    }
    if sources.contains(&destination) {
        return Err(same());
    }
    // A file that is written in place would be emptied before it is read, under whatever name.
    let replaced = identify(&destination).ok();
    for path in &sources {
        if Some(identify(path)?) == replaced {
            return Err(same());
        }
    }
    let metadata = BTreeMap::new();
    let order = Order { path: &destination, user: &user, metadata: &metadata };
    let sink = Sink::open(&order, pool)?;
    Ok((sink, destination, sources))
}

/// Removes a joined part. Succeeds too when it is gone.
fn remove_part(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(&format!("cannot remove {}", path.display()), &e))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
