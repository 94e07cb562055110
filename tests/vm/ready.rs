//! Capsules from the pool of ready machines. The guest of such a capsule knows nothing of its time
//! in the pool. The capsule is like any other.

mod demand;
mod killed;
mod networks;

use crate::egress::{curl, plain, set};
use crate::fork::own;
use crate::internet::{INTERNET, Internet};
use crate::keep::clock_off;
use crate::metadata::says;
use crate::small;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use tests::{Client, Driver, POOLS, Platform, ReadyMachine, eventually, processes_of};

/// Metric of the creates that took a machine from the pool.
const TAKEN: &str = "wrenn_host_ready_taken_total";

/// Returns the body of a create of a small capsule, with one more field.
fn small_with(field: &str, value: Value) -> Value {
    let mut body = small();
    body[field] = value;
    body
}

/// Starts a platform with pools and further variables. Returns it with a client and a small
/// capsule, whose create lets the platform fill the pool of machines.
async fn pooled(vars: &[(&str, &str)]) -> (Platform, Client, String) {
    let vars = [&POOLS[..], vars].concat();
    let platform = Platform::start(Driver::Guests, &vars).await;
    let client = platform.client();
    let id = client.create(&small()).await;
    (platform, client, id)
}

/// Starts a capsule from the pool.
async fn take(platform: &Platform, client: &Client, body: &Value) -> String {
    platform.ready(1).await;
    let taken = platform.figure(TAKEN).await;
    let id = client.create(body).await;
    assert_eq!(platform.figure(TAKEN).await, taken + 1, "the create took no ready machine");
    assert_ne!(platform.machine_name(&id), id);
    id
}

/// Starts a platform. Returns it with a client and one small capsule from the pool.
pub(crate) async fn claimed() -> (Platform, Client, String) {
    let (platform, client, first) = pooled(&[]).await;
    let id = take(&platform, &client, &small()).await;
    delete(&client, &first).await;
    (platform, client, id)
}

async fn delete(client: &Client, id: &str) {
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
}

/// Waits until nothing is left of machines of the pool.
async fn are_gone(platform: &Platform, machines: &[ReadyMachine]) {
    let folders = platform.dir().join("capsules");
    eventually("nothing is left of the machines of the pool", async || {
        let is_gone = |machine: &ReadyMachine| {
            machine.processes().is_empty() && !folders.join(&machine.name).exists()
        };
        machines.iter().all(is_gone).then_some(())
    })
    .await;
}

/// Returns the status of a request to a capsule's envd with a token.
async fn status_with(platform: &Platform, id: &str, token: &str) -> u16 {
    let envd = platform.agent_client().below(&format!("/proxy/{id}/49983"));
    let request = envd.request(Method::GET, "/envs").header("x-access-token", token);
    envd.send(request).await.status.as_u16()
}

#[tokio::test]
async fn creates_from_the_pool_share_nothing_and_know_nothing_of_their_wait() {
    let (platform, client, first) = pooled(&[]).await;
    let files = "ls -A /tmp /home/user /dev/shm";
    let empty = client.out(&first, files).await;
    let mut seen: BTreeSet<String> = own(&client, &first).await.into_iter().collect();
    let mut tokens = Vec::new();
    for (number, who) in ["one", "two"].into_iter().enumerate() {
        tokens.extend(platform.ready(1).await.into_iter().map(|machine| machine.token));
        // The clock of a machine in the pool stands.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let listed = client.get("/v1/capsules").await.expect(200);
        assert_eq!(listed["items"].as_array().unwrap().len(), 1 + number, "{listed}");
        let body = small_with("envs", json!({ "WHO": who }));
        let id = take(&platform, &client, &body).await;
        let list = client.get(&format!("/v1/capsules/{id}/processes")).await.expect(200);
        assert_eq!(list["processes"], json!([]), "{list}");
        assert!(clock_off(&client, &id).await <= 100);
        let told = client.out(&id, "env | grep ^WHO; hostname").await;
        assert_eq!(told, format!("WHO={who}\ncapsule\n"));
        assert_eq!(says(&client, &id).await, format!("{id} base\n{id}base"));
        assert_eq!(client.out(&id, files).await, empty);
        for value in own(&client, &id).await {
            assert!(seen.insert(value.clone()), "{value} twice, of {id}");
        }
        // Neither the token of the pool nor that of another capsule opens the guest.
        let token = platform.record(&id)["envd_token"].as_str().unwrap().to_owned();
        assert_eq!(status_with(&platform, &id, &token).await, 200);
        for other in &tokens {
            assert_eq!(status_with(&platform, &id, other).await, 401);
        }
        tokens.push(token);
    }
    platform.settles(3).await;
    platform.finish();
}

#[tokio::test]
async fn claimed_capsule_is_adopted_paused_resumed_and_forked_like_any_other() {
    let (mut platform, client, id) = claimed().await;
    let (name, machine) = (platform.machine_name(&id), platform.machine(&id));
    assert_eq!(machine.len(), 1, "{machine:?}");
    let contents = "cat f /dev/shm/m";
    client.out(&id, "echo kept > f; echo kept > /dev/shm/m").await;
    let waiting = platform.ready(1).await;
    for kills in [true, false] {
        match kills {
            true => platform.kill(),
            false => platform.stop(),
        }
        platform.resume().await;
        let client = platform.client();
        assert_eq!(platform.machine(&id), machine, "another machine");
        assert_eq!(client.status(&id).await, "running");
        assert_eq!(client.out(&id, contents).await, "kept\nkept\n");
        assert_eq!(says(&client, &id).await, format!("{id} base\n{id}base"));
    }
    // The new agent has removed the machines in the pool of the old one.
    are_gone(&platform, &waiting).await;
    platform.settles(1).await;
    let client = platform.client();
    client.pause(&id).await;
    assert!(processes_of(&name).is_empty() && processes_of(&id).is_empty());
    client.resume(&id).await;
    assert_eq!(platform.machine_name(&id), id, "a resumed machine has its capsule's name");
    assert_eq!(client.out(&id, contents).await, "kept\nkept\n");
    // The new agent has seen no create yet, so its pool is empty.
    client.create(&small()).await;
    let second = take(&platform, &client, &small()).await;
    client.out(&second, "echo mine > f; echo mine > /dev/shm/m").await;
    let fork = format!("/v1/capsules/{second}/fork");
    let forked = client.post(&fork, &json!({ "count": 1 })).await.expect(201);
    let child = forked["items"][0]["id"].as_str().unwrap().to_owned();
    delete(&client, &second).await;
    assert_eq!(client.out(&child, contents).await, "mine\nmine\n");
    platform.settles(3).await;
    platform.finish();
}

/// Fetches a page whose name only some rules allow.
async fn any(client: &Client, id: &str) -> String {
    curl(client, id, "http://any.test/").await
}

/// A network of the pool has rules before it has a capsule.
#[tokio::test]
async fn network_rules_of_a_create_hold_in_a_claimed_capsule() {
    let _internet = Internet::make().with_names();
    let dns = INTERNET.to_string();
    let (mut platform, client, first) = pooled(&[("WRENN_DNS", dns.as_str())]).await;
    let rules = json!({ "internet": false, "allow": ["ok.test"] });
    let named = take(&platform, &client, &small_with("network", rules)).await;
    let none = json!({ "internet": false });
    let closed = take(&platform, &client, &small_with("network", none)).await;
    let open = take(&platform, &client, &small()).await;
    for id in [&first, &open] {
        assert_eq!(any(&client, id).await, plain("any.test", INTERNET));
    }
    let direct = format!("http://{INTERNET}/");
    assert!(curl(&client, &named, &direct).await.ends_with("403 0"));
    assert!(any(&client, &closed).await.starts_with("000"));
    assert!(curl(&client, &closed, &direct).await.starts_with("000"));
    platform.kill();
    platform.resume().await;
    let client = platform.client();
    eventually("the capsule reaches what is allowed", || async {
        let reached = curl(&client, &named, "http://ok.test/").await;
        (reached == plain("ok.test", INTERNET)).then_some(())
    })
    .await;
    assert_eq!(any(&client, &named).await, "000 6");
    assert!(any(&client, &closed).await.starts_with("000"));
    set(&client, &closed, json!({})).await;
    assert_eq!(any(&client, &closed).await, plain("any.test", INTERNET));
    platform.settles(4).await;
    platform.finish();
}
