//! Metrics of Firecracker that show faults and throttling. Firecracker regularly writes a line of
//! JSON with the counts since the line before. The counts of all machines add up in one metric.

use super::output;
use daemon::{Signal, Tasks};
use serde_json::Value;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// Longest line that is accepted, in bytes. Firecracker's own are many times shorter.
const LINE_MAX: usize = 256 * 1024;
/// Pause between two reads of a pipe that is written to all the time.
const PAUSE: Duration = Duration::from_millis(50);
/// Path of each count in a line, and the name of its metric.
const FIGURES: [(&str, &str); 4] = [
    ("/seccomp/num_faults", "wrenn_firecracker_seccomp_faults_total"),
    ("/vcpu/failures", "wrenn_firecracker_vcpu_failures_total"),
    ("/net/tx_rate_limiter_throttled", "wrenn_firecracker_sending_throttled_total"),
    ("/net/rx_rate_limiter_throttled", "wrenn_firecracker_receiving_throttled_total"),
];

/// Task that reads one machine's metrics. Dropping it ends the task.
pub(super) struct Figures(Signal);

impl Figures {
    /// Reads the pipe at `path`, which the user `uid` owns, from now on.
    pub(super) fn open(path: &Path, uid: u32, tasks: &Tasks) -> io::Result<Self> {
        let mut receiver = pipe::Receiver::from_file(output::open(path, uid)?)?;
        let end = Signal::default();
        let ended = end.wait();
        tasks.spawn(async move {
            let reading = async {
                let (mut lines, mut new) = (Lines::default(), vec![0; 8 * 1024]);
                while let Ok(length @ 1..) = receiver.read(&mut new).await {
                    lines.add(&new[..length], |line| count(&String::from_utf8_lossy(line)));
                    tokio::time::sleep(PAUSE).await;
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
        self.0.trigger();
    }
}

/// The lines of a pipe. A line that is too long is dropped up to its end.
#[derive(Default)]
struct Lines {
    /// Bytes of the line that has not ended.
    begun: Vec<u8>,
    /// True while the rest of a line is dropped.
    skips: bool,
    /// True once a dropped line was logged.
    warned: bool,
}

impl Lines {
    /// Adds bytes, and passes each line that ends in them to `take`.
    fn add(&mut self, new: &[u8], mut take: impl FnMut(&[u8])) {
        for part in new.split_inclusive(|&byte| byte == b'\n') {
            if self.begun.len() + part.len() > LINE_MAX {
                self.begun = Vec::new();
                self.skips = true;
                if !std::mem::replace(&mut self.warned, true) {
                    tracing::warn!("dropping an overlong metrics line of Firecracker");
                }
            }
            if !self.skips {
                self.begun.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.begun);
                if !std::mem::take(&mut self.skips) {
                    take(&line);
                }
            }
        }
    }
}

/// Adds the counts of a line to the metrics. A line that is cut short adds nothing.
pub(super) fn count(line: &str) {
    let said: Value = serde_json::from_str(line).unwrap_or_default();
    for (at, name) in FIGURES {
        if let Some(more @ 1..) = said.pointer(at).and_then(Value::as_u64) {
            metrics::counter!(name).increment(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlong_line_is_dropped_and_the_next_one_is_read() {
        let (mut lines, mut read) = (Lines::default(), Vec::new());
        let mut add = |new: &[u8]| lines.add(new, |line| read.push(line.to_vec()));
        add(b"{\"a\":");
        add(b"1}\n{}\n");
        for _ in 0..100 {
            add(&[b'x'; LINE_MAX / 10]);
        }
        add(b"the end\n{\"b\":2}\n");
        assert_eq!(read, [&b"{\"a\":1}\n"[..], b"{}\n", b"{\"b\":2}\n"]);
        assert!(lines.begun.is_empty() && lines.warned);
    }
}
