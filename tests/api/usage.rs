//! Usage by day, from the times at which things began and ended, exact to less than a second.

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::time::Duration;
use tests::{Client, Driver, Platform, eventually};

async fn total(client: &Client, query: &str, field: &str) -> f64 {
    let usage = client.get(&format!("/v1/usage{query}")).await.expect(200);
    usage["items"].as_array().unwrap().iter().map(|day| day[field].as_f64().unwrap()).sum()
}

fn seconds(from: &Value, to: &Value) -> f64 {
    let time = |at: &Value| {
        let (_, clock) = at.as_str().unwrap().split_once('T').unwrap();
        let parts: Vec<f64> =
            clock.trim_end_matches('Z').split(':').map(|part| part.parse().unwrap()).collect();
        parts[0] * 3600.0 + parts[1] * 60.0 + parts[2]
    };
    (time(to) - time(from)).rem_euclid(86_400.0)
}

#[tokio::test]
async fn usage_counts_capsule_only_while_running() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({ "vcpus": 3, "memory_mib": 256, "disk_mib": 100 })).await;
    tokio::time::sleep(Duration::from_millis(1300)).await;
    let paused = client.change(&id, "pause", &json!({})).await;
    let ran = seconds(&paused["started_at"], &paused["last_updated"]);
    assert!(ran > 1.3);
    let (vcpus, memory) = ("vcpu_seconds", "memory_mib_seconds");
    assert!((total(&client, "", vcpus).await - 3.0 * ran).abs() < 0.01);
    assert!((total(&client, "", memory).await - 256.0 * ran).abs() < 0.5);
    // A paused capsule uses only its disk.
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!((total(&client, "", vcpus).await - 3.0 * ran).abs() < 0.01);
    let resumed = client.change(&id, "resume", &json!({})).await;
    let one = total(&client, "", vcpus).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let two = total(&client, "", vcpus).await;
    assert!(two - one > 0.8, "what runs is counted up to now: {one} {two}");
    // A second pause ends the usage too. After the removal, the storage stops growing.
    let again = client.change(&id, "pause", &json!({})).await;
    let more = seconds(&resumed["last_updated"], &again["last_updated"]);
    assert!((total(&client, "", vcpus).await - 3.0 * (ran + more)).abs() < 0.02);
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    let kept = total(&client, "", "storage_mib_seconds").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!((total(&client, "", "storage_mib_seconds").await - kept).abs() < 1e-6);
    assert!(kept > 100.0 * (ran + more));
    platform.finish();
}

#[tokio::test]
async fn usage_across_midnight_is_split_by_day_and_kept_by_rollup() {
    let mut platform = Platform::start(Driver::Fake, &[]).await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let sql = "INSERT INTO usage_spans (team_id, capsule_id, vcpus, memory_mib, began_at, ended_at) \
               SELECT id, gen_random_uuid(), 2, 512, \
               (date_trunc('day', now() AT TIME ZONE 'UTC') - interval '10 days 1 hour') AT TIME ZONE 'UTC', \
               (date_trunc('day', now() AT TIME ZONE 'UTC') - interval '9 days') AT TIME ZONE 'UTC' \
               + interval '90 minutes' FROM teams WHERE name = 'Default'";
    sqlx::query(sql).execute(&mut db).await.unwrap();
    let used = async |client: &Client| -> Vec<(f64, f64)> {
        let usage = client.get("/v1/usage").await.expect(200);
        let days = usage["items"].as_array().unwrap();
        assert_eq!(days.len(), 30);
        let number = |day: &Value, field: &str| day[field].as_f64().unwrap();
        let pair = |day: &Value| (number(day, "vcpu_seconds"), number(day, "memory_mib_seconds"));
        days.iter().map(pair).filter(|(vcpus, _)| *vcpus > 0.0).collect()
    };
    let hours = |n: f64| (2.0 * n * 3600.0, 512.0 * n * 3600.0);
    let wanted = vec![hours(1.0), hours(24.0), hours(1.5)];
    assert_eq!(used(&platform.client()).await, wanted);
    platform.kill();
    platform.resume().await;
    let spans = async |db: &mut PgConnection| -> i64 {
        let sql = "SELECT count(*) FROM usage_spans WHERE ended_at < now() - interval '5 days'";
        sqlx::query_scalar(sql).fetch_one(db).await.unwrap()
    };
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    for _ in 0..600 {
        if spans(&mut db).await == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(spans(&mut db).await, 0, "they were not added up");
    assert_eq!(used(&platform.client()).await, wanted);
    let client = platform.client();
    for (query, field) in
        [("?from=x", "from"), ("?to=2026-13-01", "to"), ("?from=2020-01-01", "from")]
    {
        client.get(&format!("/v1/usage{query}")).await.refuses(400, "invalid_request", field);
    }
    platform.finish();
}

#[tokio::test]
async fn usage_of_lost_vm_stops() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({})).await;
    for pid in tests::processes_of(&id) {
        tests::signal(pid, rustix::process::Signal::KILL);
    }
    eventually("it is an error", async || (client.status(&id).await == "error").then_some(()))
        .await;
    let one = total(&client, "", "vcpu_seconds").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!((total(&client, "", "vcpu_seconds").await - one).abs() < 1e-6);
    platform.finish();
}
