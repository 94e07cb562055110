//! Code and contexts of the code interpreter, over the API. A program of the test speaks the
//! interpreter's lines at its port; kernels are a matter of `tests/vm`.

use crate::capsule;
use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::Method;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tests::{Client, SharedPort, Wire};

/// Port of the code interpreter.
pub(crate) const PORT: u16 = 49999;
/// Id of the one execution.
pub(crate) const EXECUTION: &str = "11111111-2222-4333-8444-555555555555";
/// Id of the one context.
const CONTEXT: &str = "66666666-7777-4888-9999-aaaaaaaaaaaa";

/// Requests that the interpreter has had: each head's first line, its token, and its body.
pub(crate) type Heard = Arc<Mutex<Vec<(String, Option<String>, Value)>>>;

/// Begin of each execution.
fn begin() -> String {
    let id = format!(r#""execution_id":"{EXECUTION}","context_id":"{CONTEXT}""#);
    format!("{{\"type\":\"execution_started\",{id}}}\n")
}

fn out(text: &str) -> String {
    format!("{}\n", json!({ "type": "stdout", "text": text, "timestamp": "2026-11-30T00:00:00Z" }))
}

const KEEPALIVE: &str = "{\"type\":\"keepalive\"}\n";
const COUNT: &str = "{\"type\":\"number_of_executions\",\"execution_count\":1}\n";
const END: &str = "{\"type\":\"end_of_execution\"}\n";

/// Lines of an error.
fn failed(name: &str) -> String {
    let traceback = format!("Traceback\n{name}: why");
    let error = json!({ "type": "error", "name": name, "value": "why", "traceback": traceback });
    format!("{error}\n{END}")
}

/// Sends one chunk of a body.
fn chunk(wire: &mut Wire, text: &str) -> bool {
    wire.send(format!("{:x}\r\n{text}\r\n", text.len()))
}

/// Sends a whole stream of lines.
fn stream(wire: &mut Wire, lines: &str) {
    open(wire);
    chunk(wire, lines);
    wire.send("0\r\n\r\n");
}

fn open(wire: &mut Wire) {
    wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
}

/// Answers a run. The code says in which way.
fn run(wire: &mut Wire, code: &str, heard: &Heard) {
    let begin = begin();
    match code {
        "cut" => {
            open(wire);
            chunk(wire, &format!("{begin}{KEEPALIVE}{}{{\"type\":\"std", out("one\n")));
            wire.finish();
        }
        "wait" => {
            open(wire);
            chunk(wire, &format!("{begin}{}", out("begun\n")));
            let interrupt = format!("POST /executions/{EXECUTION}/interrupt ");
            let is_asked = || {
                let heard = heard.lock().unwrap();
                heard.iter().any(|(line, ..)| line.starts_with(&interrupt))
            };
            while !is_asked() && chunk(wire, KEEPALIVE) {
                std::thread::sleep(Duration::from_millis(20));
            }
            chunk(wire, &failed("KeyboardInterrupt"));
            wire.send("0\r\n\r\n");
        }
        "fail" => stream(wire, &format!("{begin}{}", failed("ValueError"))),
        "figure" => {
            let result = json!({ "type": "result", "is_main_result": false, "extra": {},
                "text": "<Figure>", "png": "iVBORw0KGgo=" });
            let text =
                json!({ "type": "result", "is_main_result": true, "extra": {}, "text": "42" });
            stream(wire, &format!("{begin}{COUNT}{result}\n{text}\n{END}"));
        }
        "cobol" => wire.answer("400 x", "", b"language 'cobol' is unknown"),
        "gone" => wire.answer("404 x", "", b"Context x not found"),
        "full" => wire.answer("429 x", "", b"64 executions wait in the context"),
        "broken" => wire.answer("500 x", "", b"the kernel of python did not start"),
        code => stream(wire, &format!("{begin}{COUNT}{}{END}", out(code))),
    }
}

/// Starts an interpreter. Returns the requests that it gets.
pub(crate) fn interpreter(port: &mut SharedPort) -> Heard {
    let heard = Heard::default();
    let note = Arc::clone(&heard);
    port.serve(move |mut wire| {
        while let Some(head) = wire.head() {
            let field = |name: &str| {
                let line = head.lines().find(|line| line.to_lowercase().starts_with(name))?;
                Some(line.split_once(':')?.1.trim().to_owned())
            };
            let length = field("content-length").and_then(|length| length.parse().ok());
            let body = wire.take(length.unwrap_or(0));
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let line = head.lines().next().unwrap().to_owned();
            note.lock().unwrap().push((line.clone(), field("x-access-token"), body.clone()));
            answer(&mut wire, &line, &body, &note);
            if body["code"] == "cut" {
                return;
            }
        }
    });
    heard
}

fn answer(wire: &mut Wire, line: &str, body: &Value, heard: &Heard) {
    let words: Vec<&str> = line.split(' ').collect();
    let context = json!({ "id": CONTEXT, "language": "python", "cwd": "/home/user", "state": "idle",
        "executions": 2, "memory_bytes": 1024, "last_used": "2026-11-30T00:00:00Z" });
    let one = format!("/contexts/{CONTEXT}");
    let say = |wire: &mut Wire, value: &Value| {
        wire.answer("200 OK", "", value.to_string().as_bytes());
    };
    match (words[0], words[1]) {
        ("POST", "/execute") => run(wire, body["code"].as_str().unwrap_or_default(), heard),
        ("GET", path) if path.starts_with(&format!("/executions/{EXECUTION}?after=")) => {
            let lines = [begin(), out("one\n"), out("two\n"), END.to_owned()];
            let after = path.rsplit_once('=').unwrap().1.parse::<usize>().unwrap();
            stream(wire, &lines[after..].concat());
        }
        ("GET", "/contexts") => say(wire, &json!([context])),
        ("POST", "/contexts") => say(wire, &context),
        ("GET", path) if path == one => say(wire, &context),
        ("POST", path) if path == format!("{one}/complete") => {
            let answer = json!({ "matches": ["print"], "cursor_start": 0, "cursor_end": 3,
                "metadata": {} });
            say(wire, &answer);
        }
        ("GET", path) if path == format!("{one}/variables") => {
            say(wire, &json!([{ "name": "x", "type": "int", "preview": "1", "future": 1 }]));
        }
        ("POST" | "DELETE", path) if path.contains(EXECUTION) || path.contains(CONTEXT) => {
            say(wire, &Value::Null);
        }
        _ => wire.answer("404 x", "", b"not found"),
    }
}

/// Returns the API's path of a capsule's code.
fn path(id: &str, rest: &str) -> String {
    format!("/v1/capsules/{id}/code{rest}")
}

#[tokio::test]
async fn lines_of_interpreter_are_passed_on_unchanged() {
    let (platform, client, id) = capsule().await;
    let mut port = SharedPort::take(PORT);
    let heard = interpreter(&mut port);
    let body = json!({ "code": "print", "envs": { "A": "b" }, "timeout_ms": 5000,
        "max_output_bytes": 99, "context_id": CONTEXT });
    let request = client.request(Method::POST, &path(&id, "")).json(&body);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    let lines = answer.text().await.unwrap();
    assert_eq!(lines, format!("{}{COUNT}{}{END}", begin(), out("print")));
    let (line, token, sent) = heard.lock().unwrap()[0].clone();
    assert_eq!(line, "POST /execute HTTP/1.1");
    assert!(token.is_some_and(|token| token.len() >= 32));
    let wanted = json!({ "code": "print", "env_vars": { "A": "b" }, "timeout_ms": 5000,
        "max_output_bytes": 99, "context_id": CONTEXT, "keep": true });
    assert_eq!(sent, wanted);
    drop(port);
    platform.finish();
}

#[tokio::test]
async fn refusal_of_interpreter_is_an_error_with_its_reason() {
    let (platform, client, id) = capsule().await;
    let mut port = SharedPort::take(PORT);
    let heard = interpreter(&mut port);
    for (code, status, name, reason) in [
        ("cobol", 400, "invalid_request", "language 'cobol' is unknown"),
        ("gone", 404, "not_found", "context"),
        ("full", 429, "limit_reached", "64 executions wait"),
        ("broken", 502, "interpreter_failed", "python did not start"),
    ] {
        let answer = client.post(&path(&id, ""), &json!({ "code": code })).await;
        answer.refuses(status, name, reason);
    }
    let before = heard.lock().unwrap().len();
    for (body, field) in [
        (json!({}), "code"),
        (json!({ "code": "1", "colour": 1 }), "colour"),
        (json!({ "code": "1", "envs": { "A=": "" } }), "envs"),
        (json!({ "code": "1", "timeout_ms": 0 }), "timeout_ms"),
        (json!({ "code": "1", "timeout_ms": -1 }), "timeout_ms"),
        (json!({ "code": "1", "max_output_bytes": 0 }), "max_output_bytes"),
        (json!({ "code": "1", "language": "" }), "language"),
        (json!({ "code": "1", "language": "r", "context_id": CONTEXT }), "language"),
    ] {
        client.post(&path(&id, ""), &body).await.refuses(400, "invalid_request", field);
    }
    let complete = path(&id, &format!("/contexts/{CONTEXT}/complete"));
    let beyond = json!({ "code": "pri", "cursor": 4 });
    client.post(&complete, &beyond).await.refuses(400, "invalid_request", "cursor");
    let long = json!({ "cwd": "x".repeat(5000) });
    client.post(&path(&id, "/contexts"), &long).await.refuses(400, "invalid_request", "cwd");
    for wrong in ["x", "..%2fhealth", "%20"] {
        let answer = client.get(&path(&id, &format!("/contexts/{wrong}"))).await;
        answer.refuses(404, "not_found", "context");
        let answer = client.get(&path(&id, &format!("/executions/{wrong}"))).await;
        answer.refuses(404, "not_found", "execution");
    }
    assert_eq!(heard.lock().unwrap().len(), before, "the guest was not asked");
    drop(port);
    platform.finish();
}

#[tokio::test]
async fn contexts_are_made_shown_changed_and_removed() {
    let (platform, client, id) = capsule().await;
    let mut port = SharedPort::take(PORT);
    let heard = interpreter(&mut port);
    let at = |rest: &str| path(&id, &format!("/contexts{rest}"));
    let made = client.post(&at(""), &json!({ "cwd": "/home/user" })).await.expect(201);
    assert_eq!((&made["id"], &made["state"]), (&json!(CONTEXT), &json!("idle")));
    assert_eq!(client.get(&at("")).await.expect(200)["contexts"], json!([made]));
    let one = format!("/{CONTEXT}");
    let shown = client.get(&at(&one)).await.expect(200);
    assert_eq!((&shown["memory_bytes"], &shown["executions"]), (&json!(1024), &json!(2)));
    let done = client.post(&at(&format!("{one}/complete")), &json!({ "code": "pri" })).await;
    let wanted = json!({ "matches": ["print"], "cursor_start": 0, "cursor_end": 3 });
    assert_eq!(done.expect(200), wanted);
    let variables = client.get(&at(&format!("{one}/variables"))).await.expect(200);
    assert_eq!(variables, json!({ "variables": [{ "name": "x", "type": "int", "preview": "1" }] }));
    for call in ["restart", "interrupt"] {
        client.post(&at(&format!("{one}/{call}")), &json!({})).await.expect(204);
    }
    let interrupt = path(&id, &format!("/executions/{EXECUTION}/interrupt"));
    client.post(&interrupt, &json!({})).await.expect(204);
    client.delete(&at(&one)).await.expect(204);
    let heard = heard.lock().unwrap();
    let asked = |line: &str| heard.iter().any(|(had, ..)| had.starts_with(line));
    assert!(asked(&format!("DELETE /contexts/{CONTEXT} ")));
    assert!(asked(&format!("POST /contexts/{CONTEXT}/restart ")));
    assert!(asked(&format!("POST /contexts/{CONTEXT}/interrupt ")));
    assert!(asked(&format!("POST /executions/{EXECUTION}/interrupt ")));
    let completion = heard.iter().find(|(line, ..)| line.contains("/complete ")).unwrap();
    assert_eq!(completion.2, json!({ "code": "pri", "cursor": 3 }));
    drop(port);
    platform.finish();
}

#[tokio::test]
async fn capsule_without_interpreter_is_told_apart_from_one_that_sleeps() {
    let (platform, client, id) = capsule().await;
    // Nothing listens at the port while the lock is held.
    let port = SharedPort::take(PORT);
    let run = json!({ "code": "1" });
    let none = "create it from a template that has it, such as code-interpreter";
    client.post(&path(&id, ""), &run).await.refuses(409, "no_code_interpreter", none);
    client.get(&path(&id, "/contexts")).await.refuses(409, "no_code_interpreter", none);
    client.pause(&id).await;
    client.post(&path(&id, ""), &run).await.refuses(409, "capsule_paused", "");
    let wakes = client.create(&json!({ "auto_resume": true })).await;
    client.pause(&wakes).await;
    // A wrong request does not wake the capsule.
    let wrong = json!({ "code": 1 });
    client.post(&path(&wakes, ""), &wrong).await.refuses(400, "invalid_request", "code");
    let never = json!({ "code": "1", "timeout_ms": 0 });
    client.post(&path(&wakes, ""), &never).await.refuses(400, "invalid_request", "timeout_ms");
    assert_eq!(client.status(&wakes).await, "paused");
    client.post(&path(&wakes, ""), &run).await.refuses(409, "no_code_interpreter", none);
    assert_eq!(client.status(&wakes).await, "running");
    drop(port);
    platform.finish();
}

#[tokio::test]
async fn cut_stream_is_incomplete_and_can_be_attached_to() {
    let (platform, client, id) = capsule().await;
    let mut port = SharedPort::take(PORT);
    interpreter(&mut port);
    let request = client.request(Method::POST, &path(&id, "")).json(&json!({ "code": "cut" }));
    let mut body = request.send().await.unwrap().bytes_stream();
    let (mut lines, mut broke) = (String::new(), false);
    while let Some(part) = body.next().await {
        match part {
            Ok(part) => lines += &String::from_utf8_lossy(&part),
            Err(_) => broke = true,
        }
    }
    assert!(broke, "the body ended as if it were whole: {lines}");
    assert_eq!(lines, format!("{}{KEEPALIVE}{}{{\"type\":\"std", begin(), out("one\n")));
    let attach = |after: &str| path(&id, &format!("/executions/{EXECUTION}{after}"));
    let request = client.request(Method::GET, &attach("?after=2"));
    let rest = request.send().await.unwrap().text().await.unwrap();
    assert_eq!(rest, format!("{}{END}", out("two\n")));
    let whole = client.request(Method::GET, &attach("")).send().await.unwrap();
    assert!(whole.text().await.unwrap().starts_with(&begin()));
    client.get(&attach("?after=x")).await.refuses(400, "invalid_request", "query");
    drop(port);
    platform.finish();
}

/// Unfinished body of an answer.
type Bytes = BoxStream<'static, reqwest::Result<bytes::Bytes>>;

/// Opens the stream of an execution that waits. Returns it once its first lines have come.
async fn waiting(client: &Client, id: &str) -> Bytes {
    let request = client.request(Method::POST, &path(id, "")).json(&json!({ "code": "wait" }));
    let mut body = request.send().await.unwrap().bytes_stream().boxed();
    let mut lines = String::new();
    while !lines.contains("begun") {
        lines += &String::from_utf8_lossy(&body.next().await.unwrap().unwrap());
    }
    body
}

#[tokio::test]
async fn stream_ends_with_its_key_and_execution_goes_on() {
    let (platform, client, id) = capsule().await;
    let mut port = SharedPort::take(PORT);
    let heard = interpreter(&mut port);
    let confined = json!({ "name": "k", "capsule": id, "scopes": ["capsules:exec"] });
    let made = client.post("/v1/api-keys", &confined).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    let mut body = waiting(&key, &id).await;
    let revoke = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    client.delete(&revoke).await.expect(204);
    let end = async {
        while let Some(part) = body.next().await {
            if part.is_err() {
                return true;
            }
        }
        false
    };
    let cut = tokio::time::timeout(Duration::from_secs(30), end).await;
    assert!(cut.expect("the stream outlives its key"), "the stream ended as if it were whole");
    key.post(&path(&id, ""), &json!({ "code": "1" })).await.refuses(401, "unauthorized", "");
    let interrupted = heard.lock().unwrap().iter().any(|(line, ..)| line.contains("/interrupt "));
    assert!(!interrupted);
    drop(port);
    platform.finish();
}
