//! Another server of E2B's wire, beside ours in the same run. Both run in guests of the platform
//! under measurement. Both get the same requests in turns, at port 49999 through the sandbox proxy.
//! The requests carry the traffic token as E2B's SDKs send it.
//!
//! `WRENN_BENCH_RIVAL` names a program that builds the template `rival`, whose start command is the
//! server. The program gets `E2B_API_URL`, `E2B_API_KEY` and the template's name, for E2B's SDK.

use super::{OUTPUT, PRINTS, TEMPLATE, used};
use crate::stats::{Row, say};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::{Client, Platform};

const NAME: &str = "rival";
const PORT: u16 = 49999;
/// Longest time of one request. A rival may lose the end of an execution and go on for ever.
const LIMIT: Duration = Duration::from_secs(600);
const CREATES: usize = 7;
const ROUNDS: usize = 40;
const STARTS: usize = 5;
const LARGE: usize = 3;
/// Contexts with pandas that share a guest.
const CONTEXTS: usize = 10;
const PANDAS: &str = "import pandas\npandas.DataFrame({'n': [1]}).n.sum()";

/// Our times and the rival's.
type Pair = [Vec<Duration>; 2];

/// Measures the rival beside ours, if one is named.
pub(super) async fn measure(platform: &Platform) -> Vec<Row> {
    let Some(program) = std::env::var_os("WRENN_BENCH_RIVAL") else { return Vec::new() };
    build(platform, &program);
    let mut rows = first(platform).await;
    let both = [Port::open(platform, TEMPLATE).await, Port::open(platform, NAME).await];
    let [ours, theirs] = in_turns(&both, ROUNDS, async |port: &Port| port.timed("1").await).await;
    rows.push(Row::ratio("later result of `1` ÷ the rival's", &ours, &theirs, ""));
    let [ours, theirs] = in_turns(&both, STARTS, async |port: &Port| port.start().await).await;
    rows.push(Row::ratio("new context with a first result ÷ the rival's", &ours, &theirs, ""));
    rows.extend(say(large(&both).await));
    for port in both {
        port.close().await;
    }
    rows.push(memory(platform).await);
    rows
}

/// Builds the rival's template by the named program.
fn build(platform: &Platform, program: &OsStr) {
    let mut command = Command::new(program);
    command.arg(NAME).env("E2B_API_URL", platform.url()).env("E2B_API_KEY", platform.key());
    let built = command.stdin(Stdio::null()).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

/// The code interpreter's port of a capsule, as E2B's SDKs reach it.
struct Port {
    owner: Client,
    /// Client without a key.
    public: Client,
    id: String,
    token: String,
}

/// An execution that has ended.
struct Seen {
    took: Duration,
    /// Bytes of standard output.
    output: usize,
    /// Set if the end came, and no error.
    whole: bool,
}

impl Port {
    /// Creates a capsule.
    async fn open(platform: &Platform, template: &str) -> Self {
        let (owner, public) = (platform.client(), platform.client_with(""));
        let id = owner.create(&json!({ "template": template })).await;
        let seen = owner.get(&format!("/v1/capsules/{id}/ports/80")).await.expect(200);
        let token = seen["traffic_token"].as_str().unwrap().to_owned();
        Self { owner, public, id, token }
    }

    async fn close(self) {
        self.owner.delete(&format!("/v1/capsules/{}", self.id)).await.expect(204);
    }

    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        let request = self.public.to_port(Method::POST, &self.id, PORT, path);
        request.header("e2b-traffic-access-token", &self.token).json(body).timeout(LIMIT)
    }

    /// Runs code to its end, or to the limit of time.
    async fn run(&self, body: &Value) -> Seen {
        let request = self.post("/execute", body);
        let begun = Instant::now();
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let lines = answer.text().await.unwrap_or_default();
        Seen::read(&lines, begun.elapsed())
    }

    /// Runs code that must end well. Returns its time.
    async fn timed(&self, code: &str) -> Duration {
        let seen = self.run(&json!({ "code": code })).await;
        assert!(seen.whole, "`{code}` failed in {}", self.id);
        seen.took
    }

    /// Makes a context. Returns its id.
    async fn context(&self) -> String {
        let made = self.public.send(self.post("/contexts", &json!({}))).await.expect(200);
        made["id"].as_str().unwrap().to_owned()
    }

    /// Makes a context up to its first result, and removes it. Returns the time of the first part.
    async fn start(&self) -> Duration {
        let begun = Instant::now();
        let context = self.context().await;
        let seen = self.run(&json!({ "code": "1", "context_id": context })).await;
        let took = begun.elapsed();
        assert!(seen.whole, "a new context failed in {}", self.id);
        let path = format!("/contexts/{context}");
        let gone = self.public.to_port(Method::DELETE, &self.id, PORT, &path);
        let gone = gone.header("e2b-traffic-access-token", &self.token);
        self.public.send(gone.timeout(LIMIT)).await.expect(200);
        took
    }
}

impl Seen {
    fn read(lines: &str, took: Duration) -> Self {
        let (mut output, mut whole) = (0, false);
        let mut failed = false;
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            match line["type"].as_str().unwrap_or_default() {
                "stdout" => output += line["text"].as_str().unwrap_or_default().len(),
                "error" => failed = true,
                "end_of_execution" => whole = true,
                _ => {}
            }
        }
        Self { took, output, whole: whole && !failed }
    }
}

/// Times some work of both in turns. The first round only warms caches.
async fn in_turns(both: &[Port; 2], rounds: usize, work: impl AsyncFn(&Port) -> Duration) -> Pair {
    let mut times = Pair::default();
    for round in 0..=rounds {
        for (port, kept) in both.iter().zip(&mut times) {
            let took = work(port).await;
            if round > 0 {
                kept.push(took);
            }
        }
    }
    times
}

/// Measures first results after creates.
async fn first(platform: &Platform) -> Vec<Row> {
    let (mut created, mut first) = (Pair::default(), Pair::default());
    // The first round only warms caches.
    for round in 0..=CREATES {
        for (at, template) in [TEMPLATE, NAME].into_iter().enumerate() {
            let begun = Instant::now();
            let port = Port::open(platform, template).await;
            let took = port.timed("1").await;
            let until_result = begun.elapsed();
            port.close().await;
            if round > 0 {
                created[at].push(until_result);
                first[at].push(took);
            }
        }
    }
    let ([ours, theirs], [one, other]) = (created, first);
    say(vec![
        Row::ratio("create to first result ÷ the rival's", &ours, &theirs, ""),
        Row::ratio("first result after create ÷ the rival's", &one, &other, ""),
    ])
}

/// Measures much output in lines, and many small outputs.
async fn large(both: &[Port; 2]) -> Vec<Row> {
    let lines = OUTPUT / 1000;
    let code =
        format!("import sys\nfor i in range({lines}):\n    sys.stdout.write('x' * 999 + '\\n')");
    let ([ours, theirs], lost) = outputs(both, &code, OUTPUT).await;
    let what = format!("output of lines ÷ the rival's{lost}");
    let output = Row::throughput(&what, OUTPUT, &ours, &theirs, "");
    let code = format!("for i in range({PRINTS}):\n    print(i, flush=True)");
    let bytes: usize = (0..PRINTS).map(|i| format!("{i}\n").len()).sum();
    let ([ours, theirs], lost) = outputs(both, &code, bytes).await;
    let what = format!("{PRINTS} flushed prints ÷ the rival's{lost}");
    vec![output, Row::ratio(&what, &ours, &theirs, "")]
}

/// Times an output of so many bytes. Adds a note if the rival has lost a part. Ours must be whole.
async fn outputs(both: &[Port; 2], code: &str, bytes: usize) -> (Pair, String) {
    let (mut times, mut lost) = (Pair::default(), 0);
    for _ in 0..LARGE {
        for (at, port) in both.iter().enumerate() {
            let seen = port.run(&json!({ "code": code })).await;
            let is_whole = seen.whole && seen.output == bytes;
            assert!(is_whole || at > 0, "{} of {bytes} bytes", seen.output);
            lost += usize::from(!is_whole);
            times[at].push(seen.took);
        }
    }
    let note = format!(" (it lost output in {lost} of {LARGE} rounds)");
    (times, if lost > 0 { note } else { String::new() })
}

/// Measures the memory of contexts with pandas in one guest of either.
async fn memory(platform: &Platform) -> Row {
    let (ours, theirs) = (grown(platform, TEMPLATE).await, grown(platform, NAME).await);
    let what = format!("memory of {CONTEXTS} contexts with pandas ÷ the rival's");
    let ratio = format!("{:.2}", ours as f64 / theirs as f64);
    Row::new(&what, &format!("{ours} MiB"), &format!("{theirs} MiB"), &ratio, "")
}

/// Returns the memory in MiB that the contexts of one guest take.
async fn grown(platform: &Platform, template: &str) -> u64 {
    let port = Port::open(platform, template).await;
    let before = used(&port.owner, &port.id).await;
    for _ in 0..CONTEXTS {
        let context = port.context().await;
        let seen = port.run(&json!({ "code": PANDAS, "context_id": context })).await;
        assert!(seen.whole, "pandas failed in {}", port.id);
    }
    let grown = used(&port.owner, &port.id).await.saturating_sub(before);
    port.close().await;
    grown
}
