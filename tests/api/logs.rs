//! Logs of capsules: pages, followers, settings, erasure, and E2B's calls. The fake driver runs envd
//! on this machine, so output of processes is real.

use crate::auth::other_team;
use crate::{capsule, events};
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::time::{Duration, Instant};
use tests::{Client, Driver, Platform, eventually};

/// Starts a shell command in the background.
async fn background(client: &Client, capsule: &str, script: &str) {
    let body = json!({ "cmd": "sh", "args": ["-c", script], "background": true });
    client.post(&format!("/v1/capsules/{capsule}/exec"), &body).await.expect(202);
}

fn logs(capsule: &str, query: &str) -> String {
    format!("/v1/capsules/{capsule}/logs?{query}")
}

/// Returns the texts of a page.
fn texts(page: &Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|item| item["text"].as_str().unwrap()).collect()
}

/// Waits until a page has an entry with this text. Returns the page.
async fn until(client: &Client, path: &str, text: &str) -> Value {
    eventually(text, async || {
        let page = client.get(path).await.expect(200);
        let is_there = texts(&page).contains(&text);
        is_there.then_some(page)
    })
    .await
}

/// An event of a followed log: its name, its id and its data.
type Followed = (String, String, Value);

/// An open stream of a log.
struct Stream {
    bytes: events::Bytes,
    text: String,
}

impl Stream {
    async fn open(client: &Client, path: &str, after: Option<&str>) -> Self {
        Self { bytes: events::open(client, path, after).await, text: String::new() }
    }

    /// Returns the next event, or `None` at the end of the stream.
    async fn next(&mut self) -> Option<Followed> {
        loop {
            while let Some((frame, rest)) = self.text.split_once("\n\n") {
                let (frame, rest) = (frame.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    let mut lines = frame.lines();
                    let found = lines.find_map(|line| line.strip_prefix(&format!("{name}: ")));
                    found.unwrap_or_default().to_owned()
                };
                if let Ok(data) = serde_json::from_str(&field("data")) {
                    return Some((field("event"), field("id"), data));
                }
            }
            let part = tokio::time::timeout(Duration::from_secs(30), self.bytes.next()).await;
            self.text += std::str::from_utf8(&part.expect("no event came in time")?.ok()?).unwrap();
        }
    }

    /// Reads entries until one has this text. Returns the texts and the last id.
    async fn until(&mut self, text: &str) -> (Vec<String>, String) {
        let mut seen = Vec::new();
        loop {
            let (name, id, data) = self.next().await.expect("the stream ended");
            assert_eq!((name.as_str(), id.as_str()), ("", data["cursor"].as_str().unwrap()));
            seen.push(data["text"].as_str().unwrap().to_owned());
            if data["text"] == text {
                return (seen, id);
            }
        }
    }
}

#[tokio::test]
async fn output_of_background_process_is_paged_searched_and_read_backward() {
    let (platform, client, id) = capsule().await;
    background(&client, &id, "for i in 1 2 3 4 5; do echo line $i; done; echo oops >&2").await;
    until(&client, &logs(&id, "source=process"), "oops").await;
    let page = until(&client, &logs(&id, "source=process"), "line 5").await;
    let lines = page["items"].as_array().unwrap();
    assert!(lines.iter().all(|line| line["source"] == "process"), "{page}");
    let oops = lines.iter().find(|line| line["text"] == "oops").unwrap();
    assert_eq!(oops["stream"], "stderr");
    assert!(oops["pid"].is_u64() && oops["command"].as_str().unwrap().contains("sh"), "{oops}");
    let out = client.get(&logs(&id, "source=process&search=line")).await.expect(200);
    assert_eq!(texts(&out), ["line 1", "line 2", "line 3", "line 4", "line 5"]);
    let none = client.get(&logs(&id, "source=process&search=LINE")).await.expect(200);
    assert!(texts(&none).is_empty(), "{none}");
    // Pages in both directions have each entry once.
    for (direction, wanted) in [
        ("", [&["line 1", "line 2"][..], &["line 3", "line 4"][..], &["line 5"][..]]),
        ("&backward=true", [&["line 5", "line 4"][..], &["line 3", "line 2"][..], &["line 1"][..]]),
    ] {
        let mut cursor = String::new();
        for wanted in wanted {
            let query = format!("source=process&search=line&limit=2{direction}{cursor}");
            let page = client.get(&logs(&id, &query)).await.expect(200);
            assert_eq!(texts(&page), wanted, "{query}");
            cursor = format!("&cursor={}", page["next"].as_str().unwrap_or_default());
        }
    }
    let after = out["items"][3]["cursor"].as_str().unwrap();
    let rest = client.get(&logs(&id, &format!("search=line&cursor={after}"))).await.expect(200);
    assert_eq!(texts(&rest), ["line 5"]);
    let future = client.get(&logs(&id, "since=2999-01-01T00:00:00Z")).await.expect(200);
    assert!(texts(&future).is_empty(), "{future}");
    let past = client.get(&logs(&id, "until=1999-01-01T00:00:00Z")).await.expect(200);
    assert!(texts(&past).is_empty(), "{past}");
    platform.finish();
}

#[tokio::test]
async fn followed_log_has_each_entry_once_over_reconnects_and_ends_with_the_capsule() {
    let (platform, client, id) = capsule().await;
    let path = logs(&id, "source=process&follow=true");
    background(&client, &id, "echo one; echo two").await;
    let (first, last) = Stream::open(&client, &path, None).await.until("two").await;
    assert_eq!(first.iter().filter(|text| ["one", "two"].contains(&text.as_str())).count(), 2);
    let mut stream = Stream::open(&client, &path, Some(&last)).await;
    background(&client, &id, "echo three").await;
    let (second, last) = stream.until("three").await;
    assert_eq!(second.iter().filter(|text| *text == "two").count(), 0, "{second:?}");
    // A pause and a resume neither end the stream nor repeat entries.
    client.pause(&id).await;
    client.resume(&id).await;
    background(&client, &id, "echo four").await;
    let (third, _) = stream.until("four").await;
    assert_eq!(third.iter().filter(|text| *text == "three").count(), 0, "{third:?}");
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    let end = async {
        loop {
            let (name, ..) = stream.next().await.expect("the stream ended without its last event");
            if name == "end" {
                return stream.next().await;
            }
        }
    };
    assert!(end.await.is_none());
    // The header chooses events, too.
    let request = client.request(Method::GET, &format!("/v1/capsules/{id}/logs"));
    let request = request.header("accept", "text/event-stream").header("last-event-id", last);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    assert!(answer.text().await.unwrap().contains("event: end"));
    platform.finish();
}

#[tokio::test]
async fn read_of_paused_capsule_leaves_it_paused_and_ended_capsule_keeps_its_log() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({ "auto_resume": true })).await;
    background(&client, &id, "echo kept").await;
    let path = logs(&id, "source=process");
    until(&client, &path, "kept").await;
    client.pause(&id).await;
    until(&client, &path, "kept").await;
    assert_eq!(client.status(&id).await, "paused");
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    until(&client, &path, "kept").await;
    let stranger = other_team(&platform).await;
    stranger.get(&path).await.refuses(404, "not_found", "capsule");
    // The console's bytes end with the capsule, as they always did.
    client.get(&format!("/v1/capsules/{id}/logs")).await.refuses(404, "not_found", "capsule");
    platform.finish();
}

#[tokio::test]
async fn log_of_another_team_or_capsule_is_not_found() {
    let (platform, client, id) = capsule().await;
    let other = client.create(&json!({})).await;
    let wanted = json!({ "name": "k", "capsule": other, "scopes": ["capsules:admin"] });
    let confined = client.post("/v1/api-keys", &wanted).await.expect(201);
    let confined = platform.client_with(confined["key"].as_str().unwrap());
    let looks = json!({ "name": "looks", "scopes": ["capsules:read"] });
    let looks = client.post("/v1/api-keys", &looks).await.expect(201);
    let looks = platform.client_with(looks["key"].as_str().unwrap());
    let one = format!("/v1/capsules/{id}/logs");
    for outsider in [&confined, &other_team(&platform).await] {
        for query in ["", "?limit=1", "?follow=true"] {
            outsider.get(&format!("{one}{query}")).await.refuses(404, "not_found", "capsule");
        }
        outsider.delete(&one).await.refuses(404, "not_found", "capsule");
        for path in [format!("/sandboxes/{id}/logs"), format!("/v2/sandboxes/{id}/logs")] {
            assert_eq!(outsider.get(&path).await.status, 404, "{path}");
        }
    }
    confined.get(&logs(&other, "limit=1")).await.expect(200);
    confined.delete(&format!("/v1/capsules/{other}/logs")).await.expect(204);
    looks.get(&logs(&id, "limit=1")).await.expect(200);
    looks.delete(&one).await.refuses(403, "forbidden", "capsules:admin");
    platform.finish();
}

#[tokio::test]
async fn stream_ends_when_its_key_is_revoked() {
    let (platform, client, id) = capsule().await;
    let made = client.post("/v1/api-keys", &json!({ "name": "k" })).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    let mut stream = Stream::open(&key, &logs(&id, "follow=true"), None).await;
    let revoked = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    client.delete(&revoked).await.expect(204);
    let mut last = None;
    while let Some(event) = stream.next().await {
        last = Some(event);
    }
    let (_, _, data) = last.unwrap();
    assert!(data["error"]["code"].is_string(), "{data}");
    platform.finish();
}

#[tokio::test]
async fn wrong_parameters_are_refused_by_name() {
    let (platform, client, id) = capsule().await;
    for (query, field) in [
        ("since=yesterday", "since"),
        ("until=1", "until"),
        ("source=disk", "source"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("cursor=a%20b", "cursor"),
        ("colour=red", "colour"),
        ("follow=true&backward=true", "backward"),
        ("follow=true&until=2026-01-01T00:00:00Z", "until"),
    ] {
        client.get(&logs(&id, query)).await.refuses(400, "invalid_request", field);
    }
    let long = format!("search={}", "x".repeat(257));
    client.get(&logs(&id, &long)).await.refuses(400, "invalid_request", "search");
    let request = client.request(Method::GET, &logs(&id, "follow=true"));
    let request = request.header("last-event-id", "a b");
    client.send(request).await.refuses(400, "invalid_request", "last-event-id");
    let wrong = json!({ "logs": "some" });
    client.post("/v1/capsules", &wrong).await.refuses(400, "invalid_request", "logs");
    platform.finish();
}

#[tokio::test]
async fn setting_decides_which_output_is_kept() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let shown = async |id: &str| {
        client.get(&format!("/v1/capsules/{id}")).await.expect(200)["logs"].clone()
    };
    let usual = client.create(&json!({})).await;
    let all = client.create(&json!({ "logs": "all" })).await;
    let none = client.create(&json!({ "logs": "none" })).await;
    assert_eq!(
        (shown(&usual).await, shown(&all).await, shown(&none).await),
        (json!("background"), json!("all"), json!("none"))
    );
    for id in [&usual, &all, &none] {
        assert_eq!(client.out(id, "echo front").await, "front\n");
        background(&client, id, "echo back").await;
    }
    until(&client, &logs(&usual, "source=process"), "back").await;
    until(&client, &logs(&all, "source=process"), "back").await;
    until(&client, &logs(&all, "source=process"), "front").await;
    let page = client.get(&logs(&usual, "source=process")).await.expect(200);
    assert!(!texts(&page).contains(&"front"), "{page}");
    let page = client.get(&logs(&none, "source=process,console")).await.expect(200);
    assert!(texts(&page).is_empty(), "{page}");
    // The policy holds after a resume, and passes to forks.
    client.pause(&all).await;
    client.resume(&all).await;
    client.out(&all, "echo later").await;
    until(&client, &logs(&all, "source=process"), "later").await;
    let forked = client.post(&format!("/v1/capsules/{all}/fork"), &json!({})).await.expect(201);
    assert_eq!(forked["items"][0]["logs"], "all");
    platform.finish();
}

#[tokio::test]
async fn changed_setting_holds_at_once_and_earlier_output_stays_unlogged() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({ "logs": "none" })).await;
    let (path, log) = (format!("/v1/capsules/{id}"), logs(&id, "limit=1000"));
    let set = async |logs: &str| {
        let changed = client.patch(&path, &json!({ "logs": logs })).await.expect(200);
        assert_eq!(changed["logs"], logs);
    };
    client.out(&id, "echo first").await;
    set("all").await;
    client.out(&id, "echo second").await;
    let page = until(&client, &log, "second").await;
    assert!(!texts(&page).contains(&"first"), "{page}");
    assert!(texts(&page).contains(&"The log has output from here"), "{page}");
    set("none").await;
    client.out(&id, "echo third").await;
    set("background").await;
    client.out(&id, "echo fourth").await;
    background(&client, &id, "echo fifth").await;
    let page = until(&client, &log, "fifth").await;
    let lines = texts(&page);
    assert!(!lines.contains(&"third") && !lines.contains(&"fourth"), "{page}");
    assert_eq!(lines.iter().filter(|line| **line == "second").count(), 1, "{page}");
    // A paused capsule takes the setting, which holds after its resume.
    client.pause(&id).await;
    set("all").await;
    client.resume(&id).await;
    client.out(&id, "echo sixth").await;
    until(&client, &log, "sixth").await;
    let wrong = client.patch(&path, &json!({ "logs": "some" })).await;
    wrong.refuses(400, "invalid_request", "logs");
    let events = client.get(&format!("/v1/events?resource={id}&kind=capsule.changed")).await;
    let events = events.expect(200);
    let changes = events["items"].as_array().unwrap();
    assert!(changes.iter().all(|event| event["data"]["fields"] == json!(["logs"])), "{events}");
    assert!(!changes.is_empty());
    platform.finish();
}

#[tokio::test]
async fn team_setting_is_the_default_of_new_capsules_and_only_admins_change_it() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let owner = platform.user("owner@example.com").await;
    let teams = owner.get("/v1/teams").await.expect(200);
    let team = teams["items"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(teams["items"][0]["logs"], "background");
    let path = format!("/v1/teams/{team}");
    let changed = owner.patch(&path, &json!({ "logs": "none" })).await.expect(200);
    assert_eq!(changed["logs"], "none");
    owner.patch(&path, &json!({ "logs": "much" })).await.refuses(400, "invalid_request", "logs");
    let owner = owner.in_team(&team);
    let made = owner.post("/v1/capsules", &json!({})).await.expect(201);
    assert_eq!(made["logs"], "none");
    let made = owner.post("/v1/capsules", &json!({ "logs": "background" })).await.expect(201);
    assert_eq!(made["logs"], "background");
    let key = owner.post("/v1/api-keys", &json!({ "name": "k" })).await.expect(201);
    let key = platform.client_with(key["key"].as_str().unwrap());
    key.patch(&path, &json!({ "logs": "all" })).await.refuses(403, "forbidden", "team:admin");
    assert_eq!(key.get(&path).await.expect(200)["logs"], "none");
    let entries = owner.get("/v1/audit-logs?action=team.set_logs").await.expect(200);
    assert_eq!(entries["items"][0]["metadata"]["logs"], "none");
    platform.finish();
}

#[tokio::test]
async fn erased_log_is_gone_and_new_entries_follow() {
    let (platform, client, id) = capsule().await;
    background(&client, &id, "echo secret").await;
    let path = logs(&id, "source=process");
    until(&client, &path, "secret").await;
    client.delete(&format!("/v1/capsules/{id}/logs")).await.expect(204);
    let page = client.get(&path).await.expect(200);
    assert!(!texts(&page).contains(&"secret"), "{page}");
    background(&client, &id, "echo harmless").await;
    let page = until(&client, &path, "harmless").await;
    assert!(!texts(&page).contains(&"secret"), "{page}");
    // The log of an ended capsule is erased, too.
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    until(&client, &path, "harmless").await;
    client.delete(&format!("/v1/capsules/{id}/logs")).await.expect(204);
    let page = client.get(&path).await.expect(200);
    assert!(texts(&page).is_empty(), "{page}");
    let entries = client.get("/v1/audit-logs?action=capsule.erase_logs").await;
    assert_eq!(entries.expect(200)["items"].as_array().unwrap().len(), 2);
    platform.finish();
}

#[tokio::test]
async fn logs_of_an_ended_team_are_erased_soon() {
    let mut platform = Platform::start(Driver::Fake, &[]).await;
    let owner = platform.user("owner@example.com").await;
    let team = owner.post("/v1/teams", &json!({ "name": "Short" })).await.expect(201);
    let team = team["id"].as_str().unwrap().to_owned();
    let in_team = owner.in_team(&team);
    let id = in_team.create(&json!({})).await;
    background(&in_team, &id, "echo left").await;
    until(&in_team, &logs(&id, "source=process"), "left").await;
    in_team.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    owner.delete(&format!("/v1/teams/{team}")).await.expect(204);
    // The leader looks for such logs at its start.
    platform.kill();
    platform.resume().await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let erased = "SELECT logs_erased FROM teams WHERE deleted_at IS NOT NULL";
    let limit = Instant::now() + Duration::from_secs(60);
    while !sqlx::query_scalar::<_, bool>(erased).fetch_one(&mut db).await.unwrap() {
        assert!(Instant::now() < limit, "the log was not erased in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    platform.finish();
}

#[tokio::test]
async fn e2b_clients_read_logs_in_both_shapes() {
    let (platform, client, id) = capsule().await;
    let script = "printf 'a\\033[2Jb\\n'; echo second; echo bad >&2";
    background(&client, &id, script).await;
    let v1 = format!("/sandboxes/{id}/logs");
    // Entries of the capsule's moves and of the exit are left out, since they may still come.
    let written = |text: &&str| ["second", "bad"].contains(text) || text.starts_with("a\\");
    let messages = |list: &Value| -> Vec<String> {
        let list = list.as_array().unwrap().iter();
        let list = list.map(|entry| entry["message"].as_str().unwrap());
        list.filter(written).map(str::to_owned).collect()
    };
    let first = eventually("E2B's first API shows the lines", async || {
        let first = client.get(&format!("{v1}?start=0&limit=1000")).await.expect(200);
        let seen = messages(&first["logEntries"]);
        let all = ["second", "bad"].iter().all(|text| seen.iter().any(|seen| seen == text));
        all.then_some(first)
    })
    .await;
    let [lines, entries] = ["logs", "logEntries"].map(|list| first[list].as_array().unwrap());
    assert_eq!(lines.len(), entries.len());
    for (line, entry) in lines.iter().zip(entries) {
        // The command line parses each line, and prints what it finds.
        let read: Value = serde_json::from_str(line["line"].as_str().unwrap()).unwrap();
        assert_eq!(read["message"], entry["message"]);
        assert_eq!(read["level"], entry["level"]);
        assert_eq!(read["logger"], entry["fields"]["logger"]);
        assert_eq!(line["timestamp"], entry["timestamp"]);
    }
    let seen = messages(&first["logEntries"]);
    assert!(seen.iter().any(|text| text == "a\\u{1b}[2Jb"), "{seen:?}");
    let v2 = format!("/v2{v1}");
    let forward = client.get(&format!("{v2}?direction=forward&cursor=0")).await.expect(200);
    let mut forward = messages(&forward["logs"]);
    assert_eq!(forward, seen);
    let backward = client.get(&v2).await.expect(200);
    forward.reverse();
    assert_eq!(messages(&backward["logs"]), forward, "the newest come first by default");
    let warnings = client.get(&format!("{v2}?level=warn")).await.expect(200);
    assert_eq!(messages(&warnings["logs"]), ["bad"]);
    assert_eq!(warnings["logs"][0]["fields"]["stream"], "stderr");
    let found = client.get(&format!("{v2}?search=secon&limit=1")).await.expect(200);
    assert_eq!(messages(&found["logs"]), ["second"]);
    for wrong in ["direction=up", "level=loud", "cursor=x", "limit=-1"] {
        assert_eq!(client.get(&format!("{v2}?{wrong}")).await.status, 400, "{wrong}");
    }
    let later = client.get(&format!("{v1}?start=99999999999999")).await.expect(200);
    assert_eq!(later, json!({ "logs": [], "logEntries": [] }));
    client.delete(&format!("/sandboxes/{id}")).await.expect(204);
    let ended = client.get(&format!("{v1}?start=0")).await.expect(200);
    assert!(messages(&ended["logEntries"]).iter().any(|text| text == "second"), "{ended}");
    platform.finish();
}

#[tokio::test]
async fn command_prints_and_follows_a_log_until_the_capsule_ends() {
    let (platform, client, id) = capsule().await;
    background(&client, &id, "printf 'one \\033]0;x\\007\\n'; echo two").await;
    until(&client, &logs(&id, "source=process"), "two").await;
    let shown = platform.run(&["capsule", "logs", &id, "--source", "process"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.status.success() && text.contains(" stdout    one \\x1b]0;x\\u{7}\n"), "{text}");
    let shown = platform.run(&["capsule", "logs", &id, "--search", "two", "-n", "1", "--json"]);
    let entry: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&entry["text"], &entry["stream"]), (&json!("two"), &json!("stdout")));
    let since = platform.run(&["capsule", "logs", &id, "--since", "1h", "--source", "process"]);
    assert!(String::from_utf8(since.stdout).unwrap().starts_with(&text));
    let mut command = platform.wrenn();
    command.args(["capsule", "logs", &id, "-f", "-n", "0", "--source", "process"]);
    let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    background(&client, &id, "echo three").await;
    until(&client, &logs(&id, "source=process"), "three").await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    let out = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
    let followed = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success() && !followed.contains("one"), "{followed}");
    let wrong = platform.run(&["capsule", "logs", &id, "--since", "soon"]);
    assert_eq!(wrong.status.code(), Some(2));
    platform.finish();
}
