//! The socket to envd, which is this process's standard input. envd tells the capsule's settings,
//! and asks for epochs and for the preparation of pauses. Each message is a JSON object on a line
//! of its own. The standard output is the listening socket, which outlives each interpreter.

use crate::contexts::Contexts;
use crate::kernel::SEED;
use crate::settings::Capsule;
use crate::warm;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Largest message, in bytes. Each call of `/init` may add a megabyte of variables.
const MESSAGE_MAX: u64 = 32 << 20;
/// Longest wait for the first settings.
const FIRST: Duration = Duration::from_secs(10);
/// Longest begin of an epoch. envd waits as long.
const EPOCH: Duration = Duration::from_secs(1);
/// Most characters of a failure's reason. envd reads short lines only.
const WHY_MAX: usize = 500;
/// Answers that wait for envd. envd reads each at once.
const ANSWERS: usize = 64;

/// A message of envd.
#[derive(Debug, Deserialize)]
struct Order {
    id: Option<u64>,
    settings: Option<Capsule>,
    epoch: Option<Epoch>,
    prepare: Option<Prepare>,
}

/// The begin of an epoch.
#[derive(Debug, Deserialize)]
struct Epoch {
    /// Set if the machine is a copy of another one.
    fresh: bool,
    /// Randomness, as hexadecimal digits.
    seed: String,
}

/// The preparation of a freeze.
#[derive(Debug, Deserialize)]
struct Prepare {
    /// Set if machines will be copied from this one.
    #[serde(default)]
    warm: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Answer {
    Done { done: u64 },
    Failed { failed: u64, why: String },
}

/// Takes the socket over. Returns once the first settings are known, or do not come. The task ends
/// with the talk.
///
/// # Errors
/// When the standard input is no socket.
pub(crate) async fn connect(contexts: &Arc<Contexts>) -> anyhow::Result<JoinHandle<()>> {
    let stream = take_over().context("the standard input must be the socket to envd")?;
    let (first, known) = oneshot::channel();
    let talk = tokio::spawn(serve(stream, Arc::clone(contexts), first));
    let _ = tokio::time::timeout(FIRST, known).await;
    Ok(talk)
}

fn take_over() -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Takes the listening socket over.
///
/// # Errors
/// When the standard output is no socket.
pub(crate) fn listener() -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(io::stdout().as_fd().try_clone_to_owned()?);
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Follows orders until envd closes the socket, or sends none.
async fn serve(stream: UnixStream, contexts: Arc<Contexts>, first: oneshot::Sender<()>) {
    let (read, write) = stream.into_split();
    let (answers, answered) = mpsc::channel(ANSWERS);
    tokio::spawn(send(write, answered));
    let mut lines = BufReader::new(read);
    let mut first = Some(first);
    while let Some(order) = next(&mut lines).await {
        let tells = order.settings.is_some();
        follow(order, &contexts, &answers).await;
        if tells && let Some(first) = first.take() {
            let _ = first.send(());
        }
    }
}

/// Reads the next order. Returns `None` at the end, and at a line that is too long or no order.
async fn next(lines: &mut BufReader<OwnedReadHalf>) -> Option<Order> {
    let mut line = Vec::new();
    let read = lines.take(MESSAGE_MAX).read_until(b'\n', &mut line).await;
    read.ok().filter(|_| line.ends_with(b"\n"))?;
    serde_json::from_slice(&line).ok()
}

async fn send(mut write: OwnedWriteHalf, mut answers: mpsc::Receiver<Answer>) {
    while let Some(answer) = answers.recv().await {
        let Ok(mut line) = serde_json::to_vec(&answer) else { continue };
        line.push(b'\n');
        if write.write_all(&line).await.is_err() {
            return;
        }
    }
}

async fn follow(order: Order, contexts: &Arc<Contexts>, answers: &mpsc::Sender<Answer>) {
    if let Some(capsule) = order.settings {
        contexts.set_capsule(capsule);
    }
    let id = order.id.unwrap_or_default();
    if let Some(epoch) = order.epoch {
        let begun = begin_epoch(contexts, &epoch).await;
        answer(answers, id, begun).await;
    }
    if let Some(Prepare { warm }) = order.prepare {
        let (contexts, answers) = (Arc::clone(contexts), answers.clone());
        // The warm step takes long, and other orders do not wait for it.
        tokio::spawn(async move { answer(&answers, id, prepare(&contexts, warm).await).await });
    }
}

async fn begin_epoch(contexts: &Contexts, epoch: &Epoch) -> Result<(), String> {
    let seed = digits(&epoch.seed).ok_or("epoch.seed is not 64 hexadecimal digits")?;
    if !epoch.fresh {
        return Ok(());
    }
    let begun = tokio::time::timeout(EPOCH, contexts.begin_epoch(seed)).await;
    begun.map_err(|_| "a context did not take its randomness in time".to_owned())
}

/// Lets go of all clients. Executions go on without them.
async fn prepare(contexts: &Contexts, warm: bool) -> Result<(), String> {
    let warmed = if warm { warm::run(contexts).await } else { Ok(()) };
    contexts.services.executions.cut().await;
    warmed.map_err(|error| error.text)
}

async fn answer(answers: &mpsc::Sender<Answer>, id: u64, result: Result<(), String>) {
    let answer = match result {
        Ok(()) => Answer::Done { done: id },
        Err(why) => Answer::Failed { failed: id, why: why.chars().take(WHY_MAX).collect() },
    };
    let _ = answers.send(answer).await;
}

/// Reads randomness from hexadecimal digits.
fn digits(text: &str) -> Option<[u8; SEED]> {
    let mut seed = [0; SEED];
    if text.len() != 2 * SEED || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in seed.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(seed)
}

#[cfg(test)]
mod tests;
