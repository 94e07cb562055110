//! Logs of builds: live, complete, the same by pages, by server-sent events and by E2B's status.

use super::{platform, runs};
use serde_json::{Value, json};
use tests::{Client, Replica};

/// Reads a log as E2B's clients do: pages of the status, until one is empty.
async fn by_e2b(client: &Client, template: &str, build: &str) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let offset = lines.len();
        let path = format!("/templates/{template}/builds/{build}/status?logsOffset={offset}");
        let page = client.get(&path).await.expect(200);
        let entries = page["logEntries"].as_array().unwrap();
        if entries.is_empty() {
            return lines;
        }
        let text = |entry: &Value| entry["message"].as_str().unwrap().to_owned();
        lines.extend(entries.iter().map(text));
    }
}

#[tokio::test]
async fn log_of_many_lines_is_cut_once_and_equal_by_every_way() {
    let (platform, client) = platform().await;
    let id = client.begin(&runs("many", &["lines 100000", "after"])).await;
    let mut follow = client.follow(&id, None).await;
    let (followed, build) = follow.all().await;
    assert!(follow.next().await.is_none(), "the end is the last event");
    assert_eq!(build["status"], "ready", "{build}");
    assert_eq!(build["id"], id.as_str());
    for ((seq, text), wanted) in followed.iter().zip(1..) {
        assert_eq!(*seq, wanted, "at {text}");
    }
    let lines: Vec<String> = followed.into_iter().map(|(_, text)| text).collect();
    let cuts = lines.iter().filter(|line| line.starts_with("log cut")).count();
    assert_eq!(cuts, 1, "{:?}", &lines[lines.len() - 300..]);
    assert!((10_000..12_000).contains(&lines.len()), "{} lines", lines.len());
    let number = |line: &String| line.strip_suffix('\n').unwrap_or(line).ends_with("line 1");
    assert_eq!(lines.iter().filter(|line| number(line)).count(), 1, "no line comes twice");
    assert!(lines.iter().any(|line| line.ends_with("line 100000")), "the last lines follow");
    assert_eq!(client.lines(&id).await, lines);
    let listed = client.get("/templates").await.expect(200);
    let listed = listed.as_array().unwrap().iter().find(|one| one["aliases"][0] == "many").unwrap();
    let template = listed["templateID"].as_str().unwrap();
    assert_eq!(by_e2b(&client, template, &id).await, lines);
    platform.finish();
}

#[tokio::test]
async fn lines_come_while_the_build_runs_and_reconnects_go_on_after_the_last_one() {
    let (platform, client) = platform().await;
    let id = client.begin(&runs("live", &["early", "sleep 3", "late"])).await;
    let mut follow = client.follow(&id, None).await;
    let mut last = 0;
    loop {
        let event = follow.next().await.unwrap();
        last = event.seq.unwrap().max(last);
        if event.data["text"].as_str().unwrap().ends_with("[stdout]: early") {
            break;
        }
    }
    assert_eq!(client.see_build(&id).await["status"], "building");
    drop(follow);
    // A client that comes back, at any replica, gets each later line once.
    let replica = Replica::start(&platform);
    let mut follow = client.at(&replica.url).follow(&id, Some(last)).await;
    let (rest, build) = follow.all().await;
    assert_eq!(build["status"], "ready");
    assert_eq!(rest.first().unwrap().0, last + 1);
    let whole = client.lines(&id).await;
    let texts: Vec<String> = rest.into_iter().map(|(_, text)| text).collect();
    let skip = usize::try_from(last).unwrap();
    assert_eq!(texts, whole[skip..], "no loss, no repetition");
    // A log of an ended build is followed to its end at once, from any line.
    let (again, _) = client.follow(&id, Some(last)).await.all().await;
    assert_eq!(again.len(), texts.len());
    // Levels and pages choose lines.
    let path = format!("/v1/builds/{id}/logs");
    let errors = client.get(&format!("{path}?level=error")).await.expect(200);
    assert_eq!(errors["items"], json!([]));
    let page = client.get(&format!("{path}?from=2&limit=1")).await.expect(200);
    assert_eq!((page["items"].as_array().unwrap().len(), &page["next"]), (1, &json!(3)));
    for (query, field) in [("limit=0", "limit"), ("level=loud", "level"), ("colour=1", "colour")] {
        client.get(&format!("{path}?{query}")).await.refuses(400, "invalid_request", field);
    }
    platform.finish();
}

#[tokio::test]
async fn failed_build_ends_its_log_with_the_reason() {
    let (platform, client) = platform().await;
    let id = client.begin(&runs("bad", &["one", "exit 3", "three"])).await;
    let (lines, build) = client.follow(&id, None).await.all().await;
    assert_eq!(build["status"], "error");
    assert_eq!(build["error"]["step"], "2");
    let message = "failed to run command 'exit 3': exit status 3";
    assert_eq!(build["error"]["message"], message);
    assert!(build["error"]["output"].to_string().contains("leaving with 3"), "{build}");
    assert!(lines.last().unwrap().1.starts_with("Build failed: "), "{lines:?}");
    assert!(lines.iter().all(|(_, line)| !line.contains("three")), "{lines:?}");
    let missing = json!({ "name": "bad", "from": { "image": "missing/x:1" } });
    let missing = client.attempt(&missing).await;
    missing.failed("base", "image 'missing/x:1' not found");
    platform.finish();
}
