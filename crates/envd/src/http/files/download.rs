//! Downloads: whole files, single ranges of bytes, and compressed answers.

use crate::auth::{self, Signed};
use crate::error::{Error, Result};
use crate::filesystem::source::Source;
use crate::guest::Guest;
use crate::jobs::{LIMIT, Pool};
use crate::paths::Caller;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use flate2::write::GzEncoder;
use futures::Stream;
use http::{HeaderMap, StatusCode, header};
use protocol::Operation;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// Answers with a file, or with a part of it.
pub(in crate::http) async fn download(
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
pub(super) struct Pieces {
    source: Source,
    packer: Option<GzEncoder<Vec<u8>>>,
    packed: bool,
}

impl Pieces {
    pub(super) fn new(source: Source, packed: bool) -> Self {
        let packer = || GzEncoder::new(Vec::new(), flate2::Compression::fast());
        Self { source, packer: packed.then(packer), packed }
    }

    fn is_packed(&self) -> bool {
        self.packed
    }

    /// Makes the next piece. An empty piece marks the end.
    pub(super) fn read(&mut self) -> io::Result<Vec<u8>> {
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

/// Part of a file that a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Range {
    Whole,
    /// First and last byte, both included.
    Part(u64, u64),
    Unsatisfiable,
}

/// Finds a single byte range (RFC 9110, 14.2). A request with several ranges gets the whole file,
/// as the RFC allows.
pub(super) fn range(headers: &HeaderMap, length: u64) -> Range {
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
