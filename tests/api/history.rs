//! History of events: each change with its actor, in pages, and streams that continue after it.

use crate::events::Stream;
use crate::proxy::psql;
use reqwest::Method;
use serde_json::{Value, json};
use tests::{Client, Driver, Platform, Replica, eventually};

/// Returns a page of past events, newest first.
async fn page(client: &Client, query: &str) -> Vec<Value> {
    let page = client.get(&format!("/v1/events?{query}")).await.expect(200);
    page["items"].as_array().unwrap().clone()
}

/// Waits for a number of past events, and returns them, the oldest first. Events appear once no
/// earlier transaction is open.
async fn past(client: &Client, query: &str, count: usize) -> Vec<Value> {
    let mut found = eventually("the events are certain", async || {
        Some(page(client, query).await).filter(|found| found.len() >= count)
    })
    .await;
    found.reverse();
    found
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn every_change_of_a_capsule_is_an_event_with_actor_and_generation() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let made = client.post("/v1/api-keys", &json!({ "name": "robot" })).await.expect(201);
    let robot = platform.client_with(made["key"].as_str().unwrap());
    let id = robot.create(&json!({})).await;
    let path = format!("/v1/capsules/{id}");
    robot.post(&format!("{path}/timeout"), &json!({ "lifetime": 600 })).await.expect(200);
    robot.put(&format!("{path}/network"), &json!({ "internet": false })).await.expect(200);
    // A repetition of the same rules changes nothing.
    robot.put(&format!("{path}/network"), &json!({ "internet": false })).await.expect(200);
    robot.put(&format!("{path}/ports/8000"), &json!({ "public": true })).await.expect(200);
    robot.post(&format!("{path}/traffic-token"), &json!({})).await.expect(200);
    robot.pause(&id).await;
    robot.resume(&id).await;
    robot.delete(&path).await.expect(204);
    let told = past(&client, &format!("resource={id}"), 12).await;
    assert_eq!(
        kinds(&told),
        [
            "capsule.created",
            "capsule.running",
            "capsule.changed",
            "capsule.changed",
            "capsule.changed",
            "capsule.changed",
            "capsule.pausing",
            "capsule.paused",
            "capsule.resuming",
            "capsule.running",
            "capsule.stopping",
            "capsule.destroyed"
        ]
    );
    let fields: Vec<&Value> = told[2..6].iter().map(|event| &event["data"]["fields"]).collect();
    let wanted = [
        json!(["lifetime"]),
        json!(["network"]),
        json!(["public_ports"]),
        json!(["traffic_token"]),
    ];
    assert_eq!(fields, wanted.iter().collect::<Vec<_>>());
    let mut last = 0;
    for event in &told {
        let actor = json!({ "type": "api_key", "id": made["id"], "label": "robot" });
        assert_eq!(event["actor"], actor, "{event}");
        let generation = event["generation"].as_i64().unwrap();
        assert!(generation >= last, "{event}");
        last = generation;
    }
    let secrets =
        psql(&platform, "SELECT string_agg(traffic_token || envd_token, ' ') FROM capsules");
    let all = json!(told).to_string();
    assert!(secrets.split(' ').all(|secret| !all.contains(secret)));
    platform.finish();
}

#[tokio::test]
async fn move_that_the_host_made_names_the_platform_and_the_reason() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({ "lifetime": 1, "on_timeout": "kill" })).await;
    let told = past(&client, &format!("resource={id}&kind=capsule.stopping"), 1).await;
    assert_eq!(told[0]["actor"], json!({ "type": "system", "id": "system" }), "{told:?}");
    assert_eq!(told[0]["data"]["reason"], "lifetime_over", "{told:?}");
    let created = past(&client, &format!("resource={id}&kind=capsule.created"), 1).await;
    assert_eq!(created[0]["actor"]["type"], "api_key");
    platform.finish();
}

#[tokio::test]
async fn history_is_paged_filtered_and_the_teams_own() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(client.create(&json!({})).await);
    }
    let other = crate::auth::other_team(&platform).await;
    past(&client, "kind=capsule.running", 3).await;
    let first = client.get("/v1/events?kind=capsule.created&limit=2").await.expect(200);
    let next = first["next"].as_str().unwrap();
    let query = format!("/v1/events?kind=capsule.created&limit=2&before={next}");
    let second = client.get(&query).await.expect(200);
    assert!(second["next"].is_null(), "{second}");
    let items = [&first, &second].map(|page| page["items"].as_array().unwrap().clone()).concat();
    let shown: Vec<&str> = items.iter().map(|e| e["resource_id"].as_str().unwrap()).collect();
    assert_eq!(shown, [&ids[2], &ids[1], &ids[0]]);
    let both = page(&client, "kind=capsule.running,capsule.created&limit=4").await;
    assert_eq!(both.len(), 4);
    assert_eq!(
        (&both[0]["event"], &both[0]["resource_id"]),
        (&json!("capsule.running"), &json!(ids[2]))
    );
    assert_eq!(page(&other, &format!("resource={}", ids[0])).await, Vec::<Value>::new());
    for (bad, field) in [
        ("resource=x", "resource"),
        ("kind=capsule.lost", "kind"),
        ("before=x", "before"),
        ("limit=101", "limit"),
    ] {
        client.get(&format!("/v1/events?{bad}")).await.refuses(400, "invalid_request", field);
    }
    let confined = json!({ "name": "k", "capsule": ids[0] });
    let made = client.post("/v1/api-keys", &confined).await.expect(201);
    let confined = platform.client_with(made["key"].as_str().unwrap());
    let refused = confined.get(&format!("/v1/events?resource={}", ids[1])).await;
    assert_eq!(refused.status.as_u16(), 403, "{}", refused.body);
    platform.finish();
}

#[tokio::test]
async fn stream_continues_on_another_replica_and_refuses_an_expired_cursor() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let (first, second) = (client.create(&json!({})).await, client.create(&json!({})).await);
    let told = past(&client, "kind=capsule.created,capsule.running", 4).await;
    let ids: Vec<&str> = told.iter().map(|event| event["id"].as_str().unwrap()).collect();
    let replica = Replica::start(&platform);
    let there = client.at(&replica.url);
    let mut stream = Stream::open_at(&there, "/v1/events/stream", Some(ids[1])).await;
    assert_eq!(stream.next().await["id"], ids[2]);
    let path = format!("/v1/events/stream?resource={first}");
    let mut of_first = Stream::open_at(&there, &path, Some(ids[0])).await;
    assert_eq!(of_first.next().await["id"], ids[1]);
    client.pause(&first).await;
    let event = of_first.next().await;
    assert_eq!(event["event"], "capsule.pausing", "another capsule's event came: {event}");
    let (_, seq) = ids[1].split_once('-').unwrap();
    psql(&platform, &format!("DELETE FROM events WHERE seq <= {seq}"));
    let open = async |last: &str| {
        let request = there.request(Method::GET, "/v1/events/stream").header("last-event-id", last);
        request.send().await.unwrap()
    };
    let refused = open(ids[0]).await;
    assert_eq!(refused.status().as_u16(), 410);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["error"]["code"], "cursor_expired", "{refused}");
    // Nothing after the last removed event is missing.
    let mut stream = Stream::open_at(&there, "/v1/events/stream", Some(ids[1])).await;
    assert_eq!(stream.next().await["resource_id"], second);
    // A restored database has not reached the position yet.
    assert_eq!(open("9000000000000000000-1").await.status().as_u16(), 410);
    drop(replica);
    platform.finish();
}

#[tokio::test]
async fn changes_of_keys_members_limits_and_the_team_are_events() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    platform.user("root@example.com").await;
    let owner = platform.user("owner@example.com").await;
    let me = owner.get("/v1/me").await.expect(200);
    let teams = owner.get("/v1/teams").await.expect(200);
    let team = teams["items"][0]["id"].as_str().unwrap().to_owned();
    let made = owner.post("/v1/api-keys", &json!({ "name": "k" })).await.expect(201);
    let key = made["id"].as_str().unwrap();
    owner.delete(&format!("/v1/api-keys/{key}")).await.expect(204);
    let (_, member) = platform.member(&owner, &team, "member").await;
    let path = format!("/v1/teams/{team}/members/{member}");
    owner.patch(&path, &json!({ "role": "viewer" })).await.expect(204);
    owner.delete(&path).await.expect(204);
    owner.patch(&format!("/v1/teams/{team}"), &json!({ "name": "Renamed" })).await.expect(200);
    let limits = format!("/v1/admin/teams/{team}/limits");
    platform.client().put(&limits, &json!({ "capsules": 7 })).await.expect(200);
    let told = past(&owner, "", 10).await;
    assert_eq!(
        kinds(&told),
        [
            "member.added",
            "key.created",
            "key.revoked",
            "invitation.created",
            "invitation.removed",
            "member.added",
            "member.role",
            "member.removed",
            "team.changed",
            "team.limits"
        ]
    );
    let actors: Vec<&Value> = told.iter().map(|event| &event["actor"]["id"]).collect();
    let (owner_id, member_id) = (&me["id"], json!(member));
    let (by_member, by_owner) = ([4, 5], [0, 1, 2, 3, 6, 7, 8]);
    assert!(by_member.iter().all(|n| *actors[*n] == member_id), "{told:?}");
    assert!(by_owner.iter().all(|n| actors[*n] == owner_id), "{told:?}");
    assert_eq!(told[9]["actor"]["type"], "api_key");
    assert_eq!(told[1]["actor"]["label"], me["name"]);
    assert_eq!(told[1]["resource_id"], key);
    assert_eq!(told[5]["resource_id"], member);
    assert_eq!(told[6]["data"], json!({ "role": "viewer", "previous": "member" }));
    assert_eq!(told[8]["data"]["fields"], json!(["name"]));
    assert_eq!(told[9]["data"]["fields"], json!(["capsules"]));
    let all = json!(told).to_string();
    assert!(!all.contains(made["key"].as_str().unwrap()) && !all.contains("@example.com"), "{all}");
    let of_member = page(&owner, &format!("resource={member}")).await;
    assert_eq!(kinds(&of_member), ["member.removed", "member.role", "member.added"]);
    platform.finish();
}

#[tokio::test]
async fn erased_user_is_in_no_event() {
    let platform = Platform::start(Driver::Fake, &[("WRENN_WEBHOOK_PRIVATE", "1")]).await;
    platform.user("root@example.com").await;
    let owner = platform.user("owner@example.com").await;
    let teams = owner.get("/v1/teams").await.expect(200);
    let team = teams["items"][0]["id"].as_str().unwrap().to_owned();
    // Nobody listens there, so the deliveries stay.
    let channel = json!({ "name": "n", "url": "http://127.0.0.1:9/" });
    owner.post("/v1/channels", &channel).await.expect(201);
    let (user, id) = platform.member(&owner, &team, "member").await;
    let made = user.in_team(&team).create(&json!({})).await;
    assert_eq!(past(&owner, &format!("resource={made}"), 2).await[0]["actor"]["id"], id);
    let me = user.get("/v1/me").await.expect(200);
    let bye = user.request(Method::DELETE, "/v1/me");
    user.send(bye.json(&json!({ "confirmation": me["email"] }))).await.expect(204);
    let told = past(&owner, "kind=member.removed", 1).await;
    assert_eq!(told[0]["actor"], json!({ "type": "user", "id": "erased" }));
    let all = json!(page(&owner, "").await).to_string();
    assert!(!all.contains(&id) && !all.contains("member-"), "{all}");
    let bodies = psql(&platform, "SELECT string_agg(body::text, ' ') FROM deliveries");
    assert!(bodies.contains("erased") && !bodies.contains(&id), "{bodies}");
    assert!(!bodies.contains("member-"), "{bodies}");
    platform.finish();
}

#[tokio::test]
async fn tags_of_templates_are_events() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let steps = json!([{ "run": { "command": "true" } }]);
    let body = json!({ "name": "web", "from": { "image": "debian:12" }, "steps": steps });
    let build = client.build(&body).await.id;
    for _ in 0..2 {
        let assigned = json!({ "version": build, "tags": ["v1"] });
        client.post("/v1/templates/web/tags", &assigned).await.expect(201);
    }
    client.delete("/v1/templates/web/tags/v1").await.expect(204);
    let told = past(&client, "kind=template.tag.assigned,template.tag.deleted", 4).await;
    let tags: Vec<&Value> = told.iter().map(|event| &event["data"]["tag"]).collect();
    assert_eq!(tags, ["default", "v1", "v1", "v1"]);
    // Two assignments of the tag ended by one deletion.
    assert_eq!(told[3]["event"], "template.tag.deleted", "{told:?}");
    assert_eq!(
        told[1]["data"],
        json!({ "name": "web", "tag": "v1", "build": told[0]["data"]["build"] })
    );
    let started = past(&client, "kind=template.build.started,template.build.ready", 2).await;
    let actors: Vec<&Value> = started.iter().map(|event| &event["actor"]["type"]).collect();
    assert_eq!(actors, ["api_key", "system"]);
    assert!(started[1]["generation"].as_i64() > started[0]["generation"].as_i64(), "{started:?}");
    platform.finish();
}

#[tokio::test]
async fn changes_of_webhooks_logins_and_templates_are_events_without_secrets() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let url = "https://example.com/in?secret=hidden";
    let wanted = json!({ "name": "n", "url": url, "events": ["host.up"] });
    let made = client.post("/v1/channels", &wanted).await.expect(201);
    let path = format!("/v1/channels/{}", made["id"].as_str().unwrap());
    client.patch(&path, &json!({ "enabled": false, "name": "n" })).await.expect(200);
    // The same settings again change nothing.
    client.patch(&path, &json!({ "enabled": false })).await.expect(200);
    client.post(&format!("{path}/secret"), &json!({})).await.expect(200);
    client.delete(&path).await.expect(204);
    let login = json!({ "basic": { "username": "robot", "password": "hidden" } });
    client.put("/v1/registries/ghcr.io", &login).await.expect(200);
    client.delete("/v1/registries/ghcr.io").await.expect(204);
    let steps = json!([{ "run": { "command": "true" } }]);
    let body = json!({ "name": "web", "from": { "image": "debian:12" }, "steps": steps });
    client.build(&body).await;
    client.patch("/v1/templates/web", &json!({ "public": true })).await.expect(200);
    client.delete("/v1/templates/web").await.expect(204);
    let channel = "channel.created,channel.changed,channel.deleted";
    let template = "template.created,template.changed,template.deleted";
    let query = format!("kind={channel},registry.login,registry.logout,{template}");
    let told = past(&client, &query, 9).await;
    let fields = |event: &Value| event["data"]["fields"].clone();
    assert_eq!(
        kinds(&told),
        [
            "channel.created",
            "channel.changed",
            "channel.changed",
            "channel.deleted",
            "registry.login",
            "registry.logout",
            "template.created",
            "template.changed",
            "template.deleted"
        ]
    );
    assert_eq!((fields(&told[1]), fields(&told[2])), (json!(["enabled"]), json!(["secret"])));
    assert_eq!((&told[0]["resource_id"], fields(&told[7])), (&made["id"], json!(["public"])));
    assert_eq!(told[4]["data"], json!({ "registry": "ghcr.io" }));
    assert!(told.iter().all(|event| event["actor"]["type"] == "api_key"), "{told:?}");
    let all = json!(told).to_string();
    assert!(!all.contains("hidden") && !all.contains("robot"), "{all}");
    platform.finish();
}

#[tokio::test]
async fn events_command_shows_past_events_in_order() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({})).await;
    past(&client, &format!("resource={id}"), 2).await;
    let out = platform.run(&["--json", "events", "--resource", &id]);
    assert!(out.status.success(), "{out:?}");
    let shown: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(kinds(&shown), ["capsule.created", "capsule.running"]);
    let out = platform.run(&["events", "--kind", "capsule.created", "-n", "1"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        text.contains(&id) && text.contains("capsule.created") && text.contains("first"),
        "{text}"
    );
    let out = platform.run(&["events", "--kind", "capsule.lost"]);
    assert!(
        !out.status.success() && String::from_utf8_lossy(&out.stderr).contains("kind"),
        "{out:?}"
    );
    platform.finish();
}
