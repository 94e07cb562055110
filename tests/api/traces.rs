//! Traces of requests: the header in and out, the environment of commands, log lines, and spans at
//! a collector.

use crate::hosts::Second;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tests::{Client, Driver, Hook, Platform, Upstream, eventually, free_port};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
/// Setting of the time between two exports, in milliseconds.
const OFTEN: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "100");

fn given() -> String {
    format!("00-{TRACE}-{PARENT}-01")
}

/// Runs a command in a request with a header. Returns its standard output.
async fn told(client: &Client, capsule: &str, header: Option<&str>, command: &Value) -> String {
    let mut request =
        client.request(Method::POST, &format!("/v1/capsules/{capsule}/exec")).json(command);
    if let Some(header) = header {
        request = request.header("traceparent", header);
    }
    let answer = client.send(request).await.expect(200);
    answer["stdout"].as_str().unwrap().to_owned()
}

/// Checks the form of a header's value, and returns the trace's id.
fn trace_of(value: &str) -> String {
    let fields: Vec<_> = value.split('-').collect();
    let [version, trace, span, flags] = fields[..] else { panic!("{value}") };
    assert_eq!((version, trace.len(), span.len(), flags), ("00", 32, 16, "01"), "{value}");
    trace.to_owned()
}

#[tokio::test]
async fn command_gets_the_trace_of_its_request_or_a_new_one() {
    let (platform, client, id) = crate::capsule().await;
    let show = json!({ "cmd": "sh", "args": ["-c", "printf %s \"$TRACEPARENT\""] });
    assert_eq!(told(&client, &id, Some(&given()), &show).await, given());
    let first = trace_of(&told(&client, &id, None, &show).await);
    let second = trace_of(&told(&client, &id, None, &show).await);
    assert_ne!(first, second);
    let malformed = ["nonsense".to_owned(), given().to_uppercase(), format!("{}-more", given())];
    for malformed in malformed {
        let made = trace_of(&told(&client, &id, Some(&malformed), &show).await);
        assert!(made != TRACE, "{malformed} was taken");
    }
    let mut own = show.clone();
    own["envs"] = json!({ "TRACEPARENT": "mine" });
    assert_eq!(told(&client, &id, Some(&given()), &own).await, "mine");
    platform.finish();
}

#[tokio::test]
async fn command_of_a_socket_gets_a_trace() {
    let (platform, client, id) = crate::capsule().await;
    let mut socket = client.socket(&format!("/v1/capsules/{id}/exec/stream")).await;
    let args = ["-c", "printf %s \"$TRACEPARENT\""];
    socket.send(json!({ "type": "start", "cmd": "sh", "args": args })).await;
    let mut out = String::new();
    while let Some(frame) = socket.next().await {
        match frame["type"].as_str() {
            Some("stdout") => out += frame["data"].as_str().unwrap(),
            Some("exit") => break,
            _ => {}
        }
    }
    trace_of(&out);
    platform.finish();
}

#[tokio::test]
async fn request_to_a_port_has_the_header_of_its_client_and_no_other() {
    let (platform, client, id) = crate::capsule().await;
    let guest = Upstream::echo();
    let plain = client.send(client.to_port(Method::GET, &id, guest.port, "/")).await.expect(200);
    let plain = plain.as_str().unwrap().to_lowercase();
    assert!(!plain.contains("traceparent"), "{plain}");
    let traced = client.to_port(Method::GET, &id, guest.port, "/").header("traceparent", given());
    let traced = client.send(traced).await.expect(200);
    let traced = traced.as_str().unwrap().to_lowercase();
    assert!(traced.contains(&format!("traceparent: {}\r\n", given())), "{traced}");
    platform.finish();
}

#[tokio::test]
async fn log_lines_of_both_sides_name_the_trace() {
    let filter = ("WRENN_LOG", "warn,control_plane::http::respond=debug");
    let platform = Platform::start(Driver::Fake, &[filter]).await;
    let client = platform.own_client();
    let id = client.create(&json!({})).await;
    client.pause(&id).await;
    let resume = client.request(Method::POST, &format!("/v1/capsules/{id}/resume"));
    let resume = resume.header("traceparent", given()).json(&json!({ "snapshot": 99 }));
    assert!(client.send(resume).await.status.is_client_error());
    let log = platform.log();
    let of = |module: &str| log.lines().any(|line| line.contains(module) && line.contains(TRACE));
    assert!(of("control_plane::http::respond"), "{log}");
    assert!(of("host_agent::rpc"), "{log}");
    let others = log.lines().filter(|line| line.contains("answered a request"));
    assert!(others.clone().all(|line| line.contains("trace_id=")), "{log}");
    assert!(others.count() > 2, "{log}");
    platform.finish();
}

/// A span, and the name of the service that made it.
#[derive(Debug, Clone)]
struct Seen {
    service: String,
    span: Span,
}

fn service(spans: &ResourceSpans) -> String {
    let attributes = spans.resource.as_ref().map(|resource| resource.attributes.as_slice());
    let mut named = attributes.unwrap_or_default().iter().filter(|a| a.key == "service.name");
    match named.next().and_then(|a| a.value.as_ref()?.value.as_ref()) {
        Some(Attribute::StringValue(name)) => name.clone(),
        other => panic!("the service's name is {other:?}"),
    }
}

/// Returns the spans that a collector got.
fn spans(collector: &Hook) -> Vec<Seen> {
    let mut all = Vec::new();
    for heard in collector.heard() {
        assert_eq!(heard.line, "POST /v1/traces");
        assert_eq!(heard.headers["content-type"], "application/x-protobuf");
        let sent = ExportTraceServiceRequest::decode(heard.body.as_slice()).unwrap();
        for spans in sent.resource_spans {
            let service = service(&spans);
            let found = spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
            all.extend(found.map(|span| Seen { service: service.clone(), span }));
        }
    }
    all
}

async fn collector() -> Hook {
    Hook::start(|_| (200, "content-type: application/x-protobuf\r\n".to_owned(), String::new()))
        .await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn create_is_one_trace_with_spans_of_both_processes() {
    let collector = collector().await;
    let to = ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str());
    let platform = Platform::start(Driver::Fake, &[to, OFTEN]).await;
    let client = platform.own_client();
    let second = Second::tagged(&platform, &client).await;
    let body = json!({ "memory_mib": 128, "host_tags": ["second"] });
    let create = client.request(Method::POST, "/v1/capsules").json(&body);
    let made = client.send(create.header("traceparent", given())).await.expect(201);
    let found = eventually("both processes send the spans of the create", || async {
        let mut found = spans(&collector);
        found.retain(|seen| hex(&seen.span.trace_id) == TRACE);
        let names: BTreeSet<_> = found.iter().map(|seen| seen.span.name.as_str()).collect();
        let all = ["POST /v1/capsules", "CreateCapsule"].iter().all(|name| names.contains(name));
        all.then(|| found.clone())
    })
    .await;
    assert!(found.len() >= 8, "{found:#?}");
    let services: BTreeSet<_> = found.iter().map(|seen| seen.service.as_str()).collect();
    assert_eq!(services, BTreeSet::from(["wrenn", "wrenn-agent"]));
    let names: Vec<_> = found.iter().map(|seen| seen.span.name.as_str()).collect();
    let of = |name: &str| {
        let mut named = found.iter().filter(|seen| seen.span.name == name);
        named.next().unwrap_or_else(|| panic!("no span {name} among {names:?}"))
    };
    assert_eq!(hex(&of("POST /v1/capsules").span.parent_span_id), PARENT);
    for (child, parent) in [
        ("found", "POST /v1/capsules"),
        ("create", "POST /v1/capsules"),
        ("placed", "create"),
        ("inserted", "create"),
        ("host", "create"),
        ("committed", "create"),
        ("CreateCapsule", "host"),
        ("prepared", "CreateCapsule"),
        ("epoch", "CreateCapsule"),
        ("ready", "CreateCapsule"),
    ] {
        let (child, parent) = (of(child), of(parent));
        assert_eq!(child.span.parent_span_id, parent.span.span_id, "{child:?} {parent:?}");
        assert!(child.span.end_time_unix_nano >= child.span.start_time_unix_nano);
    }
    assert_eq!(of("CreateCapsule").service, "wrenn-agent");
    let id = made["id"].as_str().unwrap();
    assert!(found.iter().all(|seen| !seen.span.name.contains(id)), "an id is in a name");
    // The environment of a command names a span of the platform, not the client's.
    let show = json!({ "cmd": "sh", "args": ["-c", "printf %s \"$TRACEPARENT\""] });
    let out = told(&client, id, Some(&given()), &show).await;
    assert_eq!(trace_of(&out), TRACE);
    assert!(!out.contains(PARENT), "{out}");
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    drop(second);
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn request_without_a_header_is_a_trace_that_begins_with_it() {
    let collector = collector().await;
    let to = ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str());
    let platform = Platform::start(Driver::Fake, &[to, OFTEN]).await;
    platform.own_client().get("/version").await.expect(200);
    let root = eventually("the span of the request comes", || async {
        spans(&collector).into_iter().find(|seen| seen.span.name == "GET /version")
    })
    .await;
    assert!(root.span.parent_span_id.iter().all(|byte| *byte == 0), "{root:?}");
    // Work of the platform's own, such as its rounds, makes no spans.
    let names: BTreeSet<_> = spans(&collector).into_iter().map(|seen| seen.span.name).collect();
    assert!(!names.contains("ListCapsules") && !names.contains("WaitChange"), "{names:?}");
    platform.finish();
}

#[tokio::test]
async fn collector_that_is_away_holds_up_nothing_and_is_logged_once() {
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let vars = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), OFTEN];
    let platform = Platform::start(Driver::Fake, &vars).await;
    let client = platform.own_client();
    eventually("spans are lost", || async {
        client.get("/version").await.expect(200);
        (platform.figure("wrenn_spans_total{outcome=\"lost\"}").await > 20).then_some(())
    })
    .await;
    let id = client.create(&json!({})).await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    assert_eq!(platform.log().matches("cannot export spans").count(), 1, "{}", platform.log());
    platform.finish();
}

/// Returns the names of a process's threads.
fn threads(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn exporter_has_a_thread_only_if_there_is_a_collector() {
    let exports = |pid| threads(pid).iter().any(|name| name.starts_with("OpenTelemetry"));
    let plain = Platform::start(Driver::Fake, &[]).await;
    assert!(!exports(plain.pid()), "{:?}", threads(plain.pid()));
    plain.finish();
    let collector = collector().await;
    let to = ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str());
    let exporting = Platform::start(Driver::Fake, &[to]).await;
    assert!(exports(exporting.pid()), "{:?}", threads(exporting.pid()));
    exporting.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn last_spans_are_sent_when_the_platform_stops() {
    let collector = collector().await;
    let to = ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str());
    let vars = [to, ("OTEL_BSP_SCHEDULE_DELAY", "600000")];
    let mut platform = Platform::start(Driver::Fake, &vars).await;
    platform.own_client().get("/version").await.expect(200);
    let sent = || spans(&collector).iter().any(|seen| seen.span.name == "GET /version");
    assert!(!sent());
    platform.stop();
    assert!(sent());
    platform.finish();
}

#[tokio::test]
async fn endpoint_that_is_no_url_stops_the_start() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let mut command = platform.wrenn();
    command.args(["control-plane", "--otlp-endpoint", "collector"]);
    command.env("DATABASE_URL", platform.database_url());
    let ended = command.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{said}");
    platform.finish();
}
