//! Several hosts: enrolment, refusals and placement of capsules. Further tests make a host silent,
//! drain it or delete it.

use crate::auth::other_team;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;
use tests::{Client, Driver, Platform, Replica, eventually};

/// Second host beside the platform's own.
pub(crate) struct Second {
    pub dir: TempDir,
    pub process: Child,
    pub address: String,
    pub id: String,
}

impl Second {
    pub(crate) async fn start(platform: &Platform, operator: &Client) -> Self {
        // The second host has the same disk as the first, so that placement is even.
        let dir = tempfile::tempdir_in(tests::memory_or_disk()).unwrap();
        let (process, address) = platform.agent(operator, dir.path(), "127.0.0.1:0").await;
        let id = credentials(dir.path())["host_id"].as_str().unwrap().to_owned();
        Self { dir, process, address, id }
    }

    /// Starts a host with the tag `second`, by which capsules ask for it.
    pub(crate) async fn tagged(platform: &Platform, operator: &Client) -> Self {
        let this = Self::start(platform, operator).await;
        let tags = operator.request(Method::PUT, &format!("/v1/hosts/{}/tags", this.id));
        operator.send(tags.json(&json!({ "tags": ["second"] }))).await.expect(200);
        this
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) async fn again(&mut self, platform: &Platform, operator: &Client) {
        self.process = platform.agent(operator, self.dir.path(), &self.address).await.0;
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Capsules may still run here, for example after their host was deleted.
        let mut clean = std::process::Command::new(tests::binary("wrenn"));
        clean.arg("clean").env("WRENN_DIR", self.dir.path()).env("WRENN_DRIVER", "fake:x");
        clean.env("WRENN_CLIENT_FILE", self.dir.path().join("none"));
        let cleaned = clean.output().unwrap();
        assert!(cleaned.status.success() || std::thread::panicking(), "{cleaned:?}");
    }
}

/// TLS server that proves a key at an address to every client. Dropping it stops it.
struct Shows {
    address: String,
    over: Arc<AtomicBool>,
    showing: Option<std::thread::JoinHandle<()>>,
}

impl Shows {
    fn at(address: &str, key: &pki::Key) -> Self {
        let listener = std::net::TcpListener::bind(address).unwrap();
        let config = Arc::new(pki::prove(&key.self_signed().unwrap()).unwrap());
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let showing = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let mut stream = stream.unwrap();
                let mut shown = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                // The client may be another one than the control plane that looks for the key.
                let _ = shown.complete_io(&mut stream);
            }
        });
        Self { address: address.to_owned(), over, showing: Some(showing) }
    }
}

impl Drop for Shows {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = std::net::TcpStream::connect(&self.address);
        self.showing.take().unwrap().join().unwrap();
    }
}

fn credentials(dir: &Path) -> Value {
    let file = std::fs::read(dir.join("host-credentials.json")).unwrap();
    serde_json::from_slice(&file).unwrap()
}

async fn host(client: &Client, id: &str) -> Value {
    client.get(&format!("/v1/hosts/{id}")).await.expect(200)
}

/// Returns the id of a capsule's host.
async fn place(client: &Client, capsule: &str) -> String {
    let capsule = client.get(&format!("/v1/capsules/{capsule}")).await.expect(200);
    capsule["host_id"].as_str().unwrap_or_default().to_owned()
}

async fn database(platform: &Platform) -> PgConnection {
    PgConnection::connect(&platform.database_url()).await.unwrap()
}

/// Makes a host look as if its last heartbeat came 91 s ago.
pub(crate) async fn silence(platform: &Platform, id: &str) {
    let id: types::HostId = id.parse().unwrap();
    let sql = "UPDATE hosts SET last_heartbeat_at = now() - interval '91 s' WHERE id = $1";
    sqlx::query(sql).bind(id.0).execute(&mut database(platform).await).await.unwrap();
}

#[tokio::test]
async fn placement_spreads_capsules_and_follows_host_tags() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let second = Second::start(&platform, &client).await;
    let shown = host(&client, &second.id).await;
    assert_eq!((&shown["status"], &shown["driver"]), (&json!("online"), &json!("fake")));
    assert_eq!(shown["address"], second.address.as_str());
    assert!(shown["cert_fingerprint"].as_str().is_some_and(|f| f.len() == 64), "{shown}");
    let body = json!({ "memory_mib": 128 });
    let mut places = std::collections::BTreeMap::new();
    for _ in 0..6 {
        let id = client.create(&body).await;
        assert_eq!(client.out(&id, "echo up").await, "up\n");
        *places.entry(place(&client, &id).await).or_insert(0) += 1;
    }
    // Placement is even, as far as one control plane sees another's placements.
    assert!(places.len() == 2 && places.values().all(|count| *count >= 2), "{places:?}");
    let none = client.post("/v1/capsules", &json!({ "host_tags": ["gpu"] })).await;
    none.refuses(503, "no_capacity", "no host has the requested tags");
    let tags = client.request(Method::PUT, &format!("/v1/hosts/{}/tags", second.id));
    let tagged = client.send(tags.json(&json!({ "tags": ["gpu"] }))).await.expect(200);
    assert_eq!(tagged["tags"], json!(["gpu"]));
    let id = client.create(&json!({ "memory_mib": 128, "host_tags": ["gpu"] })).await;
    assert_eq!(place(&client, &id).await, second.id);
    // A team with hosts of its own uses only those, and no other team uses them.
    let stranger = other_team(&platform).await;
    let own = "UPDATE hosts SET team_id = (SELECT id FROM teams WHERE name = 'Other') \
               WHERE name <> 'local'";
    sqlx::query(own).execute(&mut database(&platform).await).await.unwrap();
    eventually("it is known", || async {
        let id = stranger.create(&body).await;
        let there = place(&stranger, &id).await == second.id;
        stranger.delete(&format!("/v1/capsules/{id}")).await.expect(204);
        there.then_some(())
    })
    .await;
    let listed = stranger.get("/v1/hosts").await.expect(200);
    let (own, others): (Vec<&Value>, Vec<&Value>) =
        listed["items"].as_array().unwrap().iter().partition(|h| h["id"] == second.id.as_str());
    assert_eq!((own.len(), others.len()), (1, 1));
    assert_eq!(own[0]["address"], second.address.as_str());
    // The team sees only the kind of other hosts.
    assert_eq!((&others[0]["address"], &others[0]["accelerator"]), (&json!(""), &json!("none")));
    assert!(others[0].get("cert_fingerprint").is_none() && others[0]["capsules"] == 0);
    eventually("nobody else is on it", || async {
        // Either control plane may place them.
        for _ in 0..4 {
            let id = client.create(&body).await;
            if place(&client, &id).await == second.id {
                return None;
            }
        }
        Some(())
    })
    .await;
    for capsule in client.get("/v1/capsules").await.expect(200)["items"].as_array().unwrap() {
        let id = capsule["id"].as_str().unwrap();
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    platform.finish();
}

#[tokio::test]
async fn registration_token_registers_one_host_that_proves_its_key() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let invite = async || {
        let invited = client.post("/v1/hosts", &json!({})).await.expect(201);
        invited["registration_token"].as_str().unwrap().to_owned()
    };
    let specs = json!({
        "arch": "x86_64", "cpu_cores": 1, "vcpus": 1, "memory_mib": 1, "disk_mib": 1,
        "driver": "fake", "accelerator": "none", "version": "0", "templates": [],
    });
    let register = async |token: &str, address: &str, csr: Option<&str>| {
        let body = json!({ "token": token, "address": address, "csr_pem": csr, "specs": specs });
        client.post("/v1/hosts/register", &body).await
    };
    let key = pki::Key::generate().unwrap();
    let csr = key.request().unwrap();
    register("nonsense", "127.0.0.1:1", Some(&csr)).await.refuses(401, "invalid_token", "token");
    let token = invite().await;
    for address in ["", "127.0.0.1", "http://127.0.0.1:1", "a@127.0.0.1:1"] {
        register(&token, address, Some(&csr)).await.refuses(400, "invalid_request", "address");
    }
    register(&token, "127.0.0.1:1", None).await.refuses(400, "invalid_request", "csr_pem");
    register(&token, "127.0.0.1:1", Some("x")).await.refuses(400, "invalid_request", "csr_pem");
    // The address is that of nobody, then of a host with another key, then of a server without TLS.
    let refused = register(&token, "127.0.0.1:1", Some(&csr)).await;
    refused.refuses(400, "invalid_request", "cannot be verified");
    let second = Second::start(&platform, &client).await;
    let refused = register(&token, &second.address, Some(&csr)).await;
    refused.refuses(409, "conflict", "has the address");
    let other = Replica::over(&platform, &platform.separate_database().await);
    let plain = other.url.trim_start_matches("http://").to_owned();
    let refused = register(&token, &plain, Some(&csr)).await;
    refused.refuses(400, "invalid_request", "cannot be verified");
    // None of these attempts used the token up.
    let dir = tempfile::tempdir().unwrap();
    let agent = |token: &str| {
        let mut command = platform.wrenn();
        command.args(["agent", "--agent-listen", "127.0.0.1:0", "--control-plane"]);
        command.arg(platform.url()).env("WRENN_DIR", dir.path());
        command.env("WRENN_REGISTER_TOKEN", token).env("WRENN_DRIVER", "fake:/bin/true");
        command.stderr(std::fs::File::create(dir.path().join("agent.log")).unwrap());
        command.spawn().unwrap()
    };
    let mut process = agent(&token);
    let log = dir.path().join("agent.log");
    tests::told(&log, "the host agent serves address=", &mut process);
    process.kill().unwrap();
    process.wait().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(dir.path().join("host-credentials.json")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    // Now the token is used up.
    std::fs::remove_file(dir.path().join("host-credentials.json")).unwrap();
    let mut process = agent(&token);
    assert!(!process.wait().unwrap().success());
    let told = std::fs::read_to_string(&log).unwrap();
    assert!(!told.contains("serves"), "{told}");
    // Neither tokens nor keys appear in any log or row.
    let mut db = database(&platform).await;
    let rows: Vec<String> =
        sqlx::query_scalar("SELECT t::text FROM host_tokens t").fetch_all(&mut db).await.unwrap();
    assert!(!rows.concat().contains(&token) && !platform.log().contains(&token));
    // An expired token is invalid.
    let late = invite().await;
    sqlx::query("UPDATE host_tokens SET expires_at = now() - interval '1 s'")
        .execute(&mut db)
        .await
        .unwrap();
    register(&late, "127.0.0.1:1", Some(&csr)).await.refuses(401, "invalid_token", "token");
    platform.finish();
}

#[tokio::test]
async fn lost_refresh_answer_keeps_access_and_token_reuse_revokes_it() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let mut second = Second::start(&platform, &client).await;
    let id = client.create(&json!({ "memory_mib": 128 })).await;
    second.kill();
    let first = credentials(second.dir.path());
    let address = second.address.clone();
    let refresh = async |token: &Value| {
        let key = pki::Key::generate().unwrap();
        let _shown = Shows::at(&address, &key);
        let body = json!({ "refresh_token": token, "csr_pem": key.request().unwrap() });
        client.post("/v1/hosts/refresh", &body).await
    };
    // The answers are lost several times, and the host continues with its old credentials.
    for _ in 0..3 {
        refresh(&first["refresh_token"]).await.expect(200);
    }
    second.again(&platform, &client).await;
    eventually("the host serves with the certificate it has", || async {
        let made = client.post("/v1/capsules", &json!({ "memory_mib": 128 })).await.expect(201);
        let here = made["host_id"] == second.id.as_str();
        let made = made["id"].as_str().unwrap();
        assert_eq!(client.out(made, "echo up").await, "up\n");
        client.delete(&format!("/v1/capsules/{made}")).await.expect(204);
        here.then_some(())
    })
    .await;
    second.kill();
    // Then an answer arrives and its token is used. The token before it is invalid from now on.
    let renewed = refresh(&first["refresh_token"]).await.expect(200);
    let last = refresh(&renewed["refresh_token"]).await.expect(200);
    refresh(&first["refresh_token"]).await.refuses(401, "invalid_token", "refresh token");
    // The reuse ends later tokens too, and the host's JWT.
    refresh(&last["refresh_token"]).await.refuses(401, "invalid_token", "refresh token");
    let beat = client.request(Method::POST, &format!("/v1/hosts/{}/heartbeat", second.id));
    let beat = beat.bearer_auth(last["jwt"].as_str().unwrap());
    let specs = json!({
        "arch": "", "cpu_cores": 1, "vcpus": 1, "memory_mib": 1, "disk_mib": 1, "driver": "",
        "accelerator": "", "version": "", "templates": [],
    });
    let said = client.send(beat.json(&json!({ "specs": specs, "load": {} }))).await;
    said.refuses(401, "invalid_token", "host token");
    // A host that enrols anew stays the same host.
    let token = client.post(&format!("/v1/hosts/{}/token", second.id), &json!({})).await;
    let token = token.expect(201)["registration_token"].as_str().unwrap().to_owned();
    let mut command = platform.wrenn();
    command.args(["agent", "--agent-listen", &second.address, "--control-plane", platform.url()]);
    let log = second.dir.path().join("again.log");
    command.env("WRENN_DIR", second.dir.path()).env("WRENN_REGISTER_TOKEN", &token);
    command.env("WRENN_DRIVER", format!("fake:{}", tests::binary("envd").display()));
    command.stderr(std::fs::File::create(&log).unwrap());
    second.process = command.spawn().unwrap();
    tests::told(&log, "the host agent serves address=", &mut second.process);
    assert_eq!(credentials(second.dir.path())["host_id"], second.id.as_str());
    eventually("it is heard of", || async {
        (host(&client, &second.id).await["status"] == "online").then_some(())
    })
    .await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    platform.finish();
}

#[tokio::test]
async fn refresh_refuses_key_that_host_address_does_not_prove() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let mut second = Second::start(&platform, &client).await;
    let before = credentials(second.dir.path());
    let key = pki::Key::generate().unwrap();
    let body = json!({
        "refresh_token": before["refresh_token"], "csr_pem": key.request().unwrap(),
    });
    let refused = async || {
        let answer = client.post("/v1/hosts/refresh", &body).await;
        answer.refuses(400, "invalid_request", "cannot be verified");
    };
    // First the host itself answers at its address, then nobody, then somebody with another key.
    refused().await;
    second.kill();
    refused().await;
    let other = Shows::at(&second.address, &pki::Key::generate().unwrap());
    refused().await;
    drop(other);
    // The refused attempts neither used the token up nor changed the host's row.
    let seen = host(&client, &second.id).await;
    second.again(&platform, &client).await;
    eventually("it is heard of", || async {
        let now = host(&client, &second.id).await;
        (now["last_heartbeat_at"] != seen["last_heartbeat_at"]).then_some(())
    })
    .await;
    let pid = i32::try_from(second.process.id()).unwrap();
    tests::signal(pid, rustix::process::Signal::HUP);
    eventually("the host renews its own credentials", || async {
        let now = credentials(second.dir.path());
        (now["refresh_token"] != before["refresh_token"]).then_some(())
    })
    .await;
    let now = host(&client, &second.id).await;
    assert_ne!(now["cert_fingerprint"], seen["cert_fingerprint"]);
    let id = client.create(&json!({ "memory_mib": 128 })).await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    platform.finish();
}

#[tokio::test]
async fn capsules_of_silent_host_are_missing_until_it_returns() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let mut second = Second::tagged(&platform, &client).await;
    let body = json!({ "memory_mib": 128, "host_tags": ["second"] });
    let (runs, paused, ends) =
        (client.create(&body).await, client.create(&body).await, client.create(&body).await);
    client.pause(&paused).await;
    second.kill();
    // A create finds another host at once. A create that needs the dead host gets an error.
    let elsewhere = client.create(&json!({ "memory_mib": 128 })).await;
    assert_ne!(place(&client, &elsewhere).await, second.id);
    client.post("/v1/capsules", &body).await.refuses(503, "host_unavailable", "does not answer");
    silence(&platform, &second.id).await;
    for id in [&runs, &ends] {
        eventually("it is missing", || async {
            (client.status(id).await == "missing").then_some(())
        })
        .await;
    }
    assert_eq!(client.status(&paused).await, "paused");
    let exec = client.post(&format!("/v1/capsules/{runs}/exec"), &json!({ "cmd": "true" })).await;
    assert_eq!(exec.status.as_u16(), 409, "{}", exec.body);
    client.post("/v1/capsules", &body).await.refuses(503, "no_capacity", "no host");
    // The machine dies while its host is away. The host reports this when it is back.
    for pid in tests::processes_of(&ends) {
        tests::signal(pid, rustix::process::Signal::KILL);
    }
    second.again(&platform, &client).await;
    for (id, wanted) in [(&runs, "running"), (&ends, "error"), (&paused, "paused")] {
        eventually(wanted, || async { (client.status(id).await == wanted).then_some(()) }).await;
    }
    client.resume(&paused).await;
    for id in [&runs, &paused] {
        assert_eq!(client.out(id, "echo up").await, "up\n");
    }
    for id in [&runs, &paused, &ends, &elsewhere] {
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    platform.finish();
}

#[tokio::test]
async fn host_drain_and_delete_lose_no_capsule_without_force() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let mut second = Second::tagged(&platform, &client).await;
    let body = json!({ "memory_mib": 128, "host_tags": ["second"] });
    let (one, two) = (client.create(&body).await, client.create(&body).await);
    let path = format!("/v1/hosts/{}", second.id);
    client.delete(&path).await.refuses(409, "host_not_empty", "2 capsules and 0 snapshots");
    let drained = client.post(&format!("{path}/drain"), &json!({})).await.expect(200);
    assert_eq!(drained["draining"], true);
    for id in [&one, &two] {
        eventually("it is paused", || async {
            (client.status(id).await == "paused").then_some(())
        })
        .await;
    }
    eventually("it takes no more", || async {
        let made = client.post("/v1/capsules", &body).await;
        (made.status.as_u16() != 201).then(|| made.refuses(503, "no_capacity", "no host"))
    })
    .await;
    client.post(&format!("{path}/drain"), &json!({ "drain": false })).await.expect(200);
    client.resume(&one).await;
    let loss = client.get(&format!("{path}/delete-preview")).await.expect(200);
    let mut named: Vec<&str> =
        loss["capsules"].as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap()).collect();
    named.sort_unstable();
    let mut both = [one.as_str(), two.as_str()];
    both.sort_unstable();
    assert_eq!(named, both);
    // The host is deleted by force while it does not answer. Its capsules become lost and can be
    // deleted.
    second.kill();
    client.delete(&format!("{path}?force=true")).await.expect(204);
    client.get(&path).await.refuses(404, "not_found", "host");
    for id in [&one, &two] {
        let lost = client.get(&format!("/v1/capsules/{id}")).await.expect(200);
        assert_eq!(
            (&lost["status"], &lost["error"]),
            (&json!("error"), &json!("the capsule's host was deleted"))
        );
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    // The host comes back and learns that it was forgotten. It ends nothing by itself.
    second.again(&platform, &client).await;
    let log = second.dir.path().join("agent.log");
    eventually("it is told", || async {
        let told = std::fs::read_to_string(&log).unwrap();
        told.contains("the platform does not know this host").then_some(())
    })
    .await;
    assert_eq!(std::fs::read_dir(second.dir.path().join("capsules")).unwrap().count(), 2);
    for id in [&one, &two] {
        let agent = platform.client_of_agent(&second.address).below("/wrenn.host.v1.Host");
        agent.post("/DestroyCapsule", &json!({ "capsuleId": id })).await.expect(200);
    }
    platform.finish();
}

#[tokio::test]
async fn second_control_plane_takes_lead_when_first_dies() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let separate = platform.separate_database().await;
    let first = Replica::over(&platform, &separate);
    let second = Replica::over(&platform, &separate);
    let client = second.client();
    let mut host = Second::start(&platform, &client).await;
    let id = client.create(&json!({ "memory_mib": 128 })).await;
    host.kill();
    let mut db = PgConnection::connect(&separate).await.unwrap();
    let silent = "UPDATE hosts SET last_heartbeat_at = now() - interval '91 s'";
    sqlx::query(silent).execute(&mut db).await.unwrap();
    eventually("the first sees it", || async {
        (client.status(&id).await == "missing").then_some(())
    })
    .await;
    host.again(&platform, &client).await;
    eventually("it is back", || async { (client.status(&id).await == "running").then_some(()) })
        .await;
    drop(first);
    host.kill();
    sqlx::query(silent).execute(&mut db).await.unwrap();
    eventually("the second sees it", || async {
        (client.status(&id).await == "missing").then_some(())
    })
    .await;
    host.again(&platform, &client).await;
    eventually("it is back", || async { (client.status(&id).await == "running").then_some(()) })
        .await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    drop(second);
    platform.finish();
}
