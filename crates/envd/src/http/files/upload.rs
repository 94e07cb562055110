//! Uploads: bodies and forms, plain or compressed. A file appears whole or not at all.

use super::{Stored, stored};
use crate::auth::{self, Signed};
use crate::error::{Error, Result};
use crate::filesystem::sink::{Order, Sink};
use crate::filesystem::{CHUNK, LONG, entry};
use crate::guest::Guest;
use crate::http::form::Demand;
use crate::jobs::{LIMIT, Pool};
use crate::paths::Caller;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, Multipart, Query, Request, State};
use flate2::write::GzDecoder;
use futures::{Stream, StreamExt};
use http::{HeaderMap, header};
use protocol::Operation;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// Stores a body, or the files of a form.
pub(in crate::http) async fn upload(
    State(guest): State<Arc<Guest>>,
    query: std::result::Result<Query<Signed>, QueryRejection>,
    request: Request,
) -> Result<Json<Vec<Stored>>> {
    let Query(signed) = query?;
    let headers = request.headers().clone();
    auth::check_file(&guest, &headers, &signed, Operation::Write)?;
    let upload = Upload {
        caller: Caller::of(&guest, &headers, signed.username.as_deref()),
        files: guest.jobs.files.clone(),
        metadata: metadata_of(&headers)?,
    };
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    if !kind.starts_with("multipart/form-data") {
        let gzip = is_packed(&headers)?;
        let body = Contents::new(request.into_body().into_data_stream(), gzip);
        return Ok(Json(vec![upload.store(&signed.path, body).await?]));
    }
    let demand = Demand::default();
    let form = Multipart::from_request(request.map(|body| demand.feed(body)), &()).await;
    let mut form = form.map_err(|e| Error::invalid(e.body_text()))?;
    let mut stored = Vec::new();
    while let Some(part) = demand.next_part(&mut form).await? {
        let is_file = part.name() == Some("file");
        let name = part.file_name().unwrap_or("").to_owned();
        let mut part = Contents::new(demand.contents(part), false);
        if is_file {
            let path = if signed.path.is_empty() { &name } else { &signed.path };
            stored.push(upload.store(path, part).await?);
        } else {
            while !part.gather().await?.is_empty() {}
        }
    }
    if stored.is_empty() {
        return Err(Error::invalid("the form has no part named `file`"));
    }
    Ok(Json(stored))
}

/// Reports whether a body is compressed.
///
/// # Errors
/// Returns `invalid_argument` for an unknown encoding, whose body would be stored as it came.
pub(super) fn is_packed(headers: &HeaderMap) -> Result<bool> {
    match headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes()) {
        Some(b"gzip") => Ok(true),
        None | Some(b"" | b"identity") => Ok(false),
        Some(_) => Err(Error::invalid("Content-Encoding must be gzip or identity")),
    }
}

fn metadata_of(headers: &HeaderMap) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix("x-metadata-") else { continue };
        let value = value
            .to_str()
            .map_err(|_| Error::invalid(format!("metadata {key} is not valid text")))?;
        if key.is_empty() || key.len() > entry::KEY_MAX || value.len() > entry::VALUE_MAX {
            return Err(Error::invalid(format!("metadata {key} is too long")));
        }
        out.insert(key.to_owned(), value.to_owned());
    }
    Ok(out)
}

/// User, job places and metadata for the files of a request.
struct Upload {
    caller: Caller,
    files: Pool,
    metadata: BTreeMap<String, String>,
}

impl Upload {
    /// Stores contents at a path, all of them or none. A small file takes a single job.
    async fn store<S, E>(&self, path: &str, mut contents: Contents<S>) -> Result<Stored>
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let piece = contents.gather().await?;
        let (open, whole) = (self.opener(path), contents.ended);
        let begin = move || -> Result<_> {
            let (mut sink, path) = open()?;
            sink.write(&piece)?;
            if whole {
                sink.commit()?;
                return Ok((None, path));
            }
            Ok((Some(sink), path))
        };
        let limit = if whole { LONG } else { LIMIT };
        let (sink, path) = self.files.run(limit, begin).await?;
        if let Some(sink) = sink {
            self.store_rest(sink, contents).await?;
        }
        Ok(stored(&path, &self.metadata))
    }

    async fn store_rest<S, E>(&self, mut sink: Sink, mut contents: Contents<S>) -> Result<()>
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let mut piece = contents.gather().await?;
        while !piece.is_empty() {
            let write = move || -> Result<_> {
                sink.write(&piece)?;
                Ok(sink)
            };
            let written = self.files.run(LIMIT, write);
            // A failed write ends the wait for a slow client.
            (sink, piece) = tokio::try_join!(written, contents.gather())?;
        }
        self.files.run(LONG, move || sink.commit()).await
    }

    /// Returns the work that opens a path for new contents.
    fn opener(&self, path: &str) -> impl FnOnce() -> Result<(Sink, PathBuf)> + Send + 'static {
        let (caller, path) = (self.caller.clone(), path.to_owned());
        let (metadata, pool) = (self.metadata.clone(), self.files.clone());
        move || {
            let user = caller.user()?;
            let path = caller.resolve_file(&path, &user)?;
            let order = Order { path: &path, user: &user, metadata: &metadata };
            let sink = Sink::open(&order, &pool)?;
            Ok((sink, path))
        }
    }
}

/// A body, decompressed and gathered into pieces that are worth a job each.
pub(super) struct Contents<S> {
    body: S,
    /// Bytes of the body that are not decompressed yet.
    packed: Bytes,
    unpacker: Option<GzDecoder<Vec<u8>>>,
    ended: bool,
}

impl<S, E> Contents<S>
where
    S: Stream<Item = std::result::Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    pub(super) fn new(body: S, gzip: bool) -> Self {
        let unpacker = gzip.then(|| GzDecoder::new(Vec::new()));
        Self { body, packed: Bytes::new(), unpacker, ended: false }
    }

    /// Gathers the next piece. An empty piece marks the end.
    pub(super) async fn gather(&mut self) -> Result<Vec<u8>> {
        let bad = |e: io::Error| Error::invalid(format!("gzip: {e}"));
        let mut out = Vec::new();
        while !self.ended && out.len() < CHUNK {
            if let Some(unpacker) = &mut self.unpacker
                && !self.packed.is_empty()
            {
                // Small steps bound the memory: few compressed bytes may become many.
                let piece = self.packed.split_to(self.packed.len().min(4096));
                unpacker.write_all(&piece).map_err(bad)?;
                out.append(unpacker.get_mut());
                continue;
            }
            match self.body.next().await {
                Some(chunk) => {
                    let broken = |e: E| Error::invalid(format!("the body ended early: {e}"));
                    let chunk = chunk.map_err(broken)?;
                    match self.unpacker {
                        Some(_) => self.packed = chunk,
                        None => {
                            // A small body needs no more than its own room.
                            let room = if out.is_empty() { chunk.len() } else { 2 * CHUNK };
                            out.reserve(room.saturating_sub(out.len()));
                            out.extend_from_slice(&chunk);
                        }
                    }
                }
                None => {
                    if let Some(unpacker) = self.unpacker.take() {
                        out.append(&mut unpacker.finish().map_err(bad)?);
                    }
                    self.ended = true;
                }
            }
        }
        Ok(out)
    }
}
