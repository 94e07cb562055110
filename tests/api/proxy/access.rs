//! Access to ports, and the request as the guest sees it.

use super::{answer, head, psql};
use crate::auth::other_team;
use crate::capsule;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tests::{Client, Driver, Platform, Replica, Upstream, Wire, eventually};

/// Sends a request to a port. Returns the status and the body, which shows the request as the guest
/// saw it.
async fn seen(client: &Client, id: &str, port: u16, headers: &[(&str, &str)]) -> (u16, String) {
    let mut request = client.to_port(Method::GET, id, port, "/a?b");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn owner_key_opens_port_and_is_hidden_from_guest() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::echo();
    let cookie = ("cookie", "a=1; wrenn-preview=x; b=2");
    let (status, head) = seen(&client, &id, guest.port, &[cookie, ("x-mine", "kept")]).await;
    assert_eq!(status, 200, "{head}");
    assert!(head.starts_with("GET /a?b HTTP/1.1\r\n"), "{head}");
    let port = guest.port;
    for wanted in [
        format!("Host: {port}-{id}.localhost\r\n"),
        format!("X-Forwarded-Host: {port}-{id}.localhost\r\n"),
        "X-Forwarded-Proto: http\r\n".to_owned(),
        "X-Forwarded-For: 127.0.0.1\r\n".to_owned(),
        "X-Mine: kept\r\n".to_owned(),
        "Cookie: a=1; b=2\r\n".to_owned(),
    ] {
        assert!(head.contains(&wanted), "{wanted} is not in {head}");
    }
    // A client can neither remove forwarding headers by naming them in `Connection`, nor forge them
    // by another header.
    let name_away = ("connection", "x-forwarded-for, x-forwarded-host, x-forwarded-proto, host");
    let made_up = ("forwarded", "for=1.2.3.4");
    let (_, told) = seen(&client, &id, guest.port, &[name_away, made_up]).await;
    for wanted in ["X-Forwarded-For: 127", "X-Forwarded-Host: ", "X-Forwarded-Proto: ", "\nHost: "]
    {
        assert!(told.contains(wanted) && !told.contains("1.2.3.4"), "{wanted} is not in {told}");
    }
    // The forwarded addresses go into one line, since some programs read only the first of several.
    let lines = [("x-forwarded-for", "198.51.100.9"), ("x-forwarded-for", "192.0.2.7")];
    let (_, told) = seen(&client, &id, guest.port, &lines).await;
    assert!(told.contains("X-Forwarded-For: 198.51.100.9, 192.0.2.7\r\n"), "{told}");
    assert_eq!(told.matches("X-Forwarded-For").count(), 1, "{told}");
    for secret in [client.key(), "api-key", "wrenn"] {
        assert!(!head.to_lowercase().contains(secret), "{secret} is in {head}");
    }
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn key_in_trailer_is_hidden_from_guest() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::start(|mut wire| {
        let Some(head) = wire.head() else { return };
        let mut seen = head.into_bytes();
        loop {
            let byte = wire.take(1);
            seen.extend_from_slice(&byte);
            if byte.is_empty() || seen.ends_with(b"0\r\n\r\n") || seen.ends_with(b"key\r\n\r\n") {
                break;
            }
        }
        wire.answer("200 OK", "", &seen);
    });
    let mut wire = Wire::to(platform.url());
    wire.send(
        head(&client, &id, guest.port, "POST /")
            + "Trailer: X-API-Key, X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
               3\r\nabc\r\n0\r\nX-Sum: 1\r\nX-API-Key: wrn_key\r\n\r\n",
    );
    let (status, _, seen) = answer(&mut wire);
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert!(status == 200 && seen.ends_with("\r\nabc\r\n0\r\n\r\n"), "{status} {seen}");
    assert!(!seen.to_lowercase().contains("trailer"), "{seen}");
    platform.finish();
}

#[tokio::test]
async fn private_port_refuses_strangers_and_hides_existence() {
    let (platform, client, id) = capsule().await;
    let stranger = other_team(&platform).await;
    let guest = Upstream::start(|_| panic!("a stranger reached the guest"));
    let nobody = platform.client_with("");
    let unknown = "cl-0000000000000000000000001";
    for port in [guest.port, 1, 65535, 49983] {
        for (method, path) in [(Method::GET, "/"), (Method::POST, "/x"), (Method::DELETE, "/?y")] {
            for capsule in [&id, unknown] {
                let ask = |client: &Client| client.to_port(method.clone(), capsule, port, path);
                let answer = stranger.send(ask(&stranger)).await;
                answer.refuses(404, "not_found", "capsule not found");
                nobody.send(ask(&nobody)).await.refuses(401, "private_port", "X-API-Key");
                let wrong = platform.client_with("e2b_wrong");
                wrong.send(ask(&wrong)).await.refuses(401, "unauthorized", "X-API-Key");
                let traffic = ask(&nobody).header("e2b-traffic-access-token", "wrong");
                nobody.send(traffic).await.refuses(404, "not_found", "capsule not found");
                let jwt = ask(&nobody).header("authorization", "Bearer eyJhbGciOiJub25lIn0.e30.");
                nobody.send(jwt).await.refuses(401, "private_port", "X-API-Key");
            }
        }
    }
    // The headers that stand for a host name admit nobody either, alone or with a name.
    for (host, port) in [("localhost".to_owned(), guest.port), (format!("80-{id}.x"), 49983)] {
        let ask = stranger.request(Method::GET, "/").header("host", host);
        let ask = ask.header("e2b-sandbox-id", &id).header("e2b-sandbox-port", port);
        let answer = stranger.send(ask).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert_eq!(answer.body["message"], "The sandbox was not found");
    }
    client.get(&format!("/v1/capsules/{id}")).await.expect(200);
    platform.finish();
}

#[tokio::test]
async fn revoked_key_opens_no_port_on_any_replica() {
    let (platform, client, id) = capsule().await;
    let replica = Replica::start(&platform);
    let there = client.at(&replica.url);
    let guest = Upstream::echo();
    for client in [&client, &there] {
        assert_eq!(seen(client, &id, guest.port, &[]).await.0, 200);
    }
    let revoke = "UPDATE api_keys SET revoked_at = now() WHERE name = 'first'";
    psql(&platform, revoke);
    // The key stops working long before its cache entries would expire.
    for client in [&client, &there] {
        eventually("the key opens nothing", || async {
            (seen(client, &id, guest.port, &[]).await.0 == 401).then_some(())
        })
        .await;
    }
    drop(replica);
    platform.finish();
}

#[tokio::test]
async fn traffic_token_public_port_and_envd_token_open_only_their_ports() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let (guest, public) = (Upstream::echo(), Upstream::echo());
    let made = client.post("/v1/capsules", &json!({ "public_ports": [public.port] })).await;
    let id = made.expect(201)["id"].as_str().unwrap().to_owned();
    let nobody = platform.client_with("");
    let path = format!("/v1/capsules/{id}/ports/{}", guest.port);
    let port = client.get(&path).await.expect(200);
    assert_eq!(port["public"], false);
    let token = port["traffic_token"].as_str().unwrap();
    let header = ("e2b-traffic-access-token", token);
    let (status, head) = seen(&nobody, &id, guest.port, &[header]).await;
    assert_eq!(status, 200, "{head}");
    assert!(!head.contains(token) && !head.to_lowercase().contains("traffic"), "{head}");
    // A public port is open, and a program's own use of the header reaches it.
    assert_eq!(seen(&nobody, &id, guest.port, &[]).await.0, 401);
    let (status, head) = seen(&nobody, &id, public.port, &[("x-api-key", "the-app's")]).await;
    assert_eq!((status, head.contains("X-Api-Key: the-app's\r\n")), (200, true), "{head}");
    // Another replica hears of a change a moment later.
    for (body, status) in [(r#"{"public":true}"#, 200), (r#"{"public":false}"#, 401)] {
        client.send(client.request(Method::PUT, &path).body(body)).await.expect(200);
        eventually("each replica knows", || async {
            let one = seen(&nobody, &id, guest.port, &[]).await.0;
            let next = seen(&nobody, &id, guest.port, &[]).await.0;
            ((one, next) == (status, status)).then_some(())
        })
        .await;
    }
    // envd's own token opens envd, but neither the host agent's paths nor another port.
    let envd = psql(&platform, "SELECT envd_token FROM capsules");
    let envd = [("x-access-token", envd.as_str())];
    assert_eq!(seen(&nobody, &id, guest.port, &envd).await.0, 401);
    let ask = |path| nobody.to_port(Method::GET, &id, 49983, path).header(envd[0].0, envd[0].1);
    assert_eq!(ask("/health").send().await.unwrap().status(), 204);
    let init = nobody.to_port(Method::POST, &id, 49983, "/init").header(envd[0].0, envd[0].1);
    nobody.send(init.body("{}")).await.refuses(404, "not_found", "route");
    for path in ["/ports", "/ports/connect?port=80"] {
        nobody.send(ask(path)).await.refuses(404, "not_found", "route");
        let owner = client.to_port(Method::GET, &id, 49983, path);
        client.send(owner).await.refuses(404, "not_found", "route");
    }
    // The owner needs no token of envd's.
    let envs = client.to_port(Method::GET, &id, 49983, "/envs").send().await.unwrap();
    assert_eq!(envs.status(), 200);
    platform.finish();
}

#[tokio::test]
async fn preview_link_sets_cookie_for_one_host_and_expires() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::echo();
    let links = format!("/v1/capsules/{id}/ports/{}/links", guest.port);
    let link = client.post(&links, &json!({ "expires_in": 3600 })).await.expect(201);
    let url = link["url"].as_str().unwrap();
    let port = platform.url().rsplit(':').next().unwrap();
    let begin = format!("http://{}-{id}.localhost:{port}/?", guest.port);
    let token = url.strip_prefix(&begin).expect(url);
    let nobody = platform.client_with("");
    let enter = |name: &str, more: &str| {
        let ask = nobody.request(Method::GET, &format!("/dir?q=1&{token}"));
        let ask = ask.header("host", name).header("x-forwarded-proto", more);
        async { ask.send().await.unwrap() }
    };
    let name = format!("{}-{id}.localhost", guest.port);
    let answer = enter(&name, "http").await;
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    assert_eq!(answer.headers()["location"], "/dir?q=1");
    let cookie = answer.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.contains("HttpOnly") && !cookie.to_lowercase().contains("domain"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let (status, head) = seen(&nobody, &id, guest.port, &[("cookie", &cookie)]).await;
    assert_eq!((status, head.to_lowercase().contains("cookie")), (200, false), "{head}");
    // The guest never sees the link, whichever credential admits its bearer.
    let both = nobody.to_port(Method::GET, &id, guest.port, "/x?wrenn-preview=1.stale&y=2");
    let seen_by_guest = both.header("cookie", &cookie).send().await.unwrap().text().await.unwrap();
    assert!(seen_by_guest.starts_with("GET /x?y=2 HTTP/1.1\r\n"), "{seen_by_guest}");
    // Behind TLS, no other host can set a cookie of this name.
    let secure = enter(&name, "https").await.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(secure.starts_with("__Host-wrenn-preview=") && secure.contains("; Secure"), "{secure}");
    // Over TLS that cookie alone counts.
    let own = secure.split(';').next().unwrap();
    for (cookie, wanted) in [(cookie.as_str(), 401), (own, 200)] {
        let by_tls = [("cookie", cookie), ("x-forwarded-proto", "https")];
        assert_eq!(seen(&nobody, &id, guest.port, &by_tls).await.0, wanted, "{cookie}");
    }
    let other = Upstream::echo();
    assert_eq!(seen(&nobody, &id, other.port, &[("cookie", &cookie)]).await.0, 401);
    assert_eq!(enter(&format!("{}-{id}.localhost", other.port), "http").await.status(), 404);
    let post = nobody.to_port(Method::POST, &id, guest.port, &format!("/?{token}"));
    nobody.send(post).await.refuses(401, "private_port", "X-API-Key");
    let brief = client.post(&links, &json!({ "expires_in": 1 })).await.expect(201);
    let token = brief["url"].as_str().unwrap().split_once('?').unwrap().1.to_owned();
    eventually("the link expires", || async {
        let ask = nobody.to_port(Method::GET, &id, guest.port, &format!("/?{token}"));
        let answer = nobody.send(ask.header("accept", "application/json")).await;
        (answer.status == StatusCode::UNAUTHORIZED).then(|| {
            answer.refuses(401, "link_expired", "expired");
        })
    })
    .await;
    platform.finish();
}

/// Token of a link, as a field of a query and as a cookie.
struct Link {
    field: String,
    cookie: String,
}

impl Link {
    async fn make(maker: &Client, id: &str, port: u16) -> Self {
        let links = format!("/v1/capsules/{id}/ports/{port}/links");
        let link = maker.post(&links, &json!({})).await.expect(201);
        let field = link["url"].as_str().unwrap().split_once('?').unwrap().1.to_owned();
        Self { cookie: field.clone(), field }
    }

    /// Visits by the link and by its cookie. Returns both statuses, with the codes of refusals.
    async fn visit(&self, at: &Client, id: &str, port: u16) -> [(u16, String); 2] {
        let code = |answer: tests::Answer| {
            let code = answer.body["error"]["code"].as_str().unwrap_or("").to_owned();
            (answer.status.as_u16(), code)
        };
        let by_link = at.to_port(Method::GET, id, port, &format!("/?{}", self.field));
        let by_cookie = at.to_port(Method::GET, id, port, "/").header("cookie", &self.cookie);
        [code(at.send(by_link).await), code(at.send(by_cookie).await)]
    }

    async fn opens(&self, at: &Client, id: &str, port: u16) {
        let seen = self.visit(at, id, port).await;
        assert_eq!([seen[0].0, seen[1].0], [303, 200]);
    }

    async fn ends(&self, at: &Client, id: &str, port: u16) {
        eventually("the link opens nothing", || async {
            let [link, cookie] = self.visit(at, id, port).await;
            let ended = link == (401, "link_revoked".to_owned());
            (ended && cookie == (401, "private_port".to_owned())).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn preview_link_ends_with_maker_or_generation_on_every_replica() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    platform.user("root@example.com").await;
    let owner = platform.user("owner@example.com").await;
    let teams = owner.get("/v1/teams").await.expect(200);
    let team = teams["items"][0]["id"].as_str().unwrap().to_owned();
    let id = owner.create(&json!({})).await;
    let (guest, replica) = (Upstream::echo(), Replica::start(&platform));
    let port = guest.port;
    let here = platform.client_with("");
    let both = [here.clone(), here.at(&replica.url)];
    let (member, user) = platform.member(&owner, &team, "member").await;
    let member = member.in_team(&team);
    let key = async |maker: &Client, scope: &str| {
        let wanted = json!({ "name": "k", "scopes": [scope] });
        let made = maker.post("/v1/api-keys", &wanted).await.expect(201);
        let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
        (platform.client_with(made["key"].as_str().unwrap()), path)
    };
    let (owners, owners_path) = key(&owner, "capsules:exec").await;
    let (members, _) = key(&member, "capsules:admin").await;
    let by_owner = Link::make(&owner, &id, port).await;
    let by_member = Link::make(&member, &id, port).await;
    let by_owners = Link::make(&owners, &id, port).await;
    let by_members = Link::make(&members, &id, port).await;
    for at in &both {
        for link in [&by_owner, &by_member, &by_owners, &by_members] {
            link.opens(at, &id, port).await;
        }
    }
    let path = format!("/v1/teams/{team}/members/{user}");
    owner.patch(&path, &json!({ "role": "viewer" })).await.expect(204);
    for at in &both {
        by_member.ends(at, &id, port).await;
        by_members.ends(at, &id, port).await;
    }
    // A better role makes the links valid again. The end of the membership ends them for good.
    owner.patch(&path, &json!({ "role": "member" })).await.expect(204);
    eventually("the link opens again", || async {
        (by_member.visit(&here, &id, port).await[0].0 == 303).then_some(())
    })
    .await;
    owner.delete(&path).await.expect(204);
    owner.delete(&owners_path).await.expect(204);
    for at in &both {
        by_member.ends(at, &id, port).await;
        by_members.ends(at, &id, port).await;
        by_owners.ends(at, &id, port).await;
        by_owner.opens(at, &id, port).await;
    }
    // The capsule's token is independent of links.
    owner.post(&format!("/v1/capsules/{id}/traffic-token"), &json!({})).await.expect(200);
    by_owner.opens(&here, &id, port).await;
    owner.post(&format!("/v1/capsules/{id}/links/rotate"), &json!({})).await.expect(204);
    for at in &both {
        by_owner.ends(at, &id, port).await;
    }
    Link::make(&owner, &id, port).await.opens(&both[1], &id, port).await;
    drop(replica);
    platform.finish();
}

/// The traffic token signs no links, unlike in earlier versions.
#[tokio::test]
async fn traffic_token_signs_no_link_and_can_be_replaced() {
    use base64::Engine;
    use hmac::{Hmac, KeyInit, Mac};
    let (platform, client, _) = capsule().await;
    let guest = Upstream::echo();
    let made = client.post("/v1/capsules", &json!({})).await.expect(201);
    let id = made["id"].as_str().unwrap().to_owned();
    let token = made["traffic_token"].as_str().unwrap();
    let nobody = platform.client_with("");
    let until = 4_000_000_000_i64;
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(token.as_bytes()).unwrap();
    mac.update(format!("wrenn preview\n{id}\n{}\n{until}", guest.port).as_bytes());
    let tag = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
    let forged = format!("/?wrenn-preview={until}.{tag}");
    let ask = nobody.to_port(Method::GET, &id, guest.port, &forged);
    nobody.send(ask).await.refuses(404, "not_found", "capsule");
    // Answers to a fork and to E2B's connect hold the token, since their callers may use it.
    let fork = client.post(&format!("/v1/capsules/{id}/fork"), &json!({})).await.expect(201);
    let forks = fork["items"][0]["traffic_token"].as_str().unwrap();
    assert!(forks.len() == 64 && forks != token, "{fork}");
    let connect = client.post(&format!("/sandboxes/{id}/connect"), &json!({ "timeout": 60 })).await;
    assert_eq!(connect.expect(200)["trafficAccessToken"], token);
    let shown = client.get(&format!("/v1/capsules/{id}")).await.expect(200);
    assert!(shown["traffic_token"].is_null(), "{shown}");
    let at = |token: &str| {
        let ask = nobody.to_port(Method::GET, &id, guest.port, "/");
        nobody.send(ask.header("e2b-traffic-access-token", token))
    };
    assert_eq!(at(token).await.status, StatusCode::OK);
    let rotated = client.post(&format!("/v1/capsules/{id}/traffic-token"), &json!({})).await;
    let rotated = rotated.expect(200)["traffic_token"].as_str().unwrap().to_owned();
    assert_eq!(at(&rotated).await.status, StatusCode::OK);
    at(token).await.refuses(404, "not_found", "capsule");
    let log = client.get("/v1/audit-logs").await.expect(200).to_string();
    assert!(log.contains("capsule.rotate_traffic_token") && !log.contains(&rotated));
    platform.finish();
}
