//! An execution: one run of a client's code, as a log of wire lines. The context writes the log.
//! Clients subscribe to it, and those who fall behind hold the kernel back.

mod cap;
mod log;
mod registry;
mod subscription;

pub(crate) use registry::Executions;
pub(crate) use subscription::{Next, Subscription};

use crate::kernel::{Bundle, Failure, Stream};
use crate::line::{self, Line};
use crate::lock::lock;
use crate::result;
use bytes::Bytes;
use cap::{Cap, Piece};
use log::Log;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Pieces of a text after which other tasks get a turn.
const TURN: usize = 16;

/// News for the context of an execution, by the execution's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The client that asked for the execution has left.
    Gone(String),
    /// No client reads the execution any more, which goes on.
    Alone(String),
    /// Clients are too far behind, or have caught up.
    Hold(String, bool),
}

/// Choices of the client that asks for an execution.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    /// Set if the execution goes on without its client.
    pub keep: bool,
    /// Most bytes of output. The first and the last half are kept.
    pub max_output: Option<u64>,
}

/// The run of a client's code.
pub(crate) struct Execution {
    pub id: String,
    keep: bool,
    /// Set once the client that asked for the execution has left for good.
    gone: AtomicBool,
    inner: Mutex<Inner>,
    /// Wakes subscribers.
    grown: watch::Sender<()>,
    signals: mpsc::UnboundedSender<Signal>,
}

struct Inner {
    log: Log,
    cap: Option<Cap>,
}

impl Execution {
    /// Makes an execution of a context, and writes its first line.
    pub(crate) fn new(
        id: String,
        context: &str,
        options: Options,
        signals: mpsc::UnboundedSender<Signal>,
    ) -> Arc<Self> {
        let mut log = Log::default();
        log.push(Line::ExecutionStarted { execution_id: &id, context_id: context }.encode());
        let inner = Mutex::new(Inner { log, cap: options.max_output.map(Cap::new) });
        let (keep, gone, grown) = (options.keep, AtomicBool::new(false), watch::Sender::new(()));
        Arc::new(Self { id, keep, gone, inner, grown, signals })
    }

    pub(crate) fn count(&self, execution_count: u64) {
        self.push(Line::NumberOfExecutions { execution_count }.encode());
    }

    /// Writes output. A text of several pieces lets other tasks run in between.
    pub(crate) async fn text(&self, stream: Stream, text: &str) {
        for (number, piece) in line::pieces(text).enumerate() {
            if number % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
            self.output(Piece::Text(stream, piece.to_owned()));
        }
    }

    /// Writes a value or a display.
    pub(crate) fn data(&self, bundle: Bundle) {
        self.output(Piece::Line(Line::Result(result::fields(bundle)).encode()));
    }

    /// Writes an error, after all output so far.
    pub(crate) fn fail(&self, failure: &Failure) {
        self.flush();
        self.push(Line::error(failure).encode());
    }

    /// Writes the last line. Further calls change nothing.
    pub(crate) fn end(&self) {
        self.flush();
        self.change(|log| {
            if log.ended().is_none() {
                log.push(Line::EndOfExecution.encode());
                log.end(Instant::now());
            }
        });
    }

    /// Time of the end.
    pub(crate) fn ended(&self) -> Option<Instant> {
        lock(&self.inner).log.ended()
    }

    /// Reports whether the client that asked for the execution has left for good. An execution that
    /// is kept outlives its client, and is never gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Reports whether a client reads this execution.
    pub(crate) fn has_client(&self) -> bool {
        self.clients() > 0
    }

    fn clients(&self) -> usize {
        lock(&self.inner).log.cursors()
    }

    /// Forgets all clients, whose streams are being cut.
    fn let_go(&self) {
        self.with_log(Log::close_all);
        let _ = self.signals.send(Signal::Alone(self.id.clone()));
    }

    /// Reports whether clients are too far behind.
    pub(crate) fn is_held(&self) -> bool {
        lock(&self.inner).log.is_held()
    }

    /// Memory of the log, in bytes.
    fn bytes(&self) -> usize {
        lock(&self.inner).log.bytes()
    }

    fn output(&self, piece: Piece) {
        let admitted = match &mut lock(&self.inner).cap {
            Some(cap) => cap.admit(piece),
            None => Some(piece),
        };
        if let Some(piece) = admitted {
            self.push(piece.encode());
        }
    }

    /// Writes the output that the cap kept back, and the size of the rest.
    fn flush(&self) {
        let flushed = lock(&self.inner).cap.as_mut().map(Cap::flush);
        let Some((missing, tail)) = flushed else { return };
        if missing > 0 {
            self.push(Line::Omitted { bytes: missing, lines: None }.encode());
        }
        for piece in tail {
            self.push(piece.encode());
        }
    }

    fn push(&self, line: Bytes) {
        self.change(|log| {
            if log.ended().is_none() {
                log.push(line);
            }
        });
    }

    /// Changes the log, and tells those who wait for a change.
    fn change(&self, change: impl FnOnce(&mut Log)) {
        self.with_log(change);
        self.grown.send_replace(());
    }

    /// Uses the log, and tells the context if the kernel must now be held or let go.
    fn with_log<T>(&self, used: impl FnOnce(&mut Log) -> T) -> T {
        let mut inner = lock(&self.inner);
        let result = used(&mut inner.log);
        if let Some(held) = inner.log.pressure() {
            let _ = self.signals.send(Signal::Hold(self.id.clone(), held));
        }
        result
    }
}

#[cfg(test)]
mod tests;
