//! Requests of a connection to port 80. Each request is judged by the host that it asks for, and
//! written anew. hyper reads the request from the guest and writes it to the server. So a server
//! reads only requests that were judged here, whatever bytes a guest sends.
//!
//! The task that serves the guest drives both connections, so that nothing moves while it waits for
//! new rules.

use super::names::{Asked, count_refused, of_request};
use bytes::Bytes;
use daemon::lock;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Time limit for the whole head of the next request.
const NEXT: Duration = Duration::from_secs(180);
/// Largest head of a request, and most bytes of a body that are held.
const BUFFER: usize = 64 * 1024;
/// The only protocol that a request may switch to. Other protocols carry requests that this module
/// cannot read.
const WEBSOCKET: &[u8] = b"websocket";

/// Judge of a connection's requests, and dialer of their server.
pub(super) trait Gate: Sync {
    /// A connection to a server.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Reports whether a request for a host may pass.
    fn admits(&self, asked: &Asked) -> impl Future<Output = bool> + Send;

    /// Opens the connection to the server.
    fn dial(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

type Answer = Response<Either<Full<Bytes>, Incoming>>;
type Driven = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A guest's connection, together with the server's connection that carries its requests.
pub(super) struct Exchange<'a, G> {
    gate: G,
    /// Host that the last request asked for; `None` before the first.
    asked: &'a Mutex<Option<Asked>>,
    sender: tokio::sync::Mutex<Option<SendRequest<Incoming>>>,
    /// The server's connection, until its end.
    server: Mutex<Option<Driven>>,
    /// Both ends, once a request has switched protocols.
    switched: Mutex<Option<(OnUpgrade, OnUpgrade)>>,
}

impl<'a, G: Gate> Exchange<'a, G> {
    pub(super) fn new(gate: G, asked: &'a Mutex<Option<Asked>>) -> Self {
        let (sender, server) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { gate, asked, sender, server, switched: Mutex::default() }
    }

    /// Serves a guest's requests until the connection ends.
    ///
    /// # Errors
    /// Fails when the connection fails before its end, for example on bytes that are no request.
    pub(super) async fn serve<S>(&self, guest: S) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(NEXT).max_buf_size(BUFFER);
        builder.half_close(true).preserve_header_case(true).auto_date_header(false);
        let service = service_fn(|request| self.answer(request));
        let serving = builder.serve_connection(TokioIo::new(guest), service).with_upgrades();
        let mut serving = pin!(serving);
        let mut ending = false;
        let served = poll_fn(|cx| {
            let mut served = serving.as_mut().poll(cx);
            // When the server closes its connection, the guest's connection closes too.
            if self.drive(cx).is_ready() && !std::mem::replace(&mut ending, true) {
                serving.as_mut().graceful_shutdown();
                if served.is_pending() {
                    served = serving.as_mut().poll(cx);
                }
            }
            served
        });
        if let Err(error) = served.await {
            if error.is_parse() {
                count_refused();
            }
            return Err(io::Error::other(error));
        }
        let switched = lock(&self.switched).take();
        let Some((guest, server)) = switched else { return Ok(()) };
        let mut both = pin!(async { tokio::try_join!(guest, server) });
        let both = poll_fn(|cx| {
            let _ = self.drive(cx);
            both.as_mut().poll(cx)
        });
        let (guest, server) = both.await.map_err(io::Error::other)?;
        let (mut guest, mut server) = (TokioIo::new(guest), TokioIo::new(server));
        tokio::io::copy_bidirectional(&mut guest, &mut server).await.map(|_| ())
    }

    /// Drives the server's connection. Ready once the connection has ended.
    fn drive(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut server = lock(&self.server);
        let Some(driven) = server.as_mut() else { return Poll::Pending };
        // An error reaches the request that waits for an answer, so nothing is lost here.
        std::task::ready!(driven.as_mut().poll(cx)).ok();
        *server = None;
        Poll::Ready(())
    }

    async fn answer(&self, mut request: Request<Incoming>) -> io::Result<Answer> {
        let asked = of_request(request.uri(), request.headers());
        *lock(self.asked) = Some(asked.clone());
        if !is_framed_alike(&request) || !self.gate.admits(&asked).await {
            count_refused();
            return Ok(refusal(&asked));
        }
        let websocket = is_websocket(request.headers());
        if !websocket {
            // An intermediary drops an `Upgrade` to a protocol that it does not speak (RFC 9110,
            // 7.8).
            request.headers_mut().remove(header::UPGRADE);
        }
        let guest = websocket.then(|| hyper::upgrade::on(&mut request));
        let mut answer = self.send(request).await?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let server = hyper::upgrade::on(&mut answer);
            let Some(guest) = guest.filter(|_| is_websocket(answer.headers())) else {
                return Err(io::Error::other("the server switched protocols without a request"));
            };
            *lock(&self.switched) = Some((guest, server));
        }
        Ok(answer.map(Either::Right))
    }

    async fn send(&self, request: Request<Incoming>) -> io::Result<Response<Incoming>> {
        // A connection's requests are answered in their order, so only one is under way.
        let mut sender = self.sender.lock().await;
        if sender.is_none() {
            let stream = TokioIo::new(self.gate.dial().await?);
            let mut builder = hyper::client::conn::http1::Builder::new();
            builder.preserve_header_case(true).max_buf_size(BUFFER);
            builder.allow_obsolete_multiline_headers_in_responses(true);
            builder.allow_spaces_after_header_name_in_responses(true);
            builder.ignore_invalid_headers_in_responses(true);
            let opened = builder.handshake(stream).await.map_err(io::Error::other)?;
            *lock(&self.server) = Some(Box::pin(opened.1.with_upgrades()));
            *sender = Some(opened.0);
        }
        let Some(sender) = sender.as_mut() else { return Err(io::ErrorKind::NotConnected.into()) };
        sender.ready().await.map_err(io::Error::other)?;
        sender.send_request(request).await.map_err(io::Error::other)
    }
}

/// Reports whether every server reads the same bytes as the body. A tunnel (`CONNECT`) has no body.
fn is_framed_alike(request: &Request<Incoming>) -> bool {
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next().map(HeaderValue::as_bytes);
    let chunked = coding.is_none_or(|coding| coding.eq_ignore_ascii_case(b"chunked"));
    // For a length beside a coding, hyper drops the length, and ends the connection afterwards.
    chunked && codings.next().is_none() && request.method() != Method::CONNECT
}

/// Reports whether the headers ask for, or agree to, a switch to WebSocket and to nothing else.
fn is_websocket(headers: &http::HeaderMap) -> bool {
    let alone = headers.get_all(header::UPGRADE).iter().count() == 1;
    let protocol = hop::headers::upgrade(headers).filter(|_| alone);
    protocol.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(WEBSOCKET))
}

/// Refuses a request, with the reason as text.
fn refusal(asked: &Asked) -> Answer {
    let text = match asked.name() {
        Some(name) => format!("This capsule's network rules do not allow {name}.\n"),
        None => "This capsule's network rules do not allow a request whose host cannot be read.\n"
            .to_owned(),
    };
    let mut answer = Response::new(Either::Left(Full::from(text)));
    *answer.status_mut() = StatusCode::FORBIDDEN;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    /// A gate that denies `bad.test` and unreadable requests.
    struct OpenButBad(Mutex<Option<DuplexStream>>);

    impl Gate for OpenButBad {
        type Stream = DuplexStream;

        async fn admits(&self, asked: &Asked) -> bool {
            matches!(asked, Asked::Host(name) if name != "bad.test")
        }

        async fn dial(&self) -> io::Result<DuplexStream> {
            lock(&self.0).take().ok_or_else(|| io::Error::other("dialled twice"))
        }
    }

    /// Answers each head with `answer`, and returns all the bytes that came.
    async fn server(mut stream: DuplexStream, answer: &str) -> String {
        let (mut all, mut answered) = (Vec::new(), 0);
        while let Ok(1..) = stream.read_buf(&mut all).await {
            let text = String::from_utf8_lossy(&all);
            let ends = text.matches("\r\n0\r\n\r\n").count();
            let heads = text.matches("\r\n\r\n").count() - ends;
            for _ in answered..heads {
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            answered = heads;
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    /// Sends `bytes` as a guest; returns the bytes that the guest and the server got.
    async fn say(bytes: &str, answer: &str) -> (String, String) {
        let ((mut guest, ours), (near, far)) = (duplex(1 << 20), duplex(1 << 20));
        let asked = Mutex::default();
        let exchange = Exchange::new(OpenButBad(Mutex::new(Some(near))), &asked);
        let serving = async move {
            let _ = exchange.serve(ours).await;
            drop(exchange);
        };
        let asking = async move {
            guest.write_all(bytes.as_bytes()).await.unwrap();
            guest.shutdown().await.unwrap();
            let mut all = Vec::new();
            let _ = guest.read_to_end(&mut all).await;
            String::from_utf8_lossy(&all).into_owned()
        };
        let ((), got, served) = tokio::join!(serving, asking, server(far, answer));
        (got, served)
    }

    #[tokio::test]
    async fn each_request_of_a_connection_is_checked_against_rules() {
        let good = "GET /1 HTTP/1.1\r\nHost: good.test\r\nX-Case: y\r\n\r\n";
        let post = "POST /2 HTTP/1.1\r\nHost: other.test\r\nContent-Length: 4\r\n\r\nbody";
        let bad = "GET /3 HTTP/1.1\r\nHost: bad.test\r\n\r\n";
        let (got, served) = say(&[good, post, bad, good].concat(), OK).await;
        assert_eq!(got.matches("200 OK").count(), 2, "{got}");
        assert!(got.contains("403 Forbidden") && got.contains("do not allow bad.test"), "{got}");
        // Both requests arrive byte for byte, as the guest wrote them.
        assert_eq!(served, [good, post].concat());
    }

    #[tokio::test]
    async fn chunked_body_passes_and_cannot_smuggle_a_request() {
        let head = "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        let hidden = "GET / HTTP/1.1\r\nHost: bad.test";
        let body = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
        let (_, served) = say(&format!("{head}{body}"), OK).await;
        assert!(served.starts_with(head) && served.ends_with("\r\n0\r\n\r\n"), "{served}");
        // The bytes after the body's end are a request of their own.
        let (got, served) = say(&format!("{head}{body}{hidden}\r\n\r\n"), OK).await;
        assert!(got.contains("403") && served.matches("bad.test").count() == 1, "{got} {served}");
    }

    #[tokio::test]
    async fn unreadable_and_ambiguous_requests_reach_no_server() {
        let large = format!("GET / HTTP/1.1\r\nHost: good.test\r\nX: {}\r\n", "y".repeat(70_000));
        for bytes in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: good.test\r\nHost: bad.test\r\n\r\n",
            "GET http://bad.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
            "GET http://good.test/ HTTP/1.1\r\nHost: bad.test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: good.test\r\n bad.test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : good.test\r\n\r\n",
            "CONNECT bad.test:443 HTTP/1.1\r\nHost: bad.test:443\r\n\r\n",
            "CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: x, chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked, x\r\n\r\n",
            "POST / HTTP/1.0\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: +1\r\n\r\na",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET /\r\n",
            "SSH-2.0-x\r\n",
            "\u{16}\u{3}\u{1}\0\0",
            &large,
        ] {
            let (got, served) = say(bytes, OK).await;
            let start: String = bytes.chars().take(60).collect();
            assert_eq!(served, "", "{start}: {got}");
            assert!(got.is_empty() || got.get(8..10) == Some(" 4"), "{start}: {got}");
        }
    }

    /// A server may take either of two lengths. A rewritten request has only one.
    #[tokio::test]
    async fn request_with_two_lengths_is_sent_with_one_and_ends_connection() {
        let hidden = "GET / HTTP/1.1\r\nHost: bad.test\r\n\r\n";
        let both = format!(
            "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            5 + hidden.len()
        );
        let (_, served) = say(&format!("{both}{hidden}"), OK).await;
        assert!(!served.to_ascii_lowercase().contains("content-length"), "{served}");
        assert!(!served.contains("bad.test"), "{served}");
        // A malformed chunk ends the connection.
        let bad = "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n";
        let (_, served) = say(&format!("{bad}{hidden}"), OK).await;
        assert!(!served.contains("bad.test"), "{served}");
    }

    #[tokio::test]
    async fn only_accepted_websocket_upgrade_switches_protocol() {
        let ask = |protocol: &str| {
            format!(
                "GET / HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
            )
        };
        let raw = "GET / HTTP/1.1\r\nHost: bad.test\r\n\r\n";
        let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello";
        let (got, served) = say(&(ask("websocket") + "anything"), agreed).await;
        assert!(got.contains("101 Switching") && got.ends_with("hello"), "{got}");
        assert!(served.ends_with("\r\n\r\nanything"), "{served}");
        // A server that goes on with HTTP gets no request that was not judged.
        let (got, served) = say(&(ask("websocket") + raw), OK).await;
        assert!(got.contains("403") && !served.contains("bad.test"), "{got} {served}");
        let two = ask("websocket").replace("\r\n\r\n", "\r\nUpgrade: h2c\r\n\r\n");
        let (_, served) = say(&two, OK).await;
        assert!(!served.to_ascii_lowercase().contains("\r\nupgrade:"), "{served}");
        let (_, served) = say(&(ask("h2c") + raw), OK).await;
        assert!(!served.to_ascii_lowercase().contains("\r\nupgrade:"), "{served}");
        assert!(!served.contains("bad.test"), "{served}");
        // A server that switches to an unrequested protocol gets no unjudged request either.
        let (got, served) = say(&(ask("h2c") + raw), agreed).await;
        assert!(!got.contains("101") && !served.contains("bad.test"), "{got} {served}");
    }
}
