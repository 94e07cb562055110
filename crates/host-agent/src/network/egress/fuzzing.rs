//! Fuzz targets for the bytes that a guest sends to the filter and the name server.

use super::names::{Asked, of_head};
use super::requests::{Exchange, Gate};
use super::tls::{self, Later, Step};
use daemon::lock;
use std::io;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

pub use super::dns::fuzz as dns;

/// The only host that requests may ask for.
const ALLOWED: &str = "good.test";

/// Feeds the first bytes of a connection to port 443 to the filter.
///
/// # Panics
/// Panics when a hello reads differently without the bytes after it, or those bytes make no
/// progress.
pub fn hello(data: &[u8]) {
    let _ = of_head(data);
    let Some(hello) = tls::hello(data) else { return };
    if hello.asked == Asked::Unreadable {
        return;
    }
    let name = hello.asked.clone();
    let mut rest = &data[hello.length..];
    assert_eq!(tls::hello(&data[..hello.length]).map(|hello| hello.asked), Some(name));
    let mut later = Later::new(hello);
    while let Step::Pass(count) = later.look(rest) {
        assert!(count > 0, "nothing moves");
        rest = &rest[count..];
    }
}

struct OnlyGood(Mutex<Option<DuplexStream>>);

impl Gate for OnlyGood {
    type Stream = DuplexStream;

    async fn admits(&self, asked: &Asked) -> bool {
        matches!(asked, Asked::Host(name) if name == ALLOWED)
    }

    async fn dial(&self) -> io::Result<DuplexStream> {
        let stream = lock(&self.0).take();
        stream.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

/// Feeds the bytes of a connection to port 80 to the filter. A server that parses the result by
/// itself must find requests for the allowed host, and nothing else.
///
/// # Panics
/// Panics when a request for another host reaches the server.
pub fn requests(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        let ((mut guest, ours), (near, far)) = (duplex(1 << 20), duplex(1 << 20));
        let asked = Mutex::default();
        let exchange = Exchange::new(OnlyGood(Mutex::new(Some(near))), &asked);
        let serving = async move {
            let _ = exchange.serve(ours).await;
            drop(exchange);
        };
        let asking = async move {
            let _ = guest.write_all(data).await;
            let _ = guest.shutdown().await;
            let _ = guest.read_to_end(&mut Vec::new()).await;
        };
        tokio::join!(serving, asking, server(far));
    });
}

/// Reads requests as servers do, and answers each of them.
async fn server(mut stream: DuplexStream) {
    let mut bytes = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut bytes).await {
        while let Some(length) = request(&bytes) {
            bytes.drain(..length);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    }
}

/// Returns the bytes that the first request takes, once it is whole.
fn request(bytes: &[u8]) -> Option<usize> {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(bytes);
    assert!(parsed.is_ok(), "the server gets no request: {bytes:?}");
    let Ok(httparse::Status::Complete(head)) = parsed else { return None };
    let values = |name: &str| -> Vec<&[u8]> {
        let found = request.headers.iter().filter(|one| one.name.eq_ignore_ascii_case(name));
        found.map(|one| one.value).collect()
    };
    let hosts = values("host");
    let text = hosts.first().map(|host| String::from_utf8_lossy(host).to_ascii_lowercase());
    let text = text.unwrap_or_default();
    let host = text.trim().split(':').next().unwrap_or_default();
    assert!(hosts.len() == 1 && host.trim_end_matches('.') == ALLOWED, "{hosts:?}");
    assert!(values("upgrade").iter().all(|one| one.eq_ignore_ascii_case(b"websocket")));
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "{lengths:?} {codings:?}");
    if codings.is_empty() {
        let length = lengths.first().and_then(|length| std::str::from_utf8(length).ok());
        let length: usize = length.unwrap_or("0").trim().parse().ok()?;
        return head.checked_add(length).filter(|end| *end <= bytes.len());
    }
    let mut at = head;
    loop {
        match httparse::parse_chunk_size(bytes.get(at..)?) {
            Ok(httparse::Status::Complete((skip, size))) => {
                at += skip;
                if size == 0 {
                    // The trailers are empty or end with an empty line.
                    let rest = bytes.get(at..)?;
                    let none = rest.starts_with(b"\r\n").then_some(2);
                    let some = || rest.windows(4).position(|four| four == b"\r\n\r\n");
                    return none.or_else(|| some().map(|end| end + 4)).map(|end| at + end);
                }
                at = at.checked_add(usize::try_from(size).ok()?)?.checked_add(2)?;
            }
            Ok(httparse::Status::Partial) => return None,
            Err(_) => panic!("the server gets no chunk: {bytes:?}"),
        }
    }
}
