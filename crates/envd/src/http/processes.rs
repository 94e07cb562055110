//! `/processes` and `/terminals`: lists of the guest's processes and open terminals for the host,
//! and signals to any process. E2B's SDKs use none of these routes.

use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::jobs;
use crate::lock::lock;
use crate::process::Process;
use crate::process::registry::Selector;
use crate::process::signals;
use crate::process::table::{self, Table};
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Time for all command lines. A process may hold up the read of its own for ever.
const COMMANDS: Duration = Duration::from_secs(2);
/// Most terminals that are listed.
const TERMINALS: usize = 256;
/// Longest command line of a terminal, in bytes.
const COMMAND: usize = 512;
/// Longest tag that is shown, in bytes. A cut tag would name no terminal.
const TAG: usize = 256;

/// Lists all processes of the guest.
pub(super) async fn processes(State(guest): State<Arc<Guest>>) -> Result<Json<Table>> {
    let tags = guest.processes.running().into_iter();
    let tags: HashMap<u32, String> =
        tags.filter_map(|process| Some((process.pid, process.spec.tag.clone()?))).collect();
    let read = move || Ok(Table::read(&tags));
    let mut table = guest.jobs.looks.run(jobs::LIMIT, read).await?;
    let found = Arc::new(Mutex::new(HashMap::new()));
    let (pids, fill) = (table.pids(), Arc::clone(&found));
    let read = move || {
        table::commands(&pids, &fill);
        Ok(())
    };
    // Names stand in for command lines that were not read in time.
    let _ = guest.jobs.commands.run(COMMANDS, read).await;
    table.complete(std::mem::take(&mut *lock(&found)));
    Ok(Json(table))
}

/// A signal to a process, which either a pid or a tag names.
#[derive(serde::Deserialize)]
struct Order {
    pid: Option<u32>,
    tag: Option<String>,
    /// Name of the signal, without `SIG`.
    signal: String,
}

/// Signals a process. The answer tells whether there is one.
pub(super) async fn signal(
    State(guest): State<Arc<Guest>>,
    body: Bytes,
) -> Result<Json<serde_json::Value>> {
    let order = serde_json::from_slice::<Order>(&body);
    let order = order.map_err(|e| Error::invalid(format!("body: {e}")))?;
    let selector = match (order.pid, order.tag) {
        (Some(pid), None) => Selector::Pid(pid),
        (None, Some(tag)) => Selector::Tag(tag),
        _ => return Err(Error::invalid("the body must have either a pid or a tag")),
    };
    let signal = signals::by_name(&order.signal);
    let signal = signal.ok_or_else(|| Error::invalid("the signal is unknown"))?;
    let found = signals::send(&guest.processes, &selector, signal)?;
    Ok(Json(serde_json::json!({ "found": found })))
}

/// An open terminal.
#[derive(serde::Serialize)]
pub(super) struct Terminal {
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    command: String,
    cols: u16,
    rows: u16,
    /// Time of the start, in milliseconds since 1970.
    started_ms: i64,
    /// Connections that receive the terminal's output.
    clients: usize,
}

/// Lists the programs that run on terminals, by pid.
pub(super) async fn terminals(State(guest): State<Arc<Guest>>) -> Json<Vec<Terminal>> {
    let running = guest.processes.running();
    Json(running.iter().filter_map(|process| terminal(process)).take(TERMINALS).collect())
}

fn terminal(process: &Process) -> Option<Terminal> {
    let (cols, rows) = process.terminal_size()?;
    let spec = &process.spec;
    let mut command = spec.cmd.clone();
    for arg in &spec.args {
        command.push(' ');
        command.push_str(arg);
    }
    Some(Terminal {
        pid: process.pid,
        tag: spec.tag.clone().filter(|tag| tag.len() <= TAG),
        command: table::cut(&command, COMMAND),
        cols,
        rows,
        started_ms: process.started_ms,
        clients: process.hub.subscribers(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Spec;
    use crate::process::hub::{Event, Output};
    use crate::process::run::start;
    use axum::response::IntoResponse;

    #[tokio::test]
    async fn processes_are_listed_by_name_while_command_lines_cannot_be_read() {
        let guest = Arc::new(Guest::new(None, 0));
        let _hanging: Vec<_> = std::iter::from_fn(|| guest.jobs.commands.place().ok()).collect();
        let table = processes(State(Arc::clone(&guest))).await.unwrap().0;
        let own = table.processes.iter().find(|row| row.pid == std::process::id()).unwrap();
        assert!(own.command.starts_with('[') && own.command.ends_with(']'), "{own:?}");
    }

    #[tokio::test]
    async fn terminal_is_listed_with_size_and_clients_and_replays_its_output() {
        let guest = Arc::new(Guest::new(None, 0));
        let spec = Spec {
            cmd: "sh".to_owned(),
            args: vec!["-c".to_owned(), "echo hello; exec sleep 1000".to_owned()],
            cwd: Some("/".to_owned()),
            tag: Some("t".to_owned()),
            terminal: Some((90, 30)),
            ..Spec::default()
        };
        let (process, mut events) =
            start(&guest, "root".to_owned(), spec, Vec::new(), None).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"hello\r\n") {
            let Some(Ok(Event::Data(Output::Pty, data))) = events.next().await else {
                panic!("the terminal ended after {seen:?}")
            };
            seen.extend_from_slice(&data);
        }
        let listed = terminals(State(Arc::clone(&guest))).await.0;
        let [shown] = &listed[..] else { panic!("{} terminals", listed.len()) };
        assert_eq!((shown.cols, shown.rows, shown.clients), (90, 30, 1));
        assert_eq!(shown.command, "sh -c echo hello; exec sleep 1000");
        drop(events);
        let (mut late, replayed) = process.hub.subscribe_with_replay().unwrap();
        let Some(Ok(Event::Data(Output::Pty, data))) = late.next().await else {
            panic!("nothing is replayed")
        };
        assert_eq!((data.as_ref(), replayed), (seen.as_slice(), seen.len()));
        let order = Bytes::from(format!(r#"{{"pid": {}, "signal": "HUP"}}"#, process.pid));
        let answer = signal(State(Arc::clone(&guest)), order).await.unwrap();
        assert_eq!(answer.0["found"], true);
        assert!(matches!(late.next().await, Some(Ok(Event::End(_)))));
        assert!(terminals(State(guest)).await.0.is_empty());
    }

    #[tokio::test]
    async fn malformed_signal_is_refused() {
        let guest = Arc::new(Guest::new(None, 0));
        for body in [
            "",
            "{}",
            r#"{"signal": "HUP"}"#,
            r#"{"pid": 5, "tag": "x", "signal": "HUP"}"#,
            r#"{"tag": "x", "signal": "SEGV"}"#,
        ] {
            let refused = signal(State(Arc::clone(&guest)), Bytes::from_static(body.as_bytes()));
            let refused = refused.await.unwrap_err().into_response();
            assert_eq!(refused.status(), 400, "{body}");
        }
    }
}
