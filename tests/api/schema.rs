//! The schema of the database.

use sqlx::{Connection, PgConnection};
use std::process::Command;
use tests::{Driver, Platform};

/// Runs a platform's start, which must fail, to its end.
fn refused(mut up: Command) {
    let started = up.status().unwrap();
    assert!(!started.success(), "it started");
}

#[tokio::test]
async fn older_program_starts_on_newer_schema_down_to_its_floor() {
    let mut platform = Platform::start(Driver::Fake, &[]).await;
    let id = platform.client().create(&serde_json::json!({ "memory_mib": 128 })).await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    // A program of a later version leaves the database like this.
    let newer = "INSERT INTO _sqlx_migrations \
                 (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'later', true, '\\x00', 0)";
    sqlx::query(newer).execute(&mut db).await.unwrap();
    platform.kill();
    platform.resume().await;
    assert_eq!(platform.client().out(&id, "echo up").await, "up\n");
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    sqlx::query("UPDATE schema_floor SET version = 9999").execute(&mut db).await.unwrap();
    platform.kill();
    refused(platform.up_command());
    let log = platform.log();
    let sentence = "this wrenn is too old: the database needs migration 9999";
    assert!(log.lines().any(|line| line.contains(sentence)), "{log}");
    platform.finish();
}

#[tokio::test]
async fn column_that_a_newer_program_adds_fails_no_statement_of_an_older_one() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&serde_json::json!({})).await;
    let one = format!("/v1/capsules/{id}");
    let lists = ["capsules", "snapshots", "templates", "channels", "api-keys", "audit-logs"];
    let lists = lists.map(|list| format!("/v1/{list}"));
    let read = async || {
        // Each connection to the database prepares its own statements.
        for _ in 0..20 {
            for path in lists.iter().chain([&one]) {
                client.get(path).await.expect(200);
            }
        }
    };
    read().await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let tables = ["capsules", "snapshots", "templates", "channels", "api_keys", "audit_logs"];
    for table in tables.into_iter().chain(["users", "sessions", "invitations", "deliveries"]) {
        let sql = format!("ALTER TABLE {table} ADD COLUMN added_later text");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut db).await.unwrap();
    }
    read().await;
    platform.finish();
}

#[tokio::test]
async fn every_id_column_is_uuid_except_actors_and_audited_resources() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let sql = "SELECT table_name::text, column_name::text, data_type::text \
               FROM information_schema.columns \
               WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations' \
               AND (column_name = 'id' OR column_name LIKE '%\\_id') ORDER BY 1, 2";
    let columns: Vec<(String, String, String)> =
        sqlx::query_as(sql).fetch_all(&mut db).await.unwrap();
    assert!(columns.len() > 20, "{columns:?}");
    let texts = columns.iter().filter(|(_, _, kind)| kind != "uuid");
    let texts: Vec<String> = texts.map(|(table, column, _)| format!("{table}.{column}")).collect();
    let wanted = [
        "audit_logs.actor_id",
        "audit_logs.resource_id",
        "capsules.created_by_id",
        "events.actor_id",
    ];
    assert_eq!(texts, wanted);
    let platform_team: String = sqlx::query_scalar(
        "SELECT name FROM teams WHERE id = '00000000-0000-0000-0000-000000000000'",
    )
    .fetch_one(&mut db)
    .await
    .unwrap();
    assert_eq!(platform_team, "Platform");
    let member = "INSERT INTO memberships (team_id, user_id, role) SELECT \
                  '00000000-0000-0000-0000-000000000000', gen_random_uuid(), 'owner'";
    assert!(sqlx::query(member).execute(&mut db).await.is_err(), "the platform has a member");
    for (name, taken) in [("base", true), ("own", false)] {
        let sql = "INSERT INTO templates (id, team_id, name, vcpus, memory_mib, disk_mib) \
                   SELECT gen_random_uuid(), id, $1, 1, 128, 64 FROM teams WHERE name = 'Default'";
        let made = sqlx::query(sql).bind(name).execute(&mut db).await;
        assert_eq!(made.is_err(), taken, "a team's template called {name}");
    }
    platform.finish();
}

#[tokio::test]
async fn row_with_an_unknown_value_is_an_error_and_not_another_value() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&serde_json::json!({})).await;
    let one = format!("/v1/capsules/{id}");
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let free = "ALTER TABLE capsules DROP CONSTRAINT capsules_on_timeout_check";
    sqlx::query(free).execute(&mut db).await.unwrap();
    let set = "UPDATE capsules SET on_timeout = $1";
    sqlx::query(set).bind("explode").execute(&mut db).await.unwrap();
    // Each replica has a log of its own, and this is the first one's.
    for _ in 0..4 {
        client.get(&one).await.expect(500);
    }
    let log = platform.log();
    let said = log.lines().find(|line| line.contains("`explode`"));
    let said = said.unwrap_or_else(|| panic!("no line names the value: {log}"));
    assert!(said.contains("on_timeout must be pause, pause_disk or kill"), "{said}");
    sqlx::query(set).bind("pause").execute(&mut db).await.unwrap();
    assert_eq!(client.get(&one).await.expect(200)["on_timeout"], "pause");
    platform.finish();
}
