//! E2B's API, where its SDKs do not look: the words of errors, what may be repeated, what is kept
//! through the platform's death, and what the proxy says of a capsule that was made by it. What
//! the SDKs do is in `tests/sdk`.

use crate::auth::other_team;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use tests::{Client, Driver, Platform, Upstream, eventually};

async fn create(client: &Client, body: &Value) -> Value {
    client.post("/v2/sandboxes", body).await.expect(201)
}

fn id(made: &Value) -> String {
    made["sandboxID"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_sandbox_is_a_capsule_and_has_what_the_sdks_read() {
    let vars = [("WRENN_PUBLIC_URL", "https://sandbox.test:8443")];
    let platform = Platform::start(Driver::Fake, &vars).await;
    let client = platform.client();
    let body = json!({
        "templateID": "base:default", "timeout": 60, "autoPause": true, "metadata": { "a": "b" },
        "envVars": { "X": "1" }, "network": { "allowPublicTraffic": false }, "unknown": 1,
    });
    let made = create(&client, &body).await;
    assert_eq!(made["envdVersion"], "0.6.13");
    assert_eq!(made["domain"], "sandbox.test:8443");
    for secret in ["envdAccessToken", "trafficAccessToken"] {
        assert_eq!(made[secret].as_str().unwrap().len(), 64, "{made}");
    }
    let id = id(&made);
    // Who may look may not do what the token lets do.
    let wanted = json!({ "name": "looks", "scopes": ["capsules:read"] });
    let looks = client.post("/v1/api-keys", &wanted).await.expect(201);
    let looks = platform.client_with(looks["key"].as_str().unwrap());
    let seen = looks.get(&format!("/sandboxes/{id}")).await.expect(200);
    assert!(!seen.to_string().contains(made["envdAccessToken"].as_str().unwrap()), "{seen}");
    // By both APIs it is the same.
    let capsule = client.get(&format!("/v1/capsules/{id}")).await.expect(200);
    assert_eq!(
        (&capsule["on_timeout"], &capsule["public_traffic"]),
        (&json!("pause"), &json!(false))
    );
    let shown = client.get(&format!("/sandboxes/{id}-0123")).await.expect(200);
    assert_eq!(shown["envdAccessToken"], made["envdAccessToken"]);
    assert_eq!((&shown["state"], &shown["alias"]), (&json!("running"), &json!("base")));
    assert_eq!(shown["lifecycle"], json!({ "autoResume": false, "onTimeout": "pause" }));
    assert_eq!(shown["metadata"], json!({ "a": "b" }));
    // One that was made by ours is seen too, without an end.
    let ours = client.create(&json!({})).await;
    let shown = client.get(&format!("/sandboxes/{ours}")).await.expect(200);
    assert_eq!(shown["endAt"], "9999-01-01T00:00:00Z");
    let listed = client.get("/v2/sandboxes").await.expect(200);
    assert_eq!(listed.as_array().unwrap().len(), 2);
    let by_default = create(&client, &json!({})).await;
    assert!(by_default["trafficAccessToken"].is_null(), "its ports are everybody's");
    // The first API: a shorter life, and a list of those that run.
    let first = client.post("/sandboxes", &json!({ "templateID": "base" })).await.expect(201);
    client.post(&format!("/sandboxes/{}/pause", self::id(&first)), &json!({})).await.expect(204);
    let listed = client.get("/sandboxes").await.expect(200);
    assert_eq!(listed.as_array().unwrap().len(), 3);
    let paused = client.get("/v2/sandboxes?state=paused").await.expect(200);
    assert_eq!(paused[0]["sandboxID"], first["sandboxID"]);
    let resume = format!("/sandboxes/{}/resume", self::id(&first));
    client.post(&resume, &json!({ "timeout": 20 })).await.expect(201);
    let again = client.post(&resume, &json!({})).await;
    assert_eq!((again.status.as_u16(), &again.body["code"]), (409, &json!(409)));
    let alias = client.get("/templates/aliases/base").await.expect(200);
    assert_eq!(alias["public"], true);
    assert_eq!(client.get("/templates").await.expect(200)[0]["aliases"], json!(["base"]));
    platform.finish();
}

async fn platform() -> (Platform, Client) {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    (platform, client)
}

/// What an answer says of itself: its status, its message, and whether it may be repeated.
async fn told(answer: Response) -> (u16, String, Option<String>) {
    let retry = answer.headers().get("should-retry").map(|v| v.to_str().unwrap().to_owned());
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["code"], status, "{body}");
    (status, body["message"].as_str().unwrap().to_owned(), retry)
}

#[tokio::test]
async fn errors_have_e2bs_shape_and_say_what_may_be_repeated() {
    let (platform, client) = platform().await;
    let stranger = other_team(&platform).await;
    let made = id(&create(&client, &json!({})).await);
    let no = Some("false".to_owned());
    for (method, path, body, status, holding, retry) in [
        (Method::POST, "/v2/sandboxes", r#"{"timeout":"x"}"#, 400, "timeout is wrong", no.clone()),
        (
            Method::POST,
            "/v2/sandboxes",
            r#"{"templateID":"nope"}"#,
            404,
            "template not found",
            no.clone(),
        ),
        (Method::POST, "/v2/sandboxes", r#"{"templateID":"base:v7"}"#, 400, "template", no.clone()),
        (
            Method::POST,
            "/v2/sandboxes",
            r#"{"network":{"rules":{"a":[]}}}"#,
            400,
            "network.rules",
            no.clone(),
        ),
        (
            Method::POST,
            "/v2/sandboxes",
            r#"{"network":{"allowOut":["a.com"]}}"#,
            400,
            "network.allow",
            no.clone(),
        ),
        (Method::POST, "/v3/templates", "{}", 501, "building templates", no.clone()),
        (Method::GET, "/v2/sandboxes?state=gone", "", 400, "state", None),
        (Method::GET, "/v2/sandboxes?nextToken=x", "", 400, "nextToken", None),
        (Method::GET, "/v2/sandboxes?limit=0", "", 400, "limit", None),
        (Method::GET, "/v2/sandboxes?metadata=x", "", 400, "metadata", None),
        (Method::GET, "/sandboxes/nope", "", 404, "capsule not found", None),
        (Method::DELETE, "/templates/nope", "", 404, "snapshot not found", no.clone()),
        (Method::GET, "/v2/nothing", "", 404, "route not found", None),
        (Method::PATCH, "/sandboxes", "", 405, "no such method", no.clone()),
    ] {
        let answer = client.request(method, path).body(body).send().await.unwrap();
        let (got, message, repeat) = told(answer).await;
        assert_eq!((got, repeat), (status, retry), "{path} {body}: {message}");
        assert!(message.contains(holding), "{path} {body}: {message}");
    }
    for path in ["", "/metrics", "/connect", "/pause", "/fork", "/snapshots", "/timeout"] {
        let method = if path.is_empty() || path == "/metrics" { Method::GET } else { Method::POST };
        let asked = stranger.request(method, &format!("/sandboxes/{made}{path}"));
        assert_eq!(told(asked.body("{}").send().await.unwrap()).await.0, 404, "{path}");
    }
    let nobody = platform.client_with("e2b_0").request(Method::GET, "/v2/sandboxes");
    assert_eq!(told(nobody.send().await.unwrap()).await.0, 401);
    platform.finish();
}

/// A request with a key, by a client that may be gone before it is answered.
fn keyed(client: &Client, key: &str, body: &Value) -> reqwest::RequestBuilder {
    client.request(Method::POST, "/v2/sandboxes").header("idempotency-key", key).json(body)
}

#[tokio::test]
async fn a_create_with_a_key_makes_one_however_often_it_is_asked_for() {
    let (mut platform, client) = platform().await;
    let body = json!({ "timeout": 600, "metadata": { "of": "key" } });
    let all = futures::future::join_all((0..8).map(|_| keyed(&client, "one", &body).send())).await;
    let mut made = BTreeSet::new();
    for answer in all {
        let answer = answer.unwrap();
        match answer.status().as_u16() {
            201 => _ = made.insert(answer.json::<Value>().await.unwrap()["sandboxID"].to_string()),
            409 => assert!(told(answer).await.1.contains("under way")),
            other => panic!("{other}"),
        }
    }
    assert_eq!(made.len(), 1);
    let other = json!({ "timeout": 601, "metadata": { "of": "key" } });
    let reused = told(keyed(&client, "one", &other).send().await.unwrap()).await;
    assert_eq!((reused.0, reused.2.as_deref()), (422, Some("false")));
    for wrong in ["", "Upper", "a b", &"x".repeat(256)] {
        assert_eq!(
            told(keyed(&client, wrong, &body).send().await.unwrap()).await.0,
            400,
            "{wrong}"
        );
    }
    // A key is its team's, and one whose create failed is free.
    let stranger = other_team(&platform).await;
    assert_eq!(keyed(&stranger, "one", &body).send().await.unwrap().status(), 201);
    let failing = json!({ "templateID": "nope" });
    assert_eq!(keyed(&client, "two", &failing).send().await.unwrap().status(), 404);
    assert_eq!(keyed(&client, "two", &body).send().await.unwrap().status(), 201);
    // However the platform died in between.
    for (round, millis) in [0, 2, 5, 10, 20, 40].into_iter().enumerate() {
        let (client, key) = (platform.client(), format!("dies-{round}"));
        let asking = keyed(&client, &key, &body).send();
        let _ = tokio::time::timeout(Duration::from_millis(millis), asking).await;
        platform.kill();
        platform.resume().await;
        let client = platform.client();
        let made = eventually("the key has made one", || async {
            let answer = keyed(&client, &key, &body).send().await.unwrap();
            if answer.status() == 201 { answer.json::<Value>().await.ok() } else { None }
        })
        .await;
        client.get(&format!("/sandboxes/{}", id(&made))).await.expect(200);
        let again = keyed(&client, &key, &body).send().await.unwrap();
        assert_eq!(again.json::<Value>().await.unwrap()["sandboxID"], made["sandboxID"]);
    }
    let client = platform.client();
    let listed = client.get("/v2/sandboxes?metadata=of%3Dkey").await.expect(200);
    assert_eq!(listed.as_array().unwrap().len(), 8, "one for each key that is the team's");
    // Ours takes keys, too.
    let ours = || client.request(Method::POST, "/v1/capsules").header("idempotency-key", "ours");
    let first = client.send(ours()).await.expect(201);
    assert_eq!(client.send(ours()).await.expect(201)["id"], first["id"]);
    client.send(ours().body(r#"{"vcpus":2}"#)).await.refuses(422, "idempotency_key_reused", "Key");
    platform.finish();
}

#[tokio::test]
async fn the_proxy_speaks_of_it_in_e2bs_words_and_its_ports_are_as_it_was_asked_for() {
    let (platform, client) = platform().await;
    let guest = Upstream::echo();
    let nobody = platform.client_with("");
    let ask = |id: &str, port: u16| nobody.to_port(Method::GET, id, port, "/").send();
    let open = id(&create(&client, &json!({})).await);
    assert_eq!(ask(&open, guest.port).await.unwrap().status(), 200);
    let closed: Value = ask(&open, 1).await.unwrap().json().await.unwrap();
    assert_eq!(closed["message"], "The sandbox is running but port is not open");
    // envd's is nobody's, but by a link that its token signed; and browsers may ask before.
    assert_eq!(ask(&open, 49983).await.unwrap().status(), 403);
    let envd = |method: Method, path: &str| nobody.to_port(method, &open, 49983, path).send();
    let signed = envd(Method::GET, "/files?path=/etc/hostname&signature=v1_x").await.unwrap();
    assert_eq!(signed.status(), 401);
    let told: Value = signed.json().await.unwrap();
    assert_eq!(told, json!({ "code": 401, "message": "invalid signature" }));
    assert_eq!(envd(Method::GET, "/envs?signature=v1_x").await.unwrap().status(), 403);
    let before = nobody.to_port(Method::OPTIONS, &open, 49983, "/files");
    let before = before.header("access-control-request-method", "GET").send().await.unwrap();
    assert_eq!(
        (before.status().as_u16(), &before.headers()["access-control-allow-origin"]),
        (204, &"*".parse().unwrap())
    );
    let private = create(&client, &json!({ "network": { "allowPublicTraffic": false } })).await;
    let (token, private) =
        (private["trafficAccessToken"].as_str().unwrap().to_owned(), id(&private));
    assert_eq!(ask(&private, guest.port).await.unwrap().status(), 403);
    let with = |token: &str| {
        let asked = nobody.to_port(Method::GET, &private, guest.port, "/");
        asked.header("e2b-traffic-access-token", token).send()
    };
    assert_eq!(with("wrong").await.unwrap().status(), 403);
    assert_eq!(with(&token).await.unwrap().status(), 200);
    let masked = json!({ "network": { "maskRequestHost": "app.internal:${PORT}" } });
    let masked = id(&create(&client, &masked).await);
    let head = ask(&masked, guest.port).await.unwrap().text().await.unwrap();
    assert!(head.contains(&format!("Host: app.internal:{}\r\n", guest.port)), "{head}");
    // Gone, it is still known by that name; a browser is told in a page.
    client.delete(&format!("/sandboxes/{open}")).await.expect(204);
    let gone: Value = ask(&open, guest.port).await.unwrap().json().await.unwrap();
    let wanted = json!({ "sandboxId": open, "message": "The sandbox was not found", "code": 502 });
    assert_eq!(gone, wanted);
    let page = nobody.to_port(Method::GET, &open, guest.port, "/").header("accept", "text/html");
    assert_eq!(page.send().await.unwrap().status(), 404);
    // One of ours is spoken of in our words, and its ports are closed, unless it was asked for.
    let ours = client.create(&json!({})).await;
    assert_eq!(ask(&ours, guest.port).await.unwrap().status(), 401);
    let ours = client.create(&json!({ "public_traffic": true })).await;
    assert_eq!(ask(&ours, guest.port).await.unwrap().status(), 200);
    assert_eq!(ask(&ours, 49983).await.unwrap().status(), 401);
    for wrong in ["", "a b", "x@y", "http://x/"] {
        let body = json!({ "host_header": wrong });
        client.post("/v1/capsules", &body).await.refuses(400, "invalid_request", "host_header");
    }
    platform.finish();
}

#[tokio::test]
async fn a_snapshots_name_goes_over_to_the_next_one_of_it() {
    let (platform, client) = platform().await;
    let one = id(&create(&client, &json!({})).await);
    let path = format!("/sandboxes/{one}/snapshots");
    let named = json!({ "name": "mine" });
    let first = client.post(&path, &named).await.expect(201);
    assert_eq!(first["names"], json!(["mine"]));
    let second = client.post(&path, &named).await.expect(201);
    assert_ne!(first["snapshotID"], second["snapshotID"]);
    let listed = client.get("/snapshots").await.expect(200);
    assert_eq!(listed, json!([second]));
    let alias = client.get("/templates/aliases/mine").await.expect(200);
    assert_eq!(alias["templateID"], second["snapshotID"]);
    // Ours does so when it is asked to.
    let ours = json!({ "capsule_id": one, "name": "mine" });
    client.post("/v1/snapshots", &ours).await.refuses(409, "conflict", "name");
    let ours = json!({ "capsule_id": one, "name": "mine", "overwrite": true });
    let third = client.post("/v1/snapshots", &ours).await.expect(201);
    let listed = client.get("/v1/snapshots").await.expect(200);
    let ids: Vec<&str> =
        listed["items"].as_array().unwrap().iter().flat_map(|s| s["id"].as_str()).collect();
    assert_eq!(ids, [third["id"].as_str().unwrap()]);
    for n in 0..2 {
        client.post(&path, &json!({ "name": format!("n{n}") })).await.expect(201);
    }
    let page = client.request(Method::GET, "/snapshots?limit=2").send().await.unwrap();
    let next = page.headers()["x-next-token"].to_str().unwrap().to_owned();
    let rest = client.request(Method::GET, &format!("/snapshots?limit=2&nextToken={next}"));
    let rest = rest.send().await.unwrap();
    assert!(!rest.headers().contains_key("x-next-token"));
    assert_eq!(rest.json::<Value>().await.unwrap().as_array().unwrap().len(), 1);
    platform.finish();
}
