//! `wrenn capsule cp`: a file into a capsule or out of it, streamed, of any size.

use super::capsule::path;
use crate::client::Client;
use crate::output::{self, Form, Transfer};
use anyhow::Context;
use futures::StreamExt;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Body, Method};
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::io::ReaderStream;

const CHUNK: usize = 256 * 1024;

/// One side of a copy.
enum Side<'a> {
    /// The stream that is ours anyway: standard input or output.
    Stream,
    Local(&'a Path),
    Capsule {
        id: &'a str,
        path: &'a str,
    },
}

impl<'a> Side<'a> {
    fn parse(text: &'a str) -> anyhow::Result<Self> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        match text.split_once(':') {
            Some((id, path)) if id.starts_with(types::CapsuleId::PREFIX) => {
                let none = || output::usage(format!("`{text}` names no path in the capsule"));
                if path.is_empty() { Err(none()) } else { Ok(Self::Capsule { id, path }) }
            }
            _ => Ok(Self::Local(Path::new(text))),
        }
    }
}

pub(super) async fn cp(from: &str, to: &str, client: &Client, form: Form) -> anyhow::Result<()> {
    let (copied, at) = match (Side::parse(from)?, Side::parse(to)?) {
        (Side::Capsule { id, path }, Side::Local(local)) => {
            let local = if local.is_dir() { local.join(name_of(path)?) } else { local.to_owned() };
            (download(client, id, path, &local).await?, local.display().to_string())
        }
        (Side::Capsule { id, path }, Side::Stream) => {
            let mut out = tokio::io::stdout();
            return fetch(client, id, path, &mut out).await.map(|_| ());
        }
        (Side::Local(local), Side::Capsule { id, path }) => {
            let name = local.file_name().and_then(|name| name.to_str());
            let path = target(client, id, path, name).await?;
            (upload(client, id, &path, local).await?, format!("{id}:{path}"))
        }
        (Side::Stream, Side::Capsule { id, path }) => {
            let sent = send(client, id, path, tokio::io::stdin(), None).await?;
            (sent, format!("{id}:{path}"))
        }
        _ => {
            let must = "one side must be CAPSULE:PATH, the other a local path or `-`";
            return Err(output::usage(must));
        }
    };
    if form == Form::Json {
        return output::json(&serde_json::json!({ "to": at, "bytes": copied }));
    }
    output::note(&format!("copied {} to {at}", output::bytes(copied)));
    Ok(())
}

fn name_of(path: &str) -> anyhow::Result<&str> {
    path.rsplit('/').find(|name| !name.is_empty()).context("the path in the capsule names no file")
}

/// Where a file goes: into a path that is a directory, or else to the path itself.
async fn target(client: &Client, id: &str, to: &str, name: Option<&str>) -> anyhow::Result<String> {
    let into = to.ends_with('/') || is_dir(client, id, to).await;
    if !into {
        return Ok(to.to_owned());
    }
    let name =
        name.context("the local file's name is no text; name the file in the capsule too")?;
    Ok(format!("{}/{name}", to.trim_end_matches('/')))
}

async fn is_dir(client: &Client, id: &str, at: &str) -> bool {
    let Ok(stat) = path(id, "/files/stat") else { return false };
    let asked = api::PathRequest { path: at.to_owned() };
    let found: anyhow::Result<api::EntryResult> = client.post(&stat, &asked).await;
    found.is_ok_and(|found| found.entry.r#type == "directory")
}

fn contents(id: &str, at: &str) -> anyhow::Result<String> {
    let at = utf8_percent_encode(at, NON_ALPHANUMERIC);
    path(id, &format!("/files?path={at}"))
}

async fn upload(client: &Client, id: &str, to: &str, local: &Path) -> anyhow::Result<u64> {
    let what = || format!("reading {}", local.display());
    let found = tokio::fs::metadata(local).await.with_context(what)?;
    anyhow::ensure!(
        !found.is_dir(),
        "{0} is a directory; send it as an archive: tar -C {0} -c . | wrenn capsule exec {id} -- \
         tar -x -C DIRECTORY",
        local.display()
    );
    let file = File::open(local).await.with_context(what)?;
    send(client, id, to, file, Some(found.len())).await
}

async fn send(
    client: &Client,
    id: &str,
    to: &str,
    from: impl AsyncRead + Send + Sync + 'static,
    length: Option<u64>,
) -> anyhow::Result<u64> {
    let transfer = Transfer::start(to, length);
    let counted = transfer.clone();
    let body = ReaderStream::with_capacity(from, CHUNK).inspect(move |chunk| {
        counted.add(chunk.as_ref().map_or(0, |bytes| bytes.len() as u64));
    });
    let mut request = client.request(Method::PUT, &contents(id, to)?).body(Body::wrap_stream(body));
    if let Some(length) = length {
        request = request.header(http::header::CONTENT_LENGTH, length);
    }
    let sent = client.send(request).await;
    let copied = transfer.finish();
    sent.map(|_| copied)
}

async fn download(client: &Client, id: &str, from: &str, local: &Path) -> anyhow::Result<u64> {
    // Beside its place, and there only when it is whole.
    let mut staged = local.as_os_str().to_owned();
    staged.push(".part");
    let staged = PathBuf::from(staged);
    let what = || format!("writing {}", local.display());
    let mut file = File::create(&staged).await.with_context(what)?;
    let copied = match fetch(client, id, from, &mut file).await {
        Ok(copied) => copied,
        Err(error) => {
            let _ = tokio::fs::remove_file(&staged).await;
            return Err(error);
        }
    };
    tokio::fs::rename(&staged, local).await.with_context(what)?;
    Ok(copied)
}

async fn fetch(
    client: &Client,
    id: &str,
    from: &str,
    to: &mut (impl AsyncWrite + Unpin),
) -> anyhow::Result<u64> {
    let answer = client.send(client.request(Method::GET, &contents(id, from)?)).await?;
    let transfer = Transfer::start(from, answer.content_length());
    let mut body = answer.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.context("the contents broke off")?;
        to.write_all(&chunk).await.context("writing the contents")?;
        transfer.add(chunk.len() as u64);
    }
    to.flush().await.context("writing the contents")?;
    Ok(transfer.finish())
}
