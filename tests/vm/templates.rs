//! Templates that users make, on real guests. Images come from a registry of the test.

mod cache;
mod capsule;
mod crash;
mod distribution;
mod dockerfile;
mod hostile;
mod images;
mod killed;
mod network;
mod secrets;
mod start;
mod teams;
mod users;

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::collections::BTreeMap;
use std::path::Path;
use tests::{Client, Driver, Image, Platform, Workshop, eventually, hash};

/// Starts a platform whose registry has the image `app:1`, of busybox.
async fn workshop() -> Workshop {
    workshop_with(&[]).await
}

async fn workshop_with(vars: &[(&str, &str)]) -> Workshop {
    let workshop = Workshop::start(Driver::Guests, vars).await;
    workshop.registry.push("app:1", &Image::busybox());
    workshop
}

/// Returns the body of a build of a small template over the image `app:1`.
fn over_app(workshop: &Workshop, name: &str, steps: &Value) -> Value {
    over(&workshop.registry.reference("app:1"), name, steps)
}

fn over(image: &str, name: &str, steps: &Value) -> Value {
    json!({
        "name": name, "from": { "image": image }, "steps": steps,
        "vcpus": 1, "memory_mib": 256, "disk_mib": 512,
    })
}

/// Makes a step of a shell command.
fn run(command: &str) -> Value {
    json!({ "run": { "command": command } })
}

/// Adds fields to a request.
fn with(mut body: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("no object: {more}") };
    body.as_object_mut().unwrap().extend(more);
    body
}

/// Starts a capsule of a template.
async fn capsule_of(client: &Client, template: &str) -> String {
    client.create(&json!({ "template": template })).await
}

/// Runs a program by its arguments, without a shell. Returns its output.
async fn argv(client: &Client, id: &str, words: &[&str]) -> String {
    let body = json!({ "cmd": words[0], "args": &words[1..] });
    let result = client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(200);
    assert_eq!(result["exit_code"], 0, "{words:?}: {result}");
    result["stdout"].as_str().unwrap().to_owned()
}

async fn delete(client: &Client, id: &str) {
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
}

/// Returns a number from the platform's database.
async fn number(platform: &Platform, sql: &'static str) -> i64 {
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap()
}

/// Counts the machines that ever ran, by the intervals of usage.
async fn machines(platform: &Platform) -> i64 {
    number(platform, "SELECT count(*) FROM usage_spans WHERE vcpus > 0").await
}

/// Returns the SHA-256 of every pulled image and every layer on the host, by path.
fn kept_files(platform: &Platform) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for folder in ["images/store", "layers"] {
        visit(&platform.dir().join(folder), &mut |path| {
            let name = path.display().to_string();
            let pulled = name.ends_with(".erofs") && name.contains("/oci-");
            if pulled || name.ends_with(".ext4") {
                found.insert(name, hash(&std::fs::read(path).unwrap()));
            }
        });
    }
    found
}

/// Calls `each` with every file below a folder. Links to folders are followed once.
fn visit(dir: &Path, each: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match std::fs::metadata(entry.path()) {
            Ok(found) if found.is_dir() => visit(&entry.path(), each),
            Ok(_) => each(&entry.path()),
            Err(_) => {}
        }
    }
}

/// Waits until nothing of any build is left but its results: no machine, no network, no folder, no
/// row of a capsule, and no staged file.
#[allow(clippy::print_stdout, reason = "a test that fails shows the last look")]
async fn is_quiet(platform: &Platform, capsules: usize) {
    let rows = "SELECT count(*) FROM capsules WHERE build_id IS NOT NULL AND status <> 'stopped'";
    eventually("nothing of a build is left", async || {
        let left = number(platform, rows).await;
        let there = platform.leftovers();
        let counts = [there.namespaces.len(), there.links.len(), there.folders.len()];
        let staged = staged_files(platform);
        let quiet = left == 0 && counts == [capsules; 3] && staged.is_empty();
        if !quiet {
            println!("{left} rows, {counts:?}, {staged:?}");
        }
        quiet.then_some(())
    })
    .await;
}

/// Returns what builds and conversions leave on the disk only while they run.
fn staged_files(platform: &Platform) -> Vec<String> {
    let names = |at: &str| -> Vec<String> {
        let entries = std::fs::read_dir(platform.dir().join(at)).into_iter().flatten().flatten();
        entries.map(|entry| format!("{at}/{}", entry.file_name().to_str().unwrap())).collect()
    };
    let mut staged = names("builds");
    staged.extend(names("files/.staged"));
    staged.extend(names("images/staging"));
    for folder in ["images/store", "images/templates", "layers"] {
        let unfinished = |name: &String| name.contains(".new") || name.contains(".staged");
        staged.extend(names(folder).into_iter().filter(unfinished));
    }
    staged
}
