//! The code interpreter: first results, round trips, contexts and output. The floor is Jupyter's own
//! client, which drives the same kernel in the same guest (`code_floor.py`). It lacks a service, a
//! proxy and an API, so it is below what any other code interpreter of this kind can reach. Another
//! server may be measured too (`rival`).

mod rival;

use crate::exec::Straight;
use crate::guests;
use crate::pools::{Metrics, Pools};
use crate::stats::{Row, say};
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tests::{Client, Driver, Platform, Workshop};

const TEMPLATE: &str = "code-interpreter";
const CREATES: usize = 7;
const ROUNDS: usize = 40;
const STARTS: usize = 5;
/// Contexts with libraries that share a guest.
const CONTEXTS: usize = 16;
/// Bytes of output, in lines of 1,000 bytes: 50 MiB.
const OUTPUT: usize = 52_429_000;
/// Flushed prints, each of which is a message of its own.
const PRINTS: usize = 10_000;
const FIGURE: &str = "import pandas, matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()";

/// Runs all benchmarks of the code interpreter on a platform of their own.
pub(crate) async fn measure() -> Vec<Row> {
    let mut rows = Vec::new();
    for pools in [Pools::Ready, Pools::Networks] {
        let workshop = start(pools).await;
        rows.extend(say(first(&workshop, pools).await));
        if pools == Pools::Networks {
            rows.extend(others(&workshop).await);
        }
        workshop.finish();
    }
    rows
}

/// Starts a platform with the template.
async fn start(pools: Pools) -> Workshop {
    let driver = guests::driver();
    let vars = guests::vars(&driver, &pools.vars());
    let workshop = Workshop::start(Driver::Guests, &vars).await;
    build(&workshop.platform);
    workshop
}

/// Measures all but the first results.
async fn others(workshop: &Workshop) -> Vec<Row> {
    let (client, platform) = (&workshop.client, &workshop.platform);
    let mut rows = Vec::new();
    let id = client.create(&json!({ "template": TEMPLATE })).await;
    put_floor(client, &id).await;
    rows.extend(say(round_trips(platform, &id).await));
    rows.extend(say(starts(client, &id).await));
    rows.extend(say(vec![output(client, &id).await, prints(client, &id).await]));
    rows.extend(say(vec![shared(client).await]));
    rows.extend(rival::measure(platform).await);
    rows
}

fn build(platform: &Platform) {
    let mut command = platform.wrenn();
    command.args(["template", "build", TEMPLATE]);
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    command.env("WRENN_CACHE_DIR", cache).stdin(Stdio::null());
    let built = command.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

/// Runs code to its end. Returns the time and the lines.
async fn run(client: &Client, id: &str, body: &Value) -> (Duration, String) {
    let started = Instant::now();
    let request = client.request(Method::POST, &format!("/v1/capsules/{id}/code")).json(body);
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let lines = answer.text().await.unwrap();
    assert_eq!(status, 200, "{lines}");
    let took = started.elapsed();
    let ended = lines.ends_with("{\"type\":\"end_of_execution\"}\n");
    assert!(ended && !lines.contains("\"type\":\"error\""), "{lines:.2000}");
    (took, lines)
}

async fn timed(client: &Client, id: &str, code: &str) -> Duration {
    run(client, id, &json!({ "code": code })).await.0
}

/// Measures creates up to the first result, against creates up to the first command, and the first
/// results against the second. Each create finds the pool filled.
async fn first(workshop: &Workshop, pools: Pools) -> Vec<Row> {
    let (client, metrics) = (&workshop.client, Metrics::of(&workshop.platform));
    let create = json!({ "template": TEMPLATE });
    // The first create tells the pool what is wanted.
    let id = client.create(&create).await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    let (mut code, mut command) = (Vec::new(), Vec::new());
    let (mut one, mut two, mut figure) = (Vec::new(), Vec::new(), Vec::new());
    // The first round only warms caches.
    for round in 0..=CREATES {
        assert!(pools.filled(&metrics, 1).await, "the pool stays empty");
        let started = Instant::now();
        let by_code = client.create(&create).await;
        let took = timed(client, &by_code, "1 + 1").await;
        let until_result = started.elapsed();
        let second = timed(client, &by_code, "1 + 1").await;
        assert!(pools.filled(&metrics, 1).await, "the pool stays empty");
        let started = Instant::now();
        let by_command = client.create(&create).await;
        client.out(&by_command, "true").await;
        let until_command = started.elapsed();
        let shown = timed(client, &by_command, FIGURE).await;
        for id in [&by_code, &by_command] {
            client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
        }
        if round > 0 {
            code.push(until_result);
            command.push(until_command);
            one.push(took);
            two.push(second);
            figure.push(shown);
        }
    }
    let goal = "≤ 2.5 s emulated, ≤ 150 ms by KVM";
    let row = |what: &str| format!("{what}, {}", pools.name());
    let create = row("create to first result ÷ create to first command");
    vec![
        Row::ratio(&create, &code, &command, "≤ 1.25"),
        Row::ratio(&row("first ÷ second result after create"), &one, &two, "≤ 2"),
        Row::alone(&row("first import of pandas and pyplot, with a figure"), &figure, goal),
    ]
}

async fn put_floor(client: &Client, id: &str) {
    let put = client.request(Method::PUT, &format!("/v1/capsules/{id}/files"));
    let put = put.query(&[("path", "/home/user/floor.py")]);
    client.send(put.body(include_str!("code_floor.py"))).await.expect(204);
}

/// Returns the times of the floor, in the guest.
async fn floor(client: &Client, id: &str, arguments: &str) -> Vec<Duration> {
    let script = format!("python3 /home/user/floor.py {arguments}");
    let command = json!({ "cmd": "sh", "args": ["-c", script], "timeout_sec": 900 });
    let exec = client.post(&format!("/v1/capsules/{id}/exec"), &command).await.expect(200);
    assert_eq!(exec["exit_code"], 0, "{exec}");
    let seconds: Vec<f64> = serde_json::from_str(exec["stdout"].as_str().unwrap()).unwrap();
    seconds.into_iter().map(Duration::from_secs_f64).collect()
}

/// Measures the result of `1`: through the API, straight to the interpreter, and by the floor.
async fn round_trips(platform: &Platform, id: &str) -> Vec<Row> {
    let (client, straight) = (platform.client(), Straight::to(platform, id));
    let (mut ours, mut direct) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS + 5 {
        let took = timed(&client, id, "1").await;
        let inside = straight.time(async move |client, token| {
            let request = client.post("http://169.254.0.2:49999/execute");
            let request = request.header(protocol::ACCESS_TOKEN, token);
            let answer = request.json(&json!({ "code": "1" })).send().await.unwrap();
            assert!(answer.text().await.unwrap().ends_with("\"end_of_execution\"}\n"));
        });
        // The first rounds only warm caches.
        if round >= 5 {
            ours.push(took);
            direct.push(inside);
        }
    }
    let bare = floor(&client, id, &format!("run {ROUNDS}")).await;
    vec![
        Row::less("result of `1` − straight to the interpreter", &ours, &direct, "≤ 3 ms"),
        Row::less("straight − Jupyter's client in the guest", &direct, &bare, "≤ 40 ms emulated"),
        Row::ratio("result of `1` ÷ Jupyter's client in the guest", &ours, &bare, ""),
    ]
}

/// Measures contexts with libraries up to their first result, and restarts, against starts of a
/// kernel by Jupyter.
async fn starts(client: &Client, id: &str) -> Vec<Row> {
    let code = "import numpy, pandas, matplotlib.pyplot\n1";
    let contexts = format!("/v1/capsules/{id}/code/contexts");
    let (mut made, mut restarted) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let started = Instant::now();
        let context = client.post(&contexts, &json!({})).await.expect(201);
        let context = context["id"].as_str().unwrap().to_owned();
        let body = json!({ "code": code, "context_id": context });
        run(client, id, &body).await;
        made.push(started.elapsed());
        let started = Instant::now();
        let again = client.post(&format!("{contexts}/{context}/restart"), &json!({})).await;
        assert!(again.status.is_success(), "{}", again.body);
        run(client, id, &body).await;
        restarted.push(started.elapsed());
        let gone = client.delete(&format!("{contexts}/{context}")).await;
        assert!(gone.status.is_success(), "{}", gone.body);
    }
    let bare = floor(client, id, &format!("start {STARTS}")).await;
    let goal = "≤ 4 s emulated, ≤ 0.3 s by KVM";
    vec![
        Row::ratio("new context with pandas ÷ kernel by Jupyter", &made, &bare, goal),
        Row::ratio("restart with pandas ÷ kernel by Jupyter", &restarted, &bare, goal),
    ]
}

/// Measures output through the API.
async fn output(client: &Client, id: &str) -> Row {
    let lines = OUTPUT / 1000;
    let code =
        format!("import sys\nfor i in range({lines}):\n    sys.stdout.write('x' * 999 + '\\n')");
    let mut ours = Vec::new();
    for _ in 0..3 {
        let (took, lines) = run(client, id, &json!({ "code": code })).await;
        assert!(lines.len() > OUTPUT, "{} bytes", lines.len());
        ours.push(took);
    }
    let bare = floor(client, id, &format!("output {OUTPUT} 3")).await;
    Row::throughput(
        "output of lines ÷ Jupyter's client in the guest",
        OUTPUT,
        &ours,
        &bare,
        "≥ 0.8",
    )
}

/// Measures small outputs through the API.
async fn prints(client: &Client, id: &str) -> Row {
    let code = format!("for i in range({PRINTS}):\n    print(i, flush=True)");
    let mut ours = Vec::new();
    for _ in 0..3 {
        let (took, lines) = run(client, id, &json!({ "code": code })).await;
        assert!(lines.contains(&format!("{}\\n\"", PRINTS - 1)), "the last line is missing");
        ours.push(took);
    }
    let bare = floor(client, id, &format!("prints {PRINTS} 3")).await;
    let what = format!("{PRINTS} flushed prints ÷ Jupyter's client in the guest");
    Row::ratio(&what, &ours, &bare, "")
}

/// Measures the memory of many contexts with pandas in one guest.
async fn shared(client: &Client) -> Row {
    let id = client.create(&json!({ "template": TEMPLATE })).await;
    let contexts = format!("/v1/capsules/{id}/code/contexts");
    let before = used(client, &id).await;
    let mut ids = Vec::new();
    for _ in 0..CONTEXTS {
        let made = client.post(&contexts, &json!({})).await.expect(201);
        ids.push(made["id"].as_str().unwrap().to_owned());
    }
    for context in &ids {
        let code = "import pandas\npandas.DataFrame({'n': [1]}).n.sum()";
        run(client, &id, &json!({ "code": code, "context_id": context })).await;
    }
    let grown = used(client, &id).await.saturating_sub(before);
    let all = client.get(&contexts).await.expect(200);
    let idle = all["contexts"].as_array().unwrap().iter().filter(|one| one["state"] == "idle");
    assert!(idle.count() >= CONTEXTS, "{all}");
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    let what = format!("memory of {CONTEXTS} contexts with pandas, all alive");
    let mib = format!("{grown} MiB");
    Row::value(&what, &mib, "≤ 1024 MiB")
}

/// Returns the memory that programs of a guest use, in MiB, without caches.
async fn used(client: &Client, id: &str) -> u64 {
    let out = client.out(id, "free -m | awk '/^Mem:/ { print $2 - $7 }'").await;
    out.trim().parse().unwrap()
}
