//! HTTP server of a third party. It records each request and answers with a given function.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Request that the server received.
#[derive(Debug, Clone)]
pub struct Heard {
    /// Method and path of the request.
    pub line: String,
    /// Headers by their lower-case names.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

/// Answers a request with a status, further headers and a body.
type Answer = dyn Fn(&Heard) -> (u16, String, String) + Send + Sync;

/// Running HTTP server.
pub struct Hook {
    /// URL of the server.
    pub url: String,
    heard: Arc<Mutex<Vec<Heard>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Hook {
    /// Starts a server.
    pub async fn start(
        answer: impl Fn(&Heard) -> (u16, String, String) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (heard, answer) = (Arc::default(), Arc::new(answer));
        let (to, all) = (Arc::clone(&heard), answer as Arc<Answer>);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (to, all) = (Arc::clone(&to), Arc::clone(&all));
                tokio::spawn(async move { serve(stream, &to, &*all).await });
            }
        });
        Self { url, heard, task }
    }

    /// Returns the requests received so far.
    #[must_use]
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, to: &Mutex<Vec<Heard>>, answer: &Answer) {
    let Some(heard) = read(&mut stream).await else { return };
    to.lock().unwrap().push(heard.clone());
    let (status, headers, body) = answer(&heard);
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}"
    );
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn read(stream: &mut TcpStream) -> Option<Heard> {
    let mut bytes = Vec::new();
    let head = loop {
        let mut part = [0; 4096];
        let count = stream.read(&mut part).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&part[..count]);
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break String::from_utf8(bytes.drain(..end + 4).collect()).ok()?;
        }
    };
    let mut lines = head.lines();
    let line = lines.next()?.rsplit_once(' ')?.0.to_owned();
    let pairs = lines.filter_map(|line| line.split_once(": "));
    let headers: HashMap<String, String> =
        pairs.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut rest = vec![0; usize::saturating_sub(length, bytes.len())];
    stream.read_exact(&mut rest).await.ok()?;
    bytes.extend(rest);
    Some(Heard { line, headers, body: bytes })
}
