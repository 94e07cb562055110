//! QEMU's machine protocol (QMP), over two sockets, since each serves one connection at a time. The
//! first is for commands, the second for the guest's end. The sockets stay in the capsule's folder,
//! so that a later agent can use them too.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

const LIMIT: Duration = Duration::from_secs(5);
/// Delay before another attempt to connect.
const TURN: Duration = Duration::from_millis(10);
/// Questions for the end of a load that follow each other at once. QEMU answers between the steps
/// of the load, so the answers set the pace.
const EAGER: usize = 32;
/// Delay between later such questions.
const PAUSE: Duration = Duration::from_millis(1);
/// Longest line that is accepted, in bytes. The longest answer to a command here has some hundred
/// bytes.
const LINE_MAX: u64 = 1 << 20;
/// Name of the socket for commands.
pub(super) const COMMANDS: &str = "qmp.sock";
/// Name of the socket for events.
pub(super) const EVENTS: &str = "events.sock";

/// A connection that has gone through the greeting.
pub(super) struct Qmp(BufReader<UnixStream>);

/// Reports whether a machine in this state needs a reset to run again.
pub(super) fn has_ended(status: &str) -> bool {
    matches!(status, "shutdown" | "guest-panicked" | "internal-error")
}

impl Qmp {
    pub(super) async fn connect(dir: &Path, socket: &str) -> io::Result<Self> {
        let limited = tokio::time::timeout(LIMIT, async {
            let stream = loop {
                match super::socket::connect(dir, socket).await {
                    // QEMU serves one connection at a time, and only a few may wait in its queue.
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        tokio::time::sleep(TURN).await;
                    }
                    connected => break connected?,
                }
            };
            let mut qmp = Self(BufReader::new(stream));
            qmp.read().await?;
            qmp.command("qmp_capabilities", json!({})).await?;
            Ok(qmp)
        });
        limited.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Runs a command and returns its answer.
    pub(super) async fn command(&mut self, name: &str, arguments: Value) -> io::Result<Value> {
        let line = json!({ "execute": name, "arguments": arguments }).to_string() + "\n";
        self.0.get_mut().write_all(line.as_bytes()).await?;
        self.answer(name).await
    }

    /// Runs a command that takes a descriptor.
    pub(super) async fn pass(
        &mut self,
        file: &File,
        name: &str,
        arguments: Value,
    ) -> io::Result<Value> {
        let line = json!({ "execute": name, "arguments": arguments }).to_string() + "\n";
        let stream = self.0.get_ref();
        let send = || {
            let files = [file.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&files));
            let bytes = [IoSlice::new(line.as_bytes())];
            Ok(sendmsg(stream, &bytes, &mut control, SendFlags::NOSIGNAL)?)
        };
        let sent = loop {
            stream.ready(Interest::WRITABLE).await?;
            match stream.try_io(Interest::WRITABLE, send) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                sent => break sent?,
            }
        };
        self.0.get_mut().write_all(&line.as_bytes()[sent..]).await?;
        self.answer(name).await
    }

    /// Reads the answer to a command, and skips events before it.
    async fn answer(&mut self, name: &str) -> io::Result<Value> {
        loop {
            let mut answer = self.read().await?;
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(format!("{name}: {error}")));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Returns the machine's state, in QEMU's word.
    pub(super) async fn status(&mut self) -> io::Result<String> {
        let status = self.command("query-status", json!({})).await?;
        Ok(status["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until QEMU has loaded the state of a machine. The caller limits the time.
    pub(super) async fn loaded(&mut self) -> io::Result<()> {
        let mut asked = 0;
        loop {
            match self.status().await?.as_str() {
                "inmigrate" if asked < EAGER => asked += 1,
                "inmigrate" => tokio::time::sleep(PAUSE).await,
                "paused" | "prelaunch" => return Ok(()),
                other => return Err(io::Error::other(format!("the machine is `{other}`"))),
            }
        }
    }

    /// Waits for the guest's own end: a shutdown, a reset, a panic. Sets `full` when QEMU has
    /// stopped the guest because the host's disk is full. Such a stop is a pause and no end.
    pub(super) async fn guest_ended(&mut self, full: &AtomicBool) -> io::Result<String> {
        let status = self.status().await?;
        if has_ended(&status) {
            return Ok(format!("the guest ended: {status}"));
        }
        if status == "io-error" {
            full.store(true, Ordering::Release);
        }
        loop {
            let event = self.read().await?;
            if event["event"] == "BLOCK_IO_ERROR" && event["data"]["action"] == "stop" {
                tracing::debug!(data = %event["data"], "the disk of a guest reported an event");
                full.store(true, Ordering::Release);
            }
            if let Some("SHUTDOWN" | "GUEST_PANICKED") = event["event"].as_str() {
                let reason = event["data"]["reason"].as_str().unwrap_or("panic");
                return Ok(format!("the guest ended: {reason}"));
            }
        }
    }

    async fn read(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        // A line that is cut at the limit is no JSON, so the connection ends.
        if (&mut self.0).take(LINE_MAX).read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

/// Reads any bytes from QEMU's socket to their end.
#[cfg(feature = "fuzzing")]
pub(crate) async fn fuzz(data: &[u8]) {
    let Ok((ours, mut theirs)) = UnixStream::pair() else { return };
    let mut qmp = Qmp(BufReader::new(ours));
    let said = async {
        let _ = theirs.write_all(data).await;
        let _ = theirs.shutdown().await;
        let _ = tokio::io::copy(&mut theirs, &mut tokio::io::sink()).await;
    };
    let heard = async move {
        let _ = qmp.read().await;
        let _ = qmp.command("qmp_capabilities", json!({})).await;
        let _ = qmp.guest_ended(&AtomicBool::new(false)).await;
        drop(qmp);
    };
    tokio::join!(said, heard);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::net::UnixListener;

    /// Plays a QEMU whose guest is in the state `status`, and which then reports some events.
    async fn told(status: &str, events: &[Value]) -> (io::Result<String>, bool) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(EVENTS)).unwrap();
        let full = Arc::new(AtomicBool::new(false));
        let serve = async {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            let status = json!({ "return": { "status": status } });
            let said = [json!({ "QMP": {} }), json!({ "return": {} }), status];
            for (number, line) in said.iter().chain(events).enumerate() {
                if (1..3).contains(&number) {
                    stream.read_line(&mut String::new()).await.unwrap();
                }
                stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
            }
        };
        let watch = async { Qmp::connect(dir.path(), EVENTS).await?.guest_ended(&full).await };
        let (ended, ()) = tokio::join!(watch, serve);
        (ended, full.load(Ordering::Acquire))
    }

    /// Plays a QEMU that reports these states in turn, the last one for ever. Returns the number of
    /// questions too.
    async fn loaded(states: &[&str]) -> (io::Result<()>, usize) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp(BufReader::new(ours));
        let mut asked = 0;
        let serve = async {
            let mut theirs = BufReader::new(theirs);
            while theirs.read_line(&mut String::new()).await.unwrap() > 0 {
                let state = states[asked.min(states.len() - 1)];
                asked += 1;
                let answer = json!({ "return": { "status": state } });
                theirs.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            }
        };
        let done = tokio::select! {
            done = qmp.loaded() => done,
            () = serve => unreachable!("the other end stays open"),
        };
        (done, asked)
    }

    #[tokio::test]
    async fn load_ends_with_a_paused_machine_and_fails_with_any_other() {
        let (done, asked) = loaded(&["inmigrate", "inmigrate", "paused"]).await;
        assert!(done.is_ok() && asked == 3, "{done:?} {asked}");
        let (done, _) = loaded(&["inmigrate", "internal-error"]).await;
        assert!(done.unwrap_err().to_string().contains("`internal-error`"));
        let slow: Vec<&str> = vec!["inmigrate"; EAGER + 3].into_iter().chain(["paused"]).collect();
        let (done, asked) = loaded(&slow).await;
        assert!(done.is_ok() && asked == EAGER + 4, "{done:?} {asked}");
    }

    #[tokio::test]
    async fn guest_stopped_by_full_disk_has_not_ended() {
        let shutdown = json!({ "event": "SHUTDOWN", "data": { "reason": "guest-shutdown" } });
        let (ended, full) = told("io-error", &[]).await;
        assert!(ended.is_err() && full, "{ended:?}");
        let failed = |action: &str| {
            let data = json!({ "action": action, "nospace": true, "operation": "write" });
            json!({ "event": "BLOCK_IO_ERROR", "data": data })
        };
        let (ended, full) = told("running", &[failed("stop"), shutdown.clone()]).await;
        assert_eq!((ended.unwrap().as_str(), full), ("the guest ended: guest-shutdown", true));
        let (_, full) = told("running", &[failed("report"), shutdown]).await;
        assert!(!full, "the guest was told of it and goes on");
        let (ended, _) = told("guest-panicked", &[]).await;
        assert_eq!(ended.unwrap(), "the guest ended: guest-panicked");
    }
}
