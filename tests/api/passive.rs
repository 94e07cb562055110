//! Passive reads resume no paused capsule and do not count as activity. Processes of the guest, and
//! signals to them.

use crate::capsule;
use crate::proxy::psql;
use reqwest::Method;
use serde_json::{Value, json};
use std::process::Output;
use std::time::Duration;
use tests::{Client, Driver, Platform, Upstream, eventually};

/// Starts a platform with a capsule that is paused after 2 s of idleness, and wakes for requests.
async fn sleeper() -> (Platform, Client, String) {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({ "auto_resume": true, "idle_timeout": 2 })).await;
    (platform, client, id)
}

fn told(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[tokio::test]
async fn ps_neither_keeps_an_idle_capsule_awake_nor_wakes_a_paused_one() {
    let (platform, client, id) = sleeper().await;
    let ps = || platform.run(&["capsule", "ps", &id]);
    assert!(ps().status.success());
    // The loop lists without a rest. Each list that counted as activity would delay the pause.
    eventually("the capsule is paused", || async {
        let _ = ps();
        (client.status(&id).await == "paused").then_some(())
    })
    .await;
    let out = ps();
    assert!(!out.status.success() && told(&out).contains("capsule_paused"), "{out:?}");
    assert_eq!(client.status(&id).await, "paused");
    platform.finish();
}

/// Sends every read that may be passive. Returns the answers' statuses and codes.
async fn read_all(client: &Client, id: &str, passive: &str) -> Vec<(String, u16, Value)> {
    let get = |what: &str| client.request(Method::GET, &format!("/v1/capsules/{id}/{what}"));
    let post = |what: &str| {
        let request = client.request(Method::POST, &format!("/v1/capsules/{id}/files/{what}"));
        let path = if what == "list" { "/usr" } else { "/etc/passwd" };
        request.json(&json!({ "path": path }))
    };
    let requests = [
        ("processes", get("processes")),
        ("all processes", get("processes").query(&[("all", "true")])),
        ("ports", get("ports")),
        ("terminals", get("terminals")),
        ("file", get("files").query(&[("path", "/etc/passwd")])),
        ("list", post("list")),
        ("stat", post("stat")),
        ("read", post("read")),
    ];
    let mut answers = Vec::new();
    for (name, request) in requests {
        let answer = client.send(request.query(&[("passive", passive)])).await;
        answers.push((
            name.to_owned(),
            answer.status.as_u16(),
            answer.body["error"]["code"].clone(),
        ));
    }
    answers
}

#[tokio::test]
async fn passive_reads_neither_keep_an_idle_capsule_awake_nor_wake_a_paused_one() {
    let (platform, client, id) = sleeper().await;
    for (name, status, _) in read_all(&client, &id, "true").await {
        assert_eq!(status, 200, "{name}");
    }
    eventually("the capsule is paused", || async {
        read_all(&client, &id, "true").await;
        (client.status(&id).await == "paused").then_some(())
    })
    .await;
    for (name, status, code) in read_all(&client, &id, "true").await {
        assert_eq!((status, code), (409, json!("capsule_paused")), "{name}");
    }
    assert_eq!(client.status(&id).await, "paused");
    // A read that is not passive wakes the capsule, as before.
    for (name, status, _) in read_all(&client, &id, "false").await {
        assert_eq!(status, 200, "{name}");
    }
    platform.finish();
}

#[tokio::test]
async fn active_reads_keep_a_capsule_awake() {
    let (platform, client, id) = sleeper().await;
    let list = format!("/v1/capsules/{id}/processes");
    for _ in 0..8 {
        client.get(&list).await.expect(200);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(client.status(&id).await, "running");
    }
    let stat = format!("/v1/capsules/{id}/files/stat?passive=yes");
    let wrong = client.post(&stat, &json!({ "path": "/" })).await;
    wrong.refuses(400, "invalid_request", "query");
    let list = format!("/v1/capsules/{id}/processes?pasive=true");
    client.get(&list).await.refuses(400, "invalid_request", "pasive");
    platform.finish();
}

#[tokio::test]
async fn mark_of_passive_reads_reaches_no_guest_and_helps_no_client() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::echo();
    let marked = |request: reqwest::RequestBuilder| request.header("x-wrenn-passive", "1");
    let seen = client.send(marked(client.to_port(Method::GET, &id, guest.port, "/"))).await;
    let agent = platform.agent_client().below(&format!("/proxy/{id}/{}", guest.port));
    let by_agent = agent.send(marked(agent.request(Method::GET, "/x"))).await;
    for answer in [seen, by_agent] {
        let head = answer.expect(200).as_str().unwrap().to_lowercase();
        assert!(head.starts_with("get /") && !head.contains("passive"), "{head}");
    }
    // The mark of a client keeps no capsule from counting its request.
    client.change(&id, "timeout", &json!({ "idle_timeout": 2 })).await;
    for _ in 0..8 {
        let envd = client.to_port(Method::GET, &id, 49983, "/envs");
        client.send(marked(envd)).await.expect(200);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(client.status(&id).await, "running");
    }
    for path in ["/processes", "/terminals"] {
        let closed = client.to_port(Method::GET, &id, 49983, path);
        assert_eq!(client.send(closed).await.status, 404, "{path}");
    }
    platform.finish();
}

#[tokio::test]
async fn all_processes_are_listed_below_their_parents_with_user_and_usage() {
    let (platform, client, id) = capsule().await;
    // The child leaves its parent's session, so that envd knows nothing of it.
    let script = "setsid sleep 54321 & exec sleep 12345";
    let body = json!({ "cmd": "sh", "args": ["-c", script], "background": true, "tag": "top" });
    let started = client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(202);
    let list = format!("/v1/capsules/{id}/processes?all=true&passive=true");
    let of = |list: &Value, command: &str| {
        let mut rows = list["processes"].as_array().unwrap().iter();
        rows.position(|row| row["command"] == command)
    };
    let (listed, parent, child) = eventually("both run", || async {
        let listed = client.get(&list).await.expect(200);
        let (parent, child) = (of(&listed, "sleep 12345")?, of(&listed, "sleep 54321")?);
        Some((listed, parent, child))
    })
    .await;
    let rows = &listed["processes"];
    assert!(parent < child, "a parent stands before its child");
    let (parent, child) = (&rows[parent], &rows[child]);
    assert_eq!((&parent["pid"], &parent["tag"]), (&started["pid"], &json!("top")));
    assert_eq!(child["ppid"], parent["pid"]);
    let depth = |row: &Value| row["depth"].as_u64().unwrap();
    assert_eq!(depth(child), depth(parent) + 1);
    assert_eq!(child["user"], parent["user"]);
    assert!(child["user"].is_string() && child["state"].as_str().unwrap().len() == 1, "{child}");
    assert!(child["memory_bytes"].as_u64().unwrap() > 0 && child["cpu_ms"].is_u64(), "{child}");
    assert!(child["started_at"].is_string() && listed["at"].is_string(), "{child}");
    assert_eq!(listed["truncated"], false);
    let tree = platform.run(&["capsule", "ps", &id, "--all", "--tree"]);
    let tree = String::from_utf8(tree.stdout).unwrap();
    let column = |text: &str| tree.lines().find_map(|line| line.find(text)).unwrap();
    assert_eq!(column("sleep 54321"), column("sleep 12345") + 2, "{tree}");
    let json = platform.run(&["--json", "capsule", "ps", &id, "--all"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(of(&json, "sleep 54321").is_some(), "{json}");
    for pid in [&child["pid"], &parent["pid"]] {
        client.delete(&format!("/v1/capsules/{id}/processes/{pid}")).await.expect(204);
    }
    platform.finish();
}

#[tokio::test]
async fn signals_reach_processes_that_no_client_started() {
    let (platform, client, id) = capsule().await;
    let script = "trap 'echo usr1' USR1; trap 'echo hup' HUP; \
        setsid sh -c 'echo $$; exec sleep 54322' & while :; do wait; sleep 0.05; done";
    let mut socket = client.socket(&format!("/v1/capsules/{id}/exec/stream")).await;
    let start = json!({ "type": "start", "cmd": "bash", "args": ["-c", script], "tag": "traps" });
    socket.send(start).await;
    socket.next().await.unwrap();
    let child = socket.until("stdout", "\n").await.trim().to_owned();
    let processes = format!("/v1/capsules/{id}/processes");
    let signal = async |selector: &str, name: &str| {
        client.delete(&format!("{processes}/{selector}?signal={name}")).await
    };
    signal("traps", "USR1").await.expect(204);
    socket.until("stdout", "usr1\n").await;
    socket.send(json!({ "type": "signal", "signal": "SIGHUP" })).await;
    socket.until("stdout", "hup\n").await;
    let state = async || {
        let list = client.get(&format!("{processes}?all=true")).await.expect(200);
        let mut rows = list["processes"].as_array().unwrap().clone().into_iter();
        let row =
            rows.find(|row| row["pid"].as_u64().is_some_and(|pid| pid.to_string() == child))?;
        row["state"].as_str().map(str::to_owned)
    };
    signal(&child, "STOP").await.expect(204);
    eventually("it stands still", async || (state().await? == "T").then_some(())).await;
    signal(&child, "SIGCONT").await.expect(204);
    eventually("it goes on", async || (state().await? == "S").then_some(())).await;
    signal(&child, "TERM").await.expect(204);
    eventually("it has ended", async || state().await.is_none().then_some(())).await;
    for name in ["TERM", "HUP"] {
        signal(&child, name).await.refuses(404, "not_found", "process");
        signal("nosuch", name).await.refuses(404, "not_found", "process");
    }
    signal("traps", "KILL").await.expect(204);
    platform.finish();
}

#[tokio::test]
async fn listening_ports_show_the_pid_of_their_program() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::echo();
    let listed = client.get(&format!("/v1/capsules/{id}/ports?passive=true")).await.expect(200);
    let shown = listed.as_array().unwrap().iter().find(|port| port["port"] == guest.port);
    assert_eq!(shown.unwrap()["pid"], std::process::id(), "{listed}");
    platform.finish();
}

#[tokio::test]
async fn use_of_a_capsule_reaches_its_row_and_looks_at_it_do_not() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let seen = client.create(&json!({})).await;
    let used = client.create(&json!({})).await;
    psql(&platform, "UPDATE capsules SET last_active_at = now() - interval '1 hour'");
    let last = async |id: &str| {
        let shown = client.get(&format!("/v1/capsules/{id}")).await.expect(200);
        shown["last_active_at"].as_str().unwrap().to_owned()
    };
    let (seen_before, used_before) = (last(&seen).await, last(&used).await);
    client.get(&format!("/v1/capsules/{seen}/processes?passive=true")).await.expect(200);
    client.out(&used, "true").await;
    // Both rows learn of their capsules by the same statement.
    eventually("the row has the command", || async {
        (last(&used).await != used_before).then_some(())
    })
    .await;
    assert_eq!(last(&seen).await, seen_before);
    let recent =
        "SELECT count(*) FROM capsules WHERE last_active_at > now() - interval '5 minutes'";
    assert_eq!(psql(&platform, recent), "1");
    platform.finish();
}
