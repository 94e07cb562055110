//! Limits: the number and size of a team's or a key's things, and the rate of requests.

use crate::races::Other;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tests::{Client, Driver, Platform, eventually};

async fn team(client: &Client) -> String {
    let teams = client.get("/v1/teams").await.expect(200);
    teams["items"][0]["id"].as_str().unwrap().to_owned()
}

async fn set(operator: &Client, team: &str, limits: Value) {
    operator.put(&format!("/v1/admin/teams/{team}/limits"), &limits).await.expect(200);
    // The wait lets a second replica hear of the change.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
}

#[tokio::test]
async fn concurrent_creates_stop_at_team_capsule_limit() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let team = team(&client).await;
    set(&client, &team, json!({ "capsules": 3 })).await;
    let body = json!({});
    let creates = (0..10).map(|_| client.post("/v1/capsules", &body));
    let made = futures::future::join_all(creates).await;
    let (good, bad): (Vec<_>, Vec<_>) = made.into_iter().partition(|a| a.status == 201);
    assert_eq!(good.len(), 3);
    for refused in bad {
        refused.refuses(429, "limit_reached", "3 of 3 capsules");
    }
    let seen = client.get(&format!("/v1/teams/{team}/limits")).await.expect(200);
    assert_eq!((&seen["limits"]["capsules"], &seen["capsules"]), (&json!(3), &json!(3)));
    // A refused create leaves nothing. The end of a capsule makes room.
    let list = client.get("/v1/capsules").await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 3);
    let id = good[0].body["id"].as_str().unwrap();
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    client.create(&json!({})).await;
    platform.finish();
}

/// A statement that waits for a lock has a snapshot from before its wait.
#[tokio::test]
async fn create_that_waits_for_team_lock_counts_its_holders_changes() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let team = team(&client).await;
    set(&client, &team, json!({ "vcpus": 4 })).await;
    let body = json!({ "vcpus": 1 });
    client.create(&body).await;
    let grow = "SELECT pg_advisory_xact_lock(hashtextextended(team_id::text, 6)) FROM capsules; \
                UPDATE capsules SET vcpus = 4;";
    let other = Other::begin(&platform, grow).await;
    let answer = other.then(client.post("/v1/capsules", &body)).await;
    answer.refuses(429, "limit_reached", "4 of 4 vCPUs");
    platform.finish();
}

#[tokio::test]
async fn paused_capsule_frees_vcpus_and_resumes_within_limit() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let team = team(&client).await;
    set(&client, &team, json!({ "vcpus": 4, "memory_mib": 2048 })).await;
    let body = json!({ "vcpus": 2, "memory_mib": 1024 });
    let one = client.create(&body).await;
    client.create(&body).await;
    client.post("/v1/capsules", &body).await.refuses(429, "limit_reached", "4 of 4 vCPUs");
    let thin = json!({ "vcpus": 1, "memory_mib": 512 });
    client.post("/v1/capsules", &thin).await.refuses(429, "limit_reached", "vCPUs");
    client.pause(&one).await;
    let third = client.create(&body).await;
    let resume = format!("/v1/capsules/{one}/resume");
    client.post(&resume, &json!({})).await.refuses(429, "limit_reached", "vCPUs");
    assert_eq!(client.status(&one).await, "paused");
    client.pause(&third).await;
    client.resume(&one).await;
    platform.finish();
}

#[tokio::test]
async fn key_limits_apply_within_team_limits() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let owner = platform.client();
    let wanted = json!({ "name": "k", "limits": { "capsules": 1 } });
    let made = owner.post("/v1/api-keys", &wanted).await.expect(201);
    assert_eq!(made["limits"], json!({ "capsules": 1 }));
    let key = platform.client_with(made["key"].as_str().unwrap());
    let id = key.create(&json!({})).await;
    key.post("/v1/capsules", &json!({})).await.refuses(429, "limit_reached", "the key");
    // A fork counts as a capsule.
    let fork = format!("/v1/capsules/{id}/fork");
    key.post(&fork, &json!({})).await.refuses(429, "limit_reached", "the key");
    owner.create(&json!({})).await;
    key.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    key.create(&json!({})).await;
    platform.finish();
}

#[tokio::test]
async fn key_cannot_grant_more_than_its_own_rights() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let owner = platform.client();
    let scopes = json!(["capsules:admin", "team:admin"]);
    let limits = json!({ "capsules": 2, "requests_per_sec": 1000 });
    let wanted = json!({ "name": "k", "scopes": scopes, "limits": limits, "expires_in": 3600 });
    let made = owner.post("/v1/api-keys", &wanted).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    let ask = async |body: Value| key.post("/v1/api-keys", &body).await;
    let none = json!({ "name": "c", "limits": { "capsules": 0 } });
    ask(none).await.refuses(400, "invalid_request", "limits.capsules must be between 1 and 2");
    let more = json!({ "name": "c", "limits": { "capsules": 3 } });
    ask(more).await.refuses(400, "invalid_request", "limits.capsules");
    let longer = json!({ "name": "c", "expires_in": 7200 });
    ask(longer).await.refuses(400, "invalid_request", "expires_in");
    let more = json!({ "name": "c", "operator": true });
    ask(more).await.refuses(403, "forbidden", "platform");
    let child = ask(json!({ "name": "c", "scopes": scopes, "limits": { "vcpus": 8 } })).await;
    let child = child.expect(201);
    assert_eq!(child["limits"], json!({ "capsules": 2, "vcpus": 8, "requests_per_sec": 1000 }));
    assert_eq!(child["expires_at"], made["expires_at"]);
    let child = platform.client_with(child["key"].as_str().unwrap());
    let grandchild = child.post("/v1/api-keys", &json!({ "name": "g" })).await.expect(201);
    let grandchild = platform.client_with(grandchild["key"].as_str().unwrap());
    // A chain of keys together has as many capsules as the first key may have.
    let id = grandchild.create(&json!({})).await;
    key.create(&json!({})).await;
    for client in [&key, &child, &grandchild] {
        client.post("/v1/capsules", &json!({})).await.refuses(429, "limit_reached", "2 of 2");
    }
    key.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    child.create(&json!({})).await;
    // A chain of keys has a greatest length.
    let mut last = child;
    let mut made = 0;
    loop {
        let more = last.post("/v1/api-keys", &json!({ "name": "n", "scopes": scopes })).await;
        if more.status != 201 {
            more.refuses(429, "limit_reached", "8 deep");
            break;
        }
        made += 1;
        last = platform.client_with(more.body["key"].as_str().unwrap());
    }
    assert_eq!(made, 5, "the platform's first key, its child and its grandchild were there");
    platform.finish();
}

#[tokio::test]
async fn visitor_waking_public_capsule_is_held_to_limits_of_its_key() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let owner = platform.client();
    let wanted = json!({ "name": "k", "limits": { "vcpus": 1 } });
    let made = owner.post("/v1/api-keys", &wanted).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    let guest = tests::Upstream::echo();
    let public = json!({ "vcpus": 1, "public_ports": [guest.port], "auto_resume": true });
    let first = key.create(&public).await;
    key.pause(&first).await;
    let second = key.create(&public).await;
    let nobody = platform.client_with("");
    let visit = async |id: &str| {
        nobody.send(nobody.to_port(Method::GET, id, guest.port, "/")).await.status.as_u16()
    };
    assert_eq!(visit(&second).await, 200);
    assert_eq!(visit(&first).await, 429);
    assert_eq!(key.status(&first).await, "paused");
    // A caller who is not held to the key's limits brings the capsule back.
    owner.resume(&first).await;
    owner.pause(&first).await;
    // A stranger brings it back, too, once there is room.
    key.pause(&second).await;
    assert_eq!(visit(&first).await, 200);
    platform.finish();
}

#[tokio::test]
async fn requests_over_rate_limit_get_retry_after() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let owner = platform.client();
    let wanted = json!({ "name": "k", "limits": { "requests_per_sec": 2, "creates_per_sec": 1 } });
    let made = owner.post("/v1/api-keys", &wanted).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    let mut statuses = Vec::new();
    for _ in 0..20 {
        let answer = key.request(Method::GET, "/v1/capsules").send().await.unwrap();
        let status = answer.status().as_u16();
        if status == 429 {
            assert_eq!(answer.headers()["retry-after"], "1");
        }
        statuses.push(status);
    }
    assert_eq!(statuses[..4], [200; 4]);
    assert!(statuses.contains(&429), "{statuses:?}");
    // Other members of the team are not held up.
    owner.get("/v1/capsules").await.expect(200);
    eventually("it is let in again", async || {
        (key.get("/v1/capsules").await.status.as_u16() == 200).then_some(())
    })
    .await;
    let wanted = json!({ "name": "c", "limits": { "creates_per_sec": 1 } });
    let made = owner.post("/v1/api-keys", &wanted).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    let body = json!({});
    let creates = futures::future::join_all((0..12).map(|_| key.post("/v1/capsules", &body))).await;
    let refused: Vec<_> = creates.into_iter().filter(|answer| answer.status != 201).collect();
    assert!(refused.len() >= 6, "{}", refused.len());
    for answer in refused {
        answer.refuses(429, "too_many_requests", "creates");
    }
    platform.finish();
}

#[tokio::test]
async fn anonymous_auth_requests_are_rate_limited() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let anyone = platform.client_with("");
    let asked = (0..200).map(|_| anyone.get("/v1/auth/providers"));
    let answers = futures::future::join_all(asked).await;
    let refused: Vec<_> = answers.into_iter().filter(|answer| answer.status != 200).collect();
    assert!(refused.len() > 50, "{}", refused.len());
    for answer in refused {
        answer.refuses(429, "too_many_requests", "requests");
    }
    // Callers with a valid credential are not held up.
    platform.client().get("/v1/capsules").await.expect(200);
    platform.finish();
}

#[tokio::test]
async fn platform_limits_apply_to_teams_without_own_limits() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let operator = platform.client();
    let (team, platforms) = (team(&operator).await, format!("team-{}", "0".repeat(25)));
    let seen = operator.get(&format!("/v1/teams/{team}/limits")).await.expect(200);
    assert_eq!(seen["limits"]["capsules"], 1000);
    set(&operator, &platforms, json!({ "capsules": 1, "vcpus": 0 })).await;
    operator.create(&json!({})).await;
    operator.post("/v1/capsules", &json!({})).await.refuses(
        429,
        "limit_reached",
        "1 of 1 capsules",
    );
    set(&operator, &team, json!({ "capsules": 2 })).await;
    operator.create(&json!({})).await;
    operator.post("/v1/capsules", &json!({})).await.refuses(
        429,
        "limit_reached",
        "2 of 2 capsules",
    );
    let path = "/v1/admin/teams/team-0000000000000000000000001/limits";
    operator.put(path, &json!({})).await.refuses(404, "not_found", "team");
    let path = format!("/v1/admin/teams/{team}/limits");
    operator.put(&path, &json!({ "capsules": 3_000_000_000_u32 })).await.refuses(
        400,
        "invalid_request",
        "capsules",
    );
    operator.put(&path, &json!({ "colour": 1 })).await.refuses(400, "invalid_request", "colour");
    platform.finish();
}

/// Enlarges kept files behind the agent's back, since the fake driver's files are tiny.
fn grow(platform: &Platform, folder: &str, mib: usize) {
    let file = platform.dir().join(folder).join("grown");
    std::fs::write(file, vec![1; mib << 20]).unwrap();
}

async fn storage(client: &Client, team: &str) -> i64 {
    let seen = client.get(&format!("/v1/teams/{team}/limits")).await.expect(200);
    seen["storage_mib"].as_i64().unwrap()
}

#[tokio::test]
async fn concurrent_snapshots_stop_at_team_limit() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let team = team(&client).await;
    set(&client, &team, json!({ "snapshots": 2 })).await;
    let ids = [client.create(&json!({})).await, client.create(&json!({})).await];
    let bodies: Vec<_> =
        (0..8).map(|n| json!({ "capsule_id": ids[n % 2], "name": format!("s{n}") })).collect();
    let asked = bodies.iter().map(|body| client.post("/v1/snapshots", body));
    let taken = futures::future::join_all(asked).await;
    let (good, bad): (Vec<_>, Vec<_>) = taken.into_iter().partition(|a| a.status == 201);
    assert_eq!(good.len(), 2);
    for refused in bad {
        refused.refuses(429, "limit_reached", "2 of 2 snapshots");
    }
    let seen = client.get(&format!("/v1/teams/{team}/limits")).await.expect(200);
    assert_eq!((&seen["limits"]["snapshots"], &seen["snapshots"]), (&json!(2), &json!(2)));
    // A snapshot that replaces another does not count as one more. A fork's snapshot is not
    // counted.
    let name = good[0].body["name"].as_str().unwrap();
    let body = json!({ "capsule_id": ids[0], "name": name, "overwrite": true });
    client.post("/v1/snapshots", &body).await.expect(201);
    let body = json!({ "capsule_id": ids[0], "name": "new", "overwrite": true });
    client.post("/v1/snapshots", &body).await.refuses(429, "limit_reached", "snapshots");
    client.post(&format!("/v1/capsules/{}/fork", ids[0]), &json!({})).await.expect(201);
    // The limit also holds by E2B's route.
    let path = format!("/sandboxes/{}/snapshots", ids[0]);
    let refused = client.post(&path, &json!({})).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    client.delete(&format!("/v1/snapshots/{name}")).await.expect(204);
    let body = json!({ "capsule_id": ids[0], "name": "new" });
    client.post("/v1/snapshots", &body).await.expect(201);
    platform.finish();
}

/// Counts the rows of snapshots, whatever their state.
async fn snapshot_rows(platform: &Platform) -> i64 {
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    sqlx::query_scalar("SELECT count(*) FROM snapshots").fetch_one(&mut db).await.unwrap()
}

#[tokio::test]
async fn parallel_overwrites_of_name_leave_one_snapshot_within_limit() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let team = team(&client).await;
    set(&client, &team, json!({ "snapshots": 1 })).await;
    let id = client.create(&json!({})).await;
    let ours = json!({ "capsule_id": id, "name": "p1", "overwrite": true });
    let (e2b_path, e2bs) = (format!("/sandboxes/{id}/snapshots"), json!({ "name": "p1" }));
    let rounds = [("/v1/snapshots", &ours), (e2b_path.as_str(), &e2bs), ("/v1/snapshots", &ours)];
    for (path, body) in rounds {
        let asked = (0..24).map(|_| client.post(path, body));
        let answers = futures::future::join_all(asked).await;
        for answer in &answers {
            assert!([201, 409].contains(&answer.status.as_u16()), "{answer:?}");
        }
        assert!(answers.iter().any(|answer| answer.status == 201), "{answers:?}");
        let listed = client.get("/v1/snapshots").await.expect(200);
        let items = listed["items"].as_array().unwrap();
        assert!(items.len() == 1 && items[0]["name"] == "p1", "{listed}");
        let seen = client.get(&format!("/v1/teams/{team}/limits")).await.expect(200);
        assert_eq!(seen["snapshots"], 1);
        eventually("the others are removed", || async {
            (snapshot_rows(&platform).await == 1).then_some(())
        })
        .await;
    }
    // Overwrites of names that nothing has are held to the limit.
    set(&client, &team, json!({ "snapshots": 2 })).await;
    let bodies: Vec<_> = (0..8)
        .map(|n| json!({ "capsule_id": id, "name": format!("n{n}"), "overwrite": true }))
        .collect();
    let asked = bodies.iter().map(|body| client.post("/v1/snapshots", body));
    let taken = futures::future::join_all(asked).await;
    let (good, bad): (Vec<_>, Vec<_>) = taken.into_iter().partition(|a| a.status == 201);
    assert_eq!(good.len(), 1, "{good:?}");
    for refused in bad {
        refused.refuses(429, "limit_reached", "2 of 2 snapshots");
    }
    platform.finish();
}

#[tokio::test]
async fn storage_limit_counts_sizes_reported_by_host() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let team = team(&client).await;
    let (paused, runs) = (client.create(&json!({})).await, client.create(&json!({})).await);
    client.pause(&paused).await;
    let body = json!({ "capsule_id": runs, "name": "one" });
    let one = client.post("/v1/snapshots", &body).await.expect(201);
    let before = storage(&client, &team).await;
    assert!(before < 3, "{before}");
    grow(&platform, &format!("capsules/{paused}/kept/1"), 7);
    grow(&platform, &format!("snapshots/{}", one["id"].as_str().unwrap()), 5);
    eventually("the host has counted them", async || {
        let now = storage(&client, &team).await;
        (now >= 12).then_some(())
    })
    .await;
    set(&client, &team, json!({ "storage_mib": 12 })).await;
    let body = json!({ "capsule_id": runs, "name": "two" });
    client.post("/v1/snapshots", &body).await.refuses(429, "limit_reached", "MiB of storage");
    let fork = format!("/v1/capsules/{runs}/fork");
    client.post(&fork, &json!({})).await.refuses(429, "limit_reached", "MiB of storage");
    // A pause is not refused, so a team over its limit may stop computing.
    client.pause(&runs).await;
    client.resume(&runs).await;
    // A removal makes room, and so does a higher limit.
    client.delete(&format!("/v1/capsules/{paused}")).await.expect(204);
    client.post("/v1/snapshots", &body).await.expect(201);
    // The team keeps both snapshots when a paused capsule takes more storage.
    client.pause(&runs).await;
    grow(&platform, &format!("capsules/{runs}/kept/1"), 6);
    let listed = client.get("/v1/snapshots").await.expect(200);
    let names: Vec<_> = listed["items"].as_array().unwrap().iter().collect();
    assert_eq!(names.len(), 2, "{listed}");
    platform.finish();
}

#[tokio::test]
async fn storage_limits_are_set_by_admins_for_teams_only() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let team = team(&client).await;
    let seen = client.get(&format!("/v1/teams/{team}/limits")).await.expect(200);
    assert_eq!(seen["limits"]["snapshots"], 1000);
    assert_eq!(seen["limits"]["storage_mib"], 1 << 20);
    let path = format!("/v1/admin/teams/{team}/limits");
    for (field, wrong) in
        [("snapshots", json!(3_000_000_000_u32)), ("storage_mib", json!(1_u64 << 44))]
    {
        client.put(&path, &json!({ field: wrong })).await.refuses(400, "invalid_request", field);
        let key = json!({ "name": "k", "limits": { field: 1 } });
        client.post("/v1/api-keys", &key).await.refuses(400, "invalid_request", field);
    }
    let set =
        platform.run(&["team", "limits", "--of", &team, "--snapshots", "7", "--storage", "99"]);
    let said = String::from_utf8_lossy(&set.stdout).into_owned();
    assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    assert!(said.contains("snapshots") && said.contains("99"), "{said}");
    let seen = client.get(&format!("/v1/teams/{team}/limits")).await.expect(200);
    assert_eq!(seen["limits"]["snapshots"], 7);
    assert_eq!(seen["limits"]["storage_mib"], 99);
    platform.finish();
}
