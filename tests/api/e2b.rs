//! E2B's API in cases that its SDKs do not cover. These are error texts, repeated requests, lasting
//! state through the platform's death, and the proxy's answers for E2B's capsules. `tests/sdk`
//! covers the SDKs themselves.

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
async fn sandbox_maps_to_capsule_with_fields_sdks_read() {
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
        assert!(made[secret].as_str().unwrap().len() >= 64, "{made}");
    }
    let id = id(&made);
    // A caller who may only read does not see the token, which allows more.
    let wanted = json!({ "name": "looks", "scopes": ["capsules:read"] });
    let looks = client.post("/v1/api-keys", &wanted).await.expect(201);
    let looks = platform.client_with(looks["key"].as_str().unwrap());
    let seen = looks.get(&format!("/sandboxes/{id}")).await.expect(200);
    assert!(!seen.to_string().contains(made["envdAccessToken"].as_str().unwrap()), "{seen}");
    // Both APIs show the same capsule.
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
    // A capsule made by Wrenn's own API is visible too, without an end.
    let ours = client.create(&json!({})).await;
    let shown = client.get(&format!("/sandboxes/{ours}")).await.expect(200);
    assert_eq!(shown["endAt"], "9999-01-01T00:00:00Z");
    let listed = client.get("/v2/sandboxes").await.expect(200);
    assert_eq!(listed.as_array().unwrap().len(), 2);
    let by_default = create(&client, &json!({})).await;
    let token = by_default["trafficAccessToken"].as_str().unwrap();
    assert_eq!(token.len(), 64, "the code interpreter's port needs it");
    // The first version of E2B's API gives a shorter life, and lists only running sandboxes.
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

/// Returns an error's status, its message, and the header that says whether to retry.
async fn told(answer: Response) -> (u16, String, Option<String>) {
    let retry = answer.headers().get("should-retry").map(|v| v.to_str().unwrap().to_owned());
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["code"], status, "{body}");
    (status, body["message"].as_str().unwrap().to_owned(), retry)
}

#[tokio::test]
async fn errors_have_e2b_shape_and_mark_retryable() {
    let (platform, client) = platform().await;
    let stranger = other_team(&platform).await;
    let made = id(&create(&client, &json!({})).await);
    let no = Some("false".to_owned());
    for (method, path, body, status, holding, retry) in [
        (Method::POST, "/v2/sandboxes", r#"{"timeout":"x"}"#, 400, "is invalid", no.clone()),
        (Method::POST, "/v2/sandboxes", r#"{"timeout":99999999}"#, 400, "timeout must", no.clone()),
        (
            Method::POST,
            "/v2/sandboxes",
            r#"{"templateID":"nope"}"#,
            404,
            "template not found",
            no.clone(),
        ),
        (Method::POST, "/v2/sandboxes", r#"{"templateID":"base:v7"}"#, 404, "'v7'", no.clone()),
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
        (Method::POST, "/v3/templates", "{}", 400, "Name is required", no.clone()),
        (Method::POST, "/v3/templates", r#"{"name": 1}"#, 400, "validation error", no.clone()),
        (Method::POST, "/v2/templates", "{}", 501, "update the SDK", no.clone()),
        (Method::GET, "/v2/sandboxes?state=gone", "", 400, "state", None),
        (Method::GET, "/v2/sandboxes?nextToken=x", "", 400, "nextToken", None),
        (Method::GET, "/v2/sandboxes?limit=0", "", 400, "limit", None),
        (Method::GET, "/v2/sandboxes?metadata=x", "", 400, "metadata", None),
        (Method::GET, "/sandboxes/nope", "", 404, "capsule not found", None),
        (Method::DELETE, "/templates/nope", "", 404, "not found", no.clone()),
        (Method::GET, "/v2/nothing", "", 404, "route not found", None),
        (Method::PATCH, "/sandboxes", "", 405, "does not support this method", no.clone()),
    ] {
        let answer = client.request(method, path).body(body).send().await.unwrap();
        let (got, message, repeat) = told(answer).await;
        assert_eq!((got, repeat), (status, retry), "{path} {body}: {message}");
        assert!(message.contains(holding), "{path} {body}: {message}");
    }
    for path in ["", "/connect", "/pause", "/fork", "/snapshots", "/timeout"] {
        let method = if path.is_empty() { Method::GET } else { Method::POST };
        let asked = stranger.request(method, &format!("/sandboxes/{made}{path}"));
        assert_eq!(told(asked.body("{}").send().await.unwrap()).await.0, 404, "{path}");
    }
    let nobody = platform.client_with("e2b_0").request(Method::GET, "/v2/sandboxes");
    assert_eq!(told(nobody.send().await.unwrap()).await.0, 401);
    platform.finish();
}

/// Builds a create with an idempotency key. The client may leave before the answer.
fn keyed(client: &Client, key: &str, body: &Value) -> reqwest::RequestBuilder {
    client.request(Method::POST, "/v2/sandboxes").header("idempotency-key", key).json(body)
}

#[tokio::test]
async fn create_with_idempotency_key_creates_one_sandbox() {
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
    // A key belongs to its team. A key whose create failed is free again.
    let stranger = other_team(&platform).await;
    assert_eq!(keyed(&stranger, "one", &body).send().await.unwrap().status(), 201);
    let failing = json!({ "templateID": "nope" });
    assert_eq!(keyed(&client, "two", &failing).send().await.unwrap().status(), 404);
    assert_eq!(keyed(&client, "two", &body).send().await.unwrap().status(), 201);
    // The platform dies at different moments of a create.
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
    // Wrenn's own API takes idempotency keys too.
    let ours = || client.request(Method::POST, "/v1/capsules").header("idempotency-key", "ours");
    let first = client.send(ours()).await.expect(201);
    assert_eq!(client.send(ours()).await.expect(201)["id"], first["id"]);
    client.send(ours().body(r#"{"vcpus":2}"#)).await.refuses(422, "idempotency_key_reused", "Key");
    platform.finish();
}

#[tokio::test]
async fn proxy_gives_sandbox_e2b_errors_and_requested_port_access() {
    let (platform, client) = platform().await;
    let guest = Upstream::echo();
    let nobody = platform.client_with("");
    let ask = |id: &str, port: u16| nobody.to_port(Method::GET, id, port, "/").send();
    let open = id(&create(&client, &json!({})).await);
    assert_eq!(ask(&open, guest.port).await.unwrap().status(), 200);
    let closed: Value = ask(&open, 1).await.unwrap().json().await.unwrap();
    assert_eq!(closed["message"], "The sandbox is running but port is not open");
    // envd's port admits nobody, except by a URL that envd's token signed. Browsers may send
    // preflight requests.
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
    // The proxy still knows a killed sandbox by its id. A browser gets a page.
    client.delete(&format!("/sandboxes/{open}")).await.expect(204);
    let gone: Value = ask(&open, guest.port).await.unwrap().json().await.unwrap();
    let wanted = json!({ "sandboxId": open, "message": "The sandbox was not found", "code": 502 });
    assert_eq!(gone, wanted);
    let page = nobody.to_port(Method::GET, &open, guest.port, "/").header("accept", "text/html");
    assert_eq!(page.send().await.unwrap().status(), 404);
    // For a capsule of Wrenn's own API, errors use that API's words. Its ports are closed unless
    // requested otherwise.
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
async fn snapshot_name_moves_to_newest_snapshot() {
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
    // Wrenn's own API does so with `overwrite`.
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

/// Builds a request to envd with the headers of E2B's SDKs, and on demand with the sandbox's token.
fn to_envd(
    client: &Client,
    method: Method,
    made: &Value,
    path: &str,
    token: bool,
) -> reqwest::RequestBuilder {
    let asked = client.request(method, path).header("e2b-sandbox-id", id(made));
    let asked = asked.header("e2b-sandbox-port", "49983");
    let secret = made["envdAccessToken"].as_str().unwrap();
    if token { asked.header("x-access-token", secret) } else { asked }
}

/// Returns everything in an answer except the request's id and date.
async fn all_of(asked: reqwest::RequestBuilder) -> (u16, Vec<(String, String)>, String) {
    let answer = asked.send().await.unwrap();
    let headers = answer.headers().iter().filter(|(name, _)| *name != "x-request-id");
    let headers = headers.filter(|(name, _)| *name != "date");
    let pair = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
        (name.to_string(), format!("{value:?}"))
    };
    let (status, headers) = (answer.status().as_u16(), headers.map(pair).collect());
    (status, headers, answer.text().await.unwrap())
}

/// Asks for a sandbox without a credential, in every way. Returns all answers.
async fn told_to_nobody(
    platform: &Platform,
    made: &Value,
) -> Vec<(u16, Vec<(String, String)>, String)> {
    let nobody = platform.client_with("");
    let mut all = Vec::new();
    for (method, path) in [
        (Method::GET, "/health"),
        (Method::POST, "/init"),
        (Method::POST, "/process.Process/List"),
        (Method::GET, "/files?path=/etc/hostname&signature=v1_x"),
    ] {
        all.push(all_of(to_envd(&nobody, method.clone(), made, path, false)).await);
        for accept in ["*/*", "text/html"] {
            let named = nobody.to_port(method.clone(), &id(made), 49983, path);
            all.push(all_of(named.header("accept", accept)).await);
        }
    }
    let port = nobody.to_port(Method::GET, &id(made), 8080, "/");
    all.push(all_of(port).await);
    let token = nobody.to_port(Method::GET, &id(made), 8080, "/");
    all.push(all_of(token.header("e2b-traffic-access-token", "wrong")).await);
    all
}

#[tokio::test]
async fn paused_sandbox_is_not_found_by_sdks_and_hidden_from_strangers() {
    let (platform, client) = platform().await;
    let nobody = platform.client_with("");
    let private = json!({ "network": { "allowPublicTraffic": false } });
    let made = create(&client, &private).await;
    let path = |what: &str| format!("/sandboxes/{}{what}", id(&made));
    let health = async || all_of(to_envd(&nobody, Method::GET, &made, "/health", true)).await;
    let absent = json!({
        "sandboxId": id(&made), "message": "The sandbox was not found", "code": 502,
    });
    let is_absent = async |asked: reqwest::RequestBuilder| {
        let (status, _, body) = all_of(asked).await;
        assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (502, absent.clone()));
    };
    assert_eq!(health().await.0, 204);
    let running = told_to_nobody(&platform, &made).await;
    assert!(running.iter().all(|(status, ..)| (400..500).contains(status)), "{running:?}");

    client.post(&path("/pause"), &json!({})).await.expect(204);
    is_absent(to_envd(&nobody, Method::GET, &made, "/health", true)).await;
    let list = to_envd(&nobody, Method::POST, &made, "/process.Process/List", true);
    is_absent(list.json(&json!({}))).await;
    let by_name = nobody.to_port(Method::GET, &id(&made), 8080, "/");
    let traffic = made["trafficAccessToken"].as_str().unwrap();
    is_absent(by_name.header("e2b-traffic-access-token", traffic)).await;
    assert_eq!(told_to_nobody(&platform, &made).await, running, "paused and running");

    client.post(&path("/connect"), &json!({ "timeout": 60 })).await.expect(201);
    assert_eq!(health().await.0, 204);
    client.delete(&path("")).await.expect(204);
    is_absent(to_envd(&nobody, Method::GET, &made, "/health", true)).await;
    assert_eq!(told_to_nobody(&platform, &made).await, running, "killed and running");

    // At a public port, too, a browser cannot tell a paused capsule from a killed one.
    let public = create(&client, &json!({})).await;
    let page =
        || nobody.to_port(Method::GET, &id(&public), 8080, "/").header("accept", "text/html");
    client.post(&format!("/sandboxes/{}/pause", id(&public)), &json!({})).await.expect(204);
    let paused = all_of(page()).await;
    client.delete(&format!("/sandboxes/{}", id(&public))).await.expect(204);
    assert_eq!(all_of(page()).await, paused);
    // For a capsule made by Wrenn's own API, errors keep that API's words.
    let ours = client.create(&json!({ "public_traffic": true })).await;
    client.pause(&ours).await;
    let asked = nobody.to_port(Method::GET, &ours, 8080, "/");
    client.send(asked).await.refuses(409, "capsule_paused", "paused");
    platform.finish();
}

#[tokio::test]
async fn api_is_reached_with_sandbox_routing_headers() {
    let vars = [("WRENN_DOMAINS", "sandbox.test")];
    let platform = Platform::start(Driver::Fake, &vars).await;
    let client = platform.client();
    let made = create(&client, &json!({ "timeout": 60 })).await;
    let body = json!({ "timeout": 100 });
    let connect = async |path: String, status: u16| {
        let asked = to_envd(&client, Method::POST, &made, &path, false).json(&body);
        assert_eq!(client.send(asked).await.expect(status)["sandboxID"], made["sandboxID"]);
    };
    for version in ["", "/v2"] {
        let path = format!("{version}/sandboxes/{}/connect", id(&made));
        connect(path.clone(), 200).await;
        client.post(&format!("/sandboxes/{}/pause", id(&made)), &json!({})).await.expect(204);
        connect(path, 201).await;
    }
    // A path of envd's goes to envd, although the API has the same address.
    let health = to_envd(&client, Method::GET, &made, "/health", true).send().await.unwrap();
    assert_eq!(health.status(), 204);
    let metrics = to_envd(&client, Method::GET, &made, "/metrics", true);
    assert!(client.send(metrics).await.expect(200)["mem_total"].is_number());
    // Once connected, those SDKs send only the token.
    let nobody = platform.client_with("");
    let token = made["envdAccessToken"].as_str().unwrap();
    let by_token = |path: &str, token: &str| {
        nobody.request(Method::GET, path).header("x-access-token", token).send()
    };
    assert_eq!(by_token("/health", token).await.unwrap().status(), 204);
    let wrong = by_token("/envs", &token.replace("cl-", "cl-1")).await.unwrap();
    assert_eq!(wrong.status(), 404, "no token of a capsule's: the API has no such route");
    let forged = format!("{}-{}", id(&made), "0".repeat(64));
    let forged = all_of(nobody.request(Method::GET, "/envs").header("x-access-token", &forged));
    let unknown = format!("cl-{}-{}", "0".repeat(25), "0".repeat(64));
    let unknown = all_of(nobody.request(Method::GET, "/envs").header("x-access-token", &unknown));
    let (forged, unknown) = (forged.await, unknown.await);
    assert_eq!((forged.0, unknown.0), (502, 404), "{} {}", forged.2, unknown.2);
    assert!(forged.2.contains("The sandbox was not found"), "{}", forged.2);
    // A guest's program keeps its own paths.
    let guest = Upstream::echo();
    let asked = client.request(Method::GET, "/sandboxes/x").header("e2b-sandbox-id", id(&made));
    let asked = asked.header("e2b-sandbox-port", guest.port.to_string());
    assert!(all_of(asked).await.2.starts_with("GET /sandboxes/x HTTP/1.1\r\n"));
    // Under its own name, the API gets every request, whatever the headers say.
    let named = to_envd(&client, Method::GET, &made, "/version", true);
    let version = client.send(named.header("host", "api.sandbox.test:8000")).await.expect(200);
    assert!(version["version"].is_string(), "{version}");
    platform.finish();
}

#[tokio::test]
async fn metrics_and_teams_are_listed() {
    let (platform, client) = platform().await;
    let (one, other) = (create(&client, &json!({})).await, create(&client, &json!({})).await);
    let stranger = other_team(&platform).await;
    client.post(&format!("/sandboxes/{}/pause", id(&other)), &json!({})).await.expect(204);
    let unknown = "cl-0000000000000000000000001";
    let many = format!("/sandboxes/metrics?sandbox_ids={},{},{unknown}", id(&one), id(&other));
    let metrics = client.get(&many).await.expect(200);
    let listed: Vec<&String> = metrics["sandboxes"].as_object().unwrap().keys().collect();
    assert_eq!(listed, [&id(&one)]);
    assert!(metrics["sandboxes"][id(&one)]["memTotal"].as_u64().unwrap() > 0, "{metrics}");
    assert_eq!(stranger.get(&many).await.expect(200), json!({ "sandboxes": {} }));
    let too_many = vec![unknown; 101].join(",");
    for wrong in
        ["/sandboxes/metrics".to_owned(), format!("/sandboxes/metrics?sandbox_ids={too_many}")]
    {
        let refused = client.request(Method::GET, &wrong).send().await.unwrap();
        let (status, message, _) = told(refused).await;
        assert_eq!((status, message.starts_with("sandbox_ids ")), (400, true), "{message}");
    }
    let teams = client.get("/teams").await.expect(200);
    assert_eq!((teams.as_array().unwrap().len(), &teams[0]["apiKey"]), (1, &json!("")));
    assert_eq!((&teams[0]["name"], &teams[0]["isDefault"]), (&json!("Default"), &json!(true)));
    let other = client.request(Method::GET, "/teams/x/metrics").send().await.unwrap();
    assert_eq!(told(other).await.0, 403);
    let none = stranger.get(&format!("/sandboxes/{}/metrics", id(&one))).await.expect(200);
    assert_eq!(none, json!([]));
    platform.finish();
}

#[tokio::test]
async fn capsule_limit_gives_e2b_text_on_e2b_routes_only() {
    let (platform, client) = platform().await;
    let teams = client.get("/v1/teams").await.expect(200);
    let limits = format!("/v1/admin/teams/{}/limits", teams["items"][0]["id"].as_str().unwrap());
    client.put(&limits, &json!({ "capsules": 1, "vcpus": 1 })).await.expect(200);
    let made = create(&client, &json!({})).await;
    let text = "maximum number of concurrent sandboxes";
    for path in ["/v2/sandboxes", "/sandboxes"] {
        let asked = client.request(Method::POST, path).json(&json!({ "templateID": "base" }));
        let refused = eventually("the limit holds on every replica", async || {
            let answer = asked.try_clone().unwrap().send().await.unwrap();
            (answer.status() == 429).then_some(answer)
        });
        let (_, message, retry) = told(refused.await).await;
        assert!(message.contains(text) && message.contains("1 of 1 capsules"), "{message}");
        assert_eq!(retry.as_deref(), Some("false"));
    }
    let fork = client.post(&format!("/sandboxes/{}/fork", id(&made)), &json!({})).await;
    assert!(fork.body.to_string().contains(text), "{}", fork.body);
    let ours = client.post("/v1/capsules", &json!({})).await;
    assert!(!ours.body.to_string().contains(text), "{}", ours.body);
    ours.refuses(429, "limit_reached", "1 of 1 capsules are in use");
    platform.finish();
}

#[tokio::test]
async fn connect_right_after_auto_pause_resumes_sandbox() {
    let (platform, client) = platform().await;
    let nobody = platform.client_with("");
    let rounds = (0..12).map(async |_| {
        let made = create(&client, &json!({ "timeout": 60, "autoPause": true })).await;
        let path = |what: &str| format!("/sandboxes/{}{what}", id(&made));
        let health = async || {
            let asked = to_envd(&nobody, Method::GET, &made, "/health", true).send();
            asked.await.unwrap().status().as_u16()
        };
        client.post(&path("/timeout"), &json!({ "timeout": 0 })).await.expect(204);
        // The loop ends as soon as the host admits nobody, before any row says so.
        while health().await == 204 {}
        client.post(&path("/connect"), &json!({ "timeout": 60 })).await.expect(201);
        assert_eq!(health().await, 204);
    });
    futures::future::join_all(rounds).await;
    platform.finish();
}
