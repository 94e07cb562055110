//! `wrenn template build` from templates and capsules, with start commands, and its refusals.

use super::templates::{ok, shown, told};
use super::text;
use serde_json::{Value, json};
use tests::{Client, Driver, Platform, eventually};

async fn platform() -> (Platform, Client) {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    (platform, client)
}

/// Builds a template by these words after `wrenn template build`. Returns all that it shows.
fn build(platform: &Platform, words: &[&str]) -> String {
    shown(platform, &[&["template", "build"][..], words].concat())
}

/// Checks the refusal of a command: its exit code, and a part of its message.
fn refused(platform: &Platform, words: &[&str], code: i32, holding: &str) {
    let out = platform.run(words);
    assert_eq!(out.status.code(), Some(code), "{words:?}: {}", told(&out));
    let message = text(&out.stderr);
    assert!(message.contains(holding), "`{holding}` not in the answer to {words:?}: {message}");
    assert!(message.lines().any(|line| line.starts_with("error: ")), "{words:?}: {message}");
}

#[tokio::test]
async fn template_from_a_template_or_a_capsule_is_built_by_command() {
    let (platform, client) = platform().await;
    build(&platform, &["web:v1", "--image", "debian", "--vcpus", "2", "--memory", "300"]);
    let first = client.get("/v1/builds?template=web").await.expect(200)["items"][0].clone();
    let first = first["id"].as_str().unwrap();
    for base in ["web:v1", &format!("web@{first}"), "base"] {
        let text = build(&platform, &["child", "--from", base, "--env", "A=b"]);
        assert!(text.contains("wrenn capsule create child"), "{base}: {text}");
    }
    // The provenance names the version that a tag stood for at the request.
    build(&platform, &["child", "--from", "web:v1"]);
    let child = ok(&platform, &["template", "show", "child"]);
    assert!(child.contains(&format!("web:v1@{first}")), "{child}");

    let id = ok(&platform, &["capsule", "create", "web:v1"]);
    build(&platform, &["tools", "--from-capsule", &id]);
    let text = build(&platform, &["warm:v1", "--from-capsule", &id, "--with-memory"]);
    assert!(text.contains("wrenn capsule create warm:v1"), "{text}");
    let made = ok(&platform, &["--json", "capsule", "create", "warm:v1"]);
    let made: Value = serde_json::from_str(&made).unwrap();
    assert_eq!((&made["vcpus"], &made["memory_mib"]), (&json!(2), &json!(300)), "{made}");
    assert_eq!(client.status(&id).await, "running", "its source runs on");

    // Every team may use a template that was built as a public one.
    build(&platform, &["open", "--image", "debian", "--public"]);
    assert_eq!(client.get("/v1/templates/open").await.expect(200)["shared"], true);
    assert_eq!(client.get("/v1/templates/web").await.expect(200)["shared"], false);

    let refuses = |words: &[&str], code: i32, holding: &str| {
        refused(&platform, &[&["template", "build"][..], words].concat(), code, holding);
    };
    refuses(&["x", "--from", "nowhere"], 1, "nowhere");
    refuses(&["x", "--from", "web:none"], 1, "none");
    refuses(&["x", "--from", "warm:v1"], 1, "no build can begin from it");
    refuses(&["x", "--from-capsule", "cl-none"], 1, "a capsule is named by its id");
    let mut gone = id.clone();
    gone.replace_range(id.len() - 3.., "000");
    refuses(&["x", "--from-capsule", &gone], 1, "not found");
    refuses(&["x", "--from-capsule", &id, "--with-memory", "--memory", "512"], 1, "memory_mib");
    let start = ["x", "--from-capsule", &id, "--with-memory", "--start", "true"];
    refuses(&start, 1, "start must be absent");
    refuses(&["base", "--image", "debian"], 1, "base");
    let out = platform.run(&["template", "list", "--json"]);
    let listed: Value = serde_json::from_slice(&out.stdout).unwrap();
    let mut items = listed.as_array().unwrap().iter();
    assert!(items.all(|item| item["name"] != "x"), "a refused build makes no template: {listed}");
    platform.finish();
}

#[tokio::test]
async fn unreadable_command_line_of_a_build_exits_with_2_and_names_the_option() {
    let (platform, client) = platform().await;
    for (words, holding) in [
        (&["web", "--with-memory"][..], "--from-capsule"),
        (&["web", "--image", "a", "--from", "b"], "--from"),
        (&["web", "dir", "--image", "a"], "--image"),
        (&["web", "--image", "a", "--start", "x", "--start-from-image"], "--start-from-image"),
        (&["web", "--image", "a", "--pull", "never"], "--pull"),
        (&["web", "--image", "a", "--ready-within", "soon"], "--ready-within"),
        (&["web", "--image", "a", "--env", "WRENN_NOT_SET_ANYWHERE"], "WRENN_NOT_SET_ANYWHERE"),
        (&[], "NAME"),
    ] {
        let words = [&["template", "build"][..], words].concat();
        let out = platform.run(&words);
        assert_eq!(out.status.code(), Some(2), "{words:?}: {}", told(&out));
        assert!(text(&out.stderr).contains(holding), "{words:?}: {}", text(&out.stderr));
    }
    // These are read, and refused before anything is uploaded.
    let none = tempfile::tempdir().unwrap();
    let empty = none.path().to_str().unwrap();
    let build = ["template", "build"];
    refused(&platform, &[&build[..], &["a b", "--image", "a"]].concat(), 1, "Invalid name");
    refused(&platform, &[&build[..], &["web@x", "--image", "a"]].concat(), 1, "`x` is no id");
    let tag = ["web", "--image", "a", "--tag", "A"];
    refused(&platform, &[&build[..], &tag].concat(), 1, "Invalid tag: `A`");
    refused(&platform, &[&build[..], &["web", empty]].concat(), 1, "name a Dockerfile with --file");
    let file = ["web", "--image", "oci-archive:/nowhere/image.tar"];
    refused(&platform, &[&build[..], &file].concat(), 1, "/nowhere/image.tar");
    // Programs read the same refusal as JSON.
    let out = platform.run(&["--json", "template", "build", "web", "--image", "missing/x:1"]);
    assert_eq!(out.status.code(), Some(1), "{}", told(&out));
    let error: Value = serde_json::from_slice(&out.stderr).unwrap();
    assert_eq!(error["error"]["code"], "build_failed", "{error}");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("at its base: image 'missing/x:1' not found"), "{message}");
    let begun = client.get("/v1/builds").await.expect(200);
    assert_eq!(begun["items"].as_array().unwrap().len(), 1, "{begun}");
    platform.finish();
}

#[tokio::test]
async fn start_and_ready_commands_are_given_on_the_command_line() {
    let (platform, client) = platform().await;
    let ready = ["--ready", "true", "--ready-within", "20s"];
    let start = ["--start", "echo begun-$COLOUR", "--env", "COLOUR=red"];
    build(&platform, &[&["web", "--image", "debian"][..], &start, &ready].concat());
    let log = ok(&platform, &["template", "logs", "web"]);
    for wanted in ["Running start command: echo begun-$COLOUR", "[start] [stdout]: begun-red"] {
        assert!(log.contains(wanted), "{wanted}: {log}");
    }
    assert!(log.contains("Template is ready"), "{log}");
    let shown = ok(&platform, &["template", "show", "web"]);
    assert!(shown.contains("echo begun-$COLOUR"), "{shown}");

    // Each new capsule runs the command with its own environment, and fails alone.
    let each = ["each", "--image", "debian", "--start-each", "--start"];
    let script = "test \"${MODE:-none}\" != bad || exit 4";
    build(&platform, &[&each[..], &[script, "--ready", "test \"${MODE:-none}\" != bad"]].concat());
    assert!(ok(&platform, &["template", "show", "each"]).contains("start in each capsule"));
    let good = ok(&platform, &["capsule", "create", "each", "--env", "MODE=good"]);
    assert_eq!(client.status(&good).await, "running");
    let bad = ["capsule", "create", "each", "--env", "MODE=bad"];
    refused(&platform, &bad, 1, "start command failed: error running start command: exit status 4");
    eventually("the failed create leaves no capsule", async || {
        let left = client.get("/v1/capsules").await.expect(200);
        (left["items"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;

    // A build whose commands fail ends with their step, and its command with status 1.
    let never = ["never", "--image", "debian", "--start", "echo dying; exit 3", "--ready", "false"];
    let out = platform.run(&[&["template", "build"][..], &never].concat());
    assert_eq!(out.status.code(), Some(1), "{}", told(&out));
    let reason = "start command failed: error running start command: exit status 3";
    for wanted in [format!("after its steps: {reason}").as_str(), "dying"] {
        assert!(told(&out).contains(wanted), "{wanted}: {}", told(&out));
    }
    let alone = ["template", "build", "x", "--image", "debian", "--start-each"];
    refused(&platform, &alone, 1, "start_each needs a start command");
    platform.finish();
}
