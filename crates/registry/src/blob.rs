//! Streams of blobs. A stream checks size and digest while it passes the bytes on. Only if both are
//! right, the stream ends without an error. A stream that breaks off goes on where it was.

use crate::access::Endpoint;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::transport::{Sender, Transport};
use bytes::Bytes;
use futures::stream;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Method, Response};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::time::Instant;
use tokio_util::io::StreamReader;

/// Bytes of one read from a file.
const FILE_CHUNK: u64 = 256 * 1024;
/// Bytes after which earlier failures of a stream no longer count.
const PROGRESS: u64 = 1 << 20;
/// Wait before a stream that broke off is asked for again.
const RESUME_WAIT: Duration = Duration::from_millis(200);

/// The repository that a pull goes to, with its mirrors.
pub(crate) struct Pull {
    pub transport: Arc<Transport>,
    /// The reference as text, for errors.
    pub image: String,
    pub endpoints: Vec<Endpoint>,
}

/// Place of a blob's bytes.
#[derive(Clone)]
pub(crate) enum Place {
    Registry {
        pull: Arc<Pull>,
        /// Endpoint that is asked first. Later ones are asked if it fails.
        endpoint: usize,
        deadline: Instant,
    },
    File {
        file: Arc<File>,
        offset: u64,
    },
}

/// Stream of a blob's bytes.
pub struct Blob {
    what: String,
    digest: Digest,
    size: u64,
    place: Place,
    hasher: Option<Hasher>,
    read: u64,
    /// Answer that is being read, and bytes of it that were passed on before.
    body: Option<(Response, u64)>,
    failures: u32,
    /// Value of `read` at the last failure.
    failed_at: u64,
}

impl Blob {
    pub(crate) fn new(what: String, digest: Digest, size: u64, place: Place) -> Self {
        let hasher = Some(Hasher::new(digest.algorithm()));
        Self { what, digest, size, place, hasher, read: 0, body: None, failures: 0, failed_at: 0 }
    }

    /// Returns the next bytes, or `None` once all bytes came and have the right digest. Bytes that
    /// were passed on are unchecked until then.
    ///
    /// # Errors
    /// Returns `WrongSize`, `WrongDigest`, and errors of the connection or the file. A stream that
    /// failed once, or whose call was dropped, fails again.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        // The hasher is put back unless the read fails.
        let Some(mut hasher) = self.hasher.take() else {
            return Err(Error::FailedBefore { what: self.what.clone() });
        };
        let left = self.size.saturating_sub(self.read);
        if left == 0 {
            let found = hasher.clone().finish();
            if found != self.digest {
                let (what, expected) = (self.what.clone(), self.digest.clone());
                return Err(Error::WrongDigest { what, expected, found });
            }
            self.body = None;
            self.hasher = Some(hasher);
            return Ok(None);
        }
        let chunk = match self.place.clone() {
            Place::File { file, offset } => self.file_chunk(file, offset, left).await?,
            Place::Registry { pull, deadline, .. } => self.next(&pull, deadline).await?,
        };
        let length = chunk.len() as u64;
        if length > left {
            return Err(self.wrong_size(self.read.saturating_add(length)));
        }
        hasher.update(&chunk);
        self.read += length;
        self.hasher = Some(hasher);
        Ok(Some(chunk))
    }

    /// Turns the stream into a reader. An error of this crate is inside of the reader's error.
    /// [`crate::from_io`] finds it there.
    pub fn into_reader(self) -> impl AsyncRead + Send + Unpin {
        let chunks = stream::try_unfold(self, async |mut blob| {
            let chunk = blob.chunk().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>(chunk.map(|chunk| (chunk, blob)))
        });
        StreamReader::new(Box::pin(chunks))
    }

    /// Reads the whole blob, whose size the caller has bounded.
    pub(crate) async fn whole(mut self) -> Result<Bytes> {
        let mut whole = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.into())
    }

    async fn file_chunk(&self, file: Arc<File>, offset: u64, left: u64) -> Result<Bytes> {
        let at = offset.saturating_add(self.read);
        let length = usize::try_from(left.min(FILE_CHUNK)).unwrap_or(0);
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; length];
            file.read_exact_at(&mut chunk, at).map(|()| Bytes::from(chunk))
        });
        let failed = |why: String| Error::Archive { why: format!("{}: {why}", self.what) };
        read.await.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))
    }

    /// Reads the next bytes of the answer. Asks again, from the same byte on, after a failure.
    async fn next(&mut self, pull: &Pull, deadline: Instant) -> Result<Bytes> {
        loop {
            if self.body.is_none() {
                self.open(pull, deadline).await?;
            }
            let Some(endpoint) = self.endpoint(pull) else { return Err(self.missing("")) };
            let by = endpoint.sender(&pull.image, deadline);
            let outcome = match &mut self.body {
                Some((response, skip)) => match pull.transport.chunk(response, &by).await {
                    Ok(Some(chunk)) => {
                        // An answer without the range that was asked for begins at byte 0.
                        let known = (*skip).min(chunk.len() as u64);
                        *skip -= known;
                        Ok(chunk.slice(usize::try_from(known).unwrap_or(0)..))
                    }
                    Ok(None) => Err(self.wrong_size(self.read)),
                    Err(error) => Err(error),
                },
                None => continue,
            };
            match outcome {
                Ok(chunk) if chunk.is_empty() => {}
                Ok(chunk) => return Ok(chunk),
                Err(error) => self.failed(error, pull, &by).await?,
            }
        }
    }

    /// Counts a failure of the answer, and waits before the next one.
    async fn failed(&mut self, error: Error, pull: &Pull, by: &Sender<'_>) -> Result<()> {
        let may_pass = error.is_transient() || matches!(error, Error::WrongSize { .. });
        if self.read.saturating_sub(self.failed_at) >= PROGRESS {
            self.failures = 0;
        }
        (self.failures, self.failed_at) = (self.failures.saturating_add(1), self.read);
        self.body = None;
        if !may_pass {
            return Err(error);
        }
        if self.failures >= pull.transport.settings().limits.tries {
            return self.advance(error, pull);
        }
        tracing::debug!(what = self.what, read = self.read, %error, "goes on with a blob");
        pull.transport.wait(RESUME_WAIT.saturating_mul(self.failures), by).await
    }

    fn endpoint<'a>(&self, pull: &'a Pull) -> Option<&'a Endpoint> {
        match &self.place {
            Place::Registry { endpoint, .. } => pull.endpoints.get(*endpoint),
            Place::File { .. } => None,
        }
    }

    /// Opens an answer, at the first endpoint from the present one on that gives one.
    async fn open(&mut self, pull: &Pull, deadline: Instant) -> Result<()> {
        loop {
            let Some(endpoint) = self.endpoint(pull) else { return Err(self.missing("")) };
            let error = match self.open_at(endpoint, pull, deadline).await {
                Ok(body) => {
                    self.body = Some(body);
                    return Ok(());
                }
                Err(error) => error,
            };
            self.advance(error, pull)?;
        }
    }

    /// Goes on to the next endpoint after an error.
    ///
    /// # Errors
    /// Returns the error itself if no other endpoint could help.
    fn advance(&mut self, error: Error, pull: &Pull) -> Result<()> {
        match &mut self.place {
            Place::Registry { endpoint, .. }
                if *endpoint + 1 < pull.endpoints.len() && !error.is_final() =>
            {
                tracing::warn!(what = self.what, %error, "a mirror fails");
                *endpoint += 1;
                self.failures = 0;
                Ok(())
            }
            Place::Registry { .. } | Place::File { .. } => Err(error),
        }
    }

    async fn open_at(
        &self,
        endpoint: &Endpoint,
        pull: &Pull,
        deadline: Instant,
    ) -> Result<(Response, u64)> {
        let by = endpoint.sender(&pull.image, deadline);
        let mut request = endpoint.request(Method::GET, "blobs", &self.digest.to_string())?;
        if self.read > 0 {
            request = request.from(self.read);
        }
        let tries = pull.transport.settings().limits.tries;
        let response = endpoint.ask(&pull.transport, request, tries, &by).await?;
        let skip = match response.status().as_u16() {
            200 => self.read,
            206 if self.is_right_range(&response) => 0,
            206 => {
                let registry = endpoint.registry().to_owned();
                let why = format!("{} comes with another range than was asked for", self.what);
                return Err(Error::Protocol { registry, why });
            }
            404 => return Err(self.missing(endpoint.registry())),
            _ => return Err(endpoint.status(&pull.transport, response, &by).await),
        };
        let rest = self.size.saturating_sub(self.read).saturating_add(skip);
        if let Some(length) = response.content_length()
            && length != rest
        {
            return Err(self.wrong_size(self.size.saturating_sub(rest).saturating_add(length)));
        }
        Ok((response, skip))
    }

    /// Reports whether a part of the blob begins at the next byte, and is of the right whole.
    fn is_right_range(&self, response: &Response) -> bool {
        let value = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let parts = value.and_then(|value| value.strip_prefix("bytes ")?.split_once('/'));
        let Some((range, whole)) = parts else { return false };
        let first = range.split('-').next().and_then(|first| first.parse().ok());
        first == Some(self.read) && (whole == "*" || whole.parse().ok() == Some(self.size))
    }

    fn missing(&self, registry: &str) -> Error {
        let why = format!("{} is missing, although the manifest names it", self.what);
        Error::Protocol { registry: registry.to_owned(), why }
    }

    fn wrong_size(&self, found: u64) -> Error {
        Error::WrongSize { what: self.what.clone(), expected: self.size, found }
    }
}
