//! Commands about templates, their builds and logins to registries.

use super::{text, with_stdin};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Output, Stdio};
use tests::{Driver, Platform, eventually};

/// Returns all that a command wrote.
pub(super) fn told(out: &Output) -> String {
    format!("{}{}", text(&out.stdout), text(&out.stderr))
}

/// Runs a command that must succeed. Returns its result.
pub(super) fn ok(platform: &Platform, args: &[&str]) -> String {
    text(&done(platform, args).stdout).trim().to_owned()
}

/// Runs a command that must succeed. Returns its result with the progress that it shows.
pub(super) fn shown(platform: &Platform, args: &[&str]) -> String {
    told(&done(platform, args))
}

fn done(platform: &Platform, args: &[&str]) -> Output {
    let out = platform.run(args);
    assert_eq!(out.status.code(), Some(0), "{args:?}: {}", told(&out));
    out
}

/// Writes a Dockerfile with these lines after FROM. Returns its folder.
fn folder(lines: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "Dockerfile", &format!("FROM debian:12\n{lines}\n"));
    dir
}

fn write(dir: &Path, name: &str, contents: &str) {
    std::fs::write(dir.join(name), contents).unwrap();
}

#[tokio::test]
async fn build_shows_steps_output_of_failures_and_the_next_command() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let dir = folder("COPY a.txt /a\nRUN hello");
    write(dir.path(), "a.txt", "a");
    let at = dir.path().to_str().unwrap();
    let out = platform.run(&["template", "build", "web:v1", at, "--tag", "prod"]);
    assert_eq!(out.status.code(), Some(0), "{}", told(&out));
    for wanted in ["debian:12", "COPY a.txt /a", "RUN hello", "wrenn capsule create web:v1"] {
        assert!(told(&out).contains(wanted), "{wanted}: {}", told(&out));
    }
    let again = shown(&platform, &["template", "build", "web:v1", at]);
    assert!(again.contains("CACHED"), "{again}");
    let anew = shown(&platform, &["template", "build", "web:v1", at, "--no-cache"]);
    assert!(!anew.contains("CACHED"), "{anew}");
    // A changed file counts; a file that no step names does not.
    write(dir.path(), "unused", "u");
    assert!(shown(&platform, &["template", "build", "web:v1", at]).contains("CACHED"));
    write(dir.path(), "a.txt", "b");
    assert!(!shown(&platform, &["template", "build", "web:v1", at]).contains("CACHED"));

    let bad = folder("RUN fine\nRUN exit 3");
    let out = platform.run(&["template", "build", "web:v1", bad.path().to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1), "{}", told(&out));
    assert!(told(&out).contains("leaving with 3") && told(&out).contains("exit status 3"));
    for (lines, wanted) in [("FLY me", "FLY"), ("COPY none /x", "none"), ("COPY ../x /x", "..")] {
        let wrong = folder(lines);
        let out = platform.run(&["template", "build", "web", wrong.path().to_str().unwrap()]);
        assert_ne!(out.status.code(), Some(0), "{lines}");
        assert!(told(&out).contains(wanted), "{lines}: {}", told(&out));
    }
    let out = platform.run(&["template", "build", "web", "--image", "missing/x:1"]);
    assert!(!out.status.success() && told(&out).contains("image 'missing/x:1' not found"));
    let out = platform.run(&["--json", "template", "build", "web:v3", "--image", "debian"]);
    let shown: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(shown["status"], "ready", "{shown}");
    platform.finish();
}

#[tokio::test]
async fn versions_tags_and_logs_are_managed_by_commands() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    ok(&platform, &["template", "build", "web:v1", "--image", "debian"]);
    ok(&platform, &["template", "build", "web:v2", "--image", "debian", "--env", "A=b"]);
    assert!(ok(&platform, &["template", "list"]).contains("web"));
    let versions = ok(&platform, &["--json", "template", "versions", "web"]);
    let versions: Value = serde_json::from_str(&versions).unwrap();
    let versions = versions.as_array().unwrap();
    assert_eq!(versions.len(), 2, "{versions:?}");
    let older = versions[1]["id"].as_str().unwrap();
    ok(&platform, &["template", "tag", "web:v2", "default", "stable"]);
    let id = ok(&platform, &["capsule", "create", "web"]);
    ok(&platform, &["capsule", "kill", &id]);
    ok(&platform, &["template", "tag", &format!("web@{older}"), "default"]);
    ok(&platform, &["template", "untag", "web", "stable"]);
    let shown = ok(&platform, &["template", "show", "web:v2"]);
    assert!(shown.contains("debian") && shown.contains("A"), "{shown}");
    let logs = ok(&platform, &["template", "logs", "web"]);
    assert!(logs.contains("FROM debian"), "{logs}");
    ok(&platform, &["template", "publish", "web"]);
    assert_eq!(client.get("/v1/templates/web").await.expect(200)["shared"], true);
    ok(&platform, &["template", "publish", "web", "--common"]);
    assert!(ok(&platform, &["template", "show", "web"]).contains("all teams, by the name alone"));
    ok(&platform, &["template", "unpublish", "web"]);
    assert!(ok(&platform, &["template", "show", "web"]).contains("this team"));
    let running = ok(&platform, &["capsule", "create", "web:v1"]);
    let out = platform.run(&["template", "delete", "web"]);
    assert!(!out.status.success() && told(&out).contains(&running), "{}", told(&out));
    ok(&platform, &["capsule", "kill", &running]);
    ok(&platform, &["template", "delete", "web"]);
    assert!(!ok(&platform, &["template", "list"]).contains("web"));
    platform.finish();
}

#[tokio::test]
async fn detached_build_is_followed_and_interrupt_cancels() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let slow = folder("RUN begun\nRUN sleep 2\nRUN ended");
    let at = slow.path().to_str().unwrap();
    let id = ok(&platform, &["template", "build", "web", at, "--detach"]);
    assert!(id.starts_with("bld-") && !id.contains('\n'), "{id}");
    let logs = ok(&platform, &["template", "logs", "-f", &id]);
    assert!(logs.contains("begun") && logs.contains("ended"), "{logs}");
    // Ctrl-C asks for the end of the build, and tells so by the exit status.
    let endless = folder("RUN begun\nRUN sleep 1000");
    let mut command = platform.wrenn();
    command.args(["template", "build", "web", endless.path().to_str().unwrap(), "--plain"]);
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // The progress is on standard error, beside the result.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("begun")));
    tests::signal(i32::try_from(child.id()).unwrap(), rustix::process::Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let ended = eventually("the build has ended", async || {
        let page = client.get("/v1/builds?limit=1").await.expect(200);
        (page["items"][0]["status"] == "error").then(|| page["items"][0].clone())
    })
    .await;
    assert!(ended["error"]["message"].as_str().unwrap().contains("cancel"), "{ended}");
    let id = ok(&platform, &["template", "build", "web", endless.path().to_str().unwrap(), "-d"]);
    ok(&platform, &["template", "cancel", &id]);
    let out = platform.run(&["template", "logs", "-f", &id]);
    assert_eq!(out.status.code(), Some(1), "a failed build fails the command: {}", told(&out));
    platform.finish();
}

#[tokio::test]
async fn registry_commands_take_secrets_by_standard_input_alone() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let words = ["registry", "login", "ghcr.io", "--username", "ada", "--password-stdin"];
    let out = with_stdin(&platform, &words, b"s3cret-word\n");
    assert!(out.status.success() && !told(&out).contains("s3cret-word"), "{}", told(&out));
    let listed = ok(&platform, &["registry", "list"]);
    assert!(listed.contains("ghcr.io") && listed.contains("ada"), "{listed}");
    assert!(!listed.contains("s3cret-word"), "{listed}");
    let out = platform.run(&["registry", "login", "ghcr.io", "--password", "x"]);
    assert_eq!(out.status.code(), Some(2), "{}", told(&out));
    ok(&platform, &["registry", "logout", "ghcr.io"]);
    assert!(!ok(&platform, &["registry", "list"]).contains("ghcr.io"));
    platform.finish();
}
