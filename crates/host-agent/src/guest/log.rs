//! Reads of envd's log: output of programs that nobody waits for. An answer is a guest's, so its
//! size is bounded, and it is taken apart with care.

use super::Guest;
use crate::log::LogMode;
use bytes::Bytes;
use hop::Body;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use protocol::log::{Head, PATH, Piece, Query};
use std::io;
use std::time::Duration;

/// Bytes of an answer beside its pieces, and for one piece that alone is larger than asked for.
const BESIDE: usize = 128 << 10;
/// Time that an answer may take beside the wait for a piece.
const ANSWER: Duration = Duration::from_secs(10);
/// Time limit of a change of the output that envd keeps, during which no other operation can begin.
const SET: Duration = Duration::from_secs(2);
/// Longest line of JSON in an answer, in bytes.
const LINE_MAX: usize = 4096;

/// Answer of envd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogAnswer {
    pub head: Head,
    /// Pieces with their bytes.
    pub pieces: Vec<(Piece, Bytes)>,
}

impl Guest {
    /// Reads the pieces after the cursor in the query, and waits for one. Returns the answer's
    /// body; `None` for an envd without a log. The read does not count as activity, and a pause
    /// cuts it off.
    ///
    /// # Errors
    /// Fails when envd cannot be reached, refuses, or answers too much or too late.
    pub(crate) async fn read_log(&self, token: &str, query: &Query) -> io::Result<Option<Bytes>> {
        let mut uri = format!("{PATH}?most={}&wait_ms={}", query.most, query.wait_ms);
        if let (Some(epoch), Some(number)) = (query.epoch, query.number) {
            uri.push_str(&format!("&epoch={epoch}&number={number}"));
        }
        let request = Request::builder()
            .uri(uri)
            .header(protocol::ACCESS_TOKEN, token)
            .header(header::HOST, "envd")
            .body(Body::empty())
            .map_err(io::Error::other)?;
        let limit = ANSWER + Duration::from_millis(query.wait_ms);
        let asked = async {
            let sent = Box::pin(self.pool.send(&protocol::ENVD_PORT, request)).await;
            let answer = sent.map_err(|failed| io::Error::other(failed.error))?.answer;
            match answer.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND => return Ok(None),
                status => {
                    return Err(io::Error::other(format!("envd answered {status} to {PATH}")));
                }
            }
            let body = Limited::new(answer.into_body(), query.most.saturating_add(BESIDE));
            Ok(Some(body.collect().await.map_err(io::Error::other)?.to_bytes()))
        };
        let told = tokio::time::timeout(limit, asked).await;
        told.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Sets the output that envd keeps for the log. An envd without the call learns of it with its
    /// next epoch.
    ///
    /// # Errors
    /// Fails when envd cannot be reached, refuses, or does not answer in time.
    pub(crate) async fn set_log_mode(&self, token: &str, mode: LogMode) -> io::Result<()> {
        let body = Bytes::from_static(mode.as_str().as_bytes());
        let asked = async {
            let answer = self.ask("POST", PATH, token, body).await;
            let status = answer.map_err(|failed| io::Error::other(failed.error))?.status();
            let has_no_call =
                matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
            match status.is_success() || has_no_call {
                true => Ok(()),
                false => Err(io::Error::other(format!("envd answered {status} to {PATH}"))),
            }
        };
        let told = tokio::time::timeout(SET, asked).await;
        told.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl LogAnswer {
    /// Takes an answer's body apart.
    ///
    /// # Errors
    /// Fails when the body has another form.
    pub(crate) fn parse(mut body: Bytes) -> io::Result<Self> {
        let head = serde_json::from_slice(&line(&mut body)?)?;
        let mut pieces = Vec::new();
        while !body.is_empty() {
            let piece: Piece = serde_json::from_slice(&line(&mut body)?)?;
            if piece.bytes > body.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let data = body.split_to(piece.bytes);
            pieces.push((piece, data));
        }
        Ok(Self { head, pieces })
    }
}

/// Takes a line off an answer.
fn line(body: &mut Bytes) -> io::Result<Bytes> {
    let within = &body[..body.len().min(LINE_MAX)];
    let end = within.iter().position(|byte| *byte == b'\n');
    let end = end.ok_or(io::ErrorKind::InvalidData)?;
    Ok(body.split_to(end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::log::Kind;

    const HEAD: &str = "{\"epoch\":18446744073709551615,\"after\":3,\"oom_kills\":null}\n";

    #[test]
    fn answer_is_taken_apart_into_pieces() {
        let body = format!(
            "{HEAD}{{\"number\":4,\"at_ms\":5,\"pid\":6,\"command\":\"sh\",\"kind\":\"stderr\",\
             \"bytes\":3}}\na\nb"
        );
        let answer = LogAnswer::parse(body.into()).unwrap();
        assert_eq!((answer.head.epoch, answer.head.after), (u64::MAX, 3));
        let (piece, data) = &answer.pieces[0];
        assert_eq!((piece.number, piece.kind, data.as_ref()), (4, Kind::Stderr, &b"a\nb"[..]));
    }

    #[test]
    fn answer_of_another_form_is_refused() {
        let piece = "{\"number\":4,\"at_ms\":5,\"pid\":6,\"command\":\"\",\"kind\":\"exit\",";
        for body in [
            String::new(),
            "\n".to_owned(),
            "x".repeat(LINE_MAX + 1),
            format!("{HEAD}{piece}\"bytes\":99}}\nshort"),
            format!("{HEAD}{piece}\"bytes\":-1}}\n"),
            format!("{HEAD}{{\"number\":4}}\n"),
        ] {
            assert!(LogAnswer::parse(body.clone().into()).is_err(), "{body}");
        }
    }
}
