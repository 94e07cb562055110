//! Uploads of a build's files. The platform is asked first, so that only missing files travel. The
//! files are streamed, in bounded memory.

use super::source::Upload;
use crate::client::Client;
use crate::output::{self, Form, Transfer};
use archive::stream::{BACKLOG, ChunkWriter};
use futures::StreamExt;
use reqwest::{Body, Method};
use std::io;
use std::time::Duration;
use tokio::sync::mpsc;

/// Time limit for the reading thread to notice that nobody takes the contents any more.
const GRACE: Duration = Duration::from_secs(5);

/// Uploads those files that the platform does not have. `template` is the checked name of the
/// template, whose host keeps the files.
pub(super) async fn upload(
    client: &Client,
    template: &str,
    uploads: Vec<Upload>,
    form: Form,
) -> anyhow::Result<()> {
    for upload in uploads {
        let path = format!("/v1/builds/files/{}?template={template}", upload.hash);
        if is_known(client, &path).await? {
            continue;
        }
        let name = super::progress::printable(&upload.name);
        let sent = send(client, &path, upload).await?;
        if form == Form::Human {
            output::note(&format!("uploaded {} of {name}", output::bytes(sent)));
        }
    }
    Ok(())
}

/// Asks for files by their hash.
async fn is_known(client: &Client, path: &str) -> anyhow::Result<bool> {
    // The answer to HEAD has no body, so a refusal has no code and counts as a bare status.
    match client.send(client.request(Method::HEAD, path)).await {
        Ok(_) => Ok(true),
        Err(error) if crate::client::is_status(&error, reqwest::StatusCode::NOT_FOUND) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn send(client: &Client, path: &str, upload: Upload) -> anyhow::Result<u64> {
    let what = format!("uploading {}", super::progress::printable(&upload.name));
    let transfer = Transfer::start(&what, Some(upload.contents.bytes()));
    let (to, mut chunks) = mpsc::channel(BACKLOG);
    let reading = tokio::task::spawn_blocking(move || {
        let mut writer = ChunkWriter::new(to.clone());
        let written = upload.contents.write(&mut writer);
        let written = written.and_then(|()| Ok(io::Write::flush(&mut writer)?));
        if written.is_err() {
            // The error breaks the body off, so that the platform keeps no part of the files.
            let _ = to.blocking_send(Err(io::Error::other("cannot read the files")));
        }
        written
    });
    let counted = transfer.clone();
    let body = futures::stream::poll_fn(move |cx| chunks.poll_recv(cx)).inspect(move |chunk| {
        counted.add(chunk.as_ref().map_or(0, |bytes| bytes.len() as u64));
    });
    let request = client.request(Method::PUT, path);
    let sent = client.send(request.body(Body::wrap_stream(body))).await;
    let bytes = transfer.finish();
    let read = match tokio::time::timeout(GRACE, reading).await {
        Ok(read) => read?,
        Err(_) => return sent.map(|_| bytes),
    };
    match (sent, read) {
        (Ok(_), Ok(())) => Ok(bytes),
        // A refusal says more than the end of the stream that it caused.
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(read)) if is_pipe(&read) => Err(error),
        (_, Err(read)) => Err(read),
    }
}

/// Reports whether the reading thread only saw that nobody takes the contents any more.
fn is_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let stream = cause.downcast_ref::<archive::Error>();
        let system = cause.downcast_ref::<io::Error>();
        stream.is_some_and(|stream| matches!(stream, archive::Error::Stream(_)))
            || system.is_some_and(|system| system.kind() == io::ErrorKind::BrokenPipe)
    })
}
