//! The code interpreter in real guests of the template `code-interpreter`. The test builds it from
//! the packages in `target/code-interpreter`. The build and each machine take long under emulation,
//! so one test does everything. `tests/code` tests kernels on this machine.

mod copies;
mod death;
mod leftovers;
mod pauses;
mod privacy;

use reqwest::{Method, Response};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tests::{Client, Driver, Platform, Workshop};

const TEMPLATE: &str = "code-interpreter";
/// Time limit for a line. A keepalive comes each 5 s.
const LINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn code_interpreter_of_real_guests_keeps_its_promises() {
    // The folder of images is the test's own, as for all tests that build templates.
    let workshop = Workshop::start(Driver::Guests, &[]).await;
    let client = &workshop.client;
    build(&workshop.platform);
    let id = create(client).await;
    kernels_run_as_the_user_below_the_limits_of_programs(client, &id).await;
    privacy::port_is_closed_to_all_but_the_capsules_own(&workshop.platform, &id).await;
    copies::pristine_copies_draw_apart_and_seeds_hold(client).await;
    copies::execution_goes_on_over_pause_and_fork(client, &id).await;
    pauses::data_stays_over_pauses(client, &workshop.platform).await;
    leftovers::removed_contexts_leave_no_group(client).await;
    death::kernels_outlive_the_interpreter(client, &id).await;
    death::lack_of_memory_is_named(client, &id).await;
    let base = client.create(&json!({})).await;
    let refused = client.post(&format!("/v1/capsules/{base}/code"), &json!({ "code": "1" })).await;
    refused.refuses(409, "no_code_interpreter", "code interpreter");
    workshop.finish();
}

/// Builds the template by its name, as users do.
fn build(platform: &Platform) {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    assert!(packages.join(TEMPLATE).exists(), "run ./test, which fetches the packages");
    let mut command = platform.wrenn();
    command.args(["template", "build", TEMPLATE]).env("WRENN_CACHE_DIR", packages);
    let built = command.stdin(Stdio::null()).output().unwrap();
    let said = (String::from_utf8_lossy(&built.stdout), String::from_utf8_lossy(&built.stderr));
    assert!(built.status.success(), "{said:?}");
}

async fn create(client: &Client) -> String {
    let envs = json!({ "OWN": "the capsule's" });
    client.create(&json!({ "template": TEMPLATE, "envs": envs })).await
}

/// Begins an execution. Its stream may be read in part.
async fn begin(client: &Client, id: &str, body: &Value) -> Stream {
    let request = client.request(Method::POST, &format!("/v1/capsules/{id}/code")).json(body);
    Stream::new(request.send().await.unwrap()).await
}

/// Runs code to its end. Returns its lines.
async fn ran(client: &Client, id: &str, body: &Value) -> Vec<Value> {
    let (lines, whole) = begin(client, id, body).await.rest().await;
    assert!(whole, "{lines:?}");
    assert_eq!(lines.last().unwrap()["type"], "end_of_execution", "{lines:?}");
    lines
}

/// Returns the text of the last expression of Python.
async fn value(client: &Client, id: &str, code: &str) -> String {
    let lines = ran(client, id, &json!({ "code": code })).await;
    let result = lines.iter().find(|line| line["is_main_result"] == true);
    result.unwrap_or_else(|| panic!("{lines:?}"))["text"].as_str().unwrap().to_owned()
}

/// Returns the standard output in lines.
fn stdout(lines: &[Value]) -> String {
    let texts = lines.iter().filter(|line| line["type"] == "stdout");
    texts.map(|line| line["text"].as_str().unwrap()).collect()
}

/// A stream of an execution.
struct Stream {
    answer: Response,
    buffer: Vec<u8>,
    lines: Vec<Value>,
    /// Set at the end, to whether the stream had its last chunk.
    whole: Option<bool>,
}

impl Stream {
    async fn new(answer: Response) -> Self {
        if answer.status() != 200 {
            panic!("{}: {}", answer.status(), answer.text().await.unwrap());
        }
        Self { answer, buffer: Vec::new(), lines: Vec::new(), whole: None }
    }

    /// Attaches to an execution, after some lines.
    async fn attach(client: &Client, id: &str, execution: &str, after: usize) -> Self {
        let path = format!("/v1/capsules/{id}/code/executions/{execution}?after={after}");
        Self::new(client.request(Method::GET, &path).send().await.unwrap()).await
    }

    /// Reads more of the stream.
    async fn read(&mut self) {
        let chunk = tokio::time::timeout(LINE, self.answer.chunk()).await;
        match chunk.expect("nothing came in time") {
            Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
            Ok(None) => self.whole = Some(true),
            Err(_) => self.whole = Some(false),
        }
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line: Value = serde_json::from_slice(&line).unwrap();
            if line["type"] != "keepalive" {
                self.lines.push(line);
            }
        }
    }

    /// Reads until the standard output contains a text.
    async fn until(&mut self, text: &str) {
        while !stdout(&self.lines).contains(text) {
            assert!(self.whole.is_none(), "`{text}` did not come: {:?}", self.lines);
            self.read().await;
        }
    }

    /// Returns the id of the execution.
    fn id(&self) -> String {
        self.lines[0]["execution_id"].as_str().unwrap().to_owned()
    }

    /// Reads to the end. Returns the lines, and whether the stream had its last chunk.
    async fn rest(mut self) -> (Vec<Value>, bool) {
        while self.whole.is_none() {
            self.read().await;
        }
        (self.lines, self.whole.unwrap_or(false))
    }
}

async fn kernels_run_as_the_user_below_the_limits_of_programs(client: &Client, id: &str) {
    assert_eq!(value(client, id, "x = 41\nx + 1").await, "42");
    let code = "import getpass, os\ngetpass.getuser(), os.getcwd(), os.environ['OWN']";
    assert_eq!(value(client, id, code).await, "('user', '/home/user', \"the capsule's\")");
    let code = "open('/proc/self/oom_score_adj').read().strip(), \
        '/user/k-' in open('/proc/self/cgroup').read()";
    assert_eq!(value(client, id, code).await, "('100', True)");
    let own = "for p in $(pgrep -f '^/proc/self/exe interpreter'); do \
        sudo cat /proc/$p/oom_score_adj; grep -c user /proc/$p/cgroup; done; true";
    assert_eq!(client.out(id, own).await, "-900\n0\n");
    for (language, code) in [
        ("javascript", "console.log(process.env.OWN)"),
        ("typescript", "const own: string = process.env.OWN!; console.log(own)"),
        ("bash", "echo $OWN"),
    ] {
        let lines = ran(client, id, &json!({ "code": code, "language": language })).await;
        assert_eq!(stdout(&lines), "the capsule's\n", "{language}");
    }
    let code =
        "import pandas, matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.title('T')\nplt.show()";
    let lines = ran(client, id, &json!({ "code": code })).await;
    let shown = lines.iter().find(|line| line["type"] == "result").unwrap();
    assert_eq!((&shown["chart"]["type"], &shown["chart"]["title"]), (&json!("line"), &json!("T")));
    assert!(shown["png"].is_string());
    let contexts = client.get(&format!("/v1/capsules/{id}/code/contexts")).await.expect(200);
    let python = &contexts["contexts"][0];
    assert_eq!((&python["language"], &python["state"]), (&json!("python"), &json!("idle")));
    assert!(python["memory_bytes"].as_u64().unwrap() > 1 << 20, "{contexts}");
}
