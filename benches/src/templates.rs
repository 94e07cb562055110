//! Builds of templates: the cache, the cost of steps, logs, uploads, creates of a started template,
//! templates of capsules, and the disk of templates over one image. Where buildah is installed, it
//! does the same work as the floor.

mod cache;
mod capsule;
mod disk;
mod started;
mod steps;
mod upload;

use crate::buildah::Buildah;
use crate::guests;
use crate::pools::Pools;
use crate::stats::{Row, say};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::{Build, Client, Driver, Image, Tree, Workshop};

/// Disk of each template's capsules, in MiB.
const DISK_MIB: u32 = 1024;

/// Longest time of a build, and the time between two looks at it.
const BUILD: Duration = Duration::from_secs(240);
const LOOK: Duration = Duration::from_millis(20);

/// Runs all benchmarks of templates on a platform of their own.
pub(crate) async fn measure() -> Vec<Row> {
    let driver = guests::driver();
    let workshop =
        Workshop::start(Driver::Guests, &guests::vars(&driver, &Pools::Networks.vars())).await;
    workshop.registry.push("app:1", &Image::busybox());
    let buildah = Buildah::find();
    let mut rows = say(Box::pin(cache::measure(&workshop, buildah.as_ref())).await);
    rows.extend(say(Box::pin(steps::measure(&workshop, buildah.as_ref())).await));
    rows.extend(say(Box::pin(steps::log_lines(&workshop)).await));
    rows.extend(say(Box::pin(started::measure(&workshop)).await));
    rows.extend(say(Box::pin(disk::measure(&workshop)).await));
    rows.extend(say(Box::pin(upload::measure(&workshop)).await));
    rows.extend(say(Box::pin(capsule::measure(&workshop)).await));
    workshop.finish();
    rows
}

fn run(command: &str) -> Value {
    json!({ "run": { "command": command } })
}

/// Returns the body of a build over the busybox image.
fn body(workshop: &Workshop, name: &str, steps: &Value) -> Value {
    let image = workshop.registry.reference("app:1");
    json!({
        "name": name, "from": { "image": image }, "steps": steps, "memory_mib": 512,
        "disk_mib": DISK_MIB,
    })
}

/// Times a build up to its end, as a client sees it.
async fn timed(client: &Client, body: &Value) -> (Duration, Build) {
    let since = Instant::now();
    let id = client.begin(body).await;
    while !matches!(client.see_build(&id).await["status"].as_str(), Some("ready" | "error")) {
        assert!(since.elapsed() < BUILD, "the build {id} goes on");
        tokio::time::sleep(LOOK).await;
    }
    let took = since.elapsed();
    let built = client.ended(&id).await;
    assert_eq!(built.body["status"], "ready", "{}\n{:?}", built.body, built.lines);
    (took, built)
}

/// Returns the lines of a build's log, with their times.
async fn log(client: &Client, build: &Build) -> Vec<Value> {
    let page = client.get(&format!("/v1/builds/{}/logs", build.id)).await.expect(200);
    page["items"].as_array().unwrap().clone()
}

/// Returns the seconds of a time of day in RFC 3339. Builds at midnight are measured wrongly.
fn seconds(time: &Value) -> f64 {
    let clock = time.as_str().unwrap().split('T').nth(1).unwrap().trim_end_matches('Z');
    clock.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap())
}

/// Makes a folder with a Dockerfile that runs commands over the files of the busybox image.
fn dockerfile(commands: &[String]) -> TempDir {
    let dir = tempfile::Builder::new().prefix("wrenn-buildah-").tempdir_in("/var/tmp").unwrap();
    std::fs::write(dir.path().join("layer.tar"), Tree::new().busybox().archive()).unwrap();
    write_dockerfile(dir.path(), commands);
    dir
}

fn write_dockerfile(dir: &Path, commands: &[String]) {
    let lines = commands.iter().map(|command| format!("RUN {command}\n")).collect::<String>();
    let text = format!("FROM scratch\nADD layer.tar /\n{lines}");
    std::fs::write(dir.join("Dockerfile"), text).unwrap();
}
