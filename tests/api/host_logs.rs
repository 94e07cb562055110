//! Logs of capsules on their host, as the agent's own service gives them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tests::{Client, Driver, Platform, eventually};

/// Returns a client of the agent's service.
fn agent(platform: &Platform) -> Client {
    platform.agent_client().below("/wrenn.host.v1.Host")
}

/// Returns the team in a capsule's record.
fn team(platform: &Platform, id: &str) -> String {
    let record = platform.dir().join("capsules").join(id).join("capsule.json");
    let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    record["team"].as_str().unwrap().to_owned()
}

/// Reads a log as streams and texts.
async fn read(agent: &Client, request: &Value) -> Vec<(String, String)> {
    let answer = agent.post("/ReadLog", request).await.expect(200);
    let entries = answer["entries"].as_array().cloned().unwrap_or_default();
    let text = |entry: &Value| {
        let text = STANDARD.decode(entry["text"].as_str().unwrap_or_default()).unwrap();
        String::from_utf8(text).unwrap()
    };
    let stream = |entry: &Value| entry["stream"].as_str().unwrap_or_default().to_owned();
    entries.iter().map(|entry| (stream(entry), text(entry))).collect()
}

async fn background(client: &Client, id: &str, script: &str) {
    let body = json!({ "cmd": "sh", "args": ["-c", script], "background": true });
    client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(202);
}

fn count(lines: &[(String, String)], text: &str) -> usize {
    lines.iter().filter(|(_, line)| line == text).count()
}

#[tokio::test]
async fn log_has_lifecycle_and_background_output_outlives_its_capsule_and_is_erased() {
    let mut platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({})).await;
    let ask = json!({ "capsuleId": id, "teamId": team(&platform, &id) });
    assert_eq!(client.out(&id, "echo secret").await, "secret\n");
    background(&client, &id, "echo out; printf 'err\\033[1m' >&2; exit 3").await;
    let of = agent(&platform);
    let lines = eventually("the program's end is in the log", || async {
        let lines = read(&of, &ask).await;
        (count(&lines, "exit status 3") == 1).then_some(lines)
    })
    .await;
    for (stream, text) in [("stdout", "out"), ("stderr", "err\u{1b}[1m")] {
        assert!(lines.contains(&(stream.to_owned(), text.to_owned())), "{lines:?}");
    }
    assert_eq!(lines[0].0, "create");
    assert_eq!(count(&lines, "secret"), 0, "output of a command with a caller is logged");
    // A killed agent neither repeats nor loses a line.
    background(&client, &id, "i=0; while sleep 0.1; do i=$((i+1)); echo line $i; done").await;
    eventually("lines come", || async {
        (count(&read(&of, &ask).await, "line 2") == 1).then_some(())
    })
    .await;
    platform.kill();
    platform.resume().await;
    let (client, of) = (platform.client(), agent(&platform));
    let lines = eventually("lines come again", || async {
        let lines = read(&of, &ask).await;
        let last = lines.iter().rfind(|(_, text)| text.starts_with("line "))?.1.clone();
        let last: u32 = last.rsplit(' ').next()?.parse().ok()?;
        (last > 30).then_some(lines)
    })
    .await;
    for number in 1..=30 {
        assert_eq!(count(&lines, &format!("line {number}")), 1, "{number}: {lines:?}");
    }
    assert_eq!(count(&lines, "out"), 1);
    let other = json!({ "capsuleId": id, "teamId": "other" });
    assert!(read(&of, &other).await.is_empty(), "another team reads the log");
    client.pause(&id).await;
    client.resume(&id).await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    let lifecycle = json!({ "capsuleId": id, "teamId": ask["teamId"], "sources": ["lifecycle"] });
    eventually("the log tells the end", || async {
        let streams: Vec<String> =
            read(&of, &lifecycle).await.into_iter().map(|line| line.0).collect();
        (streams == ["create", "pause", "resume", "end"]).then_some(())
    })
    .await;
    of.post("/EraseLog", &other).await.expect(200);
    assert!(!read(&of, &ask).await.is_empty());
    of.post("/EraseLog", &ask).await.expect(200);
    assert!(read(&of, &ask).await.is_empty());
    let wrong = of.post("/ReadLog", &json!({ "capsuleId": id, "cursor": "x" })).await;
    assert_eq!(wrong.body["code"], "invalid_argument", "{}", wrong.body);
    platform.finish();
}
