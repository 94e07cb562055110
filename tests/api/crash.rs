//! `kill -9` of each part in the middle of its work. After the restart nothing is half done, and
//! running capsules still run.

use crate::capsule;
use crate::proxy::psql;
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::time::Duration;
use tests::{Client, Driver, Platform, Replica, eventually, processes_of};

async fn items(client: &Client) -> Vec<Value> {
    let list = client.get("/v1/capsules").await;
    if list.status.as_u16() != 200 {
        return vec![json!({ "status": "unknown" })];
    }
    list.body["items"].as_array().unwrap().clone()
}

/// Waits until every capsule is `running` or `error`. Checks that exactly the running capsules have
/// machines.
async fn settled(client: &Client) -> Vec<String> {
    let items = eventually("every capsule has come to rest", || async {
        let items = items(client).await;
        let rests = |item: &Value| item["status"] == "running" || item["status"] == "error";
        items.iter().all(rests).then_some(items)
    })
    .await;
    let mut running = Vec::new();
    for item in items {
        let id = item["id"].as_str().unwrap().to_owned();
        if item["status"] == "running" {
            assert_eq!(processes_of(&id).len(), 1, "{item}");
            running.push(id);
        }
    }
    running
}

#[tokio::test]
async fn platform_crash_during_creates_and_deletes_is_repaired() {
    let mut platform = Platform::start(Driver::Fake, &[("WRENN_MEMORY_MIB", "100000")]).await;
    let kept = platform.client().create(&json!({ "memory_mib": 128 })).await;
    for millis in [2, 5, 9, 14, 20, 35] {
        let client = platform.client();
        let doomed = client.create(&json!({ "memory_mib": 128 })).await;
        let (create, delete) = (client.clone(), client.clone());
        let work = tokio::spawn(async move {
            let made = json!({ "memory_mib": 128 });
            let create = create.request(reqwest::Method::POST, "/v1/capsules").json(&made).send();
            let path = format!("/v1/capsules/{doomed}");
            let delete = delete.request(reqwest::Method::DELETE, &path).send();
            let _ = tokio::join!(create, delete);
        });
        tokio::time::sleep(Duration::from_millis(millis)).await;
        platform.kill();
        work.await.unwrap();
        platform.resume().await;
        let running = settled(&platform.client()).await;
        assert!(running.contains(&kept), "a capsule that ran is gone");
        assert_eq!(platform.client().out(&kept, "echo up").await, "up\n");
        let what = format!("only the folders of {running:?} are left");
        platform.left_until(&what, |left| left.folders.len() == running.len()).await;
    }
    platform.finish();
}

/// Returns an address on this machine where nothing listens.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_platform_answers_for_its_own_host_from_the_first_request() {
    let (api, agent) = (free_address(), free_address());
    let vars = [("WRENN_CP_LISTEN_ADDR", api.as_str()), ("WRENN_AGENT_LISTEN_ADDR", &agent)];
    let mut platform = Platform::start(Driver::Fake, &vars).await;
    let client = platform.client().at(&format!("http://{api}"));
    let id = client.create(&json!({ "memory_mib": 128 })).await;
    for kills in [true, false] {
        let seen = platform.log().len();
        if kills {
            platform.kill()
        } else {
            platform.stop()
        }
        // A client waits for the platform and is served first.
        let (asked, path) = (client.clone(), format!("/v1/capsules/{id}/exec"));
        let first = tokio::spawn(async move {
            loop {
                let exec = asked.request(reqwest::Method::POST, &path);
                let exec = exec.json(&json!({ "cmd": "echo", "args": ["up"] }));
                match exec.send().await {
                    Ok(answer) => return (answer.status().as_u16(), answer.text().await.unwrap()),
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        });
        platform.resume().await;
        let (status, body) = first.await.unwrap();
        assert_eq!(status, 200, "{body}");
        assert_eq!(client.out(&id, "echo up").await, "up\n");
        let log = platform.log().split_off(seen);
        assert!(!log.contains("UnknownIssuer"), "{log}");
        assert!(!log.contains("refused the connection to a host"), "{log}");
    }
    // A platform that has forgotten the host rejects its credentials, so the host enrols anew.
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let revoke = "UPDATE hosts SET cert_fingerprint = NULL, cert_previous = NULL, \
                  enrolment = enrolment + 1";
    sqlx::query(revoke).execute(&mut db).await.unwrap();
    platform.kill();
    platform.resume().await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    platform.finish();
}

#[tokio::test]
async fn dead_vm_sets_capsule_error_with_reason_and_can_be_deleted() {
    let (platform, client, id) = capsule().await;
    let path = format!("/v1/capsules/{id}");
    for pid in processes_of(&id) {
        tests::signal(pid, Signal::KILL);
    }
    let exec = client.post(&format!("{path}/exec"), &json!({ "cmd": "true" })).await;
    assert!([503, 409].contains(&exec.status.as_u16()), "{exec:?}");
    let seen = eventually("the capsule is known to have failed", || async {
        let seen = client.get(&path).await.expect(200);
        (seen["status"] == "error").then_some(seen)
    })
    .await;
    assert_eq!(seen["error"], "envd ended");
    let exec = client.post(&format!("{path}/exec"), &json!({ "cmd": "true" })).await;
    exec.refuses(409, "capsule_not_running", "the capsule is error, not running");
    client.delete(&path).await.expect(204);
    platform.finish();
}

#[tokio::test]
async fn dead_database_is_restarted() {
    let (platform, client, id) = capsule().await;
    let dead = platform.postgres_pid();
    tests::signal(dead, Signal::KILL);
    eventually("another database runs", || async {
        // Children of the dead server may live on for a moment and still answer.
        let file = platform.dir().join("postgres/data/postmaster.pid");
        let pid = std::fs::read_to_string(file).ok()?.lines().next()?.parse::<i32>().ok()?;
        (pid != dead).then_some(())
    })
    .await;
    eventually("the database answers again", || async {
        let health = client.get("/health").await;
        (health.status.as_u16() == 200 && client.get("/v1/capsules").await.status == 200)
            .then_some(())
    })
    .await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    client.create(&json!({})).await;
    platform.finish();
}

#[tokio::test]
async fn database_crash_during_creates_is_repaired() {
    let platform = Platform::start(Driver::Fake, &[("WRENN_MEMORY_MIB", "100000")]).await;
    let client = platform.client();
    for millis in [5, 20, 45] {
        let creates = (0..4).map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let made = client.post("/v1/capsules", &json!({ "memory_mib": 128 })).await;
                assert!([201, 500, 503].contains(&made.status.as_u16()), "{made:?}");
            })
        });
        let creates: Vec<_> = creates.collect();
        tokio::time::sleep(Duration::from_millis(millis)).await;
        tests::signal(platform.postgres_pid(), Signal::KILL);
        for create in creates {
            create.await.unwrap();
        }
        eventually("the database answers again", || async {
            (client.get("/v1/capsules").await.status == 200).then_some(())
        })
        .await;
        for id in settled(&client).await {
            assert_eq!(client.out(&id, "echo up").await, "up\n");
        }
    }
    let running = settled(&client).await.len();
    let what = "no machine is left that no capsule owns";
    platform.left_until(what, |left| left.folders.len() == running).await;
    platform.finish();
}

#[tokio::test]
async fn agent_crash_alone_loses_no_capsule() {
    let mut platform = Platform::start(Driver::Fake, &[("WRENN_MEMORY_MIB", "100000")]).await;
    let kept = platform.client().create(&json!({ "memory_mib": 128 })).await;
    // The roles run apart. The database server is the first platform's; everything else is new.
    let database = platform.separate_database().await;
    let agent_dir = tempfile::tempdir().unwrap();
    let replica = Replica::over(&platform, &database);
    let client = replica.client();
    let mut agent = platform.agent(&client, agent_dir.path(), "127.0.0.1:0").await;
    let address = agent.1.clone();
    let mut db = PgConnection::connect(&database).await.unwrap();
    let before = client.create(&json!({ "memory_mib": 128 })).await;
    for millis in [4, 12, 25] {
        let asked = client.clone();
        let create = tokio::spawn(async move {
            asked.post("/v1/capsules", &json!({ "memory_mib": 128 })).await.status.as_u16()
        });
        tokio::time::sleep(Duration::from_millis(millis)).await;
        agent.0.kill().unwrap();
        agent.0.wait().unwrap();
        let status = create.await.unwrap();
        assert!([201, 503, 500].contains(&status), "{status}");
        let exec = format!("/v1/capsules/{before}/exec");
        let away = client.post(&exec, &json!({ "cmd": "true" })).await;
        away.refuses(503, "guest_unavailable", "does not answer");
        // The host counts as silent for more than 90 s.
        let silent = "UPDATE hosts SET last_heartbeat_at = now() - interval '91 s'";
        sqlx::query(silent).execute(&mut db).await.unwrap();
        eventually("the host is known to be away, and its capsules missing", || async {
            let hosts = client.get("/v1/hosts").await.expect(200);
            let away = hosts["items"][0]["status"] == "unreachable";
            (away && client.status(&before).await == "missing").then_some(())
        })
        .await;
        agent = platform.agent(&client, agent_dir.path(), &address).await;
        for id in settled(&client).await {
            assert_eq!(client.out(&id, "echo up").await, "up\n");
        }
    }
    eventually("the host is known to be back", || async {
        let hosts = client.get("/v1/hosts").await.expect(200);
        (hosts["items"][0]["status"] == "online").then_some(())
    })
    .await;
    for id in settled(&client).await {
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    eventually("no folder of a capsule is left", || async {
        let mut folders = std::fs::read_dir(agent_dir.path().join("capsules")).unwrap();
        folders.next().is_none().then_some(())
    })
    .await;
    agent.0.kill().unwrap();
    agent.0.wait().unwrap();
    drop(replica);
    assert_eq!(platform.client().out(&kept, "echo up").await, "up\n");
    platform.stop();
    platform.finish();
}

#[tokio::test]
async fn creates_of_dead_control_plane_are_settled_by_others() {
    let platform = Platform::start(Driver::Fake, &[("WRENN_MEMORY_MIB", "100000")]).await;
    let client = platform.client();
    for millis in [3, 8, 15, 30] {
        let replica = Replica::start(&platform);
        let asked = client.at(&replica.url);
        let create = tokio::spawn(async move {
            let request = asked.request(reqwest::Method::POST, "/v1/capsules");
            let _ = request.json(&json!({ "memory_mib": 128 })).send().await;
        });
        tokio::time::sleep(Duration::from_millis(millis)).await;
        drop(replica);
        create.await.unwrap();
    }
    for id in settled(&client).await {
        assert_eq!(client.out(&id, "echo up").await, "up\n");
    }
    platform.finish();
}

#[tokio::test]
async fn orphan_row_and_orphan_vm_are_both_repaired() {
    let (platform, client, id) = capsule().await;
    let stray = client.create(&json!({})).await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let uuid = |id: &str| id.parse::<types::CapsuleId>().unwrap().0;
    sqlx::query("DELETE FROM capsules WHERE id = $1")
        .bind(uuid(&stray))
        .execute(&mut db)
        .await
        .unwrap();
    let lost = types::CapsuleId::new();
    let copy = "INSERT INTO capsules (id, team_id, host_id, template, status, vcpus, memory_mib, \
                disk_mib, envd_token, updated_at) SELECT $1, team_id, host_id, template, $2, 1, \
                128, 64, 'x', now() - interval '1 hour' FROM capsules WHERE id = $3";
    let starting = types::CapsuleId::new();
    for (id_of, status) in [(lost, "running"), (starting, "starting")] {
        let insert = sqlx::query(copy).bind(id_of.0).bind(status).bind(uuid(&id));
        insert.execute(&mut db).await.unwrap();
    }
    eventually("the machine without a row is gone", || async {
        processes_of(&stray).is_empty().then_some(())
    })
    .await;
    let seen = eventually("the row without a machine is told", || async {
        let seen = client.get(&format!("/v1/capsules/{lost}")).await.expect(200);
        (seen["status"] == "error").then_some(seen)
    })
    .await;
    assert_eq!(seen["error"], "the host no longer has the capsule's machine");
    eventually("the create that died is undone", || async {
        (client.get(&format!("/v1/capsules/{starting}")).await.status == 404).then_some(())
    })
    .await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    platform.finish();
}

#[tokio::test]
async fn long_platform_outage_does_not_mark_capsules_missing() {
    let (mut platform, client, id) = capsule().await;
    platform.kill();
    psql(&platform, "UPDATE hosts SET last_heartbeat_at = now() - interval '1 hour'");
    platform.resume().await;
    let client = platform.client_with(client.key());
    eventually("the host is heard of", async || {
        let heard = "SELECT last_heartbeat_at > now() - interval '1 min' FROM hosts";
        (psql(&platform, heard) == "t").then_some(())
    })
    .await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    let log = client.get("/v1/audit-logs?action=capsule.missing").await.expect(200);
    assert_eq!(log["items"], json!([]), "its host was taken for silent");
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    platform.finish();
}
