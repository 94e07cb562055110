//! The PostgreSQL cluster that the program makes, against the one that tests share.

use sqlx::{Connection, PgConnection};
use tests::{Driver, Platform};

/// Files of a cluster that say how it was made.
const FILES: [&str; 4] = ["PG_VERSION", "postgresql.conf", "pg_hba.conf", "pg_ident.conf"];

/// Returns the settings that a cluster has from its making.
async fn settings(db: &mut PgConnection) -> Vec<(String, String)> {
    let all = "SELECT name, setting FROM pg_settings WHERE context = 'internal' ORDER BY name";
    sqlx::query_as(all).fetch_all(db).await.unwrap()
}

/// Returns the databases of a cluster with their encodings and locales.
async fn databases(db: &mut PgConnection) -> Vec<(String, i32, String, String)> {
    let all = "SELECT datname::text, encoding, datcollate::text, datctype::text \
               FROM pg_database ORDER BY datname";
    sqlx::query_as(all).fetch_all(db).await.unwrap()
}

async fn connect(platform: &Platform) -> PgConnection {
    PgConnection::connect(&platform.database_url()).await.unwrap()
}

#[tokio::test]
async fn shared_cluster_of_tests_equals_the_one_of_a_first_start() {
    let shared = Platform::start(Driver::Fake, &[]).await;
    let own = Platform::start_with_new_cluster(Driver::Fake, &[]).await;
    assert!(own.log().contains("creating a private PostgreSQL"), "{}", own.log());
    for file in FILES {
        let [of_tests, of_program] = [&shared, &own].map(|platform| {
            let path = platform.dir().join("postgres/data").join(file);
            std::fs::read_to_string(path).unwrap()
        });
        assert!(of_tests == of_program, "{file} differs:\n{of_tests}\n---\n{of_program}");
    }
    let (mut db, mut own_db) = (connect(&shared).await, connect(&own).await);
    assert_eq!(settings(&mut db).await, settings(&mut own_db).await);
    assert_eq!(databases(&mut db).await, databases(&mut own_db).await);
    let id = own.client().create(&serde_json::json!({})).await;
    assert_eq!(own.client().out(&id, "echo up").await, "up\n");
    own.finish();
    shared.finish();
}
