//! Ports of a capsule: makes them public or private, and lists the servers that listen there.
//!
//! A guest reports its servers. A guest is hostile, so the answer is bounded in time, size and
//! number. The request wakes no paused capsule.

use super::failure::classify_failure;
use super::get::get;
use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::Capsule;
use crate::db::listen::Change;
use crate::error::{self, Error, Result};
use crate::limits::PUBLIC_PORTS_MAX;
use axum::body::{Body, to_bytes};
use http::{Request, StatusCode};
use protocol::{REFUSAL, is_agent_port};
use serde_json::json;
use std::net::IpAddr;
use std::time::Duration;
use types::{CapsuleId, CapsuleState};

/// Time that a guest may take to answer.
const LIMIT: Duration = Duration::from_secs(30);
/// Largest answer, in bytes. A server takes some 100 bytes.
const BYTES: usize = 256 * 1024;
/// Most servers that are shown; envd lists no more.
const MOST: usize = 1024;
/// Longest name of a program, in characters. A Linux kernel keeps 15 bytes.
const NAME_MAX: usize = 64;

/// A server in a capsule.
#[derive(Debug, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Listener {
    pub port: u16,
    pub address: IpAddr,
    pub program: Option<String>,
    /// Process id of the program. An earlier envd does not report it.
    #[serde(default)]
    pub pid: Option<u32>,
}

/// Lists the servers that listen in a running capsule of the caller's team.
pub(crate) async fn listeners(
    app: &App,
    caller: Caller,
    id: CapsuleId,
) -> Result<(Capsule, Vec<Listener>)> {
    let capsule = get(app, caller, id).await?;
    let state = capsule.state;
    if state != CapsuleState::Running {
        return Err(Error::NotRunning(state));
    }
    let asked = tokio::time::timeout(LIMIT, ask(app, &capsule)).await;
    match asked.unwrap_or(Err(Error::GuestUnavailable)) {
        Ok(listeners) => Ok((capsule, listeners)),
        Err(error) => Err(classify_failure(app, &capsule, error).await),
    }
}

async fn ask(app: &App, capsule: &Capsule) -> Result<Vec<Listener>> {
    let (agent, request) = (app.agent_of(capsule)?, Request::new(Body::empty()));
    let forwarded = agent.forward(capsule.id, &capsule.envd_token, protocol::PORTS, request);
    let answer = forwarded.await?;
    if let Some(refusal) = answer.headers().get(REFUSAL) {
        return Err(Error::from_envd_refusal(refusal));
    }
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            return Err(Error::NotSupported(
                "listing the ports of a capsule with an outdated envd (pause it, then resume it \
                 with `memory` false)",
            ));
        }
        _ => return Err(Error::GuestUnavailable),
    }
    let body = to_bytes(Body::new(answer.into_body()), BYTES).await;
    read(&body.map_err(|_| Error::GuestUnavailable)?)
}

/// Reads a guest's answer.
fn read(answer: &[u8]) -> Result<Vec<Listener>> {
    let listeners = serde_json::from_slice::<Vec<Listener>>(answer);
    let mut listeners = listeners.map_err(|_| Error::GuestUnavailable)?;
    listeners.retain(|listener| listener.port != 0 && !is_agent_port(listener.port));
    listeners.truncate(MOST);
    for listener in &mut listeners {
        listener.program = listener.program.take().and_then(|name| printable(&name));
    }
    Ok(listeners)
}

/// Removes the characters of a name that a terminal must not print.
fn printable(name: &str) -> Option<String> {
    let name: String = error::printable(name).chars().take(NAME_MAX).collect();
    (!name.is_empty()).then_some(name)
}

/// Returns the error of a capsule with too many public ports.
pub(super) fn too_many_public() -> String {
    format!("must have at most {PUBLIC_PORTS_MAX} ports")
}

/// Checks that a port may be public, linked to or connected to. The ports of envd and the code
/// interpreter may not, since both run commands.
pub(crate) fn check_exposed(field: &str, port: u16) -> Result<()> {
    match port {
        0 => Err(Error::invalid(field, "must be between 1 and 65535")),
        protocol::ENVD_PORT => Err(Error::invalid(field, "must not be the port of envd")),
        protocol::INTERPRETER_PORT => {
            Err(Error::invalid(field, "must not be the port of the code interpreter"))
        }
        _ => Ok(()),
    }
}

/// Makes a port of a capsule public or private. Anybody may reach a public port.
pub(crate) async fn set_public(
    app: &App,
    caller: Caller,
    id: CapsuleId,
    port: u16,
    public: bool,
) -> Result<Capsule> {
    get(app, caller, id).await?;
    if public {
        check_exposed("port", port)?;
    }
    let mut tx = app.db.begin().await?;
    let by = &caller.by;
    let set = db::capsules::set_public(&mut *tx, caller.team, id, port, public, by).await?;
    let what = json!({ "port": port, "public": public });
    let entry = Entry::new(caller.team, caller.by, "capsule.set_port", id).with(what);
    if set.is_some() {
        db::audit::write(&mut *tx, &entry).await?;
    }
    tx.commit().await?;
    app.changed(&Change::Capsule(id));
    set.ok_or_else(|| Error::invalid("public_ports", too_many_public()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_exclude_envd_and_control_characters() {
        let answer = r#"[
            {"port": 8000, "address": "127.0.0.1", "program": "py\u001b[31mthon", "pid": 7},
            {"port": 8000, "address": "::1", "program": "\n", "more": 1},
            {"port": 49983, "address": "0.0.0.0"}, {"port": 0, "address": "0.0.0.0"}
        ]"#;
        let shown = read(answer.as_bytes()).unwrap();
        let program = Some("py[31mthon".to_owned());
        let wanted = [
            Listener { port: 8000, address: "127.0.0.1".parse().unwrap(), program, pid: Some(7) },
            Listener { port: 8000, address: "::1".parse().unwrap(), program: None, pid: None },
        ];
        assert_eq!(shown, wanted);
    }

    #[test]
    fn malformed_listeners_answer_means_guest_unreachable() {
        for answer in ["", "{}", "[1]", r#"[{"port": 65536, "address": "::"}]"#, r#"[{"port": 1}]"#]
        {
            assert!(matches!(read(answer.as_bytes()), Err(Error::GuestUnavailable)), "{answer}");
        }
    }

    #[test]
    fn long_listener_lists_and_names_are_truncated() {
        let one = format!(r#"{{"port": 1, "address": "::", "program": "{}"}}"#, "x".repeat(1000));
        let answer = format!("[{}]", vec![one; MOST + 1].join(","));
        let read = read(answer.as_bytes()).unwrap();
        assert_eq!(read.len(), MOST);
        assert_eq!(read[0].program.as_ref().unwrap().len(), NAME_MAX);
    }
}
