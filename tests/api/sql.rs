//! Round trips to the database that a request costs. They bound the requests that one PostgreSQL
//! serves, so each further one is a decision. ARCHITECTURE.md lists those of a create.

use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;
use tests::{Client, Driver, Platform, Replica, SqlTap, Upstream};

/// Statements of a create: its template with the version, its insert, and its move to `running`.
const CREATE: usize = 3;
/// Statements of a create with an idempotency key, which is looked for first.
const CREATE_WITH_KEY: usize = 4;
/// Statements of a create by a key that has limits of its own. A transaction counts the key's
/// capsules.
const CREATE_BY_LIMITED_KEY: usize = 7;
/// Statements of a command: the look-up of its capsule.
const EXEC: usize = 1;
/// Statements of a request to a port, once its capsule and key are cached.
const PROXIED: usize = 0;
/// Measurements, of which the lowest counts: the replica has rounds of its own.
const ROUNDS: usize = 12;

/// A platform with a second control plane, whose round trips are recorded. The first one leads, so
/// the work of the leader is not recorded.
async fn tapped() -> (Platform, Replica, SqlTap, Client) {
    let platform = Platform::start(Driver::Fake, &[("WRENN_MEMORY_MIB", "100000")]).await;
    let tap = SqlTap::start(&platform);
    let replica = Replica::over(&platform, &tap.url());
    let client = platform.client().at(&replica.url);
    (platform, replica, tap, client)
}

/// Runs `work` several times. Checks the lowest number of statements that it took.
async fn costs(tap: &SqlTap, what: &str, wanted: usize, mut work: impl AsyncFnMut()) {
    let mut lowest: Option<Vec<String>> = None;
    for _ in 0..ROUNDS {
        let mut ran = tap.statements(work()).await;
        // Each event wakes the sender of deliveries, which looks for them after a pause.
        ran.retain(|sql| !sql.contains("UPDATE deliveries"));
        if lowest.as_ref().is_none_or(|lowest| ran.len() < lowest.len()) {
            lowest = Some(ran);
        }
    }
    let lowest = lowest.unwrap();
    assert_eq!(
        lowest.len(),
        wanted,
        "{what} took other statements than tests/api/sql.rs states; if that is meant, change the \
         constant there and the list in ARCHITECTURE.md: {lowest:#?}"
    );
}

/// Checks the statements of a create with this body and key. Removes the capsules.
async fn create_costs(tap: &SqlTap, client: &Client, body: &Value, key: bool, wanted: usize) {
    let mut made = Vec::new();
    costs(tap, &format!("a create of {body}"), wanted, async || {
        let mut request = client.request(Method::POST, "/v1/capsules").json(body);
        if key {
            request = request.header("idempotency-key", format!("round-{}", made.len()));
        }
        let answer = client.send(request).await.expect(201);
        made.push(format!("/v1/capsules/{}", answer["id"].as_str().unwrap()));
    })
    .await;
    for capsule in &made {
        client.delete(capsule).await.expect(204);
    }
}

#[tokio::test]
async fn create_costs_three_statements_and_a_limited_key_adds_its_transaction() {
    let (platform, replica, tap, client) = tapped().await;
    let body = json!({ "memory_mib": 128 });
    create_costs(&tap, &client, &body, false, CREATE).await;
    let lifetime = json!({ "memory_mib": 128, "lifetime": 3600 });
    create_costs(&tap, &client, &lifetime, false, CREATE).await;
    create_costs(&tap, &client, &body, true, CREATE_WITH_KEY).await;
    let limited = json!({ "name": "limited", "limits": { "capsules": 1000 } });
    let limited = client.post("/v1/api-keys", &limited).await.expect(201);
    let limited = platform.client_with(limited["key"].as_str().unwrap()).at(&replica.url);
    create_costs(&tap, &limited, &body, false, CREATE_BY_LIMITED_KEY).await;
    platform.finish();
}

#[tokio::test]
async fn command_costs_one_statement_and_a_request_to_a_port_none() {
    let (platform, _replica, tap, client) = tapped().await;
    let id = client.create(&json!({ "memory_mib": 128 })).await;
    costs(&tap, "a command", EXEC, async || {
        assert_eq!(client.out(&id, "echo up").await, "up\n");
    })
    .await;
    let port = Upstream::echo().port;
    costs(&tap, "a request to a port", PROXIED, async || {
        let request = client.to_port(Method::GET, &id, port, "/");
        assert_eq!(client.send(request).await.status, 200);
    })
    .await;
    platform.finish();
}

/// A connection is tested after each use, beside the answer. A test before each use, too, would
/// delay each statement.
#[tokio::test]
async fn busy_connection_is_not_tested_before_each_use() {
    let (platform, _replica, tap, client) = tapped().await;
    let id = client.create(&json!({ "memory_mib": 128 })).await;
    let path = format!("/v1/capsules/{id}");
    let before = tap.all().len();
    for _ in 0..300 {
        client.get(&path).await.expect(200);
    }
    let trips = tap.all().len() - before;
    assert!(trips >= 300, "{trips} round trips were recorded");
    // A connection that has rested for 100 ms is tested before its use.
    let repeated = tap.repeated_tests(Duration::from_millis(50));
    assert!(repeated < 30, "{repeated} tests followed another one in {trips} round trips");
    platform.finish();
}
