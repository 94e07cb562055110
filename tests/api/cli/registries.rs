//! `wrenn registry login` with the keys of Amazon, Google and Docker. No answer has a secret.

use super::templates::{ok, told};
use super::{text, with_stdin};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::process::{Output, Stdio};
use tests::{Driver, Platform};

const SECRET: &str = "s3cret-of-the-registry";
const ECR: &str = "1.dkr.ecr.eu-west-1.amazonaws.com";

/// Runs a login with these variables alone of those that logins read.
fn login(platform: &Platform, words: &[&str], vars: &[(&str, &str)]) -> Output {
    let mut command = platform.wrenn();
    let read = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"];
    read.into_iter().chain(["DOCKER_CONFIG", "HOME"]).for_each(|name| {
        command.env_remove(name);
    });
    command.args(["registry", "login"]).args(words).envs(vars.iter().copied());
    let out = command.stdin(Stdio::null()).output().unwrap();
    assert!(!told(&out).contains(SECRET), "{words:?}: {}", told(&out));
    out
}

/// Checks the refusal of a login: its exit code, and a part of its message.
fn refused(out: &Output, code: i32, holding: &str) {
    assert_eq!(out.status.code(), Some(code), "{}", told(out));
    assert!(text(&out.stderr).contains(holding), "`{holding}` not in {}", text(&out.stderr));
}

/// Returns the kind and the user name of the login to a registry.
fn stored(platform: &Platform, registry: &str) -> Option<(String, String)> {
    let listed = ok(platform, &["--json", "registry", "list"]);
    assert!(!listed.contains(SECRET), "{listed}");
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let found = listed.as_array().unwrap().iter().find(|login| login["registry"] == registry)?;
    let field = |name: &str| found[name].as_str().unwrap().to_owned();
    Some((field("kind"), field("username")))
}

#[tokio::test]
async fn login_to_amazons_registry_reads_keys_from_the_environment() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let keys = [("AWS_ACCESS_KEY_ID", "AKIA1"), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    let out = login(&platform, &[ECR, "--aws"], &keys);
    assert!(out.status.success(), "{}", told(&out));
    assert_eq!(stored(&platform, ECR), Some(("aws".to_owned(), "AKIA1".to_owned())));
    refused(&login(&platform, &[ECR, "--aws"], &keys[..1]), 1, "AWS_SECRET_ACCESS_KEY is not set");
    refused(&login(&platform, &[ECR, "--aws"], &keys[1..]), 1, "AWS_ACCESS_KEY_ID is not set");
    // Other names of Amazon's have no region in them.
    let public = ["public.ecr.aws", "--aws"];
    refused(&login(&platform, &public, &keys), 1, "set AWS_REGION");
    let region = [keys[0], keys[1], ("AWS_REGION", "us-east-1")];
    assert!(login(&platform, &public, &region).status.success());
    let wrong = [keys[0], keys[1], ("AWS_REGION", "../x")];
    refused(&login(&platform, &public, &wrong), 1, "aws.region");
    for more in [&["--gcp", "x"][..], &["--username", "ada"], &["--docker"]] {
        let words = [&[ECR, "--aws"][..], more].concat();
        refused(&login(&platform, &words, &keys), 2, "--aws");
    }
    for host in ["https://ghcr.io", "ghcr.io/team", "a b"] {
        refused(&login(&platform, &[host, "--aws"], &region), 1, "must be a host");
    }
    platform.finish();
}

#[tokio::test]
async fn login_to_googles_or_dockers_registry_reads_a_file() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let key = json!({ "client_email": "ci@example.iam", "private_key": SECRET }).to_string();
    std::fs::write(path("key.json"), &key).unwrap();
    std::fs::write(path("wrong.json"), format!("[\"{SECRET}\"]")).unwrap();
    std::fs::write(path("empty.json"), "\n").unwrap();
    let host = "europe-docker.pkg.dev";
    let gcp = |file: &str| login(&platform, &[host, "--gcp", &path(file)], &[]);
    assert!(gcp("key.json").status.success());
    assert_eq!(stored(&platform, host), Some(("gcp".to_owned(), "ci@example.iam".to_owned())));
    refused(&gcp("wrong.json"), 1, "gcp.service_account_json must be a JSON object");
    refused(&gcp("empty.json"), 1, "the secret is empty");
    refused(&gcp("absent.json"), 1, &path("absent.json"));
    // A refused login replaces nothing.
    assert!(stored(&platform, host).is_some());
    let out = with_stdin(&platform, &["registry", "login", "gcr.io", "--gcp", "-"], key.as_bytes());
    assert!(out.status.success() && !told(&out).contains(SECRET), "{}", told(&out));
    assert!(stored(&platform, "gcr.io").is_some());

    let auth = STANDARD.encode(format!("ada:{SECRET}"));
    let config = json!({ "auths": { "ghcr.io": { "auth": auth } } });
    std::fs::write(path("config.json"), config.to_string()).unwrap();
    let folder = dir.path().to_str().unwrap();
    let docker =
        |registry: &str| login(&platform, &[registry, "--docker"], &[("DOCKER_CONFIG", folder)]);
    assert!(docker("ghcr.io").status.success());
    assert_eq!(stored(&platform, "ghcr.io"), Some(("basic".to_owned(), "ada".to_owned())));
    refused(&docker("quay.io"), 1, "config.json");
    refused(&login(&platform, &["ghcr.io", "--docker"], &[]), 1, "DOCKER_CONFIG");
    refused(&login(&platform, &["ghcr.io", "--password-stdin"], &[]), 2, "--username");
    platform.finish();
}
