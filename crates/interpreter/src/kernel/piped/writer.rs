//! Requests to a kernel. A task of its own writes to each pipe. The driver thus never waits for a
//! program that does not read.

use super::pipes::{Name, Pipes};
use std::io;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// A pipe with the task that writes to it.
struct Writer {
    queue: mpsc::UnboundedSender<Vec<u8>>,
    task: AbortHandle,
}

impl Writer {
    fn open(pipes: &Pipes, name: Name) -> io::Result<Self> {
        let (queue, requests) = mpsc::unbounded_channel();
        let task = tokio::spawn(write(pipes.sender(name)?, requests)).abort_handle();
        Ok(Self { queue, task })
    }

    fn send(&self, bytes: Vec<u8>) {
        // The writer has ended only if the program has.
        let _ = self.queue.send(bytes);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn write(mut pipe: pipe::Sender, mut requests: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(bytes) = requests.recv().await {
        if pipe.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// The pipes to a kernel. A context sends one run at a time, which bounds what waits in them.
pub(in crate::kernel) struct Inputs {
    input: Writer,
    commands: Writer,
}

impl Inputs {
    pub(super) fn open(pipes: &Pipes) -> io::Result<Self> {
        let input = Writer::open(pipes, Name::Input)?;
        Ok(Self { input, commands: Writer::open(pipes, Name::Commands)? })
    }

    /// Sends bytes to the program's standard input.
    pub(in crate::kernel) fn input(&self, bytes: Vec<u8>) {
        self.input.send(bytes);
    }

    /// Sends bytes to the pipe of commands.
    pub(in crate::kernel) fn commands(&self, bytes: Vec<u8>) {
        self.commands.send(bytes);
    }
}
