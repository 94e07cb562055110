//! Tests of the wire over real connections, with scripted kernels.

use super::*;
use crate::context::script::{Call, Handle, Script};
use crate::kernel::{Bundle, Failure, Kind, Stream};
use crate::settings::{Capsule, Settings};
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Served {
    script: Script,
    contexts: Arc<Contexts>,
    at: SocketAddr,
}

async fn serve() -> Served {
    let script = Script::default();
    let settings = Settings { cwd: Some("/tmp".to_owned()), ..Settings::default() };
    let contexts = Arc::new(Contexts::new(script.services_with(settings)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(super::serve(listener, Arc::clone(&contexts)));
    Served { script, contexts, at }
}

impl Served {
    /// Makes the contexts of the start. Returns the kernel of the first one.
    async fn begin(&mut self) -> Handle {
        self.contexts.begin(Vec::new());
        for context in self.contexts.list() {
            context.started().await.unwrap();
        }
        let kernel = self.script.kernel().await;
        self.script.kernel().await;
        kernel
    }

    async fn send(&self, line: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.at).await.unwrap();
        let head = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        let text = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    /// Sends a request. Returns the first line of the answer, and its body.
    async fn ask(&self, line: &str, body: &str) -> (String, String) {
        let answer = rest(self.send(line, body).await).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    async fn value(&self, line: &str, body: &str) -> Value {
        let (head, body) = self.ask(line, body).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{line}: {head}: {body}");
        serde_json::from_str(&body).unwrap()
    }
}

async fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// Reads a stream until it has a text.
async fn until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        let mut part = [0; 4096];
        let read = stream.read(&mut part).await.unwrap();
        assert!(read > 0, "the answer ended: {text}");
        text.push_str(std::str::from_utf8(&part[..read]).unwrap());
    }
    text
}

/// Returns the lines of a chunked answer.
fn lines(answer: &str) -> Vec<Value> {
    let objects = answer.lines().filter(|line| line.starts_with('{'));
    objects.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn health_waits_for_the_kernels_of_the_start() {
    let mut served = serve().await;
    served.contexts.begin(Vec::new());
    assert!(!served.contexts.is_ready());
    served.begin().await;
    assert_eq!(served.ask("GET /health", "").await, ("HTTP/1.1 200 OK".into(), "\"OK\"".into()));
}

#[tokio::test]
async fn execution_is_answered_line_by_line() {
    let mut served = serve().await;
    let mut kernel = served.begin().await;
    let body = r#"{"code":"x","context_id":null,"language":null,"env_vars":{"A":"é"}}"#;
    let mut stream = served.send("POST /execute", body).await;
    let head = until(&mut stream, "execution_started").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/x-ndjson"), "{head}");
    let run = kernel.run().await;
    assert_eq!((&*run.code, &*run.setup.envs["A"]), ("x", "é"));
    kernel.say(1, Kind::Count(1));
    kernel.say(1, Kind::Text(Stream::Stderr, "\u{2028}😀\n".to_owned()));
    let Value::Object(data) = json!({"text/plain": "'it'", "x/y": 1}) else { panic!("no object") };
    kernel.say(1, Kind::Data(Bundle { main: true, data }));
    let failure =
        Failure { name: "E".to_owned(), value: "v".to_owned(), traceback: "t".to_owned() };
    kernel.say(1, Kind::Error(failure));
    kernel.say(1, Kind::Ended);
    let answer = rest(stream).await;
    assert!(answer.is_ascii() && answer.ends_with("0\r\n\r\n"), "{answer}");
    let lines = lines(&answer);
    let types: Vec<&str> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["number_of_executions", "stderr", "result", "error", "end_of_execution"]);
    assert_eq!(lines[0]["execution_count"], 1);
    assert_eq!(lines[1]["text"], "\u{2028}😀\n");
    let result = json!({
        "type": "result", "is_main_result": true, "text": "it", "x/y": 1, "extra": {"x/y": 1}
    });
    assert_eq!(lines[2], result);
    assert_eq!(lines[3], json!({"type": "error", "name": "E", "value": "v", "traceback": "t"}));
}

#[tokio::test]
async fn cut_stream_ends_without_its_last_chunk_and_can_be_attached_to() {
    let mut served = serve().await;
    let mut kernel = served.begin().await;
    let mut stream = served.send("POST /execute", r#"{"code":"x"}"#).await;
    let head = until(&mut stream, "execution_started").await;
    kernel.run().await;
    kernel.print(1, "before\n");
    until(&mut stream, "before").await;
    served.contexts.services.executions.cut().await;
    let tail = rest(stream).await;
    assert!(!tail.contains("0\r\n\r\n") && !tail.contains("end_of_execution"), "{tail}");
    assert!(kernel.is_quiet(), "a cut interrupts nothing");
    kernel.print(1, "after\n");
    kernel.say(1, Kind::Ended);
    let started = head.lines().find(|line| line.contains("execution_started")).unwrap();
    let id = serde_json::from_str::<Value>(started).unwrap()["execution_id"].clone();
    let id = id.as_str().unwrap();
    let (_, answer) = served.ask(&format!("GET /executions/{id}?after=2"), "").await;
    let attached = lines(&answer);
    assert_eq!(attached[0]["text"], "after\n");
    assert_eq!(attached[1]["type"], "end_of_execution");
    assert_eq!(attached.len(), 2);
    assert_eq!(served.value(&format!("POST /executions/{id}/interrupt"), "").await, Value::Null);
}

#[tokio::test]
async fn client_that_closes_its_connection_interrupts_at_once() {
    let mut served = serve().await;
    let mut kernel = served.begin().await;
    let mut stream = served.send("POST /execute", r#"{"code":"x"}"#).await;
    until(&mut stream, "execution_started").await;
    kernel.run().await;
    drop(stream);
    assert_eq!(kernel.interrupt().await, 0);
    let mut kept = served.send("POST /execute", r#"{"code":"y","keep":true}"#).await;
    until(&mut kept, "execution_started").await;
    kernel.say(1, Kind::Ended);
    // On a busy machine, further interrupts may come before.
    while !matches!(kernel.call().await, Call::Run(run) if run.code == "y") {}
    drop(kept);
    // The server sees the end of the connection before it answers a later request.
    served.ask("GET /health", "").await;
    assert!(kernel.is_quiet());
}

#[tokio::test]
async fn errors_are_text_and_reason_phrase() {
    let mut served = serve().await;
    served.begin().await;
    for (line, body, status, text) in [
        ("POST /execute", r#"{"code":"x","context_id":"a"}"#, 404, "Context a not found"),
        (
            "POST /execute",
            r#"{"code":"x","context_id":"a","language":"python"}"#,
            400,
            "Only one of context_id or language can be provided",
        ),
        ("POST /execute", r#"{"code":"x","language":"cobol"}"#, 400, "language 'cobol' is unknown"),
        ("POST /execute", r#"{"cod":"x"}"#, 422, "body: missing field `code`"),
        ("POST /execute", r#"{"code":"x","env_vars":{"A=":"1"}}"#, 422, "env_vars: 'A='"),
        ("POST /contexts/a/restart", "", 404, "Context a not found"),
        ("DELETE /contexts/a", "", 404, "Context a not found"),
        ("GET /contexts/a", "", 404, "Context a not found"),
        ("GET /contexts/a/variables", "", 404, "Context a not found"),
        ("POST /contexts", r#"{"cwd":"/nonexistent"}"#, 400, "cwd '/nonexistent'"),
        ("GET /executions/a", "", 404, "Execution a not found"),
        ("POST /executions/a/interrupt", "", 404, "Execution a not found"),
        ("GET /other", "", 404, "there is no such route"),
    ] {
        let (head, answer) = served.ask(line, body).await;
        let wanted = format!("HTTP/1.1 {status} {text}");
        assert!(head.starts_with(&wanted), "{line}: {head} is not {wanted}");
        assert!(answer.starts_with(text), "{line}: {answer}");
    }
}

#[tokio::test]
async fn body_above_the_limit_is_refused_before_it_is_read() {
    let served = serve().await;
    let mut stream = TcpStream::connect(served.at).await.unwrap();
    let head = format!("POST /execute HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 17 << 20);
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = until(&mut stream, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 413 body:"), "{answer}");
}

#[tokio::test]
async fn contexts_are_made_listed_restarted_and_removed() {
    let mut served = serve().await;
    served.begin().await;
    let made = served.value("POST /contexts", "{}").await;
    assert_eq!((&made["language"], &made["cwd"]), (&json!("python"), &json!("/tmp")));
    assert_eq!((&made["state"], &made["executions"]), (&json!("idle"), &json!(0)));
    assert_eq!(made["last_used"], Value::Null);
    let id = made["id"].as_str().unwrap();
    let list = served.value("GET /contexts", "").await;
    let languages: Vec<&Value> =
        list.as_array().unwrap().iter().map(|context| &context["language"]).collect();
    assert_eq!(languages, ["python", "javascript", "python"]);
    assert_eq!(list[2]["id"], id);
    assert_eq!(served.value(&format!("GET /contexts/{id}"), "").await["id"], id);
    let complete = format!("POST /contexts/{id}/complete");
    let answer = served.value(&complete, r#"{"code":"pri","cursor":3}"#).await;
    assert_eq!(answer, json!({"matches": ["pri"], "cursor_end": 3}));
    let (head, _) = served.ask(&complete, r#"{"code":"pri","cursor":4}"#).await;
    assert!(head.starts_with("HTTP/1.1 422 cursor:"), "{head}");
    let mut kernel = served.script.kernel().await;
    for call in ["restart", "interrupt"] {
        assert_eq!(served.value(&format!("POST /contexts/{id}/{call}"), "").await, Value::Null);
    }
    assert!(matches!(kernel.call().await, Call::Dropped));
    assert_eq!(served.value(&format!("DELETE /contexts/{id}"), "").await, Value::Null);
    assert_eq!(served.value("GET /contexts", "").await.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn every_origin_may_call() {
    let served = serve().await;
    let mut stream = TcpStream::connect(served.at).await.unwrap();
    let head = "OPTIONS /execute HTTP/1.1\r\nHost: x\r\nOrigin: http://a\r\n\
        Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = rest(stream).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    for header in ["origin", "methods", "headers"] {
        assert!(answer.contains(&format!("access-control-allow-{header}: *")), "{answer}");
    }
}

#[tokio::test]
async fn wrong_token_is_refused_except_from_this_machine() {
    use axum::extract::connect_info::MockConnectInfo;
    use hyper::service::Service;
    let mut served = serve().await;
    let mut kernel = served.begin().await;
    served.contexts.set_capsule(Capsule { token: Some("t".to_owned()), ..Capsule::default() });
    let peer: SocketAddr = "169.254.0.1:5".parse().unwrap();
    let router = router(Arc::clone(&served.contexts)).layer(MockConnectInfo(peer));
    let service = hyper_util::service::TowerToHyperService::new(router);
    for (token, status) in [(Some("x"), 401), (Some("t"), 200), (None, 200)] {
        let mut request = http::Request::post("/execute");
        if let Some(token) = token {
            request = request.header("X-Access-Token", token);
        }
        let request = request.body(axum::body::Body::from(r#"{"code":"x"}"#)).unwrap();
        let response = service.call(request).await.unwrap();
        assert_eq!(response.status(), status, "{token:?}");
        if status == 200 {
            let run = kernel.run().await;
            kernel.say(run.number, Kind::Ended);
            let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
            assert!(body.ends_with(b"{\"type\":\"end_of_execution\"}\n"));
        }
    }
    let mut stream = TcpStream::connect(served.at).await.unwrap();
    let body = r#"{"code":"x"}"#;
    let head = "POST /execute HTTP/1.1\r\nHost: x\r\nX-Access-Token: x\r\n";
    let text = format!("{head}Content-Length: 12\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await.unwrap();
    until(&mut stream, "execution_started").await;
}
