//! Tests of each phase of a connection, with a clock that the tests move.

#![expect(clippy::disallowed_methods, reason = "a test's task ends with its runtime")]

use super::*;
use crate::activity::{HEAD, LINGER, REST};
use crate::body::{BoxError, STALL, Stalled};
use crate::timer::SILENCE;
use bytes::Bytes;
use http::header;
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::client::conn::http2;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

/// Time that the handler takes to answer `/late`.
const LATE: Duration = Duration::from_secs(5000);

/// Handler that answers by the request's path.
struct Paths;

impl Handler for Paths {
    async fn handle(self: &Arc<Self>, request: Request<Body>, _: SocketAddr) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let body = request.into_body();
        match path.as_str() {
            "/late" => tokio::time::sleep(LATE).await,
            "/soon" => tokio::task::yield_now().await,
            "/unread" => return Response::new(Body::from("ok".to_owned())),
            // The answer begins at once, and passes the request's body on as it comes.
            "/echo" => return Response::new(Body::boxed(body)),
            "/switch" => {
                let held: Held = Box::new(HELD.take((), 1, ONE).unwrap());
                let mut answer = Response::new(Body::empty().holding(held));
                *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                answer.headers_mut().insert(header::UPGRADE, "x".parse().unwrap());
                answer.headers_mut().insert(header::CONNECTION, "upgrade".parse().unwrap());
                return answer;
            }
            _ => {}
        }
        let mut answer = Response::new(Body::from("ok".to_owned()));
        if let Err(error) = body.collect().await {
            let stalled = Stalled::is_cause_of(&*error);
            *answer.status_mut() =
                if stalled { StatusCode::REQUEST_TIMEOUT } else { StatusCode::BAD_REQUEST };
        }
        answer
    }
}

static HELD: std::sync::LazyLock<Shares<()>> = std::sync::LazyLock::new(Shares::default);
const ONE: Bounds = Bounds { all: 1, each: 1 };

/// Returns a served connection, and the shares in which it counts.
fn served() -> (DuplexStream, Shares<()>) {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let shares = Shares::default();
    let share: Held = Box::new(shares.take((), 1, ONE).unwrap());
    tokio::spawn(async move {
        let builder = builder(Limits::default());
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let tasks = Tasks::default();
        connection(server, peer, Arc::new(Paths), &builder, share, tasks).await;
    });
    (client, shares)
}

/// Reads to the end. Returns the bytes, and the time until the end.
async fn rest(client: &mut DuplexStream) -> (String, Duration) {
    let (started, mut all) = (Instant::now(), Vec::new());
    let _ = client.read_to_end(&mut all).await;
    (String::from_utf8_lossy(&all).into_owned(), started.elapsed())
}

/// Sends a request and returns the answer's head and body, which is `ok`.
async fn ask(client: &mut DuplexStream, request: &str) -> String {
    client.write_all(request.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    while !all.ends_with(b"\r\n\r\nok") {
        all.push(client.read_u8().await.unwrap());
    }
    String::from_utf8(all).unwrap()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

#[tokio::test(start_paused = true)]
async fn head_timeout_runs_from_the_first_byte() {
    let (mut client, shares) = served();
    ask(&mut client, &get("/")).await;
    tokio::time::sleep(REST / 2).await;
    let started = Instant::now();
    // The end of the connection ends the wait for an answer.
    while client.write_all(b"x").await.is_ok() {
        let answer = tokio::time::timeout(Duration::from_secs(1), client.read_u8());
        if answer.await.is_ok() {
            break;
        }
    }
    assert_eq!(started.elapsed(), HEAD);
    assert_eq!(shares.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn silent_new_connection_is_closed_after_head_timeout() {
    let (mut client, _) = served();
    assert_eq!(rest(&mut client).await, (String::new(), HEAD));
}

#[tokio::test(start_paused = true)]
async fn idle_connection_is_closed_after_keep_alive_timeout() {
    for path in ["/", "/soon", "/late"] {
        let (mut client, shares) = served();
        for _ in 0..3 {
            ask(&mut client, &get(path)).await;
            tokio::time::sleep(REST - Duration::from_secs(1)).await;
        }
        assert_eq!(rest(&mut client).await, (String::new(), Duration::from_secs(1)), "{path}");
        assert_eq!(shares.held(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn slow_answer_does_not_time_out() {
    let (mut client, _) = served();
    let started = Instant::now();
    ask(&mut client, &get("/late")).await;
    assert_eq!(started.elapsed(), LATE);
}

#[tokio::test(start_paused = true)]
async fn stalled_body_is_answered_with_408_and_connection_closes() {
    let (mut client, shares) = served();
    let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1";
    client.write_all(head.as_bytes()).await.unwrap();
    // Each byte renews the body's time.
    for _ in 0..3 {
        tokio::time::sleep(STALL - Duration::from_secs(1)).await;
        client.write_all(b"x").await.unwrap();
    }
    let (answer, took) = rest(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(took, STALL);
    assert_eq!(shares.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn unread_body_is_drained_for_a_limited_time() {
    // A body that comes to its end leaves the connection to the next request.
    let (mut client, _) = served();
    let head = "POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n1";
    ask(&mut client, head).await;
    tokio::time::sleep(LINGER / 2).await;
    client.write_all(b"23").await.unwrap();
    ask(&mut client, &get("/")).await;
    // A chunked body does so too, although no length shows its end.
    let chunked = "POST /unread HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
                   1\r\n1\r\n0\r\n\r\n";
    ask(&mut client, chunked).await;
    tokio::time::sleep(LINGER / 2).await;
    ask(&mut client, &get("/")).await;
    assert_eq!(rest(&mut client).await, (String::new(), REST));
    let (mut client, shares) = served();
    ask(&mut client, head).await;
    assert_eq!(rest(&mut client).await, (String::new(), LINGER));
    assert_eq!(shares.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn connect_stream_has_the_long_silence_timeout() {
    let (mut client, _) = served();
    let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+proto\r\n\
                Content-Length: 9\r\n\r\n1";
    client.write_all(head.as_bytes()).await.unwrap();
    let (answer, took) = rest(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(took, SILENCE);
}

#[tokio::test(start_paused = true)]
async fn body_does_not_time_out_once_answer_has_begun() {
    let (mut client, _) = served();
    let head = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n1";
    client.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(SILENCE * 3).await;
    client.write_all(b"23").await.unwrap();
    let mut all = Vec::new();
    while !all.ends_with(b"\r\n\r\n123") {
        all.push(client.read_u8().await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn connection_shares_are_released_after_protocol_upgrade() {
    let (mut client, shares) = served();
    let request = "GET /switch HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    // No code takes the connection over here, so the connection ends with the answer.
    rest(&mut client).await;
    assert_eq!((shares.held(), HELD.held()), (0, 0));
}

type Sender = http2::SendRequest<http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>>;

/// Returns a client that speaks HTTP/2, and the task of its connection.
async fn http2() -> (Sender, tokio::task::JoinHandle<()>) {
    let (client, _) = served();
    let builder = http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.handshake(TokioIo::new(client)).await.unwrap();
    (sender, tokio::spawn(async move { drop(connection.await) }))
}

#[tokio::test(start_paused = true)]
async fn idle_http2_connection_is_closed_despite_ping_frames() {
    let (mut sender, connection) = http2().await;
    let request = Request::get("http://x/late").body(Empty::new().map_err(Into::into));
    let answer = sender.send_request(request.unwrap().map(BodyExt::boxed_unsync)).await.unwrap();
    answer.into_body().collect().await.unwrap();
    let started = Instant::now();
    // The server's pings, once a minute, are answered and must not keep the connection open.
    connection.await.unwrap();
    assert_eq!(started.elapsed(), REST);
}

#[tokio::test(start_paused = true)]
async fn stalled_http2_stream_gets_408_and_other_streams_continue() {
    let (mut sender, connection) = http2().await;
    let pending = futures::stream::pending::<Result<Frame<Bytes>, BoxError>>();
    let stalled = Request::post("http://x/").body(StreamBody::new(pending).boxed_unsync());
    let started = Instant::now();
    let answer = sender.send_request(stalled.unwrap()).await.unwrap();
    assert_eq!((answer.status(), started.elapsed()), (StatusCode::REQUEST_TIMEOUT, STALL));
    let request = Request::get("http://x/").body(Empty::new().map_err(Into::into));
    let answer = sender.send_request(request.unwrap().map(BodyExt::boxed_unsync)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    connection.abort();
}
