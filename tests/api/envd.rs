//! envd's own protocol, through the agent's data hop with the capsule's token. The tests cover
//! behaviour that E2B's SDKs rely on and `tests/sdk` does not reach.

mod watches;

use crate::capsule;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tests::{Client, Platform};

/// Returns a client of a capsule's envd, and envd's token.
pub(crate) fn envd(platform: &Platform, id: &str) -> (Client, String) {
    let record = std::fs::read(platform.dir().join(format!("capsules/{id}/capsule.json")));
    let record: Value = serde_json::from_slice(&record.unwrap()).unwrap();
    let token = record["envd_token"].as_str().unwrap().to_owned();
    (platform.agent_client().below(&format!("/proxy/{id}/49983")), token)
}

/// Puts messages into Connect's envelopes.
fn framed(messages: &[Value]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        let text = message.to_string();
        out.push(0);
        out.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        out.extend(text.as_bytes());
    }
    out
}

/// Takes messages out of Connect's envelopes. The last one ends the stream.
fn unframed(mut bytes: &[u8]) -> Vec<Value> {
    let mut out = Vec::new();
    while bytes.len() >= 5 {
        let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        out.push(serde_json::from_slice(&bytes[5..5 + length]).unwrap());
        bytes = &bytes[5 + length..];
    }
    out
}

fn stream(
    client: &Client,
    token: &str,
    method: &str,
    messages: &[Value],
) -> reqwest::RequestBuilder {
    client
        .request(Method::POST, method)
        .header("x-access-token", token)
        .header("content-type", "application/connect+json")
        .header("connect-protocol-version", "1")
        .body(framed(messages))
}

#[tokio::test]
async fn json_streams_send_keepalives_and_end_at_deadline() {
    let (platform, _, id) = capsule().await;
    let (envd, token) = envd(&platform, &id);
    let start = json!({ "process": { "cmd": "sh", "args": ["-c", "echo hi; sleep 2.5; exit 3"] } });
    let request = stream(&envd, &token, "/process.Process/Start", &[start]);
    let answer = request.header("keepalive-ping-interval", "1").send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/connect+json");
    let messages = unframed(&answer.bytes().await.unwrap());
    assert!(messages[0]["event"]["start"]["pid"].is_u64(), "{messages:?}");
    assert_eq!(messages[1]["event"]["data"]["stdout"], STANDARD.encode("hi\n"));
    let alive = messages.iter().filter(|m| m["event"]["keepalive"].is_object()).count();
    assert_eq!(alive, 2, "{messages:?}");
    let end = &messages[messages.len() - 2]["event"]["end"];
    assert_eq!((&end["exitCode"], &end["status"]), (&json!(3), &json!("exit status 3")));
    let endless = json!({ "process": { "cmd": "sleep", "args": ["100"] } });
    let request = stream(&envd, &token, "/process.Process/Start", &[endless]);
    let answer = request.header("connect-timeout-ms", "300").send().await.unwrap();
    let messages = unframed(&answer.bytes().await.unwrap());
    assert_eq!(messages.last().unwrap()["error"]["code"], "deadline_exceeded", "{messages:?}");
    platform.finish();
}

#[tokio::test]
async fn stream_input_and_both_codecs_are_served() {
    let (platform, client, id) = capsule().await;
    let (envd, token) = envd(&platform, &id);
    let exec = json!({ "cmd": "sleep", "args": ["60"], "background": true, "tag": "reader" });
    client.post(&format!("/v1/capsules/{id}/exec"), &exec).await.expect(202);
    let start = json!({ "process": { "cmd": "cat" }, "tag": "fed" });
    let request = stream(&envd, &token, "/process.Process/Start", &[start]);
    let reading = tokio::spawn(async move { request.send().await.unwrap().bytes().await.unwrap() });
    let selector = json!({ "tag": "fed" });
    let input = |text: &str| json!({ "data": { "input": { "stdin": STANDARD.encode(text) } } });
    let messages = [
        json!({ "start": { "process": selector } }),
        input("one "),
        json!({ "keepalive": {} }),
        input("two"),
    ];
    tests::eventually("the program takes its input", || async {
        let request = stream(&envd, &token, "/process.Process/StreamInput", &messages);
        let answer = unframed(&request.send().await.unwrap().bytes().await.unwrap());
        answer.last().unwrap()["error"].is_null().then_some(())
    })
    .await;
    let close = envd.request(Method::POST, "/process.Process/CloseStdin");
    let close = close.header("x-access-token", &token).json(&json!({ "process": selector }));
    assert!(close.send().await.unwrap().status().is_success());
    let messages = unframed(&reading.await.unwrap());
    let data = messages.iter().filter_map(|m| m["event"]["data"]["stdout"].as_str());
    let out: Vec<u8> = data.flat_map(|text| STANDARD.decode(text).unwrap()).collect();
    assert_eq!(out, b"one two");
    // In Protobuf, an empty ListRequest has no bytes.
    let list = envd.request(Method::POST, "/process.Process/List");
    let list = list.header("x-access-token", &token).header("content-type", "application/proto");
    let answer = list.body("").send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/proto");
    assert!(answer.bytes().await.unwrap().windows(6).any(|bytes| bytes == b"reader"));
    platform.finish();
}

#[tokio::test]
async fn signed_file_urls_are_verified_and_expire() {
    let (platform, _, id) = capsule().await;
    let (envd, token) = envd(&platform, &id);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f").display().to_string();
    let signed = |path: &str, operation: &str, end: Option<u64>| {
        let end_text = end.map(|end| format!(":{end}")).unwrap_or_default();
        let text = format!("{path}:{operation}:root:{token}{end_text}");
        let signature = format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)));
        let mut query =
            vec![("path", path.to_owned()), ("username", "root".into()), ("signature", signature)];
        query.extend(end.map(|end| ("signature_expiration", end.to_string())));
        query
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let put = envd.request(Method::POST, "/files").query(&signed(&path, "write", None));
    let put = put.header("content-type", "application/octet-stream").body("signed");
    assert!(put.send().await.unwrap().status().is_success());
    let get =
        |query: Vec<(&'static str, String)>| envd.request(Method::GET, "/files").query(&query);
    let good = get(signed(&path, "read", Some(now + 60))).send().await.unwrap();
    assert_eq!(good.text().await.unwrap(), "signed");
    let late = get(signed(&path, "read", Some(now - 1))).send().await.unwrap();
    assert_eq!(late.status().as_u16(), 401);
    let told = late.text().await.unwrap();
    assert_eq!(told, r#"{"code":401,"message":"signature is already expired"}"#);
    for wrong in [signed(&path, "write", None), signed("/etc/passwd", "read", None)] {
        let mut wrong = wrong;
        wrong[0].1 = path.clone();
        assert_eq!(get(wrong).send().await.unwrap().status().as_u16(), 401);
    }
    platform.finish();
}

#[tokio::test]
async fn downloads_support_gzip_and_ranges_and_uploads_compose() {
    let (platform, _, id) = capsule().await;
    let (envd, token) = envd(&platform, &id);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let with =
        |method: Method, path: &str| envd.request(method, path).header("x-access-token", &token);
    let contents = "packed ".repeat(50_000);
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(contents.as_bytes()).unwrap();
    let put = with(Method::POST, "/files").query(&[("path", at("a"))]);
    let put =
        put.header("content-type", "application/octet-stream").header("content-encoding", "gzip");
    let answer = put.body(packer.finish().unwrap()).send().await.unwrap();
    let stored: Value = answer.json().await.unwrap();
    assert_eq!(stored, json!([{ "path": at("a"), "name": "a", "type": "file" }]));
    assert_eq!(std::fs::read_to_string(at("a")).unwrap(), contents);
    let get = with(Method::GET, "/files").query(&[("path", at("a"))]);
    let answer = get.header("accept-encoding", "gzip").send().await.unwrap();
    assert_eq!(answer.headers()["content-encoding"], "gzip");
    let mut unpacker = flate2::write::GzDecoder::new(Vec::new());
    unpacker.write_all(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!(unpacker.finish().unwrap(), contents.as_bytes());
    std::fs::write(at("b"), "tail").unwrap();
    let body = json!({ "sources": [at("a"), at("b")], "destination": at("whole") });
    let joined = with(Method::POST, "/files/compose").json(&body).send().await.unwrap();
    assert!(joined.status().is_success(), "{}", joined.text().await.unwrap());
    assert_eq!(std::fs::read_to_string(at("whole")).unwrap(), format!("{contents}tail"));
    assert!(!std::fs::exists(at("a")).unwrap() && !std::fs::exists(at("b")).unwrap());
    let range = with(Method::GET, "/files").query(&[("path", at("whole"))]);
    let range = range.header("range", "bytes=-4").send().await.unwrap();
    assert_eq!((range.status().as_u16(), range.text().await.unwrap().as_str()), (206, "tail"));
    let metrics = with(Method::GET, "/metrics").send().await.unwrap();
    let metrics: Value = metrics.json().await.unwrap();
    for field in
        ["ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "disk_used", "disk_total"]
    {
        assert!(metrics[field].is_number(), "{field} in {metrics}");
    }
    platform.finish();
}

#[tokio::test]
async fn directory_watch_streams_events_below_it() {
    let (platform, _, id) = capsule().await;
    let (envd, token) = envd(&platform, &id);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    let watch = json!({ "path": path, "recursive": true, "includeEntry": true });
    let request = stream(&envd, &token, "/filesystem.Filesystem/WatchDir", &[watch]);
    let mut answer = request.send().await.unwrap();
    let mut seen = answer.chunk().await.unwrap().unwrap().to_vec();
    assert!(unframed(&seen)[0]["start"].is_object());
    std::fs::create_dir(dir.path().join("new")).unwrap();
    std::fs::write(dir.path().join("new/file"), "x").unwrap();
    let limit = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let events = unframed(&seen);
        let named = |name: &str| {
            events.iter().map(|e| &e["filesystem"]).find(|e| e["name"] == name).cloned()
        };
        if let (Some(dir), Some(file)) = (named("new"), named("new/file")) {
            assert_eq!(dir["type"], "EVENT_TYPE_CREATE");
            assert_eq!(file["entry"]["path"], format!("{path}/new/file"));
            break;
        }
        let chunk = tokio::time::timeout_at(limit, answer.chunk()).await;
        seen.extend(chunk.expect("no event came").unwrap().unwrap());
    }
    let file = json!({ "path": format!("{path}/new/file") });
    let request = stream(&envd, &token, "/filesystem.Filesystem/WatchDir", &[file]);
    let refused = unframed(&request.send().await.unwrap().bytes().await.unwrap());
    assert_eq!(refused.last().unwrap()["error"]["code"], "invalid_argument");
    platform.finish();
}

/// E2B's own tests expect exactly three events of a new file, first its creation.
#[tokio::test]
async fn upload_gives_watchers_three_events_of_its_name() {
    let (platform, _, id) = capsule().await;
    let (envd, token) = envd(&platform, &id);
    let dir = tempfile::tempdir().unwrap();
    let call = async |method: &str, body: Value| -> Value {
        let request = envd.request(Method::POST, &format!("/filesystem.Filesystem/{method}"));
        let answer = request.header("x-access-token", &token).json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{method}: {}", answer.status());
        answer.json().await.unwrap()
    };
    let watched = json!({ "path": dir.path().display().to_string() });
    let watcher = call("CreateWatcher", watched).await["watcherId"].clone();
    for contents in ["new", "old no more"] {
        let put = envd.request(Method::POST, "/files").header("x-access-token", &token);
        let put = put.query(&[("path", dir.path().join("f").display().to_string())]);
        let put = put.header("content-type", "application/octet-stream").body(contents);
        assert!(put.send().await.unwrap().status().is_success());
        let told = call("GetWatcherEvents", json!({ "watcherId": watcher })).await;
        let events = told["events"].as_array().unwrap();
        let kinds: Vec<_> = events.iter().map(|e| (&e["name"], e["type"].as_str())).collect();
        let f = json!("f");
        let wanted = ["CREATE", "CHMOD", "WRITE"].map(|kind| format!("EVENT_TYPE_{kind}"));
        let wanted: Vec<_> = wanted.iter().map(|kind| (&f, Some(kind.as_str()))).collect();
        assert_eq!(kinds, wanted);
    }
    platform.finish();
}
