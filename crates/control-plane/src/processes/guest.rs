//! All processes of a guest, and signals to any of them. A hostile guest may write every answer, so
//! time, size, number and text are bounded.

use super::{Processes, Selector};
use crate::auth::Caller;
use crate::capsules;
use crate::error::{Error, Result, printable_to};
use crate::load::{Payer, UnderWay};
use axum::body::Body;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use time::OffsetDateTime;

/// Time that a guest may take to answer.
const LIMIT: Duration = Duration::from_secs(30);
/// Largest answer, in bytes. envd bounds all command lines together at 1 MiB.
const BYTES: usize = 4 << 20;
/// Largest error or short answer, in bytes.
const SHORT: usize = 16 * 1024;
/// Most processes that are shown; envd lists no more.
const MOST: usize = 4096;
/// Longest command line, in characters.
const COMMAND: usize = 4096;
/// Longest name of a user, in characters.
const NAME: usize = 256;
/// Longest tag, in bytes. A cut tag would name no process.
const TAG: usize = 256;
/// Last time that RFC 3339 can write, in milliseconds since 1970.
const TIME: i64 = 253_402_300_799_999;

/// Signals that a caller may send, without their prefix.
const SIGNALS: [&str; 8] = ["TERM", "KILL", "INT", "HUP", "STOP", "CONT", "USR1", "USR2"];

/// Returns the name of a signal without `SIG`, which callers may leave out.
pub(super) fn signal_name(text: &str) -> Result<&'static str> {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let known = SIGNALS.iter().find(|known| **known == name).copied();
    known.ok_or_else(|| {
        Error::invalid("signal", "must be TERM, KILL, INT, HUP, STOP, CONT, USR1 or USR2")
    })
}

/// Processes as envd reports them.
#[derive(Debug, Deserialize)]
struct Table {
    at_ms: i64,
    #[serde(default)]
    truncated: bool,
    processes: Vec<Row>,
}

/// A process as envd reports it.
#[derive(Debug, Clone, Deserialize)]
struct Row {
    pid: u32,
    ppid: u32,
    user: String,
    command: String,
    state: char,
    tag: Option<String>,
    cpu_ms: u64,
    memory_bytes: u64,
    started_ms: i64,
}

impl Processes {
    /// Lists all processes of the guest as a tree. `under_way` holds the answer's memory, which
    /// comes from the caller's share, until the answer is sent.
    pub(crate) async fn all(
        &self,
        caller: Caller,
        under_way: &UnderWay,
    ) -> Result<api::GuestProcessList> {
        let answer = self.ask(Method::GET, protocol::PROCESSES, Body::empty()).await?;
        let answer = known(
            answer,
            "listing all processes of a capsule with an outdated envd (pause it, then resume it with \
             `memory` false)",
        )?;
        let read = self.collect(answer.into_body(), caller, under_way);
        let bytes = match tokio::time::timeout(LIMIT, read).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Err(self.explain(error).await),
            Err(_) => return Err(Error::GuestUnavailable),
        };
        let table: Table = serde_json::from_slice(&bytes).map_err(|_| Error::GuestUnavailable)?;
        Ok(to_api(table))
    }

    /// Signals any process. envd was asked for the programs that it started if `is_known`.
    pub(super) async fn signal_any(
        &self,
        selector: &Selector,
        name: &str,
        is_known: bool,
    ) -> Result<()> {
        #[derive(Deserialize)]
        struct Signalled {
            found: bool,
        }
        let order = match selector {
            Selector::Pid(pid) => json!({ "pid": pid, "signal": name }),
            Selector::Tag(tag) => json!({ "tag": tag, "signal": name }),
        };
        let answer =
            self.ask(Method::POST, protocol::SIGNAL, Body::from(order.to_string())).await?;
        let answer = match known(
            answer,
            "this signal in a capsule with an outdated envd (pause it, then resume it with `memory` \
             false)",
        ) {
            // An outdated envd has no other processes to offer.
            Err(Error::NotSupported(_)) if is_known => return Err(Error::NotFound("process")),
            answer => answer?,
        };
        let (head, body) = answer.into_parts();
        if head.status.is_client_error() {
            #[derive(Deserialize)]
            struct Told {
                message: String,
            }
            let told: Told = short(body).await?;
            return Err(Error::refused_by_guest(&told.message));
        }
        let Signalled { found } = short(body).await?;
        if found { Ok(()) } else { Err(Error::NotFound("process")) }
    }

    /// Sends a request to envd's own routes. Gives up a guest that fails its health check.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Body>> {
        let (app, capsule) = &*self.of;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        let kind = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, kind);
        let agent = app.agent_of(capsule)?;
        let agent = if self.passive { agent.passive() } else { agent };
        let sent = agent.forward(capsule.id, &capsule.envd_token, path, request);
        let answer = capsules::unless_silent(app, capsule, Box::pin(sent)).await?;
        match answer.headers().get(protocol::REFUSAL).map(Error::from_envd_refusal) {
            None => Ok(answer.map(Body::new)),
            Some(error) => Err(self.explain(error).await),
        }
    }

    async fn explain(&self, error: Error) -> Error {
        let (app, capsule) = &*self.of;
        capsules::classify_read(app, capsule, self.passive, error).await
    }

    /// Reads a body whole, into memory of the caller's share.
    async fn collect(
        &self,
        mut body: Body,
        caller: Caller,
        under_way: &UnderWay,
    ) -> Result<Vec<u8>> {
        let mut room = self.of.0.load.body(Payer::Caller(caller.holder()))?;
        let mut all = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Error::GuestUnavailable)?;
            let Ok(part) = frame.into_data() else { continue };
            if all.len() + part.len() > BYTES {
                return Err(Error::GuestUnavailable);
            }
            room.grow_to(all.len() + part.len())?;
            all.extend_from_slice(&part);
        }
        under_way.hold(room);
        Ok(all)
    }
}

/// Returns an answer of a route that the guest's envd has. `what` is what an envd without it does
/// not support.
pub(super) fn known(answer: Response<Body>, what: &'static str) -> Result<Response<Body>> {
    match answer.status() {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Err(Error::NotSupported(what)),
        status if status.is_server_error() => Err(Error::GuestUnavailable),
        _ => Ok(answer),
    }
}

/// Reads a short answer.
async fn short<T: DeserializeOwned>(body: Body) -> Result<T> {
    let read = tokio::time::timeout(LIMIT, axum::body::to_bytes(body, SHORT)).await;
    let bytes = read.ok().and_then(std::result::Result::ok).ok_or(Error::GuestUnavailable)?;
    serde_json::from_slice(&bytes).map_err(|_| Error::GuestUnavailable)
}

/// Reads a guest's time. A time that cannot be written is cut.
pub(super) fn time(ms: i64) -> OffsetDateTime {
    let nanos = i128::from(ms.clamp(0, TIME)) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Makes a guest's text safe to print.
pub(super) fn command(text: &str) -> String {
    printable_to(text, COMMAND)
}

fn to_api(mut table: Table) -> api::GuestProcessList {
    let truncated = table.truncated || table.processes.len() > MOST;
    table.processes.truncate(MOST);
    let to_api = |(depth, row): (u32, Row)| api::GuestProcess {
        pid: row.pid,
        ppid: row.ppid,
        depth,
        user: printable_to(&row.user, NAME),
        command: command(&row.command),
        state: printable_to(row.state.encode_utf8(&mut [0; 4]), 1),
        tag: row.tag.filter(|tag| tag.len() <= TAG),
        cpu_ms: row.cpu_ms,
        memory_bytes: row.memory_bytes,
        started_at: time(row.started_ms),
    };
    let processes = tree(table.processes).into_iter().map(to_api).collect();
    api::GuestProcessList { at: time(table.at_ms), truncated, processes }
}

/// Orders processes as a tree: each stands before its children, which are ordered by pid. Returns
/// each with the number of its ancestors.
fn tree(rows: Vec<Row>) -> Vec<(u32, Row)> {
    let mut rows: BTreeMap<u32, Row> = rows.into_iter().map(|row| (row.pid, row)).collect();
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut stack = Vec::new();
    // The stack takes the last first.
    for row in rows.values().rev() {
        if row.ppid == row.pid || !rows.contains_key(&row.ppid) {
            stack.push((row.pid, 0));
        } else {
            children.entry(row.ppid).or_default().push(row.pid);
        }
    }
    let mut ordered = Vec::with_capacity(rows.len());
    loop {
        while let Some((pid, depth)) = stack.pop() {
            let Some(row) = rows.remove(&pid) else { continue };
            let below = children.remove(&pid).unwrap_or_default();
            stack.extend(below.into_iter().map(|child| (child, depth + 1)));
            ordered.push((depth, row));
        }
        // A hostile guest may report parents in a circle.
        let Some(pid) = rows.keys().next() else { return ordered };
        stack.push((*pid, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: u32, ppid: u32) -> Row {
        Row {
            pid,
            ppid,
            user: "root".to_owned(),
            command: "x".to_owned(),
            state: 'S',
            tag: None,
            cpu_ms: 0,
            memory_bytes: 0,
            started_ms: 0,
        }
    }

    fn shape(rows: &[(u32, u32)]) -> Vec<(u32, u32)> {
        let rows = rows.iter().map(|(pid, ppid)| row(*pid, *ppid)).collect();
        tree(rows).into_iter().map(|(depth, row)| (row.pid, depth)).collect()
    }

    #[test]
    fn processes_stand_below_their_parents_in_order() {
        let shown = shape(&[(1, 0), (9, 1), (5, 1), (7, 5), (6, 5), (30, 20), (8, 7)]);
        assert_eq!(shown, [(1, 0), (5, 1), (6, 2), (7, 2), (8, 3), (9, 1), (30, 0)]);
    }

    #[test]
    fn circle_of_parents_and_repeated_pids_end_the_tree() {
        assert_eq!(shape(&[(1, 1), (2, 3), (3, 2), (2, 3)]), [(1, 0), (2, 0), (3, 1)]);
        let deep: Vec<(u32, u32)> = (1..=4096).map(|pid| (pid, pid - 1)).collect();
        assert_eq!(shape(&deep).last(), Some(&(4096, 4095)));
        assert!(shape(&[]).is_empty());
    }

    #[test]
    fn hostile_rows_are_cut_and_cleaned() {
        let mut hostile = row(1, 0);
        hostile.command = format!("a\u{1b}[2J\u{202e}{}", "x".repeat(2 * COMMAND));
        hostile.state = '\n';
        hostile.tag = Some("t".repeat(TAG + 1));
        hostile.started_ms = i64::MAX;
        let processes = (0..=5000).map(|pid| Row { pid, ..hostile.clone() }).collect();
        let shown = to_api(Table { at_ms: i64::MIN, truncated: false, processes });
        assert!(shown.truncated && shown.processes.len() == MOST);
        let first = &shown.processes[0];
        assert!(first.command.starts_with("a[2Jxx") && first.command.len() == COMMAND);
        assert_eq!((first.state.as_str(), &first.tag), ("", &None));
        assert_eq!((shown.at.unix_timestamp(), first.started_at.year()), (0, 9999));
        assert!(serde_json::to_string(&shown).is_ok());
    }

    #[test]
    fn signals_are_known_with_and_without_their_prefix() {
        for name in SIGNALS {
            assert_eq!(signal_name(name).unwrap(), name);
            assert_eq!(signal_name(&format!("SIG{name}")).unwrap(), name);
        }
        for wrong in ["", "SIG", "term", "9", "SEGV", "SIGSIGTERM"] {
            assert_eq!(signal_name(wrong).unwrap_err().code(), "invalid_request", "{wrong}");
        }
    }
}
