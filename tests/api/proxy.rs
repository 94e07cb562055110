//! Ports of capsules by their host names: admission, transfer of bytes, and answers when nothing
//! can pass.

mod access;
mod bytes;
mod guests;
mod hostile;
mod routes;

use std::process::Command;
use tests::{Client, Platform, Wire};

/// Builds the head of a request to a port with the owner's key, without the empty line at its end.
fn head(client: &Client, capsule: &str, port: u16, line: &str) -> String {
    let key = client.key();
    format!("{line} HTTP/1.1\r\nHost: {port}-{capsule}.localhost\r\nX-API-Key: {key}\r\n")
}

/// Reads an answer with a content length. Returns its status, head and body.
fn answer(wire: &mut Wire) -> (u16, String, Vec<u8>) {
    let head = wire.head().expect("no answer came");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let body = wire.take(length.map_or(0, |length| length.parse().unwrap()));
    (status, head, body)
}

/// Returns one of the platform's own metrics.
async fn figure(client: &Client, name: &str) -> f64 {
    let text = client.get("/metrics").await.body;
    let text = text.as_str().unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

/// Runs a statement in a platform's database, as its superuser.
pub(crate) fn psql(platform: &Platform, sql: &str) -> String {
    let out = Command::new("psql").args(["-XqAt", "-c", sql]).arg(platform.database_url()).output();
    let out = out.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}
