//! `wrenn code`: output, results, errors, cut streams and interrupts, with an interpreter of the
//! test.

use super::{text, with_stdin};
use crate::capsule;
use crate::code::{EXECUTION, PORT, interpreter};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Output, Stdio};
use tests::{Platform, SharedPort, signal};

/// Runs `wrenn code` in a folder.
fn run(platform: &Platform, folder: &std::path::Path, args: &[&str]) -> Output {
    let mut command = platform.wrenn();
    command.arg("code").args(args).current_dir(folder).stdin(Stdio::null()).output().unwrap()
}

/// Returns exit code, standard output and standard error.
fn told(out: &Output) -> (Option<i32>, &str, &str) {
    (out.status.code(), text(&out.stdout), text(&out.stderr))
}

#[tokio::test]
async fn output_results_and_errors_have_their_places() {
    let (platform, _, id) = capsule().await;
    let mut port = SharedPort::take(PORT);
    let heard = interpreter(&mut port);
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let printed = run(&platform, at, &[&id, "-c", "hello", "-e", "A=b", "--timeout", "2s"]);
    assert_eq!(told(&printed), (Some(0), "hello", ""));
    let sent = heard.lock().unwrap().last().unwrap().2.clone();
    assert_eq!((&sent["env_vars"]["A"], &sent["timeout_ms"]), (&"b".into(), &2000.into()));
    let failed = run(&platform, at, &[&id, "-c", "fail"]);
    assert_eq!(told(&failed), (Some(1), "", "Traceback\nValueError: why\n"));
    let figure = run(&platform, at, &[&id, "-c", "figure"]);
    let shown = "[saved as ./result-1.png]\n42\n";
    assert_eq!(told(&figure), (Some(0), shown, ""));
    assert_eq!(std::fs::read(at.join("result-1.png")).unwrap(), b"\x89PNG\r\n\x1a\n");
    std::fs::write(at.join("a.ts"), "from a file").unwrap();
    let file = run(&platform, at, &[&id, "a.ts"]);
    assert_eq!(told(&file), (Some(0), "from a file", ""));
    assert_eq!(heard.lock().unwrap().last().unwrap().2["language"], "typescript");
    let piped = with_stdin(&platform, &["code", &id], b"from a pipe");
    assert_eq!(told(&piped), (Some(0), "from a pipe", ""));
    let refused = run(&platform, at, &[&id, "-c", "cobol", "--json"]);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    let failure: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert_eq!(failure["error"]["code"], "invalid_request");
    drop(port);
    platform.finish();
}

#[tokio::test]
async fn cut_stream_goes_on_without_loss_or_repetition() {
    let (platform, _, id) = capsule().await;
    let mut port = SharedPort::take(PORT);
    let heard = interpreter(&mut port);
    let folder = tempfile::tempdir().unwrap();
    let shown = run(&platform, folder.path(), &[&id, "-c", "cut"]);
    assert_eq!(told(&shown), (Some(0), "one\ntwo\n", ""));
    let attached = heard.lock().unwrap().last().unwrap().0.clone();
    assert_eq!(attached, format!("GET /executions/{EXECUTION}?after=2 HTTP/1.1"));
    let lines = run(&platform, folder.path(), &[&id, "-c", "cut", "--json"]);
    let read = |line| serde_json::from_str::<Value>(line).unwrap()["type"].clone();
    let types: Vec<Value> = text(&lines.stdout).lines().map(read).collect();
    assert_eq!(types, ["execution_started", "stdout", "stdout", "end_of_execution"]);
    let later = run(&platform, folder.path(), &[&id, "--attach", EXECUTION]);
    assert_eq!(told(&later), (Some(0), "one\ntwo\n", ""));
    drop(port);
    platform.finish();
}

#[tokio::test]
async fn interrupt_ends_the_code_and_shows_its_error() {
    let (platform, _, id) = capsule().await;
    let mut port = SharedPort::take(PORT);
    interpreter(&mut port);
    let mut command = platform.wrenn();
    command.args(["code", &id, "-c", "wait"]).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "begun");
    signal(i32::try_from(child.id()).unwrap(), rustix::process::Signal::INT);
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert_eq!(text(&out.stderr), "Traceback\nKeyboardInterrupt: why\n");
    drop(port);
    platform.finish();
}

#[tokio::test]
async fn new_capsule_is_removed_unless_it_is_kept() {
    let (platform, client, id) = capsule().await;
    let mut port = SharedPort::take(PORT);
    interpreter(&mut port);
    let folder = tempfile::tempdir().unwrap();
    let once = run(&platform, folder.path(), &["--template", "base", "-c", "hello"]);
    assert_eq!((once.status.code(), text(&once.stdout)), (Some(0), "hello"), "{once:?}");
    let failed = run(&platform, folder.path(), &["--template", "base", "-c", "fail"]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let ids = async || {
        let list = client.get("/v1/capsules").await.expect(200);
        let items = list["items"].as_array().unwrap();
        items.iter().map(|c| c["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids().await, std::slice::from_ref(&id));
    let kept = run(&platform, folder.path(), &["--template", "base", "--keep", "-c", "hello"]);
    let made = text(&kept.stderr).trim().to_owned();
    assert!(made != id && ids().await.contains(&made), "{kept:?}");
    let none = run(&platform, folder.path(), &["-c", "hello"]);
    assert_eq!(none.status.code(), Some(125), "{none:?}");
    assert!(text(&none.stderr).contains("code-interpreter"), "{none:?}");
    drop(port);
    platform.finish();
}
