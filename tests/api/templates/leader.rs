//! Death of the control plane that runs a build, while another one serves its clients.

use super::{limit, runs};
use crate::hosts::Second;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use tests::{Client, Driver, Follow, Platform, Replica, eventually};

/// Number of the advisory lock that a leader holds: the text `wrenn`.
const LEADER: i64 = 0x0077_7265_6e6e;

/// Waits until a control plane leads.
async fn someone_leads(database: &str) {
    let mut db = PgConnection::connect(database).await.unwrap();
    let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted \
               AND ((classid::bigint << 32) | objid::bigint) = $1";
    for _ in 0..600 {
        let held: i64 = sqlx::query_scalar(sql).bind(LEADER).fetch_one(&mut db).await.unwrap();
        if held > 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("no control plane leads");
}

/// Reads a followed log up to a line that ends with a text. Returns the number of that line.
async fn read_to(follow: &mut Follow, end: &str) -> u64 {
    loop {
        let event = follow.next().await.expect("the stream ended early");
        let seq = event.seq.expect("the build ended early");
        if event.data["text"].as_str().unwrap().ends_with(end) {
            return seq;
        }
    }
}

/// Counts the lines of a build that end with a text. Fails when the log has a gap.
async fn count(client: &Client, id: &str, end: &str) -> usize {
    client.lines(id).await.iter().filter(|line| line.ends_with(end)).count()
}

#[tokio::test]
async fn build_goes_on_at_another_control_plane_when_its_leader_dies() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let separate = platform.separate_database().await;
    // The first one leads, since it was alone.
    let first = Replica::over(&platform, &separate);
    someone_leads(&separate).await;
    let second = Replica::over(&platform, &separate);
    let client = second.client();
    let host = Second::start(&platform, &client).await;
    // A cancelled build counts until it has ended.
    limit(&client, &client, json!({ "builds": 3 })).await;
    let slow = client.begin(&runs("web", &["begun", "sleep 8", "ended"])).await;
    let other = client.begin(&runs("other", &["begun", "sleep 1000"])).await;
    let mut follow = client.follow(&slow, None).await;
    let seen = read_to(&mut follow, "[stdout]: begun").await;
    client.logged(&other, "[stdout]: begun").await;
    drop(first);
    // Until it leads, the second one answers, declares and cancels.
    assert_eq!(client.see_build(&slow).await["status"], "building");
    client.cancel(&other).await.expect(200);
    let late = client.begin(&runs("late", &["x"])).await;
    // A follower's connection goes on, with each later line once.
    let (rest, build) = follow.all().await;
    assert_eq!((&build["status"], build["id"].as_str()), (&json!("ready"), Some(slow.as_str())));
    assert_eq!(rest.first().map(|(seq, _)| *seq), Some(seen + 1));
    for text in ["[stdout]: begun", "[stdout]: ended"] {
        assert_eq!(count(&client, &slow, text).await, 1, "{text}");
    }
    assert_eq!(client.ended(&late).await.body["status"], "ready");
    let ended = client.ended(&other).await;
    assert_eq!(ended.body["error"]["message"], "The build was canceled.", "{}", ended.body);
    let id = client.create(&json!({ "template": format!("web@{slow}") })).await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    eventually("no capsule of a build is left", async || {
        let mut db = PgConnection::connect(&separate).await.unwrap();
        let sql = "SELECT count(*) FROM capsules WHERE status <> 'stopped'";
        let left: i64 = sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap();
        (left == 0).then_some(())
    })
    .await;
    drop(second);
    drop(host);
    platform.finish();
}
