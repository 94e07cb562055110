//! The kernel of a context: starting, up, or down.

use crate::kernel::{Kernel, Message, StartError, Started};
use crate::launch::Start;
use std::time::Duration;
use tokio::sync::mpsc;

/// Longest start of a kernel. A cold virtual machine of Java takes the longest.
pub(super) const START: Duration = Duration::from_secs(120);

/// The kernel's phase.
pub(super) enum Phase {
    Starting(Start),
    Up {
        kernel: Box<dyn Kernel>,
        messages: mpsc::UnboundedReceiver<Message>,
    },
    /// There is no kernel. The next execution starts one.
    Down,
}

/// News of the kernel.
pub(super) enum News {
    Started(Result<Started, StartError>),
    /// `None` if the messages ended without a word about the end of the process.
    Message(Option<Message>),
}

impl Phase {
    /// Begins a start, with a limit of time.
    pub(super) fn starting(language: &str, start: Start) -> Self {
        let language = language.to_owned();
        Self::Starting(Box::pin(async move {
            let late = |_| StartError::Failed {
                language,
                why: format!("it took longer than {} s", START.as_secs()),
            };
            tokio::time::timeout(START, start).await.map_err(late)?
        }))
    }

    /// Waits for news. Nothing is lost if the wait is dropped.
    pub(super) async fn news(&mut self) -> News {
        match self {
            Self::Starting(start) => News::Started(start.as_mut().await),
            Self::Up { messages, .. } => News::Message(messages.recv().await),
            Self::Down => std::future::pending().await,
        }
    }

    /// Returns the number of messages that wait.
    pub(super) fn waiting(&self) -> usize {
        match self {
            Self::Up { messages, .. } => messages.len(),
            Self::Starting(_) | Self::Down => 0,
        }
    }

    /// Returns the kernel that is up.
    pub(super) fn kernel(&mut self) -> Option<&mut dyn Kernel> {
        match self {
            Self::Up { kernel, .. } => Some(kernel.as_mut()),
            Self::Starting(_) | Self::Down => None,
        }
    }
}
