//! The conversation with the interpreter: one JSON object a line, in both directions.

use crate::lock::lock;
use serde_json::Value;
use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

/// Most requests that wait for the interpreter to read them.
pub(super) const QUEUE: usize = 64;
/// Longest line of an answer, in bytes.
const LINE_MAX: u64 = 4096;

/// A message to the interpreter.
pub(crate) struct Request {
    /// An object. A request with an answer gets a number in the field `id`.
    pub message: Value,
    /// Hears of the answer, or is dropped at the end of the interpreter.
    pub answer: Option<oneshot::Sender<()>>,
}

/// An answer of the interpreter. Other fields are ignored.
#[derive(serde::Deserialize)]
struct Answer {
    done: Option<u64>,
    failed: Option<u64>,
}

/// Requests that wait for an answer, by number.
type Asked = Mutex<HashMap<u64, oneshot::Sender<()>>>;

/// Passes requests on until the interpreter closes its end.
pub(super) async fn talk(stream: UnixStream, queue: mpsc::Receiver<Request>) {
    let (reader, writer) = stream.into_split();
    let asked = Asked::default();
    tokio::select! {
        () = send(writer, queue, &asked) => {}
        () = receive(BufReader::new(reader), &asked) => {}
    }
}

async fn send(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Request>, asked: &Asked) {
    let mut number = 0;
    while let Some(Request { mut message, answer }) = queue.recv().await {
        if let Some(answer) = answer {
            number += 1;
            message["id"] = number.into();
            let mut asked = lock(asked);
            // A caller that waits no longer needs no answer.
            asked.retain(|_, answer| !answer.is_closed());
            asked.insert(number, answer);
        }
        if write(&mut writer, &message).await.is_err() {
            return;
        }
    }
}

async fn receive(mut reader: BufReader<OwnedReadHalf>, asked: &Asked) {
    while let Ok(Some(answer)) = read(&mut reader).await {
        let number = answer.done.or(answer.failed);
        let answer = number.and_then(|number| lock(asked).remove(&number));
        if let Some(answer) = answer {
            let _ = answer.send(());
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, message: &Value) -> io::Result<()> {
    let mut line = message.to_string().into_bytes();
    line.push(b'\n');
    writer.write_all(&line).await
}

/// Reads an answer. Returns `None` at the end.
async fn read(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Answer>> {
    let mut line = Vec::new();
    if reader.take(LINE_MAX).read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn answer_reaches_the_request_of_its_number() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (queue, requests) = mpsc::channel(QUEUE);
        let talking = tokio::spawn(talk(ours, requests));
        let (first, mut first_answered) = oneshot::channel();
        let (second, second_answered) = oneshot::channel();
        for answer in [first, second] {
            let request = Request { message: json!({ "prepare": {} }), answer: Some(answer) };
            queue.send(request).await.unwrap();
        }
        let (reader, mut writer) = theirs.into_split();
        let mut lines = BufReader::new(reader).lines();
        for number in [1, 2] {
            let line = lines.next_line().await.unwrap().unwrap();
            assert_eq!(line, json!({ "prepare": {}, "id": number }).to_string());
        }
        writer.write_all(b"{\"failed\":2,\"why\":\"x\"}\n").await.unwrap();
        second_answered.await.unwrap();
        assert!(first_answered.try_recv().is_err());
        drop((lines, writer));
        talking.await.unwrap();
        assert!(first_answered.await.is_err(), "no answer comes after the end");
    }
}
