//! Builds of templates: the cache, the cost of steps, creates of a started template, and the disk of
//! templates over one image. Where buildah is installed, it does the same work as the floor.

use crate::bare::{Bare, Namespace};
use crate::stats::{Row, median, shown};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tests::{Client, Driver, Image, Tree, Workshop};

const ROUNDS: usize = 7;
const CREATES: usize = 11;
const STEPS: usize = 20;
const TEMPLATES: usize = 10;
/// Bytes that each of the ten templates adds to the image.
const OWN: u64 = 10 << 20;
const SERVE: &str = "mkdir -p /tmp/www; echo up > /tmp/www/up; exec httpd -f -p 8000 -h /tmp/www";

/// Runs all benchmarks of templates on a platform of their own.
pub(crate) async fn measure() -> Vec<Row> {
    let workshop = Workshop::start(Driver::Guests, &[("WRENN_MEMORY_MIB", "100000")]).await;
    workshop.registry.push("app:1", &Image::busybox());
    let mut rows = cached(&workshop).await;
    rows.push(steps(&workshop).await);
    rows.extend(started(&workshop).await);
    rows.push(disk(&workshop).await);
    workshop.finish();
    rows
}

fn run(command: &str) -> Value {
    json!({ "run": { "command": command } })
}

fn body(workshop: &Workshop, name: &str, steps: &Value) -> Value {
    let image = workshop.registry.reference("app:1");
    json!({
        "name": name, "from": { "image": image }, "steps": steps, "memory_mib": 512,
        "disk_mib": 1024,
    })
}

/// Returns six steps. The last one is the round's own.
fn six(last: &str) -> Value {
    let mut steps: Vec<Value> = (1..6).map(|n| run(&format!("echo {n} > /{n}"))).collect();
    steps.push(run(last));
    json!(steps)
}

/// Times a build up to its end.
async fn timed(client: &Client, body: &Value) -> (Duration, tests::Build) {
    let since = Instant::now();
    let id = client.begin(body).await;
    let built = client.ended(&id).await;
    let took = since.elapsed();
    assert_eq!(built.body["status"], "ready", "{:?}", built.lines);
    (took, built)
}

/// Measures a build whose steps are all in the cache, and one with one new step of six. The floor of
/// the latter is a guest's boot.
async fn cached(workshop: &Workshop) -> Vec<Row> {
    let client = &workshop.client;
    timed(client, &body(workshop, "six", &six("true"))).await;
    let boot = boots(workshop).await;
    let (mut whole, mut one_new) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (took, built) = timed(client, &body(workshop, "six", &six("true"))).await;
        assert_eq!(built.cached().len(), 6, "{:?}", built.lines);
        whole.push(took);
        let (_, built) =
            timed(client, &body(workshop, "six", &six(&format!("echo {round}")))).await;
        assert_eq!(built.cached().len(), 5, "{:?}", built.lines);
        one_new.push(until_built(client, &built).await);
    }
    let floor = buildah(&six_commands("true"), true);
    let cached = match &floor {
        Some(floor) => Row::ratio("build with six cached steps ÷ buildah's", &whole, floor, ""),
        None => plain("build with six cached steps, buildah is absent", &whole, ""),
    };
    vec![
        plain("build with six cached steps, without a guest", &whole, "≤ 1.0 s"),
        cached,
        Row::less("one new step of six − a boot", &one_new, &boot, "≤ 500 ms"),
    ]
}

fn plain(what: &str, times: &[Duration], goal: &str) -> Row {
    let took = shown(median(times));
    Row::new(what, &took, "–", &took, goal)
}

/// Returns the time of a build from its start to its last step's end, by its log. The machine that is
/// saved for later creates comes after that.
async fn until_built(client: &Client, build: &tests::Build) -> Duration {
    let page = client.get(&format!("/v1/builds/{}/logs", build.id)).await.expect(200);
    let items = page["items"].as_array().unwrap().clone();
    let at = |item: &Value| seconds(item["at"].as_str().unwrap());
    let last = items.iter().rev().find(|item| item["step"].is_number()).unwrap();
    let begun = seconds(build.body["started_at"].as_str().unwrap());
    Duration::from_secs_f64((at(last) - begun).max(0.0))
}

/// Returns the seconds of a time of day in RFC 3339. Builds at midnight are measured wrongly.
fn seconds(time: &str) -> f64 {
    let clock = time.split('T').nth(1).unwrap().trim_end_matches('Z');
    clock.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap())
}

/// Times boots of a bare machine of the builder's size.
async fn boots(workshop: &Workshop) -> Vec<Duration> {
    let client = &workshop.client;
    let id = client.create(&json!({ "memory_mib": 1024, "vcpus": 2 })).await;
    let at = Namespace::new("build");
    let bare = Bare::like(&workshop.platform, &id);
    let times = (0..ROUNDS).map(|_| bare.boot(&at)).collect();
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    times
}

fn six_commands(last: &str) -> Vec<String> {
    (1..6).map(|n| format!("echo {n} > /{n}")).chain([last.to_owned()]).collect()
}

/// Builds the commands over a busybox image by Debian's buildah, so often, with its cache if wanted.
fn buildah(commands: &[String], cached: bool) -> Option<Vec<Duration>> {
    Command::new("buildah").arg("--version").output().ok().filter(|out| out.status.success())?;
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    std::fs::write(at.join("layer.tar"), Tree::new().busybox().archive()).unwrap();
    let lines = commands.iter().map(|command| format!("RUN {command}\n")).collect::<String>();
    std::fs::write(at.join("Dockerfile"), format!("FROM scratch\nADD layer.tar /\n{lines}"))
        .unwrap();
    let build = |layers: bool| {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(at.join("root")).arg("--runroot").arg(at.join("run"));
        command.args(["bud", "--quiet", "--isolation", "chroot"]);
        command.args(["--no-cache", "--layers"].iter().skip(usize::from(layers)));
        let since = Instant::now();
        let out = command.arg(at).output().unwrap();
        out.status.success().then(|| since.elapsed())
    };
    build(true)?;
    (0..ROUNDS).map(|_| build(cached)).collect()
}

/// Measures twenty steps that do nothing, by the times of their lines.
async fn steps(workshop: &Workshop) -> Row {
    let client = &workshop.client;
    let mut each = Vec::new();
    for round in 0..3 {
        // The first step differs in each round, so that no step comes from the cache.
        let mut list = vec![run(&format!("echo {round}"))];
        list.extend(std::iter::repeat_n(run("true"), STEPS));
        let (_, built) = timed(client, &body(workshop, "twenty", &json!(list))).await;
        let page = client.get(&format!("/v1/builds/{}/logs", built.id)).await.expect(200);
        let items = page["items"].as_array().unwrap().clone();
        let begins: Vec<f64> = items
            .iter()
            .filter(|item| item["text"].as_str().unwrap().contains("] RUN true ["))
            .map(|item| seconds(item["at"].as_str().unwrap()))
            .collect();
        assert_eq!(begins.len(), STEPS, "{:?}", built.lines);
        let span = begins[STEPS - 1] - begins[0];
        each.push(Duration::from_secs_f64(span / (STEPS - 1) as f64));
    }
    match buildah(&vec!["true".to_owned(); STEPS], false) {
        Some(floor) => {
            let floor: Vec<Duration> =
                floor.iter().map(|took| *took / u32::try_from(STEPS).unwrap()).collect();
            Row::ratio("a step `RUN true` ÷ buildah's; at most 300 ms emulated", &each, &floor, "")
        }
        None => plain("a step `RUN true`", &each, "≤ 300 ms emulated, ≤ 50 ms by KVM"),
    }
}

/// Measures creates of a template with a started server up to its first answer, against the bare
/// restore of the same machine up to envd's first answer.
async fn started(workshop: &Workshop) -> Vec<Row> {
    let client = &workshop.client;
    let mut wanted = body(workshop, "started", &json!([]));
    wanted["start"] = SERVE.into();
    wanted["ready"] = "wget -q -O - http://127.0.0.1:8000/up".into();
    timed(client, &wanted).await;
    let create = json!({ "template": "started" });
    let like = client.create(&create).await;
    let floor = Bare::like(&workshop.platform, &like);
    let at = Namespace::new("started");
    let (mut ours, mut bare, mut base) = (Vec::new(), Vec::new(), Vec::new());
    let first = client.create(&json!({})).await;
    for _ in 0..CREATES {
        let (machine, took) = floor.restore(&at, "started.sock");
        bare.push(took);
        machine.end();
        let since = Instant::now();
        let id = client.create(&create).await;
        let answer = client.to_port(Method::GET, &id, 8000, "/up").send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "up\n");
        ours.push(since.elapsed());
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
        let since = Instant::now();
        let id = client.create(&json!({})).await;
        client.out(&id, "true").await;
        base.push(since.elapsed());
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    for id in [&like, &first] {
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    vec![
        Row::ratio("create to a started server's answer ÷ bare restore", &ours, &bare, "≤ 1.2"),
        Row::ratio("the same ÷ create of `base` to a first command", &ours, &base, ""),
    ]
}

/// Measures the disk of ten templates that each add 10 MB to one image, without their machines.
async fn disk(workshop: &Workshop) -> Row {
    let client = &workshop.client;
    let folders = ["images/store", "images/templates", "layers"];
    let used = || {
        let mut seen = BTreeSet::new();
        let dir = workshop.platform.dir();
        folders.iter().map(|folder| blocks(&dir.join(folder), &mut seen)).sum::<u64>()
    };
    let before = used();
    for n in 0..TEMPLATES {
        let count = OWN >> 20;
        let fill = format!("dd if=/dev/urandom of=/own-{n} bs=1M count={count} 2>/dev/null");
        timed(client, &body(workshop, &format!("of-{n}"), &json!([run(&fill)]))).await;
    }
    let own = TEMPLATES as u64 * OWN;
    let grown = used() - before;
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let ratio = format!("{:.2}", grown as f64 / own as f64);
    let what = "disk of ten templates over one image ÷ their own bytes";
    Row::new(what, &mib(grown), &mib(own), &ratio, "≤ 1.1")
}

/// Sums the bytes on the disk of all files below a folder, each file once.
fn blocks(dir: &Path, seen: &mut BTreeSet<u64>) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let each = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => blocks(&entry.path(), seen),
        Ok(found) if seen.insert(found.ino()) => found.blocks() * 512,
        _ => 0,
    });
    each.sum()
}
