//! Open exchanges end when the credential that opened them ends: terminals, streams, waiting
//! requests, tunnels and proxied connections. The end reaches every replica, whatever ended the
//! credential.

use crate::proxy::psql;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tests::{
    Answer, Client, Driver, Platform, Replica, Socket, Upstream, Wire, eventually, mailed,
};
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(60);
const CODE: &str = "access_revoked";

/// Unfinished body of an answer.
type Bytes = BoxStream<'static, reqwest::Result<bytes::Bytes>>;

/// Reads a body until its text contains `wanted`, or to its end when `wanted` is empty. Returns the
/// text.
async fn read(bytes: &mut Bytes, wanted: &str) -> String {
    let mut text = String::new();
    let reading = async {
        while wanted.is_empty() || !text.contains(wanted) {
            match bytes.next().await {
                Some(Ok(part)) => text += &String::from_utf8_lossy(&part),
                Some(Err(_)) | None => break,
            }
        }
    };
    let what = if wanted.is_empty() { "its end" } else { wanted };
    tokio::time::timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("{what} did not come"));
    text
}

/// Sends until the connection is cut off.
fn go_on(wire: &mut Wire) {
    while wire.send("1\r\nx\r\n") {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Starts a guest's program that speaks no HTTP and never stops sending.
fn raw() -> Upstream {
    Upstream::start(|mut wire| go_on(&mut wire))
}

/// Starts a guest's program that speaks HTTP and never stops sending, as a body or after a switch
/// of protocols. At `/silent` it never answers, and sets the flag.
fn endless() -> (Upstream, Arc<AtomicBool>) {
    let asked = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&asked);
    let guest = Upstream::start(move |mut wire| {
        let Some(head) = wire.head() else { return };
        if head.starts_with("GET /silent") {
            note.store(true, Ordering::SeqCst);
            wire.rest();
            return;
        }
        wire.send(match head.starts_with("GET /switch") {
            true => {
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                 upgrade: websocket\r\n\r\n"
            }
            false => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        });
        go_on(&mut wire);
    });
    (guest, asked)
}

/// Every kind of exchange that a caller may have open at the API.
struct Open {
    sockets: Vec<(&'static str, Socket)>,
    events: Bytes,
    tunnel: Bytes,
    waits: JoinHandle<Answer>,
}

/// Reads a connection that has switched protocols as a body.
async fn switched(answer: Response) -> Bytes {
    use tokio::io::AsyncReadExt;
    assert_eq!(answer.status().as_u16(), 101);
    let stream = answer.upgrade().await.unwrap();
    let chunks = futures::stream::unfold(stream, |mut stream| async move {
        let mut chunk = vec![0; 4096];
        let count = stream.read(&mut chunk).await.unwrap_or(0);
        (count > 0).then(|| (Ok(chunk[..count].to_vec().into()), stream))
    });
    chunks.boxed()
}

impl Open {
    async fn of(client: &Client, id: &str, port: u16) -> Self {
        let at = format!("/v1/capsules/{id}");
        let mut exec = client.socket(&format!("{at}/exec/stream")).await;
        exec.send(json!({ "type": "start", "cmd": "sleep", "args": ["1000"], "stdin": true }))
            .await;
        let pid = exec.next().await.unwrap()["pid"].as_u64().unwrap();
        let mut pty = client.socket(&format!("{at}/pty")).await;
        pty.send(json!({ "type": "start" })).await;
        assert_eq!(pty.next().await.unwrap()["type"], "started");
        let mut attached = client.socket(&format!("{at}/processes/{pid}/stream")).await;
        assert_eq!(attached.next().await.unwrap()["type"], "start");
        let events = client.request(Method::GET, "/v1/events/stream").send().await.unwrap();
        let mut events = events.bytes_stream().boxed();
        read(&mut events, "hello").await;
        let tunnel = client.request(Method::GET, &format!("{at}/ports/{port}/tcp"));
        let tunnel = tunnel.header("connection", "upgrade").header("upgrade", "tcp");
        let mut tunnel = switched(tunnel.send().await.unwrap()).await;
        read(&mut tunnel, "x").await;
        let (asks, path) = (client.clone(), format!("{at}/exec"));
        let tag = uuid::Uuid::new_v4().to_string();
        let body = json!({ "cmd": "sleep", "args": ["1000"], "timeout": 1000, "tag": tag });
        let waits = tokio::spawn(async move { asks.post(&path, &body).await });
        eventually("the command runs", async || {
            let seen = client.get(&format!("{at}/processes")).await.expect(200);
            seen.to_string().contains(&tag).then_some(())
        })
        .await;
        let sockets = vec![("exec", exec), ("pty", pty), ("attach", attached)];
        Self { sockets, events, tunnel, waits }
    }

    /// Waits until every exchange has ended, each with its reason.
    async fn ends(self) {
        let mut events = self.ends_but_events().await;
        let rest = read(&mut events, "").await;
        let wanted = format!("event: {CODE}\ndata: {{\"error\":{{\"code\":\"{CODE}\"");
        assert!(rest.contains(&wanted), "{rest}");
    }

    /// Waits until every exchange but the stream of events has ended. Returns that stream.
    async fn ends_but_events(mut self) -> Bytes {
        for (what, socket) in &mut self.sockets {
            let (last, close) = socket.until_closed().await;
            assert_eq!((&last["type"], &last["code"]), (&json!("error"), &json!(CODE)), "{what}");
            assert_eq!(close, Some((1008, CODE.to_owned())), "{what}");
        }
        read(&mut self.tunnel, "").await;
        let waited = tokio::time::timeout(PATIENCE, self.waits).await.expect("exec goes on");
        waited.unwrap().refuses(401, CODE, "credential");
        self.events
    }
}

/// Starts a platform with a team and its capsule. The owner is no admin of the platform.
async fn team() -> (Platform, Client, String, String) {
    let platform = Platform::start(Driver::Fake, &[]).await;
    platform.user("root@example.com").await;
    let owner = platform.user("owner@example.com").await;
    let teams = owner.get("/v1/teams").await.expect(200);
    let team = teams["items"][0]["id"].as_str().unwrap().to_owned();
    let id = owner.create(&json!({})).await;
    (platform, owner, team, id)
}

async fn key(platform: &Platform, maker: &Client, more: Value) -> (Client, String) {
    let mut wanted = json!({ "name": "k" });
    wanted.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let made = maker.post("/v1/api-keys", &wanted).await.expect(201);
    let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    (platform.client_with(made["key"].as_str().unwrap()), path)
}

#[tokio::test(flavor = "multi_thread")]
async fn open_exchanges_of_key_end_with_it_on_every_replica() {
    let (platform, owner, _, id) = team().await;
    let (replica, guest) = (Replica::start(&platform), raw());
    let (revoked, path) = key(&platform, &owner, json!({})).await;
    let (stays, _) = key(&platform, &owner, json!({})).await;
    let here = Open::of(&revoked, &id, guest.port).await;
    let there = Open::of(&revoked.at(&replica.url), &id, guest.port).await;
    let mut other = Open::of(&stays, &id, guest.port).await;
    owner.delete(&path).await.expect(204);
    here.ends().await;
    there.ends().await;
    // The exchanges of another key go on, and so do the commands.
    let seen = stays.get(&format!("/v1/capsules/{id}/processes")).await.expect(200);
    assert!(seen["processes"].as_array().unwrap().len() >= 6, "{seen}");
    let pty = &mut other.sockets[1].1;
    pty.send(json!({ "type": "input", "data": STANDARD.encode("echo st''ill\n") })).await;
    pty.until("output", "still").await;
    read(&mut other.tunnel, "x").await;
    // Nobody announces that a key expires, but its exchanges must end all the same.
    let (brief, _) = key(&platform, &owner, json!({ "expires_in": 30 })).await;
    Open::of(&brief, &id, guest.port).await.ends().await;
    drop(replica);
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn open_exchanges_of_member_end_with_role_session_or_account() {
    let (platform, owner, team, id) = team().await;
    let guest = raw();
    let (member, user) = platform.member(&owner, &team, "member").await;
    let (member, member_path) = (member.in_team(&team), format!("/v1/teams/{team}/members/{user}"));
    let (made, _) = key(&platform, &member, json!({})).await;
    // A viewer may still see events, but do nothing in the capsule.
    let (own, by_key) =
        (Open::of(&member, &id, guest.port).await, Open::of(&made, &id, guest.port).await);
    owner.patch(&member_path, &json!({ "role": "viewer" })).await.expect(204);
    let mut events = own.ends_but_events().await;
    let _events = by_key.ends_but_events().await;
    owner.create(&json!({})).await;
    read(&mut events, "capsule.running").await;
    // First the member signs out.
    owner.patch(&member_path, &json!({ "role": "member" })).await.expect(204);
    // With two replicas, the other learns of the role a moment later.
    let ping = format!("/v1/capsules/{id}/ping");
    eventually("every replica knows the role", async || {
        let mut known = true;
        for client in [&member, &member, &made, &made] {
            known &= client.post(&ping, &json!({})).await.status != 403;
        }
        known.then_some(())
    })
    .await;
    let own = Open::of(&member, &id, guest.port).await;
    let by_key = Open::of(&made, &id, guest.port).await;
    member.post("/v1/auth/logout", &json!({})).await.expect(204);
    own.ends().await;
    // Then the member is removed, and the key that they made ends with the membership.
    owner.delete(&member_path).await.expect(204);
    by_key.ends().await;
    // Finally another member is disabled.
    let (other, user) = platform.member(&owner, &team, "admin").await;
    let own = Open::of(&other.in_team(&team), &id, guest.port).await;
    let disabled = json!({ "status": "disabled" });
    platform.client().patch(&format!("/v1/admin/users/{user}"), &disabled).await.expect(200);
    own.ends().await;
    platform.finish();
}

/// A replica that missed a change finds it when it hears of changes again.
#[tokio::test(flavor = "multi_thread")]
async fn revocation_missed_by_replica_applies_when_notifications_resume() {
    let (platform, owner, _, id) = team().await;
    let guest = raw();
    let (revoked, _) = key(&platform, &owner, json!({})).await;
    let open = Open::of(&revoked, &id, guest.port).await;
    psql(
        &platform,
        "BEGIN; UPDATE api_keys SET revoked_at = now() WHERE name = 'k'; \
         SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'; \
         COMMIT",
    );
    open.ends().await;
    platform.finish();
}

/// Opens what a request to a port may have open: a body, and a switched connection.
async fn at_port(client: &Client, id: &str, port: u16, by: (&str, &str)) -> (Bytes, Bytes) {
    let ask = |path| client.to_port(Method::GET, id, port, path).header(by.0, by.1);
    let mut body = ask("/").send().await.unwrap().bytes_stream().boxed();
    read(&mut body, "x").await;
    let switch = ask("/switch").header("connection", "upgrade").header("upgrade", "websocket");
    let mut switch = switched(switch.send().await.unwrap()).await;
    read(&mut switch, "x").await;
    (body, switch)
}

async fn end(opened: (Bytes, Bytes)) {
    let (mut body, mut switch) = opened;
    read(&mut body, "").await;
    read(&mut switch, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_port_exchanges_end_with_their_credential() {
    let (platform, owner, _, id) = team().await;
    let (replica, (guest, asked)) = (Replica::start(&platform), endless());
    let nobody = platform.client_with("");
    let none = ("x-none", "1");
    // A key ends with its bodies, tunnels, waits and E2B's streams.
    let (revoked, path) = key(&platform, &owner, json!({})).await;
    let here = at_port(&revoked, &id, guest.port, none).await;
    let there = at_port(&revoked.at(&replica.url), &id, guest.port, none).await;
    let silent = revoked.to_port(Method::GET, &id, guest.port, "/silent");
    let silent = silent.header("accept", "application/json");
    let asks = revoked.clone();
    let silent = tokio::spawn(async move { asks.send(silent).await });
    let start = br#"{"process":{"cmd":"sleep","args":["1000"]}}"#;
    let framed = [&[0, 0, 0, 0, u8::try_from(start.len()).unwrap()][..], start].concat();
    let stream = revoked.to_port(Method::POST, &id, 49983, "/process.Process/Start");
    let stream = stream.header("content-type", "application/connect+json").body(framed);
    let mut stream = stream.send().await.unwrap().bytes_stream().boxed();
    read(&mut stream, "start").await;
    eventually("the guest was asked", async || asked.load(Ordering::SeqCst).then_some(())).await;
    owner.delete(&path).await.expect(204);
    end(here).await;
    end(there).await;
    read(&mut stream, "").await;
    let silent = tokio::time::timeout(PATIENCE, silent).await.expect("a wait goes on").unwrap();
    silent.refuses(401, CODE, "credential");
    // Replacing the capsule's token ends its connections.
    let port = format!("/v1/capsules/{id}/ports/{}", guest.port);
    let token = owner.get(&port).await.expect(200)["traffic_token"].as_str().unwrap().to_owned();
    let header = ("e2b-traffic-access-token", token.as_str());
    let here = at_port(&nobody, &id, guest.port, header).await;
    let there = at_port(&nobody.at(&replica.url), &id, guest.port, header).await;
    owner.post(&format!("/v1/capsules/{id}/traffic-token"), &json!({})).await.expect(200);
    end(here).await;
    end(there).await;
    // Closing a public port ends its connections.
    owner.put(&port, &json!({ "public": true })).await.expect(200);
    let here = at_port(&nobody, &id, guest.port, none).await;
    owner.put(&port, &json!({ "public": false })).await.expect(200);
    end(here).await;
    // A link's cookie ends when it expires, and when the capsule's links are ended.
    let cookie = async |seconds: u32| {
        let body = json!({ "expires_in": seconds });
        let link = owner.post(&format!("{port}/links"), &body).await.expect(201);
        format!("wrenn-preview={}", link["url"].as_str().unwrap().split_once('=').unwrap().1)
    };
    let brief = cookie(15).await;
    end(at_port(&nobody, &id, guest.port, ("cookie", &brief)).await).await;
    let long = cookie(3600).await;
    let here = at_port(&nobody, &id, guest.port, ("cookie", &long)).await;
    let there = at_port(&nobody.at(&replica.url), &id, guest.port, ("cookie", &long)).await;
    owner.post(&format!("/v1/capsules/{id}/links/rotate"), &json!({})).await.expect(204);
    end(here).await;
    end(there).await;
    drop(replica);
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn open_streams_end_with_password_reset_account_and_team() {
    let (platform, owner, team, id) = team().await;
    let guest = raw();
    let (member, _) = platform.member(&owner, &team, "member").await;
    let email = member.get("/v1/me").await.expect(200)["email"].as_str().unwrap().to_owned();
    let anyone = platform.client_with("");
    // A password reset ends the sessions.
    let open = Open::of(&member.in_team(&team), &id, guest.port).await;
    anyone.post("/v1/auth/password/reset", &json!({ "email": email })).await.expect(202);
    let token = mailed(&platform, &email, "give the code").await;
    let password = "a-new-tangerine-9";
    let body = json!({ "token": token, "new_password": password });
    anyone.post("/v1/auth/password/confirm", &body).await.expect(204);
    open.ends().await;
    // The account's erasure ends its sessions.
    let body = json!({ "email": email, "password": password, "program": true });
    let session = anyone.post("/v1/auth/login", &body).await.expect(200);
    let member = platform.client_with(session["session_token"].as_str().unwrap());
    let open = Open::of(&member.in_team(&team), &id, guest.port).await;
    let bye = member.request(Method::DELETE, "/v1/me").json(&json!({ "confirmation": email }));
    member.send(bye).await.expect(204);
    open.ends().await;
    // The team's deletion ends its event streams; it has no capsules then.
    owner.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    let events = owner.request(Method::GET, "/v1/events/stream").send().await.unwrap();
    let mut events = events.bytes_stream().boxed();
    read(&mut events, "hello").await;
    owner.delete(&format!("/v1/teams/{team}")).await.expect(204);
    let rest = read(&mut events, "").await;
    assert!(rest.contains(&format!("event: {CODE}")), "{rest}");
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_and_downloads_end_with_their_key() {
    // Sockets of the three hops hold at most 120 MB, so the end of the file is not sent.
    const SIZE: u64 = 1 << 30;
    let (platform, owner, _, id) = team().await;
    let (revoked, path) = key(&platform, &owner, json!({})).await;
    let dir = tempfile::tempdir().unwrap();
    let (large, partial) = (dir.path().join("large"), dir.path().join("partial"));
    std::fs::File::create(&large).unwrap().set_len(SIZE).unwrap();
    let file = |method, path: &std::path::Path| {
        let request = revoked.request(method, &format!("/v1/capsules/{id}/files"));
        request.query(&[("path", path.display().to_string())])
    };
    // The body is not read until the key has ended, so that most of it is still at the host.
    let answer = file(Method::GET, &large).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    let chunks = futures::stream::unfold((), move |()| {
        count.fetch_add(1, Ordering::SeqCst);
        async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, std::io::Error>("x"), ()))
        }
    });
    let upload = file(Method::PUT, &partial).body(reqwest::Body::wrap_stream(chunks));
    let asks = revoked.clone();
    let upload = tokio::spawn(async move { asks.send(upload).await });
    eventually("the upload is under way", async || {
        (sent.load(Ordering::SeqCst) > 10).then_some(())
    })
    .await;
    owner.delete(&path).await.expect(204);
    let upload = tokio::time::timeout(PATIENCE, upload).await.expect("the upload goes on").unwrap();
    upload.refuses(401, CODE, "credential");
    let mut got = 0;
    let mut body = answer.bytes_stream();
    while let Some(Ok(chunk)) = tokio::time::timeout(PATIENCE, body.next()).await.expect("it hangs")
    {
        got += chunk.len() as u64;
    }
    assert!(got < SIZE, "the whole file came");
    assert!(!partial.exists(), "an upload that was cut off left a file");
    platform.finish();
}
