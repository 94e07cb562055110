//! A control plane that is away. Its hosts go on, and it finds all that their capsules did.

use crate::hosts::Second;
use serde_json::{Value, json};
use tests::{Driver, Platform, Replica, eventually};

/// Writes a numbered line ten times a second.
const LINES: &str = "i=0; while sleep 0.1; do i=$((i+1)); echo line $i; done";
/// Lines until the control plane is back.
const AWAY: usize = 120;

/// Returns the team in a capsule's record.
fn team(host: &Second, id: &str) -> String {
    let record = host.dir.path().join("capsules").join(id).join("capsule.json");
    let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    record["team"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn control_plane_that_was_away_finds_each_line_once_and_metrics_without_a_gap() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let database = platform.separate_database().await;
    let replica = Replica::over(&platform, &database);
    let client = replica.client();
    let host = Second::start(&platform, &client).await;
    let id = client.create(&json!({})).await;
    let body = json!({ "cmd": "sh", "args": ["-c", LINES], "background": true });
    client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(202);
    let logs = format!("/v1/capsules/{id}/logs?source=process&search=line&limit=1000");
    eventually("lines come", async || {
        let page = client.get(&logs).await.expect(200);
        (!page["items"].as_array().unwrap().is_empty()).then_some(())
    })
    .await;
    drop(replica);
    let agent = platform.client_of_agent(&host.address).below("/wrenn.host.v1.Host");
    let last = format!("line {AWAY}");
    let ask = json!({ "capsuleId": id, "teamId": team(&host, &id), "search": last });
    eventually("the capsule goes on without a control plane", async || {
        let answer = agent.post("/ReadLog", &ask).await.expect(200);
        answer["entries"].as_array().is_some_and(|entries| !entries.is_empty()).then_some(())
    })
    .await;
    let again = Replica::over(&platform, &database);
    let client = client.at(&again.url);
    let page = eventually("the control plane reads its host again", async || {
        let page = client.get(&logs).await;
        (page.status.as_u16() == 200).then_some(page.body)
    })
    .await;
    let items = page["items"].as_array().unwrap();
    let numbers = items.iter().map(|item| {
        let text = item["text"].as_str().unwrap();
        text.strip_prefix("line ").unwrap().parse::<usize>().unwrap()
    });
    let numbers: Vec<usize> = numbers.collect();
    assert!(numbers.len() >= AWAY, "{numbers:?}");
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());
    let path = format!("/v1/capsules/{id}/metrics?points=1000");
    let series = eventually("the host has samples", async || {
        let series = client.get(&path).await.expect(200);
        (series["items"].as_array().unwrap().len() > 2).then_some(series)
    })
    .await;
    let points = series["items"].as_array().unwrap();
    let gaps = points.iter().filter(|point| point["gap"] == true).count();
    assert_eq!((gaps, &points[0]["gap"]), (1, &json!(true)), "{series}");
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    drop(again);
    drop(host);
    platform.finish();
}
