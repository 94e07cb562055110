//! `/files`: contents up and down, streamed, of any size; nothing is held whole in memory.

use crate::auth::{self, Signed};
use crate::error::{Error, Result};
use crate::filesystem::{self, entry};
use crate::guest::Guest;
use crate::paths;
use crate::users::{self, User};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Multipart, Query, Request, State};
use axum::response::{IntoResponse, Response};
use flate2::write::{GzDecoder, GzEncoder};
use futures::{Stream, StreamExt};
use http::{HeaderMap, StatusCode, header};
use protocol::Operation;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;

const CHUNK: usize = 256 * 1024;

/// One stored file, as answers name it.
#[derive(serde::Serialize)]
pub(super) struct Stored {
    path: String,
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

/// Who acts and on which path, once the caller is known to be allowed.
struct Target<'a> {
    guest: &'a Guest,
    user: User,
}

impl<'a> Target<'a> {
    fn new(guest: &'a Guest, headers: &HeaderMap, username: Option<&str>) -> Result<Self> {
        let named = username.filter(|n| !n.is_empty()).map(str::to_owned);
        let name = named
            .or_else(|| auth::requested_user(headers))
            .unwrap_or_else(|| guest.settings().default_user);
        Ok(Self { guest, user: users::get(&name)? })
    }

    fn path(&self, path: &str) -> Result<PathBuf> {
        if path.is_empty() {
            return Err(Error::invalid("path is missing"));
        }
        let workdir = self.guest.settings().default_workdir;
        paths::resolve(path, &self.user, workdir.as_deref())
    }
}

pub(super) async fn download(
    State(guest): State<Arc<Guest>>,
    Query(signed): Query<Signed>,
    headers: HeaderMap,
) -> Result<Response> {
    auth::check_file(&guest, &headers, &signed, Operation::Read)?;
    let target = Target::new(&guest, &headers, signed.username.as_deref())?;
    let path = target.path(&signed.path)?;
    let fail = |e: &std::io::Error| Error::io(&format!("reading {}", path.display()), e);
    let found = tokio::fs::metadata(&path).await.map_err(|e| fail(&e))?;
    if !found.is_file() {
        return Err(Error::invalid(format!("path is not a file: {}", path.display())));
    }
    let mut file = File::open(&path).await.map_err(|e| fail(&e))?;
    let mut answer = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_DISPOSITION, disposition(&path))
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::VARY, "accept-encoding");
    let length = found.len();
    let body = match range(&headers, length) {
        Range::Whole if length > 0 && accepts_gzip(&headers) => {
            answer = answer.header(header::CONTENT_ENCODING, "gzip");
            Body::from_stream(compress(ReaderStream::with_capacity(file, CHUNK)))
        }
        Range::Whole => {
            answer = answer.header(header::CONTENT_LENGTH, length);
            // Never more than was promised, should the file grow meanwhile.
            Body::from_stream(ReaderStream::with_capacity(file.take(length), CHUNK))
        }
        Range::Part(first, last) => {
            file.seek(std::io::SeekFrom::Start(first)).await.map_err(|e| fail(&e))?;
            answer = answer
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_LENGTH, last - first + 1)
                .header(header::CONTENT_RANGE, format!("bytes {first}-{last}/{length}"));
            Body::from_stream(ReaderStream::with_capacity(file.take(last - first + 1), CHUNK))
        }
        Range::Unsatisfiable => {
            answer = answer
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header(header::CONTENT_RANGE, format!("bytes */{length}"));
            Body::empty()
        }
    };
    answer.body(body).map_err(|e| Error::invalid(e.to_string()))
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

/// A single byte range (RFC 9110, 14.2); several at once are answered whole, as allowed.
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

fn compress(
    from: impl Stream<Item = std::io::Result<Bytes>> + Send + Unpin + 'static,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    let encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    futures::stream::unfold(Some((from, encoder)), |state| async move {
        let (mut from, mut encoder) = state?;
        loop {
            match from.next().await {
                None => return Some((encoder.finish().map(Bytes::from), None)),
                Some(Err(error)) => return Some((Err(error), None)),
                Some(Ok(chunk)) => {
                    if let Err(error) = encoder.write_all(&chunk) {
                        return Some((Err(error), None));
                    }
                    let out = std::mem::take(encoder.get_mut());
                    if !out.is_empty() {
                        return Some((Ok(Bytes::from(out)), Some((from, encoder))));
                    }
                }
            }
        }
    })
}

pub(super) async fn upload(
    State(guest): State<Arc<Guest>>,
    Query(signed): Query<Signed>,
    request: Request,
) -> Result<Json<Vec<Stored>>> {
    let headers = request.headers().clone();
    auth::check_file(&guest, &headers, &signed, Operation::Write)?;
    let target = Target::new(&guest, &headers, signed.username.as_deref())?;
    let metadata = metadata_of(&headers)?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    if !kind.starts_with("multipart/form-data") {
        let path = target.path(&signed.path)?;
        let body = request.into_body().into_data_stream();
        let gzip = headers.get(header::CONTENT_ENCODING).is_some_and(|v| v == "gzip");
        return Ok(Json(vec![store(&target, &path, body, gzip, &metadata).await?]));
    }
    let form = Multipart::from_request(request, &()).await;
    let mut form = form.map_err(|e| Error::invalid(e.body_text()))?;
    let mut stored = Vec::new();
    while let Some(part) = form.next_field().await.map_err(|e| Error::invalid(e.body_text()))? {
        if part.name() != Some("file") {
            continue;
        }
        let name =
            if signed.path.is_empty() { part.file_name().unwrap_or("") } else { &signed.path };
        let path = target.path(name)?;
        stored.push(store(&target, &path, part, false, &metadata).await?);
    }
    if stored.is_empty() {
        return Err(Error::invalid("the form has no part named `file`"));
    }
    Ok(Json(stored))
}

fn metadata_of(headers: &HeaderMap) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix("x-metadata-") else { continue };
        let value =
            value.to_str().map_err(|_| Error::invalid(format!("metadata {key} is no text")))?;
        if key.is_empty() || key.len() > entry::KEY_MAX || value.len() > entry::VALUE_MAX {
            return Err(Error::invalid(format!("metadata {key} is too long")));
        }
        out.insert(key.to_owned(), value.to_owned());
    }
    Ok(out)
}

/// Writes a body to a path, in the order that watchers expect: create, owner, contents. One
/// that fails leaves no file where none was.
async fn store<E: std::fmt::Display>(
    target: &Target<'_>,
    path: &Path,
    body: impl Stream<Item = std::result::Result<Bytes, E>> + Unpin,
    gzip: bool,
    metadata: &BTreeMap<String, String>,
) -> Result<Stored> {
    let new = !path.exists();
    let written = match create(target, path, metadata) {
        Ok(file) => fill(file, path, body, gzip).await,
        Err(error) => Err(error),
    };
    if written.is_err() && new {
        let _ = std::fs::remove_file(path);
    }
    written.map(|()| stored(path, metadata))
}

async fn fill<E: std::fmt::Display>(
    mut file: File,
    path: &Path,
    mut body: impl Stream<Item = std::result::Result<Bytes, E>> + Unpin,
    gzip: bool,
) -> Result<()> {
    let fail = |e: &std::io::Error| Error::io(&format!("writing {}", path.display()), e);
    let mut inflate = gzip.then(|| GzDecoder::new(Vec::new()));
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| Error::invalid(format!("the body broke off: {e}")))?;
        match &mut inflate {
            None => file.write_all(&chunk).await.map_err(|e| fail(&e))?,
            Some(inflate) => {
                // By pieces: what is small packed may be large unpacked.
                for piece in chunk.chunks(4096) {
                    inflate.write_all(piece).map_err(|e| Error::invalid(format!("gzip: {e}")))?;
                    file.write_all(&std::mem::take(inflate.get_mut()))
                        .await
                        .map_err(|e| fail(&e))?;
                }
            }
        }
    }
    if let Some(inflate) = inflate {
        let rest = inflate.finish().map_err(|e| Error::invalid(format!("gzip: {e}")))?;
        file.write_all(&rest).await.map_err(|e| fail(&e))?;
    }
    file.flush().await.map_err(|e| fail(&e))
}

fn create(target: &Target<'_>, path: &Path, metadata: &BTreeMap<String, String>) -> Result<File> {
    let fail = |e: &std::io::Error| Error::io(&format!("writing {}", path.display()), e);
    if path.is_dir() {
        return Err(Error::invalid(format!("path is a directory: {}", path.display())));
    }
    if let Some(parent) = path.parent() {
        filesystem::ensure_dir(parent, &target.user)?;
    }
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(|e| fail(&e))?;
    if rustix::process::getuid().is_root() {
        let (uid, gid) = (Some(target.user.uid), Some(target.user.gid));
        std::os::unix::fs::fchown(&file, uid, gid).map_err(|e| fail(&e))?;
    }
    entry::replace_metadata(path, &file, metadata)?;
    let mut file = File::from_std(file);
    file.set_max_buf_size(CHUNK);
    Ok(file)
}

fn stored(path: &Path, metadata: &BTreeMap<String, String>) -> Stored {
    Stored {
        path: path.to_string_lossy().into_owned(),
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        r#type: "file",
        metadata: metadata.clone(),
    }
}

/// Parts that are to become one file, in order.
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
    Json(request): Json<Compose>,
) -> Result<Response> {
    let target = Target::new(&guest, &headers, request.username.as_deref())?;
    let destination = target.path(&request.destination)?;
    let sources: Vec<PathBuf> =
        request.sources.iter().map(|s| target.path(s)).collect::<Result<_>>()?;
    if sources.is_empty() || sources.contains(&destination) {
        return Err(Error::invalid("sources must name files other than the destination"));
    }
    for source in &sources {
        let found = tokio::fs::metadata(source).await;
        let found = found.map_err(|e| Error::io(&format!("reading {}", source.display()), &e))?;
        if !found.is_file() {
            return Err(Error::invalid(format!("path is not a file: {}", source.display())));
        }
    }
    let fail = |e: &std::io::Error| Error::io(&format!("writing {}", destination.display()), e);
    let mut out = create(&target, &destination, &BTreeMap::new())?;
    for source in &sources {
        let mut part = File::open(source).await.map_err(|e| fail(&e))?;
        tokio::io::copy(&mut part, &mut out).await.map_err(|e| fail(&e))?;
    }
    out.flush().await.map_err(|e| fail(&e))?;
    for source in &sources {
        filesystem::remove(source)?;
    }
    Ok(Json(stored(&destination, &BTreeMap::new())).into_response())
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

    #[tokio::test]
    async fn a_compressed_body_is_the_same_when_unpacked() {
        let chunks: Vec<std::io::Result<Bytes>> =
            (0..50u8).map(|i| Ok(Bytes::from(vec![i; 10_000]))).collect();
        let packed: Vec<Bytes> =
            compress(futures::stream::iter(chunks)).map(|chunk| chunk.unwrap()).collect().await;
        let mut decoder = GzDecoder::new(Vec::new());
        decoder.write_all(&packed.concat()).unwrap();
        let plain = decoder.finish().unwrap();
        assert_eq!(plain.len(), 500_000);
        assert!(plain.iter().enumerate().all(|(i, b)| usize::from(*b) == i / 10_000));
    }
}
