//! Costs of authenticating a caller and of listing among millions of rows. The control plane and
//! PostgreSQL run as in production. The database itself makes the rows, since a platform would need
//! far more than an hour.

use crate::stats::Row;
use reqwest::Method;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use std::time::{Duration, Instant};
use tests::{Client, Driver, Platform};

/// Requests for each route of a comparison.
const REQUESTS: usize = 4000;
/// Rows in each table, and requests for pages of them.
const CAPSULES: i64 = 1_000_000;
const ENTRIES: i64 = 10_000_000;
const PAGES: usize = 500;
/// Number of the snapshot and of the host by which a list is filtered. A thousandth of the capsules
/// has either, and the host does not exist.
const NUMBERED: u128 = 7;
/// Filters and orders of lists: values that many, some and few capsules have, and values that none
/// has.
const FILTERS: [&str; 18] = [
    "status=paused",
    "status=error",
    "status=running,error,missing",
    "template=base",
    "template=rare",
    "template=none",
    "created_by=key-7",
    "created_by=key-none",
    "metadata[all]=x",
    "metadata[job]=7",
    "metadata[one]=77",
    "metadata[one]=none",
    "q=name-77",
    "name=name-775",
    "sort=name",
    "sort=-state_since",
    "ended=true&created_by=key-8",
    "metadata[job]=7&status=paused&template=base",
];

/// Times one request up to the last byte of its answer.
async fn timed(client: &Client, path: &str, wanted: u16) -> Duration {
    let began = Instant::now();
    let answer = client.request(Method::GET, path).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), wanted, "{path}");
    answer.bytes().await.unwrap();
    began.elapsed()
}

/// Measures the time that authentication adds. Compares an admitted request, refused for its query
/// before the database is asked, with a request for an unknown route.
pub(crate) async fn admission() -> Vec<Row> {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let operator = platform.client();
    let platforms = format!("/v1/admin/teams/team-{}/limits", "0".repeat(25));
    let none = json!({ "requests_per_sec": 0, "creates_per_sec": 0 });
    operator.put(&platforms, &none).await.expect(200);
    let user = platform.user("bench@example.com").await;
    let wanted = json!({ "name": "k", "scopes": ["capsules:read"] });
    let made = user.post("/v1/api-keys", &wanted).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    let token = user.post("/v1/auth/token", &json!({})).await.expect(200);
    let token = platform.client_with(token["token"].as_str().unwrap());
    let mut rows = Vec::new();
    for (who, client) in [("a user's key", key), ("a session", user), ("a signed token", token)] {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..REQUESTS {
            ours.push(timed(&client, "/v1/capsules?limit=0", 400).await);
            floor.push(timed(&client, "/v1/nothing", 404).await);
        }
        // The first tenth only warms caches.
        let warm = ours.len() / 10;
        let what = format!("{who}: a request admitted − one that no route takes");
        rows.push(Row::less(&what, &ours.split_off(warm), &floor.split_off(warm), "≤ 0.3 ms"));
    }
    platform.finish();
    rows
}

/// Measures a page of a million capsules and of ten million audit log entries, all of one team.
pub(crate) async fn listing() -> Vec<Row> {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    fill(&mut db).await;
    let capsules = ids(&mut db, "SELECT id FROM capsules WHERE status <> 'stopped'", "cl-").await;
    let entries = ids(&mut db, "SELECT id FROM audit_logs", "log-").await;
    let mut rows = Vec::new();
    let page = |name: &str, list: &str, ids: &[String]| {
        let paths = (0..PAGES).map(|n| format!("{list}before={}", ids[n % ids.len()]));
        (name.to_owned(), paths.collect::<Vec<String>>())
    };
    let numbered = |prefix: &str| {
        let id = types::ids::encode(uuid::Uuid::from_u128(NUMBERED));
        format!("{prefix}{id}")
    };
    let kept = [format!("snapshot={}", numbered("snap-")), format!("host={}", numbered("host-"))];
    for filter in FILTERS.into_iter().chain(kept.iter().map(String::as_str)) {
        let name = format!("a page of 1,000,000 capsules by {filter}");
        let path = format!("/v1/capsules?{filter}");
        let mut times = Vec::new();
        for _ in 0..PAGES {
            times.push(timed(&client, &path, 200).await);
        }
        rows.push(Row::alone(&name, &times, "≤ 20 ms"));
    }
    let mut times = Vec::new();
    for _ in 0..PAGES {
        times.push(timed(&client, "/v1/capsules/summary", 200).await);
    }
    rows.push(Row::alone("the summary of 1,000,000 capsules", &times, "≤ 20 ms"));
    for (name, paths) in [
        page("a page of 1,000,000 capsules", "/v1/capsules?", &capsules),
        page("a page of 10,000,000 entries", "/v1/audit-logs?", &entries),
        page("the same of one action", "/v1/audit-logs?action=x.7&", &entries),
        page("the same of one resource", "/v1/audit-logs?resource=x-77&", &entries),
        page("the same of all teams", "/v1/admin/audit-logs?", &entries),
    ] {
        let mut times = Vec::new();
        let (first, _) = paths[0].rsplit_once("before=").unwrap();
        let page = client.get(first).await.expect(200);
        assert_eq!(page["items"].as_array().unwrap().len(), 100, "{first}");
        for path in &paths {
            times.push(timed(&client, path, 200).await);
        }
        rows.push(Row::alone(&name, &times, "≤ 20 ms"));
    }
    platform.finish();
    rows
}

/// Inserts the rows. Drops the indexes first and builds them afterwards.
async fn fill(db: &mut PgConnection) {
    let run = async |db: &mut PgConnection, sql: String| {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(db).await.unwrap();
    };
    // Triggers stay off: capsules that never ran have no events and no usage.
    run(db, "SET session_replication_role = replica".to_owned()).await;
    run(db, "SET maintenance_work_mem = '1GB'".to_owned()).await;
    let sql = "SELECT indexname, indexdef FROM pg_indexes \
               WHERE tablename IN ('capsules', 'audit_logs') AND indexname NOT LIKE '%pkey'";
    let indexes: Vec<(String, String)> = sqlx::query_as(sql).fetch_all(&mut *db).await.unwrap();
    for (name, _) in &indexes {
        run(db, format!("DROP INDEX {name}")).await;
    }
    // Half of the capsules are stopped, since most capsules of an old platform are.
    run(
        db,
        format!(
            "INSERT INTO capsules (id, team_id, template, status, vcpus, memory_mib, disk_mib, \
             envd_token, created_at, state_since, name, created_by_id, metadata, snapshot_id, \
             host_id) SELECT gen_random_uuid(), t.id, \
             CASE WHEN n % 10007 = 1 THEN 'rare' ELSE 'base' END, \
             CASE WHEN n % 2 = 0 THEN 'stopped' WHEN n % 20011 = 1 THEN 'error' \
             ELSE 'paused' END, 1, 512, 1024, md5(n::text), \
             now() - n * interval '1 second', now() - n * interval '1 second', \
             CASE WHEN n % 5 = 0 THEN 'name-' || n END, 'key-' || n % 1000, \
             jsonb_build_object('all', 'x', 'job', (n % 100)::text, 'one', n::text), \
             lpad(to_hex(n % 1000), 32, '0')::uuid, lpad(to_hex(n % 1000), 32, '0')::uuid \
             FROM teams t, generate_series(1, {CAPSULES}) n WHERE t.name = 'Default'"
        ),
    )
    .await;
    run(
        db,
        format!(
            "INSERT INTO audit_logs (id, team_id, actor_type, actor_id, resource_type, \
             resource_id, action, status, created_at) SELECT gen_random_uuid(), t.id, 'api_key', \
             'key-' || n % 1000, 'x', 'x-' || n % 100000, 'x.' || n % 50, 'ok', \
             now() - n * interval '1 second' FROM teams t, generate_series(1, {ENTRIES}) n \
             WHERE t.name = 'Default'"
        ),
    )
    .await;
    let counts = "INSERT INTO capsule_counts (team_id, status, delta) \
                  SELECT team_id, status, count(*) FROM capsules GROUP BY team_id, status";
    run(db, counts.to_owned()).await;
    for (_, definition) in indexes {
        run(db, definition).await;
    }
    run(db, "ANALYZE capsules".to_owned()).await;
    run(db, "ANALYZE audit_logs".to_owned()).await;
    run(db, "CHECKPOINT".to_owned()).await;
}

/// Returns ids from all over the rows, as the wire writes them.
async fn ids(db: &mut PgConnection, sql: &str, prefix: &str) -> Vec<String> {
    let sql = format!("SELECT id FROM ({sql}) all_of_them ORDER BY id LIMIT {PAGES}");
    let ids: Vec<uuid::Uuid> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(db).await.unwrap();
    ids.into_iter().map(|id| format!("{prefix}{}", types::ids::encode(id))).collect()
}
