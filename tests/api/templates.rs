//! Templates that users make, without machines: the driver's stub decides by a step's text. `exit N`
//! fails, `sleep N` waits, `lines N` writes lines, and other texts are their own output.

mod confined;
mod crash;
mod declared;
mod e2b;
mod leader;
mod lifecycle;
mod limits;
mod logs;
mod placement;
mod polls;
mod registries;
mod tags;

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tests::{Client, Driver, Platform, eventually};

async fn platform() -> (Platform, Client) {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    (platform, client)
}

/// Returns the body of a build with one RUN for each command.
fn runs(name: &str, commands: &[&str]) -> Value {
    let steps: Vec<Value> =
        commands.iter().map(|command| json!({ "run": { "command": command } })).collect();
    json!({ "name": name, "from": { "image": "debian:12" }, "steps": steps })
}

async fn team(client: &Client) -> String {
    let teams = client.get("/v1/teams").await.expect(200);
    teams["items"][0]["id"].as_str().unwrap().to_owned()
}

/// Sets limits of the caller's team.
async fn limit(operator: &Client, client: &Client, limits: Value) {
    let team = team(client).await;
    operator.put(&format!("/v1/admin/teams/{team}/limits"), &limits).await.expect(200);
    // The wait lets a second replica hear of the change.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
}

/// Returns a number from the platform's database.
async fn number(platform: &Platform, sql: &'static str) -> i64 {
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap()
}

/// Waits until no capsule of a build is left.
async fn is_quiet(platform: &Platform) {
    let sql = "SELECT count(*) FROM capsules WHERE build_id IS NOT NULL AND status <> 'stopped'";
    eventually("no capsule of a build is left", async || {
        (number(platform, sql).await == 0).then_some(())
    })
    .await;
}

/// Returns the build that a tag stands for, by giving it another tag.
async fn resolve(client: &Client, name: &str, tag: &str) -> Option<String> {
    let path = format!("/v1/templates/{name}/tags");
    let answer = client.post(&path, &json!({ "version": tag, "tags": ["probe"] })).await;
    if answer.status == 404 {
        return None;
    }
    assert!(answer.status.is_success(), "{} {}", answer.status, answer.body);
    let items = answer.body["items"].as_array().unwrap();
    let probe = items.iter().find(|item| item["tag"] == "probe").unwrap();
    Some(probe["build"].as_str().unwrap().to_owned())
}
