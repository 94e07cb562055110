//! `/files`: streams contents of any size up and down. No file is held whole in memory.
//!
//! A job of its own reads or writes each piece, so a slow client holds no thread. A file system
//! that does not answer ends the transfer after the limit of a job.

use super::form::Demand;
use crate::auth::{self, Signed};
use crate::error::{Error, Result};
use crate::filesystem::sink::{Order, Sink};
use crate::filesystem::source::Source;
use crate::filesystem::{CHUNK, LONG, entry};
use crate::guest::Guest;
use crate::jobs::{LIMIT, Pool};
use crate::open::identify;
use crate::paths::Caller;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, Multipart, Query, Request, State};
use axum::response::{IntoResponse, Response};
use flate2::write::{GzDecoder, GzEncoder};
use futures::{Stream, StreamExt};
use http::{HeaderMap, StatusCode, header};
use protocol::Operation;
use std::collections::BTreeMap;
use std::io::{self, Write};
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

/// A file that is open for a download, with its first piece.
struct Opened {
    path: PathBuf,
    size: Option<u64>,
    range: Range,
    first: Vec<u8>,
    pieces: Pieces,
}

impl Opened {
    /// Opens a file and reads its first piece, so that an error there becomes the answer.
    fn open(path: PathBuf, headers: &HeaderMap, files: &Pool) -> Result<Self> {
        let fail = |e: &io::Error| Error::io(&format!("cannot read {}", path.display()), e);
        let mut source = Source::open(&path)?.closed_by(files);
        let size = source.size;
        // A file without a meaningful size has no ranges, so the answer holds all of it.
        let range = size.map_or(Range::Whole, |length| range(headers, length));
        match range {
            Range::Whole => {}
            Range::Part(first, last) => {
                source.limit(first, last - first + 1).map_err(|e| fail(&e))?;
            }
            Range::Unsatisfiable => source.limit(0, 0).map_err(|e| fail(&e))?,
        }
        let packed = range == Range::Whole && size.is_some() && accepts_gzip(headers);
        let mut pieces = Pieces::new(source, packed);
        let first = pieces.read().map_err(|e| fail(&e))?;
        Ok(Self { path, size, range, first, pieces })
    }
}

pub(super) async fn download(
    State(guest): State<Arc<Guest>>,
    query: std::result::Result<Query<Signed>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response> {
    let Query(signed) = query?;
    auth::check_file(&guest, &headers, &signed, Operation::Read)?;
    let caller = Caller::of(&guest, &headers, signed.username.as_deref());
    let files = guest.jobs.files.clone();
    let pool = files.clone();
    let open = move || {
        let path = caller.resolve_file(&signed.path, &caller.user()?)?;
        Opened::open(path, &headers, &pool)
    };
    let opened = files.run(LIMIT, open).await?;
    let mut answer = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_DISPOSITION, disposition(&opened.path))
        .header(header::VARY, "accept-encoding");
    if opened.size.is_some() {
        answer = answer.header(header::ACCEPT_RANGES, "bytes");
    }
    let length = opened.size.unwrap_or(0);
    answer = match opened.range {
        Range::Whole if opened.pieces.is_packed() => {
            answer.header(header::CONTENT_ENCODING, "gzip")
        }
        // The length is unknown until the end, so the answer has chunks.
        Range::Whole if opened.size.is_none() && !opened.first.is_empty() => answer,
        Range::Whole => answer.header(header::CONTENT_LENGTH, length),
        Range::Part(first, last) => answer
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_LENGTH, last - first + 1)
            .header(header::CONTENT_RANGE, format!("bytes {first}-{last}/{length}")),
        Range::Unsatisfiable => answer
            .status(StatusCode::RANGE_NOT_SATISFIABLE)
            .header(header::CONTENT_RANGE, format!("bytes */{length}")),
    };
    let body = match opened.first.is_empty() {
        true => Body::empty(),
        false => Body::from_stream(stream(files, opened.first, opened.pieces)),
    };
    answer.body(body).map_err(|e| Error::invalid(e.to_string()))
}

/// The pieces of an answer's body, plain or compressed.
struct Pieces {
    source: Source,
    packer: Option<GzEncoder<Vec<u8>>>,
    packed: bool,
}

impl Pieces {
    fn new(source: Source, packed: bool) -> Self {
        let packer = || GzEncoder::new(Vec::new(), flate2::Compression::fast());
        Self { source, packer: packed.then(packer), packed }
    }

    fn is_packed(&self) -> bool {
        self.packed
    }

    /// Makes the next piece. An empty piece marks the end.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let Some(packer) = &mut self.packer else {
            // A compressed body ends after its last piece.
            return if self.packed { Ok(Vec::new()) } else { self.source.read() };
        };
        loop {
            let piece = self.source.read()?;
            if piece.is_empty() {
                break;
            }
            packer.write_all(&piece)?;
            let out = std::mem::take(packer.get_mut());
            if !out.is_empty() {
                return Ok(out);
            }
        }
        self.packer.take().map_or_else(|| Ok(Vec::new()), GzEncoder::finish)
    }
}

/// Streams pieces after a first one. An error breaks the answer off, so that its reader notices.
fn stream(
    files: Pool,
    first: Vec<u8>,
    pieces: Pieces,
) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    let state = (files, Some(first), pieces);
    futures::stream::try_unfold(state, |(files, first, mut pieces)| async move {
        let (piece, pieces) = match first {
            Some(piece) => (piece, pieces),
            None => {
                let read = move || -> Result<_> {
                    let piece = pieces.read().map_err(|e| pieces.source.failure(&e))?;
                    Ok((piece, pieces))
                };
                files.run(LIMIT, read).await?
            }
        };
        let more = !piece.is_empty();
        Ok::<_, Error>(more.then(|| (Bytes::from(piece), (files, None, pieces))))
    })
}

fn disposition(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { '_' })
        .collect();
    let mut encoded = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    format!("inline; filename=\"{plain}\"; filename*=UTF-8''{encoded}")
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    /// First and last byte, both included.
    Part(u64, u64),
    Unsatisfiable,
}

/// Finds a single byte range (RFC 9110, 14.2). A request with several ranges gets the whole file,
/// as the RFC allows.
fn range(headers: &HeaderMap, length: u64) -> Range {
    let value = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
    let Some((first, last)) = value
        .and_then(|v| v.strip_prefix("bytes="))
        .filter(|v| !v.contains(','))
        .and_then(|v| v.trim().split_once('-'))
    else {
        return Range::Whole;
    };
    let part = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if last < first => return Range::Whole,
        (Ok(first), Ok(last)) => (first, last.min(length.saturating_sub(1))),
        (Ok(first), Err(_)) if last.is_empty() => (first, length.saturating_sub(1)),
        (Err(_), Ok(0)) if first.is_empty() => return Range::Unsatisfiable,
        (Err(_), Ok(suffix)) if first.is_empty() => {
            (length.saturating_sub(suffix), length.saturating_sub(1))
        }
        _ => return Range::Whole,
    };
    if part.0 >= length { Range::Unsatisfiable } else { Range::Part(part.0, part.1) }
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok());
    accepted.unwrap_or("").split(',').any(|one| {
        let mut parts = one.split(';').map(str::trim);
        parts.next() == Some("gzip") && !parts.any(|p| matches!(p, "q=0" | "q=0.0"))
    })
}

pub(super) async fn upload(
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
fn is_packed(headers: &HeaderMap) -> Result<bool> {
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
struct Contents<S> {
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
    fn new(body: S, gzip: bool) -> Self {
        let unpacker = gzip.then(|| GzDecoder::new(Vec::new()));
        Self { body, packed: Bytes::new(), unpacker, ended: false }
    }

    /// Gathers the next piece. An empty piece marks the end.
    async fn gather(&mut self) -> Result<Vec<u8>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_rfc_9110() {
        let of = |value: &str, length| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, value.parse().unwrap());
            range(&headers, length)
        };
        assert_eq!(of("bytes=0-4", 10), Range::Part(0, 4));
        assert_eq!(of("bytes=5-", 10), Range::Part(5, 9));
        assert_eq!(of("bytes=-3", 10), Range::Part(7, 9));
        assert_eq!(of("bytes=-30", 10), Range::Part(0, 9));
        assert_eq!(of("bytes=8-99", 10), Range::Part(8, 9));
        assert_eq!(of("bytes=10-", 10), Range::Unsatisfiable);
        assert_eq!(of("bytes=-0", 10), Range::Unsatisfiable);
        assert_eq!(of("bytes=0-", 0), Range::Unsatisfiable);
        for whole in ["bytes=4-2", "bytes=0-1,3-4", "items=0-1", "bytes=x"] {
            assert_eq!(of(whole, 10), Range::Whole, "{whole}");
        }
    }

    /// Returns the status and the message of a refusal, as callers get them.
    async fn refusal(error: Error) -> (u16, String) {
        let answer = error.into_response();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["code"], status);
        (status, body["message"].as_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn download_of_non_file_is_refused_with_its_reason() {
        let guest = Arc::new(Guest::new(None, 0));
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RWXU).unwrap();
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        for (path, status, reason) in [
            (at("pipe"), 400, "path is not a regular file"),
            (at(""), 400, "path is not a regular file"),
            ("/dev/null".to_owned(), 400, "path is not a regular file"),
            (at("file/below"), 400, "Not a directory"),
            (at("loop"), 400, "symbolic links"),
            (at("none"), 404, "No such file or directory"),
            (String::new(), 400, "path is required"),
        ] {
            let query = Ok(Query(Signed { path: path.clone(), ..Default::default() }));
            let answer = download(State(Arc::clone(&guest)), query, HeaderMap::new()).await;
            let (told, message) = refusal(answer.unwrap_err()).await;
            assert_eq!(told, status, "{path}: {message}");
            assert!(message.contains(reason), "{path}: {message}");
        }
        let query = Query::try_from_uri(&"/files?signature_expiration=x".parse().unwrap());
        let answer = download(State(guest), query, HeaderMap::new()).await;
        assert_eq!(refusal(answer.unwrap_err()).await.0, 400);
    }

    #[test]
    fn body_in_an_unknown_encoding_is_refused() {
        let packed = |value: &'static str| {
            let value = http::HeaderValue::from_static(value);
            is_packed(&HeaderMap::from_iter([(header::CONTENT_ENCODING, value)]))
        };
        assert!(packed("gzip").unwrap() && !packed("identity").unwrap());
        assert!(!is_packed(&HeaderMap::new()).unwrap());
        assert!(packed("br").unwrap_err().message.contains("Content-Encoding"));
    }

    /// Uploads a form whose bytes are all there at once.
    async fn send_form(form: Vec<u8>) -> Result<Json<Vec<Stored>>> {
        let chunks: Vec<Bytes> = form.chunks(64 * 1024).map(Bytes::copy_from_slice).collect();
        let chunks = futures::stream::iter(chunks).map(Ok::<_, io::Error>);
        let request = Request::builder()
            .header(header::CONTENT_TYPE, "multipart/form-data; boundary=b")
            .body(Body::from_stream(chunks))
            .unwrap();
        let guest = Arc::new(Guest::new(None, 0));
        upload(State(guest), Ok(Query(Signed::default())), request).await
    }

    #[tokio::test]
    async fn oversized_form_is_refused_before_it_is_buffered_whole() {
        for begin in ["no part", "--b\r\nContent-Disposition: "] {
            let form = begin.to_owned() + &"x".repeat(4 << 20);
            let refused = send_form(form.into_bytes()).await.err().unwrap();
            assert!(refused.message.contains("1 MiB"), "{begin}: {refused}");
        }
    }

    #[tokio::test]
    async fn large_form_is_streamed_and_other_parts_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        // All parts together exceed the parser's bound, and stay below the default limit of a body.
        let (path, contents) = (dir.path().join("f"), "c".repeat(900 << 10));
        let part = |disposition: &str| {
            format!("--b\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{contents}\r\n")
        };
        let file = part(&format!("name=\"file\"; filename=\"{}\"", path.display()));
        let form = part("name=\"other\"") + &file + "--b--\r\n";
        let Json(stored) = send_form(form.into_bytes()).await.unwrap();
        assert_eq!(stored.len(), 1);
        assert!(std::fs::read_to_string(path).unwrap() == contents);
    }

    fn contents(file: &Path, packed: bool) -> Vec<u8> {
        let mut pieces = Pieces::new(Source::open(file).unwrap(), packed);
        let mut all = Vec::new();
        loop {
            let piece = pieces.read().unwrap();
            if piece.is_empty() {
                assert!(pieces.read().unwrap().is_empty());
                return all;
            }
            all.extend(piece);
        }
    }

    #[tokio::test]
    async fn gzip_body_is_decompressed_to_the_original() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let plain: Vec<u8> = (0..2_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 4]).collect();
        std::fs::write(&file, &plain).unwrap();
        assert!(contents(&file, false) == plain);
        let packed = contents(&file, true);
        for size in [1_000, packed.len()] {
            let chunks = packed.chunks(size).map(|chunk| Ok(Bytes::copy_from_slice(chunk)));
            let body = futures::stream::iter(chunks.collect::<Vec<io::Result<Bytes>>>());
            let mut body = Contents::new(body, true);
            let mut unpacked = Vec::new();
            loop {
                let piece = body.gather().await.unwrap();
                if piece.is_empty() {
                    break;
                }
                unpacked.extend(piece);
            }
            assert!(unpacked == plain);
        }
    }
}
