//! Deaths of single parts of a build, which the others survive: its machine, the guest's agent in
//! it, and the host's agent. `tests/api` has the death of the control plane alone (`leader.rs`).

use super::{capsule_of, delete, is_quiet, kept_files, over_app, run, workshop};
use crate::moves::Second;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::time::{Duration, Instant};
use tests::{Platform, eventually, processes_of};

/// Kills the machine of the only builder.
fn kill_machine(platform: &Platform) {
    let folders = platform.leftovers().folders;
    assert_eq!(folders.len(), 1, "{folders:?}");
    let machine = processes_of(&folders[0]);
    assert!(!machine.is_empty(), "{} has no machine", folders[0]);
    for pid in machine {
        // The first death may have ended the others.
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    }
}

#[tokio::test]
async fn death_of_the_machine_or_of_the_guests_agent_ends_the_build_with_its_step() {
    let workshop = workshop().await;
    let (client, platform) = (&workshop.client, &workshop.platform);
    let kept = run("echo kept > /kept");
    let first = client.build(&over_app(&workshop, "web", &json!([kept]))).await;
    let files = kept_files(platform);
    // In the second round, root in the guest ends every process but the first one.
    for (own_end, script) in
        [(false, "echo asleep; sleep 1000"), (true, "echo asleep; sleep 1; kill -9 -1; sleep 1000")]
    {
        let steps = json!([kept, run(script)]);
        let id = client.begin(&over_app(&workshop, "web", &steps)).await;
        client.logged(&id, "[stdout]: asleep").await;
        if !own_end {
            kill_machine(platform);
        }
        let since = Instant::now();
        let ended = client.ended(&id).await;
        assert!(since.elapsed() < Duration::from_secs(60), "{:?}", since.elapsed());
        ended.failed("2", &format!("failed to run command '{script}': command failed: "));
        assert_eq!(ended.cached(), [1], "{:?}", ended.lines);
        assert!(ended.body["error"]["output"].to_string().contains("asleep"), "{}", ended.body);
        is_quiet(platform, 0).await;
        assert_eq!(kept_files(platform), files, "after `{script}`");
    }
    let steps = json!([kept, run("cat /kept")]);
    let fixed = client.build(&over_app(&workshop, "web:v2", &steps)).await;
    assert_eq!((fixed.cached(), fixed.count("[stdout]: kept")), (vec![1], 1), "{:?}", fixed.lines);
    // The version before is what it was.
    let found = client.get("/v1/templates/web").await.expect(200);
    assert_eq!(found["version"], first.id.as_str(), "{found}");
    let id = capsule_of(client, "web").await;
    assert_eq!(client.out(&id, "cat /kept").await, "kept\n");
    delete(client, &id).await;
    workshop.finish();
}

#[tokio::test]
async fn death_of_the_hosts_agent_ends_its_build_once_it_is_back() {
    let workshop = workshop().await;
    let (client, platform) = (&workshop.client, &workshop.platform);
    let invited = client.post("/v1/hosts", &json!({})).await.expect(201);
    let token = invited["registration_token"].as_str().unwrap();
    let settings = tempfile::tempdir().unwrap();
    let registries = workshop.registry.settings(settings.path());
    let vars = [("WRENN_REGISTRIES", registries.as_str())];
    let mut second = Second::start_with(platform, token, &vars);
    let hosts = client.get("/v1/hosts").await.expect(200);
    let local = hosts["items"].as_array().unwrap().iter().find(|h| h["name"] == "local").unwrap();
    let local = local["id"].as_str().unwrap();
    client.post(&format!("/v1/hosts/{local}/drain"), &json!({})).await.expect(200);
    let kept = run("echo kept > /kept");
    let steps = json!([kept, run("echo asleep; sleep 1000")]);
    let id = client.begin(&over_app(&workshop, "web", &steps)).await;
    client.logged(&id, "[stdout]: asleep").await;
    assert_eq!(second.leftovers().folders.len(), 1, "the builder is on the second host");
    second.kill();
    // The machine runs on, and the build with it, until the agent is back.
    assert_eq!(client.see_build(&id).await["status"], "building");
    assert_eq!(second.leftovers().namespaces.len(), 1);
    second.again(platform);
    let ended = client.ended(&id).await;
    assert_eq!(ended.body["status"], "error", "{}", ended.body);
    let message = ended.body["error"]["message"].as_str().unwrap();
    assert!(message.contains("restarted"), "{message}");
    eventually("nothing of the build is left on its host", async || {
        let left = second.leftovers();
        let counts = [left.namespaces.len(), left.links.len(), left.folders.len()];
        (counts == [0; 3] && left.cgroups.is_empty()).then_some(())
    })
    .await;
    let steps = json!([kept, run("cat /kept")]);
    let built = client.build(&over_app(&workshop, "web", &steps)).await;
    assert_eq!(built.count("[stdout]: kept"), 1, "{:?}", built.lines);
    let capsule = client.create(&json!({ "template": "web" })).await;
    assert_eq!(client.out(&capsule, "cat /kept").await, "kept\n");
    delete(client, &capsule).await;
    is_quiet(platform, 0).await;
    client.delete("/v1/templates/web").await.expect(204);
    let host = format!("/v1/hosts/{}", invited["host"]["id"].as_str().unwrap());
    client.delete(&host).await.expect(204);
    drop(second);
    workshop.finish();
}
