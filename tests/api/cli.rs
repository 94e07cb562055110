//! The command line against a platform on the same machine. The only variable set is the path of
//! the platform's client file.

mod accounts;
mod code;
mod copy;
mod exec;
mod registries;
mod sources;
mod templates;

use crate::capsule;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};
use tests::{Driver, Platform};

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Runs a command with this standard input.
fn with_stdin(platform: &Platform, args: &[&str], input: &[u8]) -> Output {
    let mut command = platform.wrenn();
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap();
    out
}

#[tokio::test]
async fn capsule_lifecycle_works_by_commands() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let file = std::fs::metadata(platform.dir().join("../client.json")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    let made = platform.run(&["capsule", "create", "--memory", "128", "--env", "A=b"]);
    let id = text(&made.stdout).trim().to_owned();
    assert!(id.starts_with("cl-"), "{made:?}");
    let list = platform.run(&["capsule", "list"]);
    let lines: Vec<&str> = text(&list.stdout).lines().collect();
    assert!(lines[0].contains("STATUS") && lines[1].contains(&id) && lines[1].contains("running"));
    let list = platform.run(&["--json", "capsule", "list"]);
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(list[0]["id"], id.as_str());
    let get = platform.run(&["capsule", "get", &id]);
    assert!(text(&get.stdout).contains("128 MiB"), "{get:?}");
    let ps = platform.run(&["capsule", "ps", &id, "--json"]);
    assert_eq!(text(&ps.stdout).trim(), "[]");
    assert!(platform.run(&["capsule", "logs", &id]).status.success());
    for list in ["template", "host"] {
        let shown = platform.run(&[list, "list", "--json"]);
        assert_eq!(
            serde_json::from_slice::<Value>(&shown.stdout).unwrap().as_array().unwrap().len(),
            1
        );
    }
    let killed = platform.run(&["capsule", "kill", &id]);
    assert!(killed.status.success(), "{killed:?}");
    assert!(text(&platform.run(&["capsule", "list"]).stdout).lines().count() == 1);
    platform.finish();
}

#[tokio::test]
async fn exec_forwards_output_input_and_exit_code() {
    let (platform, _, id) = capsule().await;
    let run = |args: &[&str]| {
        let mut all = vec!["capsule", "exec", "--no-stdin", &id, "--"];
        all.extend(args);
        platform.run(&all)
    };
    let out = run(&["sh", "-c", "printf 'a\\377'; echo e >&2; exit 42"]);
    assert_eq!((out.stdout.as_slice(), out.stderr.as_slice()), (&b"a\xff"[..], &b"e\n"[..]));
    assert_eq!(out.status.code(), Some(42));
    assert_eq!(run(&["sh", "-c", "kill -TERM $$"]).status.code(), Some(143));
    let much: Vec<u8> = (0..3_000_000_u32).map(|i| u8::try_from(i % 253).unwrap()).collect();
    let out = with_stdin(&platform, &["capsule", "exec", &id, "cat"], &much);
    assert!(out.stdout == much, "{} of {} bytes came back", out.stdout.len(), much.len());
    let out = platform.run(&["capsule", "exec", &id, "-n", "--json", "--", "echo", "hi"]);
    let json: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["stdout"], "hi\n");
    let out = run(&["/nosuch"]);
    assert_eq!(out.status.code(), Some(127));
    assert!(text(&out.stderr).starts_with("error: ") && text(&out.stderr).contains("/nosuch"));
    let late = ["capsule", "exec", &id, "-n", "--timeout", "1", "--", "sleep", "50"];
    let out = platform.run(&late);
    assert_eq!(out.status.code(), Some(124), "{out:?}");
    platform.finish();
}

#[tokio::test]
async fn closed_output_pipe_ends_command() {
    let (platform, client, id) = capsule().await;
    let script = format!(
        "{} capsule exec -n {id} -- yes | head -n 1; echo ${{PIPESTATUS[0]}}",
        tests::binary("wrenn").display()
    );
    let mut command = std::process::Command::new("bash");
    let file = platform.dir().join("../client.json");
    command.args(["-c", &script]).env("WRENN_CLIENT_FILE", file).stdin(Stdio::null());
    let out = command.output().unwrap();
    assert_eq!((text(&out.stdout), text(&out.stderr)), ("y\n141\n", ""));
    tests::eventually("the command has ended", || async {
        let list = client.get(&format!("/v1/capsules/{id}/processes")).await.expect(200);
        (list["processes"] == serde_json::json!([])).then_some(())
    })
    .await;
    platform.finish();
}

#[tokio::test]
async fn interrupt_of_exec_reaches_command() {
    let (platform, _, id) = capsule().await;
    let mut command = platform.wrenn();
    let script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    command.args(["capsule", "exec", "-n", &id, "--", "bash", "-c", script]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    // The script reports that its trap is set.
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    tests::signal(i32::try_from(child.id()).unwrap(), rustix::process::Signal::INT);
    line.clear();
    out.read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), child.wait().unwrap().code()), ("bye\n", Some(7)));
    platform.finish();
}

#[tokio::test]
async fn files_are_copied_both_ways_and_through_streams() {
    let (platform, _, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (dir.path().join("here"), dir.path().join("there"));
    std::fs::create_dir(&there).unwrap();
    let contents = vec![9_u8; 2_000_000];
    std::fs::write(&here, &contents).unwrap();
    let cp = |from: &str, to: &str| platform.run(&["capsule", "cp", from, to]);
    let inside = |path: &std::path::Path| format!("{id}:{}", path.display());
    // A copy into a directory keeps its name.
    let out = cp(here.to_str().unwrap(), &inside(&there));
    assert!(out.status.success(), "{out:?}");
    assert!(std::fs::read(there.join("here")).unwrap() == contents);
    let back = dir.path().join("back");
    assert!(cp(&inside(&there.join("here")), back.to_str().unwrap()).status.success());
    assert!(std::fs::read(&back).unwrap() == contents);
    let out = cp(&inside(&there.join("here")), "-");
    assert!(out.stdout == contents);
    let to = inside(&there.join("piped"));
    let out = with_stdin(&platform, &["capsule", "cp", "-", &to, "--json"], b"piped");
    assert_eq!(serde_json::from_slice::<Value>(&out.stdout).unwrap()["bytes"], 5);
    assert_eq!(std::fs::read(there.join("piped")).unwrap(), b"piped");
    let missing = cp(&inside(&dir.path().join("nosuch")), back.to_str().unwrap());
    assert!(!missing.status.success() && text(&missing.stderr).contains("file not found"));
    assert!(std::fs::read(&back).unwrap() == contents, "a copy that failed changed its target");
    let entries = std::fs::read_dir(dir.path()).unwrap();
    assert_eq!(entries.count(), 3, "a copy that failed left something behind");
    platform.finish();
}

#[tokio::test]
async fn errors_are_one_line_and_name_the_fix() {
    let mut platform = Platform::start(Driver::Fake, &[]).await;
    let out = platform.run(&["capsule", "get", "cl-x"]);
    assert!(text(&out.stderr).contains("`cl-x` is not a capsule id"), "{out:?}");
    let out = platform.run(&["capsule", "get", "cl-0000000000000000000000000"]);
    assert_eq!(text(&out.stderr), "error: capsule not found (not_found)\n");
    assert_eq!(out.status.code(), Some(1));
    let second = platform.run(&["up", "--listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0"]);
    assert!(text(&second.stderr).contains("a platform is already running in"), "{second:?}");
    let second = platform.run(&["agent", "--agent-listen", "127.0.0.1:0"]);
    assert!(text(&second.stderr).contains("a host agent is already running in"), "{second:?}");
    let taken = platform.url().strip_prefix("http://").unwrap();
    let other = tempfile::tempdir().unwrap();
    let mut command = platform.wrenn();
    let nobody = command.arg("agent").env("WRENN_DIR", other.path()).output().unwrap();
    assert!(text(&nobody.stderr).contains("is not enrolled"), "{nobody:?}");
    let mut command = platform.wrenn();
    command.args(["up", "--listen", taken]).env("WRENN_DIR", other.path()).stdin(Stdio::null());
    let out = command.output().unwrap();
    assert!(
        text(&out.stderr).contains("choose another address with WRENN_CP_LISTEN_ADDR"),
        "{out:?}"
    );
    platform.stop();
    let out = platform.run(&["capsule", "list"]);
    assert!(text(&out.stderr).contains("start it with `wrenn up`"), "{out:?}");
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn port_gets_url_and_is_published_and_forwarded() {
    let (platform, client, id) = capsule().await;
    let guest = tests::Upstream::echo();
    let port = guest.port.to_string();
    let run = |args: &[&str]| {
        let out = platform.run(&[&["capsule"], args].concat());
        (out.status.success(), text(&out.stdout).trim().to_owned(), text(&out.stderr).to_owned())
    };
    let at = platform.url().rsplit(':').next().unwrap();
    let url = format!("http://{port}-{id}.localhost:{at}");
    assert_eq!(run(&["url", &id, &port]), (true, url.clone(), String::new()));
    let (_, link, _) = run(&["url", &id, &port, "--expires", "90s", "--json"]);
    let link: Value = serde_json::from_str(&link).unwrap();
    assert!(link["url"].as_str().unwrap().starts_with(&format!("{url}/?wrenn-preview=")), "{link}");
    // Both commands end old credentials, but only the first has a new one to print.
    let (_, token, _) = run(&["rotate-token", &id]);
    let (_, shown, _) = run(&["url", &id, &port, "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert!(token.len() == 64 && shown["traffic_token"] == token, "{token} {shown}");
    assert_eq!(run(&["rotate-links", &id]), (true, String::new(), String::new()));
    for (args, told) in [
        (["url", &id, "0"].as_slice(), "0 is not in 1..=65535"),
        (&["url", &id, "x"], "invalid digit"),
        (&["url", &id, "80", "--expires", "soon"], "invalid value 'soon' for '--expires"),
        (&["url", &id, "80", "--expires", "31days"], "expires_in must be"),
        (&["publish", &id, "49983"], "port of envd"),
        (&["url", "cl-x", "80"], "not a capsule id"),
        (&["forward", &id, "80", at], "give another local port"),
    ] {
        let (done, _, error) = run(args);
        assert!(!done && error.contains(told), "{args:?}: {error}");
    }
    let nobody = platform.client_with("");
    let status = async || {
        let ask = nobody.to_port(reqwest::Method::GET, &id, guest.port, "/");
        ask.send().await.unwrap().status().as_u16()
    };
    assert_eq!(status().await, 401);
    assert_eq!(run(&["publish", &id, &port]), (true, url.clone(), String::new()));
    assert_eq!(status().await, 200);
    let shown = run(&["get", &id]).1;
    let mut ports = shown.lines().filter_map(|line| line.trim().strip_prefix("public port"));
    assert_eq!(ports.next().map(str::trim), Some(port.as_str()), "{shown}");
    assert_eq!(run(&["unpublish", &id, &port]), (true, url, String::new()));
    assert_eq!(status().await, 401);

    let mut command = platform.wrenn();
    command.args(["capsule", "forward", &id, &port, "0"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut forward = command.spawn().unwrap();
    let mut local = String::new();
    BufReader::new(forward.stdout.take().unwrap()).read_line(&mut local).unwrap();
    let local = format!("http://{}", local.trim());
    for _ in 0..3 {
        let mut wire = tests::Wire::to(&local);
        wire.send("GET /x HTTP/1.1\r\nHost: anything\r\n\r\n");
        assert!(wire.head().unwrap().starts_with("HTTP/1.1 200"));
        assert!(String::from_utf8(wire.take(15)).unwrap().starts_with("GET /x HTTP/1.1"));
    }
    // The forwarder outlives the capsule, and reports why nothing passes any more.
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    assert_eq!(tests::Wire::to(&local).rest(), b"");
    tests::signal(i32::try_from(forward.id()).unwrap(), rustix::process::Signal::TERM);
    let ended = forward.wait_with_output().unwrap();
    assert!(
        ended.status.success() && text(&ended.stderr).contains("capsule not found"),
        "{ended:?}"
    );
    platform.finish();
}

#[tokio::test]
async fn pause_resume_fork_and_snapshot_work_by_commands() {
    let (platform, client, id) = capsule().await;
    let done = |args: &[&str]| -> String {
        let out = platform.run(args);
        assert!(out.status.success(), "{args:?}: {out:?}");
        text(&out.stdout).trim().to_owned()
    };
    assert_eq!(done(&["capsule", "pause", &id]), format!("{id} is paused"));
    let exec = platform.run(&["capsule", "exec", &id, "true"]);
    assert_eq!(exec.status.code(), Some(125));
    assert!(text(&exec.stderr).contains("capsule_paused"), "{exec:?}");
    assert_eq!(done(&["capsule", "resume", &id, "--lifetime", "1h"]), format!("{id} is running"));
    assert!(done(&["capsule", "get", &id]).contains("(pause)"));
    done(&["capsule", "timeout", &id, "2h", "--on-timeout", "kill", "--idle-timeout", "30m"]);
    let shown: Value = serde_json::from_str(&done(&["--json", "capsule", "get", &id])).unwrap();
    assert_eq!((&shown["on_timeout"], &shown["idle_timeout"]), (&"kill".into(), &1800.into()));
    let forks = done(&["capsule", "fork", &id, "-n", "2"]);
    assert_eq!(forks.lines().filter(|line| line.starts_with("cl-")).count(), 2, "{forks}");
    assert_eq!(done(&["capsule", "snapshot", &id, "--name", "mine"]), "mine");
    assert!(done(&["snapshot", "list"]).contains("mine"));
    let child = done(&["capsule", "create", "mine", "--idle", "1h", "--auto-resume"]);
    assert!(done(&["capsule", "get", &child]).contains("started from"));
    client.pause(&child).await;
    assert_eq!(done(&["capsule", "exec", &child, "--", "echo", "woke"]), "woke");
    done(&["snapshot", "delete", "mine"]);
    assert_eq!(done(&["--json", "snapshot", "list"]), "[]");
    let wrong = platform.run(&["snapshot", "delete", "../capsules"]);
    assert!(!wrong.status.success() && text(&wrong.stderr).contains("snapshot"), "{wrong:?}");
    platform.finish();
}

#[tokio::test]
async fn json_errors_carry_code_message_and_request_id() {
    let (platform, _, id) = capsule().await;
    let failure = |out: std::process::Output| -> Value {
        assert!(!out.status.success() && out.stdout.is_empty(), "{out:?}");
        let told: Value = serde_json::from_slice(&out.stderr).unwrap();
        told["error"].clone()
    };
    let unknown = format!("cl-{}", "0".repeat(25));
    let refused = failure(platform.run(&["--json", "capsule", "get", &unknown]));
    assert_eq!(refused["code"], "not_found");
    assert_eq!(refused["message"], "capsule not found");
    assert_eq!(refused["request_id"].as_str().unwrap().len(), 32);
    // The exit codes are the same as without `--json`.
    let out = platform.run(&["capsule", "exec", &unknown, "-n", "--json", "--", "true"]);
    assert_eq!(out.status.code(), Some(125));
    assert_eq!(failure(out)["code"], "not_found");
    // The failure of this command comes over a WebSocket.
    let out = platform.run(&["--json", "capsule", "exec", &unknown, "-t", "--", "true"]);
    assert_eq!(failure(out)["code"], "not_found");
    // Commands that never reach the platform fail with codes of their own.
    let nowhere = "http://127.0.0.1:1";
    for (args, code, exit) in [
        (&["--json", "capsule", "get", "cl-x"][..], "usage", 1),
        (&["--json", "capsule", "cp", "a", "b"], "usage", 1),
        (&["--json", "capsule", "nonsense"], "usage", 2),
        (&["capsule", "get", "--json"], "usage", 2),
        (&["--json", "--url", nowhere, "capsule", "list"], "unreachable", 1),
        (&["--json", "--url", nowhere, "capsule", "exec", &id, "-t", "true"], "unreachable", 125),
        (&["--json", "capsule", "cp", "/no/such/file", &format!("{id}:/x")], "failed", 1),
    ] {
        let out = platform.run(args);
        assert_eq!(out.status.code(), Some(exit), "{args:?}: {out:?}");
        let error = failure(out);
        assert_eq!(error["code"], code, "{args:?}: {error}");
        assert!(!error["message"].as_str().unwrap().is_empty() && error["request_id"].is_null());
    }
    // Another server answers in the platform's place.
    let other = tests::Upstream::echo();
    let other = format!("http://127.0.0.1:{}", other.port);
    let error = failure(platform.run(&["--json", "--url", &other, "capsule", "get", &id]));
    assert_eq!(error["code"], "bad_answer", "{error}");
    // A request for help is no failure, and a program's own `--json` is not ours.
    let help = platform.run(&["--json", "capsule", "--help"]);
    assert!(help.status.success() && text(&help.stdout).contains("Usage"), "{help:?}");
    let human = platform.run(&["capsule", "nonsense", "--", "--json"]);
    assert!(text(&human.stderr).starts_with("error: "), "{human:?}");
    platform.finish();
}
