//! Databases of earlier builds. A database at the last of their migrations is adopted, with all of
//! its rows. Every other one is refused and stays as it is.

use serde_json::Value;
use sqlx::{Connection, PgConnection};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tests::{Client, Driver, Platform, Replica, eventually, told};

/// Dump of a database at the last former migration, with rows in every table.
const FORMER: &str = include_str!("data/former.sql");
/// Migrations of this program.
const MIGRATIONS: [i64; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
/// Key of the team Acme in the dump.
const KEY: &str = "e2b_0123456789abcdef0123456789abcdef01234567";

/// Restores the dump into another database of the platform's PostgreSQL. Returns its URL, and a
/// connection to it.
async fn restored(platform: &Platform) -> (String, PgConnection) {
    let url = platform.separate_database().await;
    let mut db = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(FORMER).execute(&mut db).await.unwrap();
    // The dump leaves its connection without a search path.
    (url.clone(), PgConnection::connect(&url).await.unwrap())
}

/// Reads the applied migrations: number, checksum and time.
async fn applied(db: &mut PgConnection) -> Vec<(i64, String, String)> {
    let sql = "SELECT version, encode(checksum, 'hex'), installed_on::text \
               FROM _sqlx_migrations ORDER BY version";
    sqlx::query_as(sql).fetch_all(db).await.unwrap()
}

/// Reads the number of the oldest migration that a program must know.
async fn floor(db: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT version FROM schema_floor").fetch_one(db).await.unwrap()
}

/// Reads the names of all schemas that are not PostgreSQL's own.
async fn schemas(db: &mut PgConnection) -> Vec<String> {
    let sql = "SELECT nspname::text FROM pg_namespace \
               WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'";
    sqlx::query_scalar(sql).fetch_all(db).await.unwrap()
}

/// Reads the rows of all tables, except for the fields that each use of a key or session changes.
async fn rows(db: &mut PgConnection) -> BTreeMap<String, Vec<String>> {
    let sql = "SELECT table_name::text FROM information_schema.tables \
               WHERE table_schema = 'public' \
               AND table_name NOT IN ('_sqlx_migrations', 'schema_floor')";
    let tables: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut *db).await.unwrap();
    let mut all = BTreeMap::new();
    for table in tables {
        let sql = format!("SELECT (to_jsonb(t) - 'last_used_at')::text FROM {table} t");
        let sql = sqlx::AssertSqlSafe(sql);
        let rows: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut *db).await.unwrap();
        all.insert(table, rows);
    }
    all
}

/// Returns the command that starts a control plane over a database.
fn control_plane(platform: &Platform, database: &str, dir: &Path) -> Command {
    let mut command = platform.wrenn();
    command.args(["control-plane", "--listen", "127.0.0.1:0"]).env("DATABASE_URL", database);
    command.env("WRENN_CLIENT_FILE", dir.join("client.json")).stdin(Stdio::null());
    platform.name_authority(&mut command);
    command
}

/// Starts a control plane whose standard output goes to a file.
fn spawn(platform: &Platform, database: &str, dir: &Path) -> Child {
    let mut command = control_plane(platform, database, dir);
    command.stdout(File::create(dir.join("said")).unwrap()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Starts a control plane over a database, which must fail with a line that contains `sentence` and
/// leave the database as it is.
async fn refused(platform: &Platform, database: &str, db: &mut PgConnection, sentence: &str) {
    let before = (applied(db).await, floor(db).await, rows(db).await);
    let dir = tempfile::tempdir().unwrap();
    let ended = control_plane(platform, database, dir.path()).output().unwrap();
    assert!(!ended.status.success(), "it started");
    let log = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(log.lines().any(|line| line.contains(sentence)), "{log}");
    assert_eq!((applied(db).await, floor(db).await, rows(db).await), before);
    assert_eq!(schemas(db).await, ["public"]);
}

/// Waits until a control plane waits for a lock of this kind, in the database of `db`.
async fn waits(db: &mut PgConnection, event: &str) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
               AND wait_event_type = 'Lock' AND wait_event = $1";
    for _ in 0..1200 {
        let count: i64 = sqlx::query_scalar(sql).bind(event).fetch_one(&mut *db).await.unwrap();
        if count == 1 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("no control plane waits for a lock of the kind {event}");
}

/// Returns a field of each item in a list of the API.
async fn listed(client: &Client, path: &str, field: &str) -> Vec<String> {
    let page = client.get(path).await.expect(200);
    let items = page["items"].as_array().unwrap().iter();
    items.map(|item: &Value| item[field].as_str().unwrap().to_owned()).collect()
}

/// Checks that the API answers for the rows of the dump.
async fn check_answers(replica: &Replica, acme: &Client) {
    assert_eq!(listed(acme, "/v1/teams", "name").await, ["Acme"]);
    let mut keys = listed(acme, "/v1/api-keys", "name").await;
    keys.sort();
    assert_eq!(keys, ["deploy", "one capsule"]);
    let capsules = acme.get("/v1/capsules").await.expect(200);
    assert_eq!(capsules["items"].as_array().unwrap().len(), 1, "{capsules}");
    let capsule = &capsules["items"][0];
    assert_eq!(
        (capsule["template"].as_str(), capsule["status"].as_str()),
        (Some("base"), Some("paused"))
    );
    assert_eq!(capsule["metadata"]["purpose"], "ci");
    assert_eq!(listed(acme, "/v1/snapshots", "name").await, ["nightly"]);
    assert_eq!(listed(acme, "/v1/templates", "name").await, ["base", "tools"]);
    assert_eq!(listed(&replica.client(), "/v1/hosts", "name").await, ["rack-1"]);
}

/// Reports whether a row has all fields of an earlier state of it. Later migrations add columns.
fn has_fields_of(later: &str, earlier: &str) -> bool {
    let read = |text| serde_json::from_str::<serde_json::Map<String, Value>>(text).unwrap();
    let later = read(later);
    read(earlier).iter().all(|(name, value)| later.get(name) == Some(value))
}

#[tokio::test]
async fn database_at_last_former_migration_is_adopted_with_every_row() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let (url, mut db) = restored(&platform).await;
    let before = rows(&mut db).await;
    assert_eq!(before.len(), 26);
    assert!(before.values().all(|rows| !rows.is_empty()), "{before:?}");
    let replica = Replica::over(&platform, &url);
    let acme = platform.client_with(KEY).at(&replica.url);
    check_answers(&replica, &acme).await;
    let mut fresh = PgConnection::connect(&platform.database_url()).await.unwrap();
    let (adopted, made) = (applied(&mut db).await, applied(&mut fresh).await);
    let checksums = |of: &[(i64, String, String)]| -> Vec<(i64, String)> {
        of.iter().map(|(version, checksum, _)| (*version, checksum.clone())).collect()
    };
    assert_eq!(checksums(&adopted), checksums(&made));
    assert_eq!(floor(&mut db).await, floor(&mut fresh).await);
    assert_eq!(schemas(&mut db).await, ["public"]);
    let after = rows(&mut db).await;
    // No program of that time wrote these tables. Later migrations make or remove them.
    let unused = |table: &str| table == "builds" || table == "capsule_metrics";
    for (table, rows) in before.iter().filter(|(table, _)| !unused(table)) {
        for row in rows {
            let kept = after[table].iter().any(|later| has_fields_of(later, row));
            assert!(kept, "{table} has lost {row}");
        }
    }
    drop(replica);
    let again = Replica::over(&platform, &url);
    assert_eq!(applied(&mut db).await, adopted, "the second start changed the migrations");
    check_answers(&again, &acme.at(&again.url)).await;
    drop(again);
    platform.finish();
}

#[tokio::test]
async fn fresh_database_has_all_migrations_and_the_floor_of_the_first() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let versions: Vec<i64> = applied(&mut db).await.into_iter().map(|row| row.0).collect();
    assert_eq!(versions, MIGRATIONS);
    assert_eq!(floor(&mut db).await, 1);
    assert_eq!(schemas(&mut db).await, ["public"]);
    platform.finish();
}

#[tokio::test]
async fn database_at_earlier_former_migration_is_refused() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let (url, mut db) = restored(&platform).await;
    let undone = "ALTER TABLE capsules DROP COLUMN operation; \
                  DELETE FROM _sqlx_migrations WHERE version = 15";
    sqlx::raw_sql(undone).execute(&mut db).await.unwrap();
    let remedy = "a database at migration 14; start the last build with migration 15 once, then \
                  this wrenn";
    refused(&platform, &url, &mut db, remedy).await;
    platform.finish();
}

#[tokio::test]
async fn former_database_with_changed_migration_is_refused() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let (url, mut db) = restored(&platform).await;
    let changed = "UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 7";
    sqlx::query(changed).execute(&mut db).await.unwrap();
    let remedy = "migration 7 of the database is unknown or changed; start the wrenn that \
                  created the database, or use a new database";
    refused(&platform, &url, &mut db, remedy).await;
    platform.finish();
}

#[tokio::test]
async fn former_database_with_altered_column_is_refused() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let (url, mut db) = restored(&platform).await;
    let altered = "ALTER TABLE capsules ALTER COLUMN vcpus TYPE bigint";
    sqlx::query(altered).execute(&mut db).await.unwrap();
    let remedy = "its schema was changed: missing is column capsules.vcpus integer NOT NULL; \
                  unexpected is column capsules.vcpus bigint NOT NULL; undo the changes, or use a \
                  new database";
    refused(&platform, &url, &mut db, remedy).await;
    platform.finish();
}

#[tokio::test]
async fn killed_adoption_leaves_the_database_as_it_was() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let (url, mut db) = restored(&platform).await;
    let before = (applied(&mut db).await, floor(&mut db).await, rows(&mut db).await);
    // The lock holds the adoption up at its first write.
    let mut holder = PgConnection::connect(&url).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    sqlx::query("LOCK TABLE _sqlx_migrations IN SHARE MODE").execute(&mut *held).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut process = spawn(&platform, &url, dir.path());
    waits(&mut db, "relation").await;
    process.kill().unwrap();
    process.wait().unwrap();
    held.rollback().await.unwrap();
    holder.close().await.unwrap();
    eventually("PostgreSQL has ended the killed adoption", || async {
        let mut watch = PgConnection::connect(&url).await.unwrap();
        // The two connections of the test remain.
        let sql = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND backend_type = 'client backend'";
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&mut watch).await.unwrap();
        (count == 2).then_some(())
    })
    .await;
    assert_eq!((applied(&mut db).await, floor(&mut db).await, rows(&mut db).await), before);
    assert_eq!(schemas(&mut db).await, ["public"]);
    let replica = Replica::over(&platform, &url);
    check_answers(&replica, &platform.client_with(KEY).at(&replica.url)).await;
    drop(replica);
    platform.finish();
}

#[tokio::test]
async fn control_planes_that_start_at_once_adopt_once() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let (url, mut db) = restored(&platform).await;
    let mut holder = PgConnection::connect(&url).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    sqlx::query("LOCK TABLE _sqlx_migrations IN SHARE MODE").execute(&mut *held).await.unwrap();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut processes = dirs.each_ref().map(|dir| spawn(&platform, &url, dir.path()));
    waits(&mut db, "relation").await;
    waits(&mut db, "advisory").await;
    held.rollback().await.unwrap();
    for (process, dir) in processes.iter_mut().zip(&dirs) {
        told(&dir.path().join("said"), "Wrenn serves ", process);
    }
    let versions: Vec<i64> = applied(&mut db).await.into_iter().map(|row| row.0).collect();
    assert_eq!(versions, MIGRATIONS);
    for process in &mut processes {
        process.kill().unwrap();
        process.wait().unwrap();
    }
    platform.finish();
}
