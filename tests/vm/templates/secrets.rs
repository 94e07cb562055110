//! Logins to registries: they open private images, and appear nowhere.

use super::{capsule_of, delete, over, run, with, workshop};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::fs;
use std::process::Command;
use tests::{Image, Platform, Workshop};

const USER: &str = "puller-4711";
const PASSWORD: &str = "hunter2-correct-horse";
const TOKEN: &str = "registry-token-7f3c";

fn needles() -> [String; 3] {
    let basic = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    [PASSWORD.to_owned(), basic, TOKEN.to_owned()]
}

/// Searches arguments and environments of every process but this one.
fn not_in_processes() {
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().into_string().unwrap();
        if pid == own || pid.parse::<u32>().is_err() {
            continue;
        }
        for file in ["cmdline", "environ"] {
            let text = fs::read(entry.path().join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            for needle in needles() {
                assert!(!text.contains(&needle), "process {pid} has it in {file}");
            }
        }
    }
}

/// Searches the database, the log, and each file of the platform, guests' memory and disks too.
fn not_kept(platform: &Platform) {
    let dump = Command::new("pg_dump").arg(platform.database_url()).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let texts = [String::from_utf8_lossy(&dump.stdout).into_owned(), platform.log()];
    for needle in needles() {
        assert!(texts.iter().all(|text| !text.contains(&needle)), "in the database or the log");
        let found =
            Command::new("grep").args(["-rlzaF", "-e", &needle]).arg(platform.dir()).output();
        let found = found.unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "", "files with it");
    }
}

fn private(workshop: &Workshop, name: &str) -> Value {
    over(&workshop.registry.reference("private:1"), name, &json!([run("echo in > /in; sleep 2")]))
}

fn login(password: &str) -> Value {
    json!({ "basic": { "username": USER, "password": password } })
}

#[tokio::test]
async fn login_of_a_build_or_of_the_team_opens_private_images_and_appears_nowhere() {
    let workshop = workshop().await;
    let (client, registry) = (&workshop.client, &workshop.registry);
    registry.push("private:1", &Image::busybox());
    registry.demand_bearer(USER, PASSWORD);
    let denied = client.attempt(&private(&workshop, "none")).await;
    denied.failed("base", "access denied");
    let wrong = with(private(&workshop, "none"), json!({ "login": login("wrong") }));
    client.attempt(&wrong).await.failed("base", "access denied");

    let given = with(private(&workshop, "given"), json!({ "login": login(PASSWORD) }));
    let id = client.begin(&given).await;
    client.logged(&id, "] RUN ").await;
    not_in_processes();
    assert_eq!(client.ended(&id).await.body["status"], "ready");
    // The login was for that build alone. The host has the image, and yet asks for access again.
    client.attempt(&private(&workshop, "none")).await.failed("base", "access denied");

    // A login of the team serves all of its builds, by Basic too. No answer shows its secret.
    registry.demand_basic(USER, PASSWORD);
    let path = format!("/v1/registries/{}", registry.host());
    let stored = client.put(&path, &login(PASSWORD)).await.expect(200);
    assert_eq!((&stored["username"], &stored["kind"]), (&json!(USER), &json!("basic")));
    assert!(!stored.to_string().contains(PASSWORD), "{stored}");
    let built = client.build(&private(&workshop, "kept")).await;
    assert!(!built.body.to_string().contains(PASSWORD), "{}", built.body);
    let listed = client.get("/v1/registries").await.expect(200);
    assert!(!listed.to_string().contains(PASSWORD), "{listed}");

    let capsule = capsule_of(client, "kept").await;
    assert_eq!(client.out(&capsule, "cat /in").await, "in\n");
    client.pause(&capsule).await;
    not_kept(&workshop.platform);
    delete(client, &capsule).await;
    client.delete(&path).await.expect(204);
    client.attempt(&private(&workshop, "none")).await.failed("base", "access denied");
    workshop.finish();
}

#[tokio::test]
async fn secret_variables_are_masked_where_a_build_is_shown() {
    let workshop = workshop().await;
    let client = &workshop.client;
    let steps = json!([{ "env": { "API_TOKEN": "t0p-s3cret", "COLOUR": "red" } }, run("true")]);
    let body = over(&workshop.registry.reference("app:1"), "masked", &steps);
    let built = client.build(&body).await;
    let shown = client.see_build(&built.id).await.to_string();
    assert!(!shown.contains("t0p-s3cret") && shown.contains("red"), "{shown}");
    workshop.finish();
}
