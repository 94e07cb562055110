//! `/files/archive`: streams a file or a folder as a tar archive, in both directions.
//!
//! The archive is packed and unpacked on a thread of its own. A file system without progress ends
//! the exchange. A slow client does not.

use crate::error::{Error, Result};
use crate::filesystem;
use crate::guest::Guest;
use crate::jobs;
use crate::paths::Caller;
use crate::users::User;
use archive::stream::{BACKLOG, ChunkReader, ChunkWriter};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use connectrpc::ErrorCode;
use futures::StreamExt;
use http::{HeaderMap, header};
use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;
use tokio::task::JoinError;
use tokio::time::timeout;

/// Header of every answer. An older envd has no such route, and so sends no such header.
const MARK: [(&str, &str); 1] = [(protocol::ARCHIVE, "1")];

/// Path and account of a request.
#[derive(serde::Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    path: String,
    username: Option<String>,
}

/// Finds the user and the path of a request. Reads files, so it runs on a thread that may block.
fn target(caller: &Caller, asked: &Asked) -> Result<(User, PathBuf)> {
    let user = caller.user()?;
    let path = caller.resolve_file(&asked.path, &user)?;
    Ok((user, path))
}

impl From<archive::Error> for Error {
    fn from(error: archive::Error) -> Self {
        match error {
            archive::Error::Refused(message) => Self::invalid(message),
            archive::Error::File { doing, source } => Self::io(&doing, &source),
            archive::Error::Stream(source) => {
                Self::invalid(format!("the archive ended early: {source}"))
            }
        }
    }
}

fn stuck() -> Error {
    let message = format!("the file system made no progress within {:?}", jobs::LIMIT);
    Error::new(ErrorCode::DeadlineExceeded, message)
}

/// Path and account, or the reason why the query holds none.
type Parsed = std::result::Result<Query<Asked>, QueryRejection>;

/// Sends a file or a folder as an archive. Its only top entry has the path's last name.
pub(super) async fn download(
    State(guest): State<Arc<Guest>>,
    query: Parsed,
    headers: HeaderMap,
) -> Response {
    (MARK, send(guest, query, &headers).await).into_response()
}

/// Unpacks the body below a folder. Makes the folder when it is missing.
pub(super) async fn upload(
    State(guest): State<Arc<Guest>>,
    query: Parsed,
    request: Request,
) -> Response {
    (MARK, receive(guest, query, request).await).into_response()
}

type Chunks = mpsc::Receiver<Result<Bytes>>;

async fn send(guest: Arc<Guest>, query: Parsed, headers: &HeaderMap) -> Result<Response> {
    let Query(asked) = query?;
    let place = guest.jobs.archives.free_place().await?;
    let caller = Caller::of(&guest, headers, asked.username.as_deref());
    let (to, mut chunks) = mpsc::channel(BACKLOG);
    tokio::task::spawn_blocking(move || {
        let _place = place;
        let mut writer = ChunkWriter::new(to.clone());
        let packed = target(&caller, &asked).and_then(|(_, path)| {
            let name = path.file_name().unwrap_or(OsStr::new("root"));
            Ok(archive::pack(&path, name, &mut writer)?)
        });
        if let Err(error) = packed {
            // The body breaks off, so that nobody takes the part before for the whole.
            let _ = to.blocking_send(Err(error));
        }
    });
    // An error before the first byte becomes an answer with a status of its own.
    let first = next(&mut chunks).await.transpose()?;
    let rest = futures::stream::unfold(chunks, |mut chunks| async move {
        let chunk = next(&mut chunks).await?;
        Some((chunk, chunks))
    });
    let body = Body::from_stream(futures::stream::iter(first.map(Ok)).chain(rest));
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], body).into_response())
}

/// Takes the next chunk of an archive. Returns `None` at its end.
async fn next(chunks: &mut Chunks) -> Option<Result<Bytes>> {
    timeout(jobs::LIMIT, chunks.recv()).await.unwrap_or_else(|_| Some(Err(stuck())))
}

/// Progress of a thread that unpacks.
struct Progress {
    bytes: Arc<AtomicU64>,
    seen: AtomicU64,
}

impl Progress {
    /// Reports whether there was progress since the last call.
    fn is_made(&self) -> bool {
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.seen.swap(bytes, Ordering::Relaxed) != bytes
    }
}

/// Answer after an archive was unpacked.
#[derive(serde::Serialize)]
struct Unpacked {
    /// Bytes of files' contents.
    bytes: u64,
}

async fn receive(guest: Arc<Guest>, query: Parsed, request: Request) -> Result<Response> {
    let Query(asked) = query?;
    let place = guest.jobs.archives.free_place().await?;
    let caller = Caller::of(&guest, request.headers(), asked.username.as_deref());
    let work = move |reader| {
        let _place = place;
        unpack(&caller, &asked, reader)
    };
    let bytes = with_body(request.into_body(), work).await?;
    Ok(Json(Unpacked { bytes }).into_response())
}

/// Runs work that reads a body, on a thread that may block. Work without progress ends the exchange.
pub(super) async fn with_body<T: Send + 'static>(
    body: Body,
    work: impl FnOnce(ChunkReader) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (to, chunks) = mpsc::channel(BACKLOG);
    let reader = ChunkReader::new(chunks);
    let progress = Progress { bytes: reader.taken(), seen: AtomicU64::new(0) };
    let mut working = tokio::task::spawn_blocking(move || work(reader));
    tokio::select! {
        // A refused archive is not read to its end.
        done = &mut working => return ended(done),
        fed = feed(body, to, &progress) => fed?,
    }
    loop {
        match timeout(jobs::LIMIT, &mut working).await {
            Ok(done) => return ended(done),
            Err(_) if progress.is_made() => {}
            Err(_) => return Err(stuck()),
        }
    }
}

fn ended<T>(done: std::result::Result<Result<T>, JoinError>) -> Result<T> {
    done.map_err(|e| Error::internal(e.to_string()))?
}

/// Feeds a body to the thread that unpacks it.
async fn feed(body: Body, to: mpsc::Sender<io::Result<Bytes>>, progress: &Progress) -> Result<()> {
    let mut body = body.into_data_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(io::Error::other);
        let broken = chunk.is_err();
        let permit = loop {
            match timeout(jobs::LIMIT, to.reserve()).await {
                Ok(Ok(permit)) => break permit,
                // The thread has ended, and its result holds the reason.
                Ok(Err(_)) => return Ok(()),
                Err(_) if progress.is_made() => {}
                Err(_) => return Err(stuck()),
            }
        };
        permit.send(chunk);
        if broken {
            break;
        }
    }
    Ok(())
}

fn unpack(caller: &Caller, asked: &Asked, reader: ChunkReader) -> Result<u64> {
    let (user, folder) = target(caller, asked)?;
    filesystem::ensure_dir(&folder, &user)?;
    let may_give = rustix::process::getuid().is_root();
    let options = archive::Options {
        owner: may_give.then_some((user.uid, user.gid)),
        keep_set_id: user.uid == 0,
        staged: filesystem::STAGED_PREFIX,
        top: None,
    };
    Ok(archive::unpack(&folder, reader, options)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn archive_of_hanging_file_system_ends_with_deadline_exceeded() {
        let (to, mut chunks) = mpsc::channel(BACKLOG);
        let error = next(&mut chunks).await.unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::DeadlineExceeded);
        drop(to);
        assert!(next(&mut chunks).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn upload_waits_for_slow_file_system_but_not_for_hanging_one() {
        let (to, _chunks) = mpsc::channel(1);
        let bytes = Arc::new(AtomicU64::new(0));
        let progress = Progress { bytes: Arc::clone(&bytes), seen: AtomicU64::new(0) };
        let pieces = [Ok::<_, io::Error>("one"), Ok("two")];
        let body = Body::from_stream(futures::stream::iter(pieces));
        let began = tokio::time::Instant::now();
        let moves = async {
            tokio::time::sleep(jobs::LIMIT / 2).await;
            bytes.store(1, Ordering::Relaxed);
            std::future::pending::<()>().await;
        };
        let fed = tokio::select! {
            fed = feed(body, to, &progress) => fed,
            () = moves => Ok(()),
        };
        assert_eq!(fed.unwrap_err().code, ErrorCode::DeadlineExceeded);
        assert!(began.elapsed() >= jobs::LIMIT * 2);
    }
}
