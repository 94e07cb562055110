//! Metrics over time: the cost of a sample, the ingest of a thousand capsules, reads, and room.
//!
//! The thousand capsules are rows without machines. Their minutes lie in the host's spool, as after an
//! hour without a control plane. The samples are of capsules whose guests are processes.

use crate::fleet::{children, processor};
use crate::stats::{Row, percentile};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tests::{Client, Driver, Platform};

const CAPSULES: usize = 1000;
/// Minutes of each capsule.
const MINUTES: u64 = 60;
/// Capsules that are sampled, and the time of the watch.
const SAMPLED: usize = 50;
const WATCH: Duration = Duration::from_secs(60);
const READS: usize = 200;

pub(crate) async fn measure() -> Vec<Row> {
    let mut rows = vec![sampling().await];
    rows.extend(ingest().await);
    rows
}

/// Measures the agent's processor time for the samples of one capsule.
async fn sampling() -> Row {
    let platform = Platform::start(Driver::Fake, &[("WRENN_MEMORY_MIB", "100000")]).await;
    let client = platform.client();
    let pid = i32::try_from(platform.pid()).unwrap();
    let watch = async || {
        let before = processor(&[pid]);
        tokio::time::sleep(WATCH).await;
        processor(&[pid]) - before
    };
    let idle = watch().await;
    for _ in 0..SAMPLED {
        client.create(&json!({ "memory_mib": 128 })).await;
    }
    let busy = watch().await;
    platform.finish();
    let share = (busy - idle).max(0.0) / WATCH.as_secs_f64() / SAMPLED as f64 * 100.0;
    Row::value("samples of a capsule, agent", &format!("{share:.3} % of a core"), "≤ 0.05 %")
}

/// Makes rows of capsules on the platform's host. They have ended, so that nobody looks for machines.
async fn insert(db: &mut PgConnection) -> Vec<types::CapsuleId> {
    let sql = "INSERT INTO capsules (id, team_id, host_id, template, status, vcpus, memory_mib, \
               disk_mib, envd_token) SELECT gen_random_uuid(), t.id, h.id, 'base', 'stopped', 1, \
               512, 1024, 'x' FROM teams t, hosts h, generate_series(1, $1) \
               WHERE t.name = 'Default' RETURNING id";
    let count = i32::try_from(CAPSULES).unwrap();
    let ids: Vec<uuid::Uuid> = sqlx::query_scalar(sql).bind(count).fetch_all(db).await.unwrap();
    ids.into_iter().map(types::CapsuleId).collect()
}

/// Puts a batch for each minute into the host's spool.
fn spool(platform: &Platform, ids: &[types::CapsuleId]) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let row = |id: &types::CapsuleId, at: u64| {
        let values = |from: u64| (0..12).map(move |n| (from + n * 7919) % (512 << 20));
        let seed = u64::from(id.0.as_fields().0) + at;
        json!({
            "capsule": id.to_string(), "at": at, "slots": 0xfff, "begins": 0, "from_host": true,
            "cpu": values(seed).map(|n| (n % 10_000) as f64 / 100.0).collect::<Vec<_>>(),
            "memory": values(seed).collect::<Vec<_>>(),
            "guest_memory": values(seed + 1).collect::<Vec<_>>(),
            "cache": seed % 1_000_000, "disk": seed % 10_000_000, "received": seed % 100_000,
            "sent": seed % 50_000, "oom_kills": 0, "guest_oom_kills": 0,
        })
    };
    for minute in 0..MINUTES {
        let at = now / 60 * 60 - (MINUTES + 5 - minute) * 60;
        let rows: Vec<_> = ids.iter().map(|id| row(id, at)).collect();
        let file = platform.dir().join("stats").join(format!("{:020}.json", minute + 1));
        std::fs::write(file, json!(rows).to_string()).unwrap();
    }
}

async fn ingest() -> Vec<Row> {
    let mut platform = Platform::start(Driver::Fake, &[]).await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let ids = insert(&mut db).await;
    platform.kill();
    spool(&platform, &ids);
    platform.resume().await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let pid = i32::try_from(platform.pid()).unwrap();
    let used = || processor(&[pid]) + processor(&children(platform.postgres_pid()));
    let (before, began) = (used(), Instant::now());
    let wanted = i64::try_from(CAPSULES).unwrap() * i64::try_from(MINUTES).unwrap();
    let mut found = 0;
    while found < wanted && began.elapsed() < Duration::from_secs(300) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let count = sqlx::query_scalar("SELECT count(*) FROM stats_fine");
        found = count.fetch_one(&mut db).await.unwrap();
    }
    assert!(found >= wanted, "{found} of {wanted} minutes arrived");
    let share = (used() - before) / (MINUTES * 60) as f64 * 100.0;
    let bytes = "SELECT sum(pg_total_relation_size(inhrelid))::bigint FROM pg_inherits \
                 WHERE inhparent = 'stats_fine'::regclass";
    let bytes: i64 = sqlx::query_scalar(bytes).fetch_one(&mut db).await.unwrap();
    let each = bytes / wanted;
    let took = reads(&platform.client(), &ids).await;
    platform.finish();
    vec![
        Row::value(
            "ingest of 1,000 capsules, control plane and PostgreSQL",
            &format!("{share:.2} % of a core"),
            "≤ 2 %",
        ),
        Row::value("a minute of a capsule in the database", &format!("{each} bytes"), "≤ 400"),
        Row::alone("read of an hour of a capsule", &took, "≤ 50 ms"),
        Row::value(
            "99th of 100 such reads",
            &format!("{:.1} ms", percentile(&took, 99).as_secs_f64() * 1e3),
            "≤ 50 ms",
        ),
    ]
}

async fn reads(client: &Client, ids: &[types::CapsuleId]) -> Vec<Duration> {
    let mut took = Vec::new();
    for id in ids.iter().cycle().take(READS) {
        let began = Instant::now();
        let series = client.get(&format!("/v1/capsules/{id}/metrics")).await.expect(200);
        took.push(began.elapsed());
        assert!(!series["items"].as_array().unwrap().is_empty(), "{series}");
    }
    took
}
