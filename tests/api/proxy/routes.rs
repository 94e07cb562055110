//! The route cache: the queries that it saves, and its correctness after changes.

use super::{figure, psql};
use crate::capsule;
use reqwest::Method;
use tests::{Client, Driver, Platform, Replica, Upstream, eventually};

async fn status(client: &Client, id: &str, port: u16) -> u16 {
    client.to_port(Method::GET, id, port, "/").send().await.unwrap().status().as_u16()
}

/// Returns how often the proxy's queries were executed. Only they name columns by the alias `c`.
fn executed(platform: &Platform) -> u64 {
    let sql = "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements \
               WHERE query LIKE '%c.traffic_token%' OR query LIKE '%api_keys%'";
    psql(platform, sql).parse().unwrap()
}

/// Starts a platform whose PostgreSQL counts the statements that it executes.
async fn counting() -> Platform {
    let mut platform = Platform::start(Driver::Fake, &[]).await;
    psql(&platform, "ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'");
    platform.stop();
    platform.resume().await;
    psql(&platform, "CREATE EXTENSION pg_stat_statements");
    platform
}

#[tokio::test]
async fn cache_miss_costs_one_query_and_hit_none() {
    let platform = counting().await;
    let client = platform.client();
    let (one, guest) = (client.create(&serde_json::json!({})).await, Upstream::echo());
    let two = client.create(&serde_json::json!({})).await;
    psql(&platform, "SELECT pg_stat_statements_reset()");
    // The cache knows neither the capsule nor the key, and many requests come at once.
    let asks = (0..20).map(|_| {
        let (client, one, port) = (client.clone(), one.clone(), guest.port);
        tokio::spawn(async move { assert_eq!(status(&client, &one, port).await, 200) })
    });
    futures::future::join_all(asks).await.into_iter().for_each(|asked| asked.unwrap());
    assert_eq!(executed(&platform), 1);
    for _ in 0..50 {
        assert_eq!(status(&client, &one, guest.port).await, 200);
    }
    assert_eq!(executed(&platform), 1);
    // The capsule is new, and the key is known.
    assert_eq!(status(&client, &two, guest.port).await, 200);
    assert_eq!(executed(&platform), 2);
    // The key is new, and the capsule is known.
    let wrong = platform.client_with("e2b_wrong");
    assert_eq!(status(&wrong, &two, guest.port).await, 401);
    assert_eq!(executed(&platform), 3);
    platform.finish();
}

/// A visit by a link's cookie causes no query once the link's maker is known. PostgreSQL counts the
/// queries.
#[tokio::test]
async fn link_with_cached_maker_costs_no_query() {
    let platform = counting().await;
    let client = platform.client();
    let (id, guest) = (client.create(&serde_json::json!({})).await, Upstream::echo());
    let links = format!("/v1/capsules/{id}/ports/{}/links", guest.port);
    let link = client.post(&links, &serde_json::json!({})).await.expect(201);
    let cookie = link["url"].as_str().unwrap().split_once('?').unwrap().1.to_owned();
    let nobody = platform.client_with("");
    let visit = async || {
        let ask = nobody.to_port(Method::GET, &id, guest.port, "/").header("cookie", &cookie);
        assert_eq!(ask.send().await.unwrap().status().as_u16(), 200);
    };
    // With two replicas, each has a cache of its own to warm.
    visit().await;
    visit().await;
    psql(&platform, "SELECT pg_stat_statements_reset()");
    for _ in 0..50 {
        visit().await;
    }
    assert_eq!(executed(&platform), 0);
    platform.finish();
}

#[tokio::test]
async fn deleted_capsule_is_not_found_on_every_replica() {
    let (platform, client, id) = capsule().await;
    let replica = Replica::start(&platform);
    let there = client.at(&replica.url);
    let guest = Upstream::echo();
    assert_eq!(status(&client, &id, guest.port).await, 200);
    assert_eq!(status(&there, &id, guest.port).await, 200);
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    // The change holds at once on the replica that made it, and elsewhere once it is announced.
    assert_eq!(status(&client, &id, guest.port).await, 404);
    let lookups = figure(&there, "wrenn_proxy_lookups_total").await;
    eventually("the replica knows", || async {
        (status(&there, &id, guest.port).await == 404).then_some(())
    })
    .await;
    assert!(figure(&there, "wrenn_proxy_lookups_total").await <= lookups + 2.0);
    drop(replica);
    platform.finish();
}

#[tokio::test]
async fn state_of_capsule_that_is_not_running_is_named() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::echo();
    assert_eq!(status(&client, &id, guest.port).await, 200);
    let ask = || client.to_port(Method::GET, &id, guest.port, "/");
    for (state, code, word) in [
        ("paused", "capsule_paused", "is paused"),
        ("pausing", "capsule_not_running", "is pausing"),
        ("error", "capsule_not_running", "is error"),
    ] {
        psql(&platform, &format!("UPDATE capsules SET status = '{state}'"));
        eventually(word, || async {
            let answer = client.send(ask()).await;
            let told = answer.body["error"]["message"].as_str().is_some_and(|m| m.contains(word));
            told.then(|| answer.refuses(409, code, word))
        })
        .await;
    }
    // A caller without access learns nothing of the capsule's state.
    assert_eq!(status(&platform.client_with(""), &id, guest.port).await, 401);
    platform.finish();
}

#[tokio::test]
async fn cache_is_dropped_when_database_notifications_are_lost() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::echo();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
    for round in 0..3 {
        assert_eq!(status(&client, &id, guest.port).await, 200);
        psql(&platform, end);
        // A cache that kept its entries would miss this change.
        let public = round % 2 == 0;
        let set = if public { format!("'{{{}}}'", guest.port) } else { "'{}'".to_owned() };
        psql(&platform, &format!("UPDATE capsules SET public_ports = {set}"));
        let wanted = if public { 200 } else { 401 };
        let nobody = platform.client_with("");
        eventually("the change is seen", || async {
            (status(&nobody, &id, guest.port).await == wanted).then_some(())
        })
        .await;
    }
    platform.finish();
}

#[tokio::test]
async fn proxy_recovers_when_agent_returns() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let database = platform.separate_database().await;
    let replica = Replica::over(&platform, &database);
    let client = replica.client();
    let (mut agent, address) = platform.agent(&client, dir.path(), "127.0.0.1:0").await;
    let id = client.create(&serde_json::json!({})).await;
    let guest = Upstream::echo();
    assert_eq!(status(&client, &id, guest.port).await, 200);
    agent.kill().unwrap();
    agent.wait().unwrap();
    let answer = client.send(client.to_port(Method::GET, &id, guest.port, "/")).await;
    answer.refuses(503, "host_unavailable", "host does not answer");
    let (mut agent, _) = platform.agent(&client, dir.path(), &address).await;
    eventually("the capsule is found again", || async {
        (status(&client, &id, guest.port).await == 200).then_some(())
    })
    .await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    agent.kill().unwrap();
    agent.wait().unwrap();
    drop(replica);
    platform.finish();
}
