//! What Firecracker counts of a machine, as far as it tells that something is wrong or held up.
//! It writes a line of JSON now and then, with what was counted since the one before; all machines'
//! are one figure.

use super::words;
use daemon::{Signal, Tasks};
use serde_json::Value;
use std::io;
use std::path::Path;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;

/// Where each is in a line, and what it is called.
const FIGURES: [(&str, &str); 4] = [
    ("/seccomp/num_faults", "wrenn_firecracker_seccomp_faults_total"),
    ("/vcpu/failures", "wrenn_firecracker_vcpu_failures_total"),
    ("/net/tx_rate_limiter_throttled", "wrenn_firecracker_sending_throttled_total"),
    ("/net/rx_rate_limiter_throttled", "wrenn_firecracker_receiving_throttled_total"),
];

/// The reading of one machine's; it ends with this.
pub(super) struct Figures(Signal);

impl Figures {
    /// Reads the pipe at `path`, which the user `uid` owns, from now on.
    pub(super) fn open(path: &Path, uid: u32, tasks: &Tasks) -> io::Result<Self> {
        let receiver = pipe::Receiver::from_file(words::open(path, uid)?)?;
        let end = Signal::default();
        let ended = end.wait();
        tasks.spawn(async move {
            let mut lines = BufReader::new(receiver).lines();
            let reading = async {
                while let Ok(Some(line)) = lines.next_line().await {
                    count(&line);
                }
            };
            tokio::select! {
                () = reading => {}
                () = ended => {}
            }
        });
        Ok(Self(end))
    }
}

impl Drop for Figures {
    fn drop(&mut self) {
        self.0.give();
    }
}

/// Adds what a line says; one that is cut short says nothing.
pub(super) fn count(line: &str) {
    let said: Value = serde_json::from_str(line).unwrap_or_default();
    for (at, name) in FIGURES {
        if let Some(more @ 1..) = said.pointer(at).and_then(Value::as_u64) {
            metrics::counter!(name).increment(more);
        }
    }
}
