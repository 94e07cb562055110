//! Where a program's output meets its subscribers: each gets everything from the moment it
//! subscribes, in order, and then the end exactly once. A slow subscriber slows the program,
//! as a full pipe does; with none, output is dropped.

use bytes::Bytes;
use futures::future::join_all;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Pieces that a subscriber may be behind before the program is held up.
const BACKLOG: usize = 16;

/// Which stream a piece came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout,
    Stderr,
    Pty,
}

/// What a subscriber hears.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Data(Output, Bytes),
    End(Exit),
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    /// −1 when a signal ended it.
    pub code: i32,
    pub exited: bool,
    pub status: String,
    pub error: Option<String>,
}

/// The subscribers of one program.
#[derive(Default)]
pub(crate) struct Hub {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    subscribers: Vec<mpsc::Sender<Event>>,
    exit: Option<Exit>,
}

impl Hub {
    /// Begins a subscription; after the end it holds the end alone.
    pub(crate) fn subscribe(&self) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let mut state = self.lock();
        match &state.exit {
            Some(exit) => {
                // The channel is new and empty, so there is room.
                let _ = sender.try_send(Event::End(exit.clone()));
            }
            None => state.subscribers.push(sender),
        }
        receiver
    }

    /// Whether the end was announced.
    pub(crate) fn ended(&self) -> bool {
        self.lock().exit.is_some()
    }

    pub(super) async fn publish(&self, output: Output, data: Bytes) {
        let subscribers = self.lock().subscribers.clone();
        let event = Event::Data(output, data);
        let sent = join_all(subscribers.iter().map(|s| s.send(event.clone()))).await;
        if sent.iter().any(Result::is_err) {
            self.lock().subscribers.retain(|s| !s.is_closed());
        }
    }

    pub(super) async fn end(&self, exit: Exit) {
        let subscribers = {
            let mut state = self.lock();
            state.exit = Some(exit.clone());
            std::mem::take(&mut state.subscribers)
        };
        join_all(subscribers.iter().map(|s| s.send(Event::End(exit.clone())))).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<std::io::Result<ExitStatus>> for Exit {
    fn from(status: std::io::Result<ExitStatus>) -> Self {
        let (code, status) = match status {
            Ok(status) => match status.signal() {
                Some(signal) => (-1, format!("signal: {}", signal_name(signal))),
                None => {
                    let code = status.code().unwrap_or(-1);
                    (code, format!("exit status {code}"))
                }
            },
            Err(error) => (-1, format!("wait: {error}")),
        };
        let error = (code != 0).then(|| status.clone());
        Self { code, exited: code >= 0, status, error }
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGABRT => "aborted",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        _ => return signal.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit() -> Exit {
        Exit::from(Ok(ExitStatus::from_raw(0)))
    }

    #[tokio::test]
    async fn every_subscriber_hears_all_and_the_late_one_the_end() {
        let hub = Hub::default();
        let (mut a, mut b) = (hub.subscribe(), hub.subscribe());
        hub.publish(Output::Stdout, Bytes::from_static(b"x")).await;
        hub.end(exit()).await;
        for receiver in [&mut a, &mut b] {
            assert!(
                matches!(receiver.recv().await, Some(Event::Data(Output::Stdout, d)) if d == "x")
            );
            assert!(matches!(receiver.recv().await, Some(Event::End(_))));
            assert!(receiver.recv().await.is_none());
        }
        let mut late = hub.subscribe();
        assert!(matches!(late.recv().await, Some(Event::End(e)) if e == exit()));
        assert!(late.recv().await.is_none());
    }

    #[tokio::test]
    async fn one_that_left_holds_up_nobody() {
        let hub = Hub::default();
        drop(hub.subscribe());
        for _ in 0..BACKLOG * 3 {
            hub.publish(Output::Stdout, Bytes::from_static(b"x")).await;
        }
        assert!(hub.lock().subscribers.is_empty());
    }

    #[test]
    fn signals_have_names() {
        let killed = Exit::from(Ok(ExitStatus::from_raw(9)));
        assert_eq!((killed.code, killed.status.as_str()), (-1, "signal: killed"));
        assert!(!killed.exited && killed.error.is_some());
    }
}
