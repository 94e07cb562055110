//! Commands about users, teams, keys and the audit log.

use super::{text, with_stdin};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use tests::{Driver, PASSWORD, Platform, mailed};

fn line(password: &str) -> Vec<u8> {
    format!("{password}\n").into_bytes()
}

fn json(platform: &Platform, args: &[&str]) -> Value {
    let out = platform.run(&[&["--json"], args].concat());
    assert!(out.status.success(), "{args:?}: {out:?}");
    serde_json::from_slice(&out.stdout).unwrap()
}

fn ok(platform: &Platform, args: &[&str]) -> String {
    let out = platform.run(args);
    assert!(out.status.success(), "{args:?}: {out:?}");
    text(&out.stdout).trim().to_owned()
}

fn fails(platform: &Platform, args: &[&str], holding: &str) {
    let out = platform.run(args);
    let told = text(&out.stderr);
    assert!(!out.status.success() && told.contains(holding), "{args:?}: {told}");
}

/// Invites a user and activates the account, by commands.
async fn join(platform: &Platform, email: &str) {
    ok(platform, &["user", "invite", email, "--name", "Person"]);
    let token = mailed(platform, email, "give this code:").await;
    let came = with_stdin(platform, &["activate"], &line(&format!("{token}\n{PASSWORD}")));
    assert!(came.status.success(), "{came:?}");
    assert!(text(&came.stdout).contains(email), "{came:?}");
}

#[tokio::test]
async fn login_team_and_logout_commands_work() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    assert_eq!(ok(&platform, &["whoami"]).lines().next().unwrap(), "an API key");
    join(&platform, "ada@example.com").await;
    let file = platform.dir().join("../client.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let who = ok(&platform, &["whoami"]);
    assert!(who.contains("ada@example.com") && who.contains("admin of the platform"), "{who}");
    let team = ok(&platform, &["team", "create", "Second"]);
    let capsule = ok(&platform, &["capsule", "create"]);
    ok(&platform, &["team", "use", "Second"]);
    assert_eq!(json(&platform, &["capsule", "list"]).as_array().unwrap().len(), 0);
    let listed = ok(&platform, &["team", "list"]);
    let used = listed.lines().find(|line| line.trim_start().starts_with('*')).unwrap();
    assert!(used.contains(&team), "{listed}");
    // A flag names another team for one command.
    let first = json(&platform, &["team", "list"])[0]["id"].as_str().unwrap().to_owned();
    ok(&platform, &["--in-team", &first, "team", "members"]);
    ok(&platform, &["team", "rename", "Third"]);
    let invited = ok(&platform, &["team", "invite", "bob@example.com", "--role", "viewer"]);
    assert!(ok(&platform, &["team", "invitations"]).contains(&invited));
    ok(&platform, &["team", "uninvite", &invited]);
    ok(&platform, &["team", "invite", "bob@example.com"]);
    let token = mailed(&platform, "bob@example.com", "wrenn team accept ").await;
    let limits = ok(&platform, &["team", "limits"]);
    assert!(limits.contains("1000"), "{limits}");
    ok(&platform, &["team", "limits", "--of", &team, "--capsules", "1"]);
    ok(&platform, &["capsule", "create"]);
    fails(&platform, &["capsule", "create"], "limit_reached");
    assert!(json(&platform, &["team", "usage"])[0]["day"].is_string());
    fails(&platform, &["team", "delete", "Wrong"], "Third");
    fails(&platform, &["team", "delete", "Third"], "team_not_empty");
    ok(&platform, &["logout"]);
    // After the sign-out, the key of this machine remains.
    assert!(ok(&platform, &["whoami"]).contains("an API key"));
    fails(&platform, &["logout"], "no user is signed in");
    let wrong = with_stdin(&platform, &["login", "ada@example.com"], &line("wrong-password"));
    assert!(text(&wrong.stderr).contains("wrong_credentials"), "{wrong:?}");
    join(&platform, "bob@example.com").await;
    ok(&platform, &["team", "accept", &token]);
    ok(&platform, &["team", "use", "Third"]);
    fails(&platform, &["capsule", "get", &capsule], "not_found");
    ok(&platform, &["team", "leave"]);
    let back = with_stdin(&platform, &["login", "ada@example.com"], &line(PASSWORD));
    assert!(back.status.success(), "{back:?}");
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(!kept.contains(PASSWORD) && kept.contains("wrs_"));
    platform.finish();
}

#[tokio::test]
async fn password_reset_command_accepts_mailed_code() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    join(&platform, "ada@example.com").await;
    ok(&platform, &["reset-password", "ada@example.com"]);
    let token = mailed(&platform, "ada@example.com", "give the code").await;
    let set =
        with_stdin(&platform, &["reset-password"], &line(&format!("{token}\nlamp-42-tangerine")));
    assert!(set.status.success(), "{set:?}");
    let old = with_stdin(&platform, &["login", "ada@example.com"], &line(PASSWORD));
    assert!(!old.status.success());
    let new = with_stdin(&platform, &["login", "ada@example.com"], &line("lamp-42-tangerine"));
    assert!(new.status.success(), "{new:?}");
    platform.finish();
}

#[tokio::test]
async fn key_commands_create_list_and_revoke_with_audit_entries() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let args =
        ["key", "create", "ci", "--scope", "capsules:read", "--expires", "12h", "--form", "wrn"];
    let key = ok(&platform, &args);
    assert!(key.starts_with("wrn_") && key.len() == 44, "{key}");
    let with = |args: &[&str]| {
        let mut command = platform.wrenn();
        command.args(args).env("WRENN_API_KEY", &key).output().unwrap()
    };
    assert!(with(&["capsule", "list"]).status.success());
    let refused = with(&["capsule", "create"]);
    assert!(text(&refused.stderr).contains("capsules:admin"), "{refused:?}");
    let listed = json(&platform, &["key", "list"]);
    let id = listed[0]["id"].as_str().unwrap();
    assert!(ok(&platform, &["key", "list"]).contains("capsules:read"));
    ok(&platform, &["key", "revoke", id]);
    fails(&platform, &["key", "revoke", id], "not_found");
    let log = ok(&platform, &["audit", "--resource", id]);
    assert!(log.contains("api_key.create") && log.contains("api_key.revoke"), "{log}");
    let exported = ok(&platform, &["audit", "--export", "--action", "api_key.revoke"]);
    let entry: Value = serde_json::from_str(exported.lines().next().unwrap()).unwrap();
    assert_eq!(entry["resource_id"], id);
    assert!(ok(&platform, &["audit", "--all", "-n", "3"]).lines().count() <= 4);
    platform.finish();
}

#[tokio::test]
async fn admin_manages_users_by_commands() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    platform.user("root@example.com").await;
    platform.user("a@example.com").await;
    ok(&platform, &["user", "promote", "a@example.com"]);
    ok(&platform, &["user", "demote", "a@example.com"]);
    fails(&platform, &["user", "demote", "root@example.com"], "last_admin");
    ok(&platform, &["user", "disable", "a@example.com"]);
    let listed = ok(&platform, &["user", "list"]);
    let line = listed.lines().find(|line| line.contains("a@example.com")).unwrap();
    assert!(line.contains("disabled"), "{listed}");
    ok(&platform, &["user", "enable", "a@example.com"]);
    fails(&platform, &["user", "erase", "a@example.com"], "--yes");
    ok(&platform, &["user", "erase", "a@example.com", "--yes"]);
    fails(&platform, &["user", "disable", "a@example.com"], "no user has the e-mail address");
    assert!(ok(&platform, &["user", "teams"]).contains("Default"));
    platform.finish();
}

/// Credentials in the client file for one platform are sent to no other.
#[tokio::test]
async fn stored_key_is_sent_to_no_other_platform() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let hook = tests::Hook::start(|_| (200, String::new(), "{\"items\":[]}".to_owned())).await;
    let mut command = platform.wrenn();
    command.args(["--url", &hook.url, "capsule", "list"]);
    let out = tokio::process::Command::from(command).output().await.unwrap();
    assert!(out.status.success(), "{out:?}");
    let heard = hook.heard();
    assert!(!heard.is_empty());
    for one in heard {
        assert!(!one.headers.contains_key("x-api-key"), "{one:?}");
        assert!(!one.headers.contains_key("authorization"), "{one:?}");
    }
    platform.finish();
}
