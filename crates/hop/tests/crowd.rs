//! Tests that a crowd of connections from a single network leaves room for others, and is refused
//! at once.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

use daemon::Tasks;
use hop::{Body, Handler, Limits, Standing};
use http::{Request, Response};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const LIMITS: Limits = Limits { connections: 16, per_network: 4, head_bytes: 8192 };
/// Connections that strangers may hold together.
const STRANGERS: u8 = 14;
/// Last byte of an address in a known network.
const KNOWN: u8 = 200;

struct Ok;

impl Handler for Ok {
    async fn handle(self: &Arc<Self>, _: Request<Body>, _: SocketAddr) -> Response<Body> {
        Response::new(Body::from("ok".to_owned()))
    }

    fn standing(&self, peer: IpAddr) -> Standing {
        match peer {
            IpAddr::V4(address) if address.octets()[3] == KNOWN => Standing::Known,
            IpAddr::V4(address) if address == Ipv4Addr::LOCALHOST => Standing::Trusted,
            IpAddr::V4(_) | IpAddr::V6(_) => Standing::Stranger,
        }
    }
}

/// Connects from an address. Returns the connection and its first answer's status.
async fn asked(from: u8, to: SocketAddr) -> (TcpStream, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, from], 0))).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut status = [0; 12];
    let read = stream.read_exact(&mut status).await;
    let status = if read.is_ok() { String::from_utf8_lossy(&status[9..]) } else { "".into() };
    (stream, status.into_owned())
}

/// Reports whether a connection was refused. Either the answer shows it, or the connection's end
/// where the answer was lost.
fn refused(status: &str) -> bool {
    status == "503" || status.is_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded_per_network_with_reserve_for_known_peers() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let (to, tasks) = (listener.local_addr().unwrap(), Tasks::default());
    let to = SocketAddr::from(([127, 0, 0, 1], to.port()));
    hop::serve(listener, Ok, LIMITS, &tasks);
    let mut open = Vec::new();
    for from in 2..6 {
        for n in 0..4 {
            let (stream, status) = asked(from, to).await;
            let few = (from - 2) * 4 + n < STRANGERS;
            assert_eq!(status == "200", few, "{from} {n}: {status}");
            open.extend(few.then_some(stream));
        }
        assert!(refused(&asked(from, to).await.1), "{from}");
    }
    // No further stranger is let in. Known peers are, while there is any room.
    assert!(refused(&asked(9, to).await.1));
    for from in [KNOWN, 1] {
        let (stream, status) = asked(from, to).await;
        assert_eq!(status, "200", "{from}");
        open.push(stream);
    }
    assert!(refused(&asked(1, to).await.1));
    // Closed connections make room again.
    drop(open);
    loop {
        let (stream, status) = asked(9, to).await;
        if status == "200" {
            break drop(stream);
        }
        tokio::task::yield_now().await;
    }
    tasks.finish().await;
}
