//! The proxies' hop: a server's answer of any bytes, and headers that concern a single hop.
#![no_main]

use daemon::{Tasks, lock};
use hop::{Body, Dial, Outgoing, Pool, Stream};
use http::{HeaderName, HeaderValue, Request, header};
use http_body_util::BodyExt;
use libfuzzer_sys::fuzz_target;
use std::io;
use std::sync::Mutex;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

/// Most bytes of an answer that are read.
const BODY_MAX: usize = 1 << 20;

/// Server that answers every request with the same bytes, and sends no more.
struct Says {
    bytes: Vec<u8>,
    /// Far ends of the connections. They must live as long as the near ends write to them.
    far: Mutex<Vec<DuplexStream>>,
}

impl Dial for Says {
    type To = ();

    async fn dial(&self, (): &()) -> io::Result<Box<dyn Stream>> {
        let (near, mut far) = duplex(self.bytes.len().max(1 << 16));
        far.write_all(&self.bytes).await?;
        far.shutdown().await?;
        lock(&self.far).push(far);
        Ok(Box::new(near))
    }
}

/// Makes a request with headers of any kind, from `name: value` lines of the bytes.
fn request(data: &[u8]) -> Option<Request<Body>> {
    let mut request = Request::builder().uri("/").header(header::HOST, "guest");
    for line in data.split(|byte| *byte == b'\n').take(32) {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..at]);
        let value = HeaderValue::from_bytes(&line[at + 1..]);
        if let (Ok(name), Ok(value)) = (name, value) {
            request = request.header(name, value);
        }
    }
    request.body(Body::empty()).ok()
}

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        let tasks = Tasks::default();
        let Some(request) = request(data) else { return };
        let outgoing = Outgoing::of(request);
        let headers = outgoing.request.headers();
        for name in [header::TRANSFER_ENCODING, header::EXPECT, header::PROXY_AUTHORIZATION] {
            assert!(!headers.contains_key(&name), "{name} is of one hop");
        }
        assert_eq!(headers.contains_key(header::UPGRADE), outgoing.upgrades());
        let pool =
            Pool::new(Says { bytes: data.to_vec(), far: Mutex::default() }, 1, tasks.clone());
        let Ok(answer) = outgoing.send(&pool, &(), || None, &tasks).await else { return };
        assert!(!answer.headers().contains_key(header::TRANSFER_ENCODING));
        let body = http_body_util::Limited::new(answer.into_body(), BODY_MAX);
        let _ = body.collect().await;
    });
});
