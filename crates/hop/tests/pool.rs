//! Tests that connections are kept and used again, whatever the pace of answers.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

use bytes::Bytes;
use daemon::Tasks;
use hop::{Body, Dial, Pool, Stream};
use http::{Request, header};
use http_body_util::BodyExt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Dialer that counts the opened connections.
struct Counting(Arc<AtomicUsize>);

impl Dial for Counting {
    type To = std::net::SocketAddr;

    async fn dial(&self, to: &Self::To) -> io::Result<Box<dyn Stream>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// Answers for ever, with head and body in separate writes.
async fn answer(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n").await?;
        tokio::task::yield_now().await;
        stream.write_all(b"x").await?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequential_requests_reuse_one_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    let dialled = Arc::new(AtomicUsize::new(0));
    let pool = Pool::new(Counting(Arc::clone(&dialled)), 8, Tasks::default());
    for _ in 0..2000 {
        let request = Request::get("/").header(header::HOST, "x").body(Body::empty()).unwrap();
        let answer = pool.send(&to, request).await.unwrap().answer;
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), Bytes::from("x"));
    }
    assert_eq!(dialled.load(Ordering::SeqCst), 1);
    pool.clear();
}

#[tokio::test]
async fn header_names_are_title_case_only_with_the_pool_option() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let pool = || Pool::new(Counting(Arc::default()), 8, Tasks::default());
    let wanted = ["Host: x\r\nX-Access-Token: y\r\n", "host: x\r\nx-access-token: y\r\n"];
    for (pool, wanted) in [pool().with_title_case(), pool()].into_iter().zip(wanted) {
        let request = Request::get("/").header(header::HOST, "x").header("x-access-token", "y");
        let request = request.body(Body::empty()).unwrap();
        let sending = tokio::spawn(async move { pool.send(&to, request).await.map(|_| ()) });
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut head).await.unwrap() > 0, "{head}");
        }
        assert!(head.contains(wanted), "{head}");
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        sending.await.unwrap().unwrap();
    }
}
