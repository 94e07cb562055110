//! Data streams of `wrenn capsule cp`: plain contents of one file, and archives.

use crate::client::Client;
use crate::commands::capsule::path;
use crate::output::{self, Transfer};
use anyhow::Context;
use archive::stream::{BACKLOG, ChunkReader, ChunkWriter};
use futures::StreamExt;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Body, Method};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

const CHUNK: usize = 256 * 1024;
/// Prefix of the names of incomplete files.
const STAGED: &str = ".wrenn-cp-";
/// Time limit for the packing thread to notice that nobody reads any more.
const GRACE: Duration = Duration::from_secs(5);

/// Returns the API's path for contents or an archive at a path in a capsule.
fn target(id: &str, route: &str, at: &str) -> anyhow::Result<String> {
    let at = utf8_percent_encode(at, NON_ALPHANUMERIC);
    path(id, &format!("{route}?path={at}"))
}

/// Writes a stream to a file in a capsule.
pub(super) async fn send(
    client: &Client,
    id: &str,
    to: &str,
    from: impl AsyncRead + Send + Sync + 'static,
) -> anyhow::Result<u64> {
    let transfer = Transfer::start(to, None);
    let counted = transfer.clone();
    let body = ReaderStream::with_capacity(from, CHUNK).inspect(move |chunk| {
        counted.add(chunk.as_ref().map_or(0, |bytes| bytes.len() as u64));
    });
    let request = client.request(Method::PUT, &target(id, "/files", to)?);
    let sent = client.send(request.body(Body::wrap_stream(body))).await;
    let copied = transfer.finish();
    sent.map(|_| copied)
}

/// Writes the contents of a file in a capsule to a stream.
pub(super) async fn fetch(
    client: &Client,
    id: &str,
    from: &str,
    to: &mut (impl AsyncWrite + Unpin),
) -> anyhow::Result<u64> {
    let request = client.request(Method::GET, &target(id, "/files", from)?);
    let answer = client.send(request).await?;
    let transfer = Transfer::start(from, answer.content_length());
    let mut body = answer.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.context("the contents ended early")?;
        to.write_all(&chunk).await.context("cannot write the contents")?;
        transfer.add(chunk.len() as u64);
    }
    to.flush().await.context("cannot write the contents")?;
    Ok(transfer.finish())
}

/// Writes the contents of a file in a capsule to a local file. The local file appears once it is
/// complete.
pub(super) async fn save(
    client: &Client,
    (id, from): (&str, &str),
    to: &Path,
) -> anyhow::Result<u64> {
    let what = || format!("cannot write {}", to.display());
    let found = tokio::fs::symlink_metadata(to).await;
    let is_special = found.is_ok_and(|found| !found.is_file() && !found.is_symlink());
    anyhow::ensure!(!is_special, "{} is not a file", to.display());
    let staged = to.with_file_name(format!("{STAGED}{}", std::process::id()));
    let mut file = File::create_new(&staged).await.with_context(what)?;
    let saved = match fetch(client, id, from, &mut file).await {
        Ok(copied) => tokio::fs::rename(&staged, to).await.with_context(what).map(|()| copied),
        Err(error) => Err(error),
    };
    if saved.is_err() {
        let _ = tokio::fs::remove_file(&staged).await;
    }
    saved
}

/// Copies a file or a folder of a capsule to a place in a local folder. Returns the number of bytes
/// of file contents.
pub(super) async fn unpack(
    client: &Client,
    (id, from): (&str, &str),
    folder: PathBuf,
    top: archive::Top,
) -> anyhow::Result<u64> {
    let request = client.request(Method::GET, &target(id, "/files/archive", from)?);
    let answer = client.send(request).await?;
    let transfer = Transfer::start(from, None);
    let (to, chunks) = mpsc::channel(BACKLOG);
    // The archive may hold set-id bits of a guest's program, which nobody here should run as its
    // owner.
    let options =
        archive::Options { owner: None, keep_set_id: false, staged: STAGED, top: Some(top) };
    let unpacking = tokio::task::spawn_blocking(move || {
        archive::unpack(&folder, ChunkReader::new(chunks), options)
    });
    let mut body = answer.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(io::Error::other);
        transfer.add(chunk.as_ref().map_or(0, |bytes| bytes.len() as u64));
        let broken = chunk.is_err();
        if to.send(chunk).await.is_err() || broken {
            break;
        }
    }
    drop(to);
    let unpacked = unpacking.await?;
    transfer.finish();
    Ok(unpacked?)
}

/// Copies a local file or folder into a folder of a capsule, under a name. Returns the number of
/// bytes of file contents.
pub(super) async fn pack(
    client: &Client,
    local: &Path,
    (id, folder): (&str, &str),
    name: OsString,
) -> anyhow::Result<u64> {
    let request = client.request(Method::PUT, &target(id, "/files/archive", folder)?);
    let transfer = Transfer::start(&local.display().to_string(), None);
    let (to, mut chunks) = mpsc::channel(BACKLOG);
    let local = local.to_owned();
    let packing = tokio::task::spawn_blocking(move || {
        let mut writer = ChunkWriter::new(to.clone());
        let packed = archive::pack(&local, &name, &mut writer);
        if packed.is_err() {
            // The error breaks the body off, so that the capsule does not take a part for the
            // whole.
            let _ = to.blocking_send(Err(io::Error::other("cannot read the source")));
        }
        packed
    });
    let counted = transfer.clone();
    let body = futures::stream::poll_fn(move |cx| chunks.poll_recv(cx)).inspect(move |chunk| {
        counted.add(chunk.as_ref().map_or(0, |bytes| bytes.len() as u64));
    });
    let sent = client.send(request.body(Body::wrap_stream(body))).await;
    transfer.finish();
    let packed = if sent.is_ok() {
        packing.await?
    } else {
        match tokio::time::timeout(GRACE, packing).await {
            Ok(packed) => packed?,
            Err(_) => return sent.map(|_| 0),
        }
    };
    match (sent, packed) {
        (Ok(_), Ok(packed)) => {
            if packed.skipped > 0 {
                let count = packed.skipped;
                output::note(&format!("skipped {count} FIFOs, sockets or devices"));
            }
            Ok(packed.bytes)
        }
        // The capsule's refusal says more than the error of the stream that it ended.
        (Err(error), Ok(_) | Err(archive::Error::Stream(_))) => Err(error),
        (_, Err(error)) => Err(error.into()),
    }
}
