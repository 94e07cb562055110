//! The open terminals of a guest.

use super::Processes;
use super::guest::{command, known, time};
use crate::error::{Error, Result};
use axum::body::{Body, to_bytes};
use http::Method;
use serde::Deserialize;
use std::time::Duration;

/// Time that a guest may take to answer.
const LIMIT: Duration = Duration::from_secs(30);
/// Largest answer, in bytes.
const BYTES: usize = 1 << 20;
/// Most terminals that are shown; envd lists no more.
const MOST: usize = 256;

/// A terminal as envd reports it.
#[derive(Debug, Deserialize)]
struct Row {
    pid: u32,
    tag: Option<String>,
    command: String,
    cols: u16,
    rows: u16,
    started_ms: i64,
    clients: u32,
}

impl Processes {
    /// Lists the programs that run on terminals.
    pub(crate) async fn terminals(&self) -> Result<Vec<api::Terminal>> {
        let answer = self.ask(Method::GET, protocol::TERMINALS, Body::empty()).await?;
        let answer = known(
            answer,
            "listing the terminals of a capsule with an outdated envd (pause it, then resume it with \
             `memory` false)",
        )?;
        let read = tokio::time::timeout(LIMIT, to_bytes(answer.into_body(), BYTES)).await;
        let bytes = read.ok().and_then(std::result::Result::ok).ok_or(Error::GuestUnavailable)?;
        read_list(&bytes)
    }
}

/// Reads a guest's answer.
fn read_list(answer: &[u8]) -> Result<Vec<api::Terminal>> {
    let rows = serde_json::from_slice::<Vec<Row>>(answer).map_err(|_| Error::GuestUnavailable)?;
    let to_api = |row: Row| api::Terminal {
        pid: row.pid,
        tag: row.tag,
        command: command(&row.command),
        cols: row.cols,
        rows: row.rows,
        started_at: time(row.started_ms),
        clients: row.clients,
    };
    Ok(rows.into_iter().take(MOST).map(to_api).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_of_a_guest_are_cleaned_and_malformed_ones_refused() {
        let answer = r#"[{"pid": 7, "tag": "pty-1", "command": "bash\u001b[2J", "cols": 80,
            "rows": 24, "started_ms": 1000, "clients": 2, "more": 1}]"#;
        let shown = read_list(answer.as_bytes()).unwrap();
        assert_eq!((shown[0].command.as_str(), shown[0].clients), ("bash[2J", 2));
        assert_eq!(shown[0].started_at.unix_timestamp(), 1);
        for wrong in ["", "{}", r#"[{"pid": 1}]"#] {
            assert!(matches!(read_list(wrong.as_bytes()), Err(Error::GuestUnavailable)), "{wrong}");
        }
    }
}
