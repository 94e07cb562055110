//! Mutual identity of hosts and control planes, during renewals and against impostors.

use crate::hosts::Second;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tests::{Client, Driver, Platform, Upstream, eventually};

/// Starts two hosts and a capsule on the second.
async fn two() -> (Platform, Client, Second, String) {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let second = Second::tagged(&platform, &client).await;
    let id = client.create(&json!({ "memory_mib": 128, "host_tags": ["second"] })).await;
    (platform, client, second, id)
}

async fn fingerprint(client: &Client, host: &str) -> String {
    let host = client.get(&format!("/v1/hosts/{host}")).await.expect(200);
    host["cert_fingerprint"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_renewal_under_load_loses_no_request() {
    let (platform, client, second, id) = two().await;
    let guest = Upstream::echo();
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mut asking = Vec::new();
    for n in 0..6 {
        let (client, id, stop, done) =
            (client.clone(), id.clone(), Arc::clone(&stop), Arc::clone(&done));
        let port = guest.port;
        asking.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                if n % 2 == 0 {
                    assert_eq!(client.out(&id, "echo up").await, "up\n");
                } else {
                    let asked = client.to_port(Method::GET, &id, port, "/");
                    assert_eq!(client.send(asked).await.status.as_u16(), 200);
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let (mut seen, began) = (std::collections::BTreeSet::new(), Instant::now());
    let both =
        [i32::try_from(platform.pid()).unwrap(), i32::try_from(second.process.id()).unwrap()];
    while seen.len() < 8 && began.elapsed() < Duration::from_secs(30) {
        for pid in both {
            tests::signal(pid, Signal::HUP);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
        seen.insert(fingerprint(&client, &second.id).await);
    }
    stop.store(true, Ordering::Relaxed);
    for asking in asking {
        asking.await.unwrap();
    }
    assert!(seen.len() >= 8, "renewed {} times", seen.len());
    assert!(platform.log().matches("renewed this control plane's certificate").count() >= 8);
    assert!(done.load(Ordering::Relaxed) > 100);
    // Old certificates are invalid by now, except the last but one.
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn host_cannot_impersonate_another_host() {
    let (platform, client, second, id) = two().await;
    let third = Second::start(&platform, &client).await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    // The database has another host's address here, as after a change in the network. The other
    // host has a certificate of the same authority, for the same IP address.
    let sql = "UPDATE hosts SET address = $2 WHERE id = $1";
    let host: types::HostId = second.id.parse().unwrap();
    let set = async |db: &mut PgConnection, address: &str| {
        sqlx::query(sql).bind(host.0).bind(address).execute(db).await.unwrap();
    };
    set(&mut db, &third.address).await;
    // Open connections still lead to the old host. Only new connections are checked.
    let exec = format!("/v1/capsules/{id}/exec");
    eventually("the other is not taken for it", || async {
        let body = json!({ "cmd": "true" });
        let asked = (0..20).map(|_| client.post(&exec, &body));
        let answers = futures::future::join_all(asked).await;
        answers.iter().any(|answer| answer.status.as_u16() == 503).then_some(())
    })
    .await;
    set(&mut db, &second.address).await;
    // The right host is refused too once its certificates are revoked.
    let known: (Option<String>, Option<String>) =
        sqlx::query_as("SELECT cert_fingerprint, cert_previous FROM hosts WHERE id = $1")
            .bind(host.0)
            .fetch_one(&mut db)
            .await
            .unwrap();
    let certs = "UPDATE hosts SET cert_fingerprint = $2, cert_previous = $3 WHERE id = $1";
    let revoke = sqlx::query(certs).bind(host.0).bind(None::<String>).bind(None::<String>);
    revoke.execute(&mut db).await.unwrap();
    eventually("what was revoked is not taken", || async {
        let body = json!({ "cmd": "true" });
        let asked = (0..20).map(|_| client.post(&exec, &body));
        let answers = futures::future::join_all(asked).await;
        answers.iter().any(|answer| answer.status.as_u16() == 503).then_some(())
    })
    .await;
    let restore = sqlx::query(certs).bind(host.0).bind(known.0).bind(known.1);
    restore.execute(&mut db).await.unwrap();
    eventually("it is found again", || async {
        let answer = client.post(&exec, &json!({ "cmd": "true" })).await;
        (answer.status.as_u16() == 200).then_some(())
    })
    .await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn host_answers_only_its_control_planes() {
    let (platform, client, second, id) = two().await;
    let health = format!("/proxy/{id}/49983/health");
    let status = async |client: reqwest::Result<reqwest::Client>, scheme: &str| {
        let url = format!("{scheme}://{}{health}", second.address);
        let answer = client.unwrap().get(url).timeout(Duration::from_secs(5)).send().await;
        answer.ok().map(|answer| answer.status().as_u16())
    };
    let with = |config: rustls::ClientConfig| {
        reqwest::Client::builder().no_proxy().tls_backend_preconfigured(config).build()
    };
    let ca = platform.authority();
    let as_who = |pair: &pki::Pair| with(pki::dial_host(ca.trust(), pair).unwrap());
    assert_eq!(status(as_who(&ca.control_plane().unwrap()), "https").await, Some(204));
    // The callers are nobody, another authority's control plane, the host itself, and a client over
    // plain HTTP.
    assert_eq!(status(with(pki::witness(None).unwrap()), "https").await, None);
    let other = pki::Authority::generate().unwrap();
    let other = pki::Authority::load(&other.cert_pem, &other.key_pem).unwrap();
    assert_eq!(status(as_who(&other.control_plane().unwrap()), "https").await, None);
    let file = std::fs::read(second.dir.path().join("host-credentials.json")).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let text = |name: &str| file[name].as_str().unwrap().to_owned();
    let host = pki::Pair { cert_pem: text("cert_pem"), key_pem: text("key_pem") };
    assert_eq!(status(as_who(&host), "https").await, None);
    assert_eq!(status(reqwest::Client::builder().no_proxy().build(), "http").await, None);
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_without_authority_must_be_on_loopback() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let database = platform.separate_database().await;
    let replica = tests::Replica::plain(&platform, &database);
    let client = replica.client();
    let dir = tempfile::tempdir().unwrap();
    let (mut agent, _) = platform.agent(&client, dir.path(), "127.0.0.1:0").await;
    let id = client.create(&json!({ "memory_mib": 128 })).await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    agent.kill().unwrap();
    agent.wait().unwrap();
    let invited = client.post("/v1/hosts", &json!({})).await.expect(201);
    let other = tempfile::tempdir().unwrap();
    let mut command = platform.wrenn();
    command.args(["agent", "--agent-listen", "0.0.0.0:0", "--address", "192.0.2.7:8001"]);
    command.args(["--control-plane", &replica.url]).env("WRENN_DIR", other.path());
    command.env("WRENN_REGISTER_TOKEN", invited["registration_token"].as_str().unwrap());
    command.env("WRENN_DRIVER", "fake:/bin/true");
    let out = command.output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(told.contains("must be a loopback address"), "{told}");
    platform.finish();
}

/// Authority of a platform in files, and a control plane that uses it.
struct Ca {
    dir: tempfile::TempDir,
    port: u16,
    database: String,
}

impl Ca {
    /// Starts a control plane that trusts these authorities. The key's authority signs its
    /// certificates.
    fn control_plane(&self, platform: &Platform, certs: &[&pki::Pair], key: &pki::Pair) -> Running {
        let certs: String = certs.iter().map(|pair| pair.cert_pem.as_str()).collect();
        std::fs::write(self.dir.path().join("ca.crt"), certs).unwrap();
        let said = self.dir.path().join("said");
        let mut command = platform.wrenn();
        command.args(["control-plane", "--listen", &format!("127.0.0.1:{}", self.port)]);
        command.env("DATABASE_URL", &self.database);
        command.env("WRENN_CA_CERT", self.dir.path().join("ca.crt"));
        // The key is given as text; the certificates are given as a path.
        command.env("WRENN_CA_KEY", &key.key_pem);
        command.env("WRENN_CLIENT_FILE", self.dir.path().join("client.json"));
        command.stdout(std::fs::File::create(&said).unwrap()).stderr(std::process::Stdio::null());
        let mut process = command.spawn().unwrap();
        tests::told(&said, "Wrenn serves ", &mut process);
        Running(process)
    }

    fn client(&self, platform: &Platform) -> Client {
        let file = std::fs::read(self.dir.path().join("client.json")).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
        let key = file["api_key"].as_str().unwrap();
        platform.client_with(key).at(file["url"].as_str().unwrap())
    }
}

struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn authority_is_replaced_while_hosts_keep_working() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let (dir, port) = (tempfile::tempdir().unwrap(), tests::free_port());
    let ca = Ca { dir, port, database: platform.separate_database().await };
    let (old, new) = (pki::Authority::generate().unwrap(), pki::Authority::generate().unwrap());
    let running = ca.control_plane(&platform, &[&old], &old);
    let client = ca.client(&platform);
    let host = Second::start(&platform, &client).await;
    let id = client.create(&json!({ "memory_mib": 128 })).await;
    let credentials = || {
        let file = std::fs::read(host.dir.path().join("host-credentials.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&file).unwrap()
    };
    let renewed = async || {
        let before = credentials()["cert_pem"].clone();
        tests::signal(i32::try_from(host.process.id()).unwrap(), Signal::HUP);
        eventually("it has renewed", || async {
            (credentials()["cert_pem"] != before).then_some(())
        })
        .await;
    };
    let works = async || assert_eq!(client.out(&id, "echo up").await, "up\n");
    works().await;
    drop(running);
    // Both authorities are trusted, and the old one still signs. Hosts come to trust both.
    let running = ca.control_plane(&platform, &[&old, &new], &old);
    works().await;
    renewed().await;
    let trusted = credentials()["ca_cert_pem"].as_str().unwrap().matches("BEGIN").count();
    assert_eq!(trusted, 2);
    drop(running);
    // The new authority signs: for control planes at once, for hosts when they renew.
    let running = ca.control_plane(&platform, &[&old, &new], &new);
    works().await;
    renewed().await;
    works().await;
    drop(running);
    // The old authority is gone.
    let running = ca.control_plane(&platform, &[&new], &new);
    works().await;
    renewed().await;
    assert_eq!(credentials()["ca_cert_pem"], new.cert_pem.as_str());
    works().await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    drop(running);
    platform.finish();
}
