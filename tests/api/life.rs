//! Lifetimes and idle times. The host enforces them, whatever the control plane does.

use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;
use tests::{Driver, Platform, Replica, Upstream, eventually, processes_of};

#[tokio::test]
async fn expired_capsule_is_paused_or_killed_per_on_timeout() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let paused = client.create(&json!({ "lifetime": 1 })).await;
    let ended = client.create(&json!({ "lifetime": 1, "on_timeout": "kill" })).await;
    let extended = client.create(&json!({ "lifetime": 1 })).await;
    let shown = client.get(&format!("/v1/capsules/{extended}")).await.expect(200);
    assert!(shown["ends_at"].is_string(), "{shown}");
    let later = client.change(&extended, "timeout", &json!({ "lifetime": 1000 })).await;
    assert!(later["ends_at"].as_str() > shown["ends_at"].as_str(), "{later}");
    for (id, wanted) in [(&paused, "paused"), (&ended, "gone")] {
        eventually(wanted, || async { (client.status(id).await == wanted).then_some(()) }).await;
        assert!(processes_of(id).is_empty());
    }
    assert_eq!(client.status(&extended).await, "running");
    client.change(&extended, "timeout", &json!({ "lifetime": 0, "on_timeout": "kill" })).await;
    eventually("gone", || async { (client.status(&extended).await == "gone").then_some(()) }).await;
    // The capsule is paused again at its next end of life, and never without a lifetime.
    client.change(&paused, "resume", &json!({ "lifetime": 1 })).await;
    eventually("paused", || async { (client.status(&paused).await == "paused").then_some(()) })
        .await;
    let forever = client.change(&paused, "resume", &json!({})).await;
    assert!(forever["ends_at"].is_null(), "{forever}");
    platform.finish();
}

#[tokio::test]
async fn commands_files_traffic_and_pings_delay_idle_pause() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({ "idle_timeout": 4 })).await;
    let upstream = Upstream::echo();
    let long = {
        let (client, id) = (client.clone(), id.clone());
        tokio::spawn(async move { client.out(&id, "sleep 5; echo done").await })
    };
    assert_eq!(long.await.unwrap(), "done\n");
    for round in 0..8 {
        match round % 4 {
            0 => drop(client.out(&id, "true").await),
            1 => {
                let path = format!("/v1/capsules/{id}/files");
                let put = client.request(Method::PUT, &path).query(&[("path", "/tmp/wrenn-life")]);
                client.send(put.body("x")).await.expect(204);
            }
            2 => {
                let asked =
                    client.to_port(Method::GET, &id, upstream.port, "/").send().await.unwrap();
                assert!(asked.status().is_success(), "{}", asked.status());
            }
            _ => {
                let ping = format!("/v1/capsules/{id}/ping");
                client.post(&ping, &json!({})).await.expect(204);
            }
        }
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert_eq!(client.status(&id).await, "running", "round {round}");
    }
    eventually("it is paused", || async { (client.status(&id).await == "paused").then_some(()) })
        .await;
    platform.finish();
}

#[tokio::test]
async fn port_lists_and_metrics_do_not_delay_idle_pause() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({ "idle_timeout": 2 })).await;
    let looks = [
        format!("/v1/capsules/{id}/ports"),
        format!("/api/v1/capsules/{id}/metrics"),
        format!("/sandboxes/{id}/metrics"),
    ];
    for look in &looks {
        client.get(look).await.expect(200);
    }
    // This loop asks without a rest until the capsule is paused.
    eventually("it is paused", || async {
        for look in &looks {
            client.get(look).await;
        }
        (client.status(&id).await == "paused").then_some(())
    })
    .await;
    client.get(&looks[0]).await.refuses(409, "capsule_paused", "paused");
    platform.finish();
}

/// A host without a control plane enforces lifetimes alone, and lists the results until somebody
/// reads them.
#[tokio::test]
async fn host_without_control_plane_enforces_lifetimes() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let replica = Replica::over(&platform, &platform.separate_database().await);
    let client = replica.client();
    let (mut process, address) = platform.agent(&client, dir.path(), "127.0.0.1:0").await;
    drop(replica);
    let agent = platform.client_of_agent(&address).below("/wrenn.host.v1.Host");
    let mut ids = Vec::new();
    for on_timeout in ["ON_TIMEOUT_PAUSE", "ON_TIMEOUT_KILL"] {
        let id = types::CapsuleId::new().to_string();
        let request = json!({
            "capsuleId": id, "template": "base", "vcpus": 1, "memoryMib": 128, "diskMib": 64,
            "envdToken": "t", "generation": 1,
            "lifetime": { "lastsMs": 500, "onTimeout": on_timeout },
        });
        agent.post("/CreateCapsule", &request).await.expect(200);
        ids.push(id);
    }
    let states = async |agent: &tests::Client| -> Vec<Value> {
        let list = agent.post("/ListCapsules", &json!({})).await.expect(200);
        let of = |id: &String| {
            let found =
                list["capsules"].as_array().unwrap().iter().find(|c| c["capsuleId"] == **id);
            found.map_or(Value::Null, |found| found["state"].clone())
        };
        ids.iter().map(of).collect()
    };
    let wanted = [json!("CAPSULE_STATE_PAUSED"), json!("CAPSULE_STATE_EXPIRED")];
    eventually("both are over", || async { (states(&agent).await == wanted).then_some(()) }).await;
    assert!(ids.iter().all(|id| processes_of(id).is_empty()));
    // The list survives a restart too.
    process.kill().unwrap();
    process.wait().unwrap();
    let (mut process, _) = platform.agent(&client, dir.path(), &address).await;
    let agent = platform.client_of_agent(&address).below("/wrenn.host.v1.Host");
    assert_eq!(states(&agent).await, wanted);
    // A command older than the last one changes nothing.
    let resume = |generation: u32| json!({ "capsuleId": ids[0], "generation": generation });
    agent.post("/ResumeCapsule", &resume(5)).await.expect(200);
    let stale = agent.post("/PauseCapsule", &resume(4)).await;
    assert_eq!(stale.body["code"], "aborted", "{}", stale.body);
    assert_eq!(states(&agent).await[0], "CAPSULE_STATE_RUNNING");
    // An older removal changes nothing either, since the machine began later.
    let stale = agent.post("/DestroyCapsule", &resume(4)).await;
    assert_eq!(stale.body["code"], "aborted", "{}", stale.body);
    assert_eq!(states(&agent).await[0], "CAPSULE_STATE_RUNNING");
    // A lifetime starts when the host hears of it, by the host's clock alone.
    let lifetime = json!({ "lastsMs": 600_000 });
    let set = |generation: u32| {
        let mut request = resume(generation);
        request["lifetime"] = lifetime.clone();
        request
    };
    // A lifetime from an older command changes nothing either.
    let stale = agent.post("/SetLifetime", &set(4)).await;
    assert_eq!(stale.body["code"], "aborted", "{}", stale.body);
    assert_eq!(stale.body["details"][0]["type"], "wrenn.host.v1.Failure", "{}", stale.body);
    let kept = agent.post("/SetLifetime", &set(5)).await.expect(200);
    // In JSON, a 64-bit number may come as a text.
    let left = kept["leftMs"].as_str().and_then(|left| left.parse::<u64>().ok());
    let left = left.or(kept["leftMs"].as_u64()).unwrap();
    assert!((1..=600_000).contains(&left), "{kept}");
    assert_eq!(states(&agent).await[0], "CAPSULE_STATE_RUNNING");
    agent.post("/TouchCapsule", &json!({ "capsuleId": ids[0] })).await.expect(200);
    agent.post("/DestroyCapsule", &resume(5)).await.expect(200);
    assert_eq!(states(&agent).await[0], Value::Null);
    let gone = agent.post("/TouchCapsule", &json!({ "capsuleId": ids[0] })).await;
    assert_eq!(gone.body["code"], "not_found", "{}", gone.body);
    for id in &ids {
        agent.post("/DestroyCapsule", &json!({ "capsuleId": id })).await.expect(200);
    }
    process.kill().unwrap();
    process.wait().unwrap();
    platform.finish();
}
