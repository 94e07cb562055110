//! Tests that an answer before the end of the request's body reaches a client that still sends.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

use bytes::Bytes;
use daemon::Tasks;
use futures::StreamExt;
use hop::{Body, Dial, Handler, Limits, Pool, Stream};
use http::{Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};

const ROUNDS: usize = 200;
const PIECES: usize = 256;
const PIECE: Bytes = Bytes::from_static(&[7; 64 * 1024]);

struct Plain;

impl Dial for Plain {
    type To = SocketAddr;

    async fn dial(&self, to: &SocketAddr) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(TcpStream::connect(to).await?))
    }
}

/// Handler that reads a part of the body and has no room for the rest.
struct Full;

impl Handler for Full {
    async fn handle(self: &Arc<Self>, request: Request<Body>, _: SocketAddr) -> Response<Body> {
        let mut body = request.into_body();
        let _ = body.frame().await;
        let mut answer = Response::new(Body::from("no room".to_owned()));
        *answer.status_mut() = StatusCode::INSUFFICIENT_STORAGE;
        answer
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_answer_reaches_client_that_still_sends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (to, tasks) = (listener.local_addr().unwrap(), Tasks::default());
    hop::serve(listener, Full, Limits::default(), &tasks);
    let pool = Pool::new(Plain, 8, tasks.clone());
    for round in 0..ROUNDS {
        let pieces = futures::stream::repeat(PIECE).take(PIECES);
        let body = StreamBody::new(pieces.map(|piece| Ok::<_, io::Error>(Frame::data(piece))));
        let request = Request::post("/").header(header::HOST, "x").body(Body::boxed(body));
        let sent = pool.send(&to, request.unwrap()).await;
        let answer = sent.map_err(|failed| failed.error).unwrap_or_else(|e| panic!("{round}: {e}"));
        let answer = answer.answer;
        assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
        let body = answer.into_body().collect().await.unwrap_or_else(|e| panic!("{round}: {e}"));
        assert_eq!(body.to_bytes(), "no room");
    }
    tasks.finish().await;
}
