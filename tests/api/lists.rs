//! Lists of capsules: filters, orders, pages, ended capsules and counts.

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::collections::BTreeSet;
use tests::{Client, Driver, Platform, eventually};

/// Returns the names in a list with this query, in its order.
async fn names(client: &Client, query: &str) -> Vec<String> {
    let list = client.get(&format!("/v1/capsules?{query}")).await.expect(200);
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["name"].as_str().unwrap_or("-").to_owned()).collect()
}

/// Starts a platform with the capsules `a`, `b` and `c`. `b` is paused, and `c` is a copy of `a`.
async fn three() -> (Platform, Client) {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let of = |name: &str, job: &str| json!({ "name": name, "memory_mib": 128, "metadata": { "job": job, "all": "x y" } });
    client.create(&of("a", "1")).await;
    client.create(&of("b", "2")).await;
    client.pause("b").await;
    let copy = client.post("/v1/capsules/a/fork", &json!({ "name": "c" })).await;
    copy.expect(201);
    (platform, client)
}

#[tokio::test]
async fn each_filter_lists_only_the_capsules_that_meet_it() {
    let (platform, client) = three().await;
    let a = client.get("/v1/capsules/a").await.expect(200);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (id, host, template) = (text(&a["id"]), text(&a["host_id"]), text(&a["parent"]["id"]));
    let (key, copied) = (text(&a["created_by"]["id"]), client.get("/v1/capsules/c").await);
    let snapshot = text(&copied.expect(200)["snapshot"]);
    let absent = format!("snap-{}", "0".repeat(25));
    for (query, wanted) in [
        (String::new(), vec!["c", "b", "a"]),
        ("status=running".to_owned(), vec!["c", "a"]),
        ("status=paused,error".to_owned(), vec!["b"]),
        ("template=base".to_owned(), vec!["c", "b", "a"]),
        (format!("template={template}"), vec!["c", "b", "a"]),
        ("template=nosuch".to_owned(), vec![]),
        (format!("snapshot={snapshot}"), vec!["c"]),
        (format!("snapshot={absent}"), vec![]),
        (format!("host={host}"), vec!["c", "b", "a"]),
        (format!("created_by={key}"), vec!["c", "b", "a"]),
        ("created_by=key-none".to_owned(), vec![]),
        ("metadata[job]=1".to_owned(), vec!["c", "a"]),
        ("metadata[job]=1&metadata%5Ball%5D=x+y".to_owned(), vec!["c", "a"]),
        ("metadata[job]=1&metadata[all]=z".to_owned(), vec![]),
        ("metadata[job]=1&status=paused".to_owned(), vec![]),
        ("name=b".to_owned(), vec!["b"]),
        ("q=b".to_owned(), vec!["b"]),
        ("q=%25".to_owned(), vec![]),
        (format!("q={}", &id[..12]), vec!["a"]),
        ("q=cl-zzz".to_owned(), vec![]),
        ("ended=true".to_owned(), vec![]),
    ] {
        assert_eq!(names(&client, &query).await, wanted, "{query}");
    }
    let user = platform.user("root@example.com").await;
    let scoped = user.post("/v1/api-keys", &json!({ "name": "k" })).await.expect(201);
    let plain = platform.client_with(scoped["key"].as_str().unwrap());
    let refused = plain.get(&format!("/v1/capsules?host={host}")).await;
    refused.refuses(403, "forbidden", "platform");
    platform.finish();
}

#[tokio::test]
async fn pages_of_every_order_list_each_capsule_once() {
    let (platform, client) = three().await;
    for _ in 0..2 {
        client.create(&json!({ "memory_mib": 128 })).await;
    }
    for (sort, wanted) in [
        ("created_at", ["a", "b", "c", "-", "-"]),
        ("-created_at", ["-", "-", "c", "b", "a"]),
        ("name", ["a", "b", "c", "-", "-"]),
        ("-name", ["-", "-", "c", "b", "a"]),
        ("state_since", ["a", "b", "c", "-", "-"]),
        ("-state_since", ["-", "-", "c", "b", "a"]),
    ] {
        let (mut seen, mut ids, mut before) = (Vec::new(), BTreeSet::new(), String::new());
        for page in 0.. {
            assert!(page < 4, "no end of pages");
            let path = format!("/v1/capsules?limit=2&sort={sort}{before}");
            let list = client.get(&path).await.expect(200);
            for item in list["items"].as_array().unwrap() {
                seen.push(item["name"].as_str().unwrap_or("-").to_owned());
                ids.insert(item["id"].as_str().unwrap().to_owned());
            }
            match list["next"].as_str() {
                Some(next) => before = format!("&before={next}"),
                None => break,
            }
        }
        assert_eq!(seen, wanted, "{sort}");
        assert_eq!(ids.len(), 5, "{sort}");
    }
    platform.finish();
}

#[tokio::test]
async fn ended_capsules_are_listed_apart() {
    let (platform, client) = three().await;
    for name in ["a", "b"] {
        client.delete(&format!("/v1/capsules/{name}")).await.expect(204);
    }
    assert_eq!(names(&client, "").await, ["c"]);
    assert_eq!(names(&client, "ended=true").await, ["b", "a"]);
    assert_eq!(names(&client, "ended=true&sort=state_since").await, ["a", "b"]);
    assert_eq!(names(&client, "ended=true&name=a").await, ["a"]);
    assert_eq!(names(&client, "ended=true&metadata[job]=2").await, ["b"]);
    assert_eq!(names(&client, "ended=true&status=stopped&limit=1").await, ["b"]);
    let list = client.get("/v1/capsules?ended=true").await.expect(200);
    let ended = &list["items"][0];
    assert_eq!(ended["status"], "stopped");
    assert!(ended["ended_at"].is_string(), "{ended}");
    let confined = json!({ "name": "k", "capsule": "c" });
    let confined = client.post("/v1/api-keys", &confined).await.expect(201);
    let confined = platform.client_with(confined["key"].as_str().unwrap());
    assert!(names(&confined, "ended=true").await.is_empty());
    assert_eq!(names(&confined, "").await, ["c"]);
    platform.finish();
}

/// The leader adds up the rows of the counts. Readers see the same counts before and after.
#[tokio::test]
async fn summary_counts_states_and_stays_right_when_counts_are_added_up() {
    let (platform, client) = three().await;
    client.delete("/v1/capsules/c").await.expect(204);
    let wanted = json!({ "total": 2, "by_status": { "running": 1, "paused": 1 }, "ended": 1 });
    let summary = async || client.get("/v1/capsules/summary").await.expect(200);
    assert_eq!(summary().await, wanted);
    // Each round leaves two more rows for each state that it passes.
    for _ in 0..12 {
        client.resume("b").await;
        client.pause("b").await;
    }
    assert_eq!(summary().await, wanted);
    let url = platform.database_url();
    eventually("the counts are added up", async || {
        let mut db = PgConnection::connect(&url).await.unwrap();
        let rows = "SELECT count(*) FROM capsule_counts";
        let rows: i64 = sqlx::query_scalar(rows).fetch_one(&mut db).await.unwrap();
        (rows <= 32).then_some(())
    })
    .await;
    assert_eq!(summary().await, wanted);
    platform.finish();
}

#[tokio::test]
async fn path_of_the_summary_is_no_capsule() {
    let (platform, client) = three().await;
    let removed = client.delete("/v1/capsules/summary").await;
    removed.refuses(405, "method_not_allowed", "method");
    assert_eq!(names(&client, "").await.len(), 3);
    platform.finish();
}
