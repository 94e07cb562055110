//! Metrics of capsules, teams and hosts over time: samples in the host's memory, minutes on its
//! disk, and rows in the database. The tests read them by the APIs.

use crate::auth::other_team;
use crate::capsule;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use tests::{Client, Driver, Platform, Replica, eventually};

/// Returns the present time in seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Returns a time in the form of the API.
async fn text(db: &mut PgConnection, seconds: u64) -> String {
    let sql =
        "SELECT to_char(to_timestamp($1) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";
    sqlx::query_scalar(sql).bind(i64::try_from(seconds).unwrap()).fetch_one(db).await.unwrap()
}

async fn database(platform: &Platform) -> PgConnection {
    PgConnection::connect(&platform.database_url()).await.unwrap()
}

/// Returns a minute in the form of the host's spool, with a sample in each of its slots.
fn minute(capsule: &str, at: u64, cpu: f64, memory: u64) -> Value {
    json!({
        "capsule": capsule,
        "at": at,
        "slots": 0xfff,
        "begins": 1,
        "from_host": true,
        "cpu": vec![cpu; 12],
        "memory": vec![memory; 12],
        "guest_memory": vec![memory / 2; 12],
        "cache": 4096,
        "disk": 8192,
        "received": 1200,
        "sent": 2400,
        "oom_kills": 1,
        "guest_oom_kills": 0,
    })
}

/// Puts a batch into a host's spool.
fn spool(dir: &Path, number: u64, rows: &[Value]) {
    let file = dir.join("stats").join(format!("{number:020}.json"));
    let staged = file.with_extension("staged");
    std::fs::write(&staged, json!(rows).to_string()).unwrap();
    std::fs::rename(staged, file).unwrap();
}

/// Returns the beginning of the minute that is `ago` minutes before the present one.
fn before(ago: u64) -> u64 {
    now() / 60 * 60 - ago * 60
}

/// Returns the metrics of a capsule between two times, in steps of a minute.
async fn minutes(
    client: &Client,
    db: &mut PgConnection,
    id: &str,
    from: u64,
    to: u64,
) -> Vec<Value> {
    let (begin, end) = (text(db, from).await, text(db, to).await);
    let points = (to - from) / 60 + 1;
    let path = format!("/v1/capsules/{id}/metrics?from={begin}&to={end}&points={points}");
    client.get(&path).await.expect(200)["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn running_capsule_has_metrics_at_once_and_samples_as_it_runs() {
    let (platform, client, id) = capsule().await;
    let latest = client.post("/v1/capsules/metrics", &json!({ "ids": [id, "x"] })).await;
    let latest = latest.expect(200);
    let point = &latest["items"][&id];
    assert_eq!(latest["items"].as_object().unwrap().len(), 1, "{latest}");
    // The driver without machines has no control groups, so the guest tells the metrics.
    assert_eq!(point["source"], "guest", "{latest}");
    let (used, total) = (&point["memory_used"], &point["memory_total"]);
    assert!(used.as_u64().unwrap() > 0 && used.as_u64() <= total.as_u64(), "{point}");
    let path = format!("/v1/capsules/{id}/metrics?passive=true&points=1000");
    let items = eventually("two samples are taken", async || {
        let series = client.get(&path).await.expect(200);
        let items = series["items"].as_array().unwrap().clone();
        (items.len() > 1).then_some(items)
    })
    .await;
    assert_eq!(items[0]["gap"], true, "{items:?}");
    client.pause(&id).await;
    let latest = client.post("/v1/capsules/metrics", &json!({ "ids": [id] })).await.expect(200);
    assert_eq!(latest["items"], json!({}));
    client.get(&path).await.expect(200);
    assert_eq!(client.status(&id).await, "paused", "a read woke the capsule");
    let many = vec!["x"; 101];
    let refused = client.post("/v1/capsules/metrics", &json!({ "ids": many })).await;
    refused.refuses(400, "invalid_request", "ids");
    for (query, field) in [("from=x", "from"), ("to=x", "to"), ("points=0", "points")] {
        let refused = client.get(&format!("/v1/capsules/{id}/metrics?{query}")).await;
        refused.refuses(400, "invalid_request", field);
    }
    platform.finish();
}

/// The platform is killed between batches, and the next one collects the rest.
#[tokio::test]
async fn minutes_on_the_hosts_disk_are_collected_and_outlive_the_capsule() {
    let (mut platform, client, id) = capsule().await;
    let other = client.create(&json!({})).await;
    let mut db = database(&platform).await;
    let sql = "UPDATE capsules SET host_id = NULL WHERE id = $1";
    let moved: types::CapsuleId = other.parse().unwrap();
    sqlx::query(sql).bind(moved.0).execute(&mut db).await.unwrap();
    let dir = platform.dir();
    platform.kill();
    let (memory, from) = (64 << 20, before(9));
    // The first batch comes twice, as after a crash before its acknowledgement.
    let first = [minute(&id, from, 25.0, memory), minute(&other, from, 25.0, memory)];
    spool(&dir, 1, &first);
    spool(&dir, 2, &first);
    spool(&dir, 3, &[minute(&id, from + 60, 75.0, 2 * memory), minute(&id, 60, 1.0, memory)]);
    let damaged = dir.join("stats").join(format!("{:020}.json", 4));
    std::fs::write(damaged, "[{").unwrap();
    platform.resume().await;
    let client = platform.client();
    let mut db = database(&platform).await;
    let rows = eventually("the minutes are collected", async || {
        let mut db = database(&platform).await;
        let rows: Vec<(uuid::Uuid, i64)> =
            sqlx::query_as("SELECT capsule_id, extract(epoch FROM at)::bigint FROM stats_fine")
                .fetch_all(&mut db)
                .await
                .unwrap();
        (rows.len() > 1).then_some(rows)
    })
    .await;
    let own: types::CapsuleId = id.parse().unwrap();
    assert!(rows.iter().all(|(capsule, _)| *capsule == own.0), "another host's capsule: {rows:?}");
    let left = || std::fs::read_dir(dir.join("stats")).unwrap().count();
    eventually("every batch is acknowledged", async || (left() == 0).then_some(())).await;
    let to = from + 119;
    let items = minutes(&client, &mut db, &id, from, to).await;
    assert_eq!(items.len(), 2, "{items:?}");
    assert_eq!((&items[0]["cpu_percent"], &items[1]["cpu_percent"]), (&json!(25.0), &json!(75.0)));
    assert_eq!(items[1]["memory_used"], json!(2 * memory));
    assert_eq!((&items[0]["oom_kills"], &items[0]["source"]), (&json!(1), &json!("host")));
    assert_eq!((&items[0]["network_sent"], &items[0]["gap"]), (&json!(2400), &json!(true)));
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    assert_eq!(minutes(&client, &mut db, &id, from, to).await, items);
    let e2b = client.get(&format!("/sandboxes/{id}/metrics?start={from}&end={to}")).await;
    let e2b = e2b.expect(200);
    assert_eq!((e2b.as_array().unwrap().len(), &e2b[0]["cpuUsedPct"]), (24, &json!(25.0)));
    let stranger = other_team(&platform).await;
    let one = format!("/v1/capsules/{id}/metrics");
    stranger.get(&one).await.refuses(404, "not_found", "capsule");
    let none = stranger.get(&format!("/sandboxes/{id}/metrics")).await.expect(200);
    assert_eq!(none, json!([]));
    platform.finish();
}

#[tokio::test]
async fn coarse_rows_follow_late_minutes_and_old_days_are_dropped_under_readers() {
    let (mut platform, client, id) = capsule().await;
    let mut db = database(&platform).await;
    let days = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'stats_coarse'::regclass";
    eventually("the days are made", async || {
        let mut db = database(&platform).await;
        let count: i64 = sqlx::query_scalar(days).fetch_one(&mut db).await.unwrap();
        (count == 3).then_some(())
    })
    .await;
    let old = "CREATE TABLE stats_coarse_20200101 (LIKE stats_coarse INCLUDING ALL); \
               ALTER TABLE stats_coarse ATTACH PARTITION stats_coarse_20200101 \
               FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-02 00:00:00+00'); \
               CREATE TABLE stats_fine_20200101 (LIKE stats_fine INCLUDING ALL)";
    sqlx::raw_sql(old).execute(&mut db).await.unwrap();
    let dir = platform.dir();
    platform.kill();
    let at = before(20) / 300 * 300;
    spool(&dir, 1, &[minute(&id, at, 10.0, 1 << 20), minute(&id, at + 60, 30.0, 3 << 20)]);
    platform.resume().await;
    let client = client.at(platform.url());
    let path = format!("/sandboxes/{id}/metrics?start=0");
    let coarse = eventually("the coarse row is made, and the old days are gone", async || {
        // Reads go on while the days are dropped.
        client.get(&path).await.expect(200);
        let mut db = database(&platform).await;
        let gone: bool = sqlx::query_scalar(
            "SELECT to_regclass('stats_coarse_20200101') IS NULL \
                                AND to_regclass('stats_fine_20200101') IS NULL",
        )
        .fetch_one(&mut db)
        .await
        .unwrap();
        let rows: Vec<(i32, f32, f32)> =
            sqlx::query_as("SELECT samples, cpu_mean, cpu_max FROM stats_coarse")
                .fetch_all(&mut db)
                .await
                .unwrap();
        (gone && !rows.is_empty()).then_some(rows)
    })
    .await;
    assert_eq!(coarse, [(24, 20.0, 30.0)]);
    let steps = client.get(&path).await.expect(200);
    let step = steps.as_array().unwrap().iter().find(|step| step["cpuUsedPct"] == 30.0);
    assert_eq!(step.unwrap()["timestampUnix"].as_u64().unwrap() % 900, 0, "{steps}");
    platform.finish();
}

#[tokio::test]
async fn platform_that_keeps_no_days_answers_from_its_hosts() {
    let platform = Platform::start(Driver::Fake, &[("WRENN_METRICS_DAYS", "0")]).await;
    let client = platform.client();
    let id = client.create(&json!({})).await;
    let dir = platform.dir();
    spool(&dir, 1, &[minute(&id, before(5), 1.0, 1)]);
    let path = format!("/v1/capsules/{id}/metrics");
    eventually("a sample is taken", async || {
        let series = client.get(&path).await.expect(200);
        (!series["items"].as_array().unwrap().is_empty()).then_some(())
    })
    .await;
    let mut db = database(&platform).await;
    let days = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'stats_fine'::regclass";
    let count: i64 = sqlx::query_scalar(days).fetch_one(&mut db).await.unwrap();
    assert_eq!(count, 0);
    platform.finish();
}

#[tokio::test]
async fn team_series_count_running_capsules_and_starts() {
    let (platform, client, id) = capsule().await;
    let other = client.create(&json!({})).await;
    client.pause(&other).await;
    let series = client.get("/v1/metrics?points=10").await.expect(200);
    let items = series["items"].as_array().unwrap();
    let last = items.last().unwrap();
    assert!(last["concurrent_capsules"].as_u64().unwrap() >= 1, "{series}");
    let starts: u64 = items.iter().map(|item| item["starts"].as_u64().unwrap()).sum();
    assert_eq!(starts, 2, "{series}");
    let teams = client.get("/teams").await.expect(200);
    let team = teams[0]["teamID"].as_str().unwrap();
    let e2b = client.get(&format!("/teams/{team}/metrics")).await.expect(200);
    let last = e2b.as_array().unwrap().last().unwrap();
    assert!(last["concurrentSandboxes"].as_u64().unwrap() >= 1, "{last}");
    let most = format!("/teams/{team}/metrics/max?metric=concurrent_sandboxes");
    let most = client.get(&most).await.expect(200);
    assert_eq!(most["value"], json!(2.0), "{most}");
    assert_eq!(client.get(&format!("/teams/{team}/metrics/max")).await.status, 400);
    assert_eq!(client.get(&format!("/teams/{team}/metrics?start=2&end=1")).await.status, 400);
    let stranger = other_team(&platform).await;
    assert_eq!(stranger.get(&format!("/teams/{team}/metrics")).await.status, 403);
    assert_eq!(stranger.get(&format!("/v1/capsules/{id}/metrics")).await.status, 404);
    platform.finish();
}

#[tokio::test]
async fn host_series_are_for_operators() {
    let (platform, client, _) = capsule().await;
    let hosts = client.get("/v1/hosts").await.expect(200);
    let id = hosts["items"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/hosts/{id}/metrics/history");
    let items = eventually("the host has a point", async || {
        let series = client.get(&path).await.expect(200);
        assert_eq!(series["step_sec"].as_u64().unwrap() % 300, 0, "{series}");
        series["items"].as_array().unwrap().first().cloned()
    })
    .await;
    assert!(items["free_disk_mib"].is_number(), "{items}");
    client.get("/v1/hosts/none/metrics/history").await.refuses(404, "not_found", "host");
    assert_eq!(other_team(&platform).await.get(&path).await.status, 403);
    platform.finish();
}

#[tokio::test]
async fn host_repeats_a_batch_until_it_is_acknowledged() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let replica = Replica::over(&platform, &platform.separate_database().await);
    let started = platform.agent(&replica.client(), dir.path(), "127.0.0.1:0").await;
    let (mut process, address) = started;
    // Nobody else collects from this host now.
    drop(replica);
    let agent = platform.client_of_agent(&address).below("/wrenn.host.v1.Host");
    let id = types::CapsuleId::new().to_string();
    spool(dir.path(), 7, &[minute(&id, before(2), 5.0, 1024)]);
    spool(dir.path(), 8, &[minute(&id, before(1), 6.0, 1024)]);
    let collect = async |body: Value| agent.post("/CollectStats", &body).await.expect(200);
    // JSON has numbers of 64 bits as texts.
    let number = |batch: &Value| batch["next"].as_str().map(|next| next.parse::<u64>().unwrap());
    for _ in 0..2 {
        let batch = collect(json!({})).await;
        assert_eq!((number(&batch), &batch["rows"][0]["capsuleId"]), (Some(7), &json!(id)));
    }
    let batch = collect(json!({ "acknowledged": "7" })).await;
    let cpu = batch["rows"][0]["cpuPercent"][0].as_f64();
    assert_eq!((number(&batch), cpu), (Some(8), Some(6.0)));
    // A late repetition of the former call removes nothing else.
    assert_eq!(number(&collect(json!({ "acknowledged": "7" })).await), Some(8));
    assert_eq!(number(&collect(json!({ "acknowledged": "8" })).await), None);
    let many = vec![id.as_str(); 101];
    let refused = agent.post("/ReadStats", &json!({ "capsuleIds": many })).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
    process.kill().unwrap();
    process.wait().unwrap();
    platform.finish();
}

#[tokio::test]
async fn commands_show_metrics_as_charts_tables_and_json() {
    let (platform, client, id) = capsule().await;
    let path = format!("/v1/capsules/{id}/metrics");
    eventually("a sample is taken", async || {
        let series = client.get(&path).await.expect(200);
        (!series["items"].as_array().unwrap().is_empty()).then_some(())
    })
    .await;
    let run = |args: &[&str]| {
        let ran = platform.run(args);
        assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    let shown = run(&["capsule", "metrics", &id, "--since", "10m"]);
    assert!(shown.starts_with("cpu ") && shown.contains("MEMORY"), "{shown}");
    let told: Value = serde_json::from_str(&run(&["--json", "capsule", "metrics", &id])).unwrap();
    assert!(told["items"][0]["memory_used"].is_number(), "{told}");
    let all: Value = serde_json::from_str(&run(&["--json", "capsule", "metrics"])).unwrap();
    assert!(all[&id]["memory_used"].is_number(), "{all}");
    let top = run(&["top"]);
    assert!(top.contains(&id) && !top.contains('\u{1b}'), "{top}");
    let top: Value = serde_json::from_str(&run(&["--json", "top", "--sort", "memory"])).unwrap();
    assert_eq!(top[0]["id"], json!(id));
    let wrong = platform.run(&["capsule", "metrics", "cl-x"]);
    assert!(!wrong.status.success());
    platform.finish();
}
