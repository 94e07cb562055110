//! The open sockets of a kernel, as its driver uses them: requests go out without a wait, and
//! messages come in from all sockets in one stream.

use super::connection::Sockets;
use crate::kernel::message::{Incoming, Signer};
use crate::kernel::zmtp::{Receiver, Sender};
use bytes::Bytes;
use std::io::{self, ErrorKind};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// Time for output that is still in the socket of a kernel that has ended.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// Silence after which an ended kernel's socket counts as empty. A process of the user may keep the
/// socket open.
const DRAIN_SILENCE: Duration = Duration::from_millis(250);

/// Sending ends of the sockets. Each has a task that writes, since a stopped kernel reads nothing.
pub(super) struct Link {
    pub signer: Signer,
    pub shell: mpsc::UnboundedSender<Vec<u8>>,
    pub control: Option<mpsc::UnboundedSender<Vec<u8>>>,
}

/// Receiving ends of the sockets.
pub(super) struct Inputs {
    signer: Signer,
    shell: Receiver,
    iopub: Receiver,
    control: Option<Receiver>,
    /// Kept open until the end.
    _subscription: Sender,
}

/// A message by the socket that it came over.
#[derive(Debug)]
pub(super) enum Received {
    Published(Incoming),
    Replied(Incoming),
    /// A message of no interest.
    Nothing,
    /// A socket has closed. With a reason, the kernel broke the protocol.
    Closed(Option<String>),
}

/// Splits sockets into both ends.
pub(super) fn split(sockets: Sockets) -> (Link, Inputs) {
    let Sockets { shell, iopub, control, signer } = sockets;
    let (control_reader, control) = control.unzip();
    let link =
        Link { signer: signer.clone(), shell: writer(shell.1), control: control.map(writer) };
    let inputs = Inputs {
        signer,
        shell: shell.0,
        iopub: iopub.0,
        control: control_reader,
        _subscription: iopub.1,
    };
    (link, inputs)
}

/// Makes the task that writes to a socket. It ends with its queue.
fn writer(mut socket: Sender) -> mpsc::UnboundedSender<Vec<u8>> {
    let (sender, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
    tokio::spawn(async move {
        while let Some(messages) = queue.recv().await {
            // The reader of the same connection notices the end of the stream.
            if socket.send(&messages).await.is_err() {
                return;
            }
        }
    });
    sender
}

impl Link {
    /// Sends requests over the shell socket, in one write.
    pub(super) fn send_shell(&self, requests: Vec<u8>) {
        let _ = self.shell.send(requests);
    }

    /// Sends a request over the control socket, if there is one.
    pub(super) fn send_control(&self, request: Vec<u8>) {
        if let Some(control) = &self.control {
            let _ = control.send(request);
        }
    }
}

impl Inputs {
    /// Waits for the next message. A caller may drop the future, and loses nothing.
    pub(super) async fn next(&mut self) -> Received {
        let signer = &self.signer;
        tokio::select! {
            frames = self.iopub.receive() => read(signer, frames, Received::Published),
            frames = self.shell.receive() => read(signer, frames, Received::Replied),
            frames = receive(&mut self.control) => read(signer, frames, |_| Received::Nothing),
        }
    }

    /// Returns the next message that an ended kernel has published, as long as there are some.
    pub(super) async fn drain(&mut self, since: Instant) -> Option<Incoming> {
        while since.elapsed() < DRAIN_TIME {
            let frames = timeout(DRAIN_SILENCE, self.iopub.receive()).await.ok()?.ok()??;
            if let Some(message) = self.signer.read(&frames) {
                return Some(message);
            }
        }
        None
    }
}

/// Receives from a socket that may be missing. A missing one stays silent.
async fn receive(socket: &mut Option<Receiver>) -> io::Result<Option<Vec<Bytes>>> {
    match socket {
        Some(socket) => socket.receive().await,
        None => std::future::pending().await,
    }
}

fn read(
    signer: &Signer,
    frames: io::Result<Option<Vec<Bytes>>>,
    kind: impl FnOnce(Incoming) -> Received,
) -> Received {
    match frames {
        Ok(Some(frames)) => signer.read(&frames).map_or(Received::Nothing, kind),
        Ok(None) => Received::Closed(None),
        Err(error) => {
            let is_violation = error.kind() == ErrorKind::InvalidData;
            Received::Closed(is_violation.then(|| error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violation_has_a_reason_and_an_end_has_none() {
        let received = |frames| read(&Signer::new(""), frames, Received::Replied);
        let violation = io::Error::new(ErrorKind::InvalidData, "too large");
        let closed = received(Err(violation));
        assert!(matches!(&closed, Received::Closed(Some(why)) if why == "too large"), "{closed:?}");
        assert!(matches!(received(Ok(None)), Received::Closed(None)));
        assert!(matches!(received(Err(ErrorKind::BrokenPipe.into())), Received::Closed(None)));
    }
}
