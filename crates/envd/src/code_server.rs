//! The way to the code interpreter of this guest. The interpreter is a process of its own, of this
//! executable. `supervise` starts it when the image has its settings.
//!
//! ```text
//! /init ──▶ tell ───────┐                       ┌──▶ interpreter
//! prepare ──▶ ask ──────┴─▶ queue ─▶ talk ─▶ socket ◀── {"done": id}
//! ```

mod link;
pub(crate) mod supervise;

use crate::lock::lock;
use link::Request;
use serde_json::{Value, json};
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Time for the interpreter to let go of its clients before a pause.
const PREPARE: Duration = Duration::from_secs(2);
/// Time for the first runs in the contexts of a template. Emulated machines are slow.
const WARM: Duration = Duration::from_secs(120);
/// Time for the interpreter to note a new epoch.
const EPOCH: Duration = Duration::from_secs(1);
/// Bytes of randomness that seed the generators of contexts.
const SEED: usize = 32;

/// The way to the interpreter, if it runs.
#[derive(Default)]
pub(crate) struct CodeServer {
    queue: Mutex<Option<mpsc::Sender<Request>>>,
}

impl CodeServer {
    /// Tells the interpreter something that needs no answer.
    fn tell(&self, message: Value) {
        if let Some(queue) = self.queue() {
            let _ = queue.try_send(Request { message, answer: None });
        }
    }

    /// Tells the interpreter of a new epoch, and waits until it took notice.
    pub(crate) async fn begin_epoch(&self, fresh: bool) {
        let mut seed = [0; SEED];
        let filled = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
        if filled != Ok(SEED) {
            return;
        }
        let seed: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        self.ask(json!({ "epoch": { "fresh": fresh, "seed": seed } }), EPOCH).await;
    }

    /// Has the interpreter let go of its clients before the guest stands still. With `warm`, the
    /// contexts of the template are first made ready.
    pub(crate) async fn prepare(&self, warm: bool) {
        let limit = if warm { WARM } else { PREPARE };
        self.ask(json!({ "prepare": { "warm": warm } }), limit).await;
    }

    /// Asks the interpreter and waits for its answer. A guest goes on without an answer, since an
    /// interpreter that hangs must hold up no pause.
    async fn ask(&self, message: Value, limit: Duration) {
        let Some(queue) = self.queue() else { return };
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let _ = queue.send(Request { message, answer: Some(answer) }).await;
            let _ = answered.await;
        };
        let _ = tokio::time::timeout(limit, asked).await;
    }

    fn queue(&self) -> Option<mpsc::Sender<Request>> {
        lock(&self.queue).clone()
    }

    /// Sets the way to a new interpreter, or none after its end.
    pub(crate) fn set_queue(&self, queue: Option<mpsc::Sender<Request>>) {
        *lock(&self.queue) = queue;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silent_interpreter_holds_up_a_pause_for_two_seconds_at_most() {
        let server = CodeServer::default();
        server.prepare(false).await;
        let (queue, _unread) = mpsc::channel(1);
        server.set_queue(Some(queue));
        let started = tokio::time::Instant::now();
        server.prepare(false).await;
        assert_eq!(started.elapsed(), PREPARE);
    }
}
