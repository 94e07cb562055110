//! Network namespaces of bare machines, with a tap as a capsule has it.

use crate::inside::Inside;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Time between two looks at `/health`, the same as the agent's.
const POLL: Duration = Duration::from_millis(10);
/// Time that a connection attempt may take.
const ATTEMPT: Duration = Duration::from_millis(30);
/// Time that a single machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A namespace with a tap, like a capsule's.
pub(crate) struct Namespace {
    name: String,
    inside: Inside,
}

impl Namespace {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("wrenn-bench-{name}");
        ip(&format!("netns del {name}"));
        for command in [
            format!("netns add {name}"),
            format!("-n {name} tuntap add tap0 mode tap vnet_hdr"),
            format!("-n {name} link set tap0 address 02:57:52:00:00:01 up"),
            format!("-n {name} addr add 169.254.0.1/30 dev tap0"),
            format!("-n {name} neigh add 169.254.0.2 lladdr 52:54:00:00:00:02 dev tap0"),
        ] {
            assert!(ip(&command), "ip {command}");
        }
        let inside = Inside::enter(Path::new(&format!("/run/netns/{name}")));
        Self { name, inside }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the thread that works in the namespace.
    pub(crate) fn inside(&self) -> &Inside {
        &self.inside
    }

    /// Waits until the namespace's machine answers.
    pub(crate) fn wait_healthy(&self) {
        assert!(self.is_healthy_within(PATIENCE), "the bare machine did not get up");
    }

    /// Reports whether the namespace's machine answers within a limit.
    pub(crate) fn is_healthy_within(&self, limit: Duration) -> bool {
        self.inside.run(move |runtime, _| runtime.block_on(is_healthy_within(limit)))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.name));
    }
}

async fn is_healthy_within(limit: Duration) -> bool {
    let limit = Instant::now() + limit;
    while Instant::now() < limit {
        // Packets sent before the machine has its tap are lost. Their retransmission would come
        // late, so each attempt is short.
        let dialled = tokio::net::TcpStream::connect(("169.254.0.2", 49983));
        if let Ok(Ok(mut stream)) = tokio::time::timeout(ATTEMPT, dialled).await {
            let asked = stream.write_all(b"GET /health HTTP/1.1\r\nhost: envd\r\n\r\n").await;
            let mut answer = [0; 12];
            if asked.is_ok() && stream.read_exact(&mut answer).await.is_ok() {
                assert_eq!(&answer, b"HTTP/1.1 204");
                return true;
            }
        }
        tokio::time::sleep(POLL).await;
    }
    false
}

fn ip(command: &str) -> bool {
    let out = Command::new("ip").args(command.split(' ')).output().unwrap();
    out.status.success()
}
