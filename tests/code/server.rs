//! An interpreter of one test, on a free port and in a folder of its own. Its end kills everything
//! that it started.

use crate::outcome::{Execution, Outcome};
use reqwest::{Method, RequestBuilder, Response};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::free_port;

/// Time limit for the start.
const START: Duration = Duration::from_secs(90);
/// Time limit of a request up to the head of its answer.
const HEAD: Duration = Duration::from_secs(60);
/// Variable by which the test finds all processes of its interpreter.
const MARK: &str = "WRENN_TEST_CODE";

/// A running interpreter.
pub(crate) struct Server {
    dir: TempDir,
    port: u16,
    process: Child,
    http: reqwest::Client,
}

/// Returns the root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Returns a path that `./test` makes.
fn made(path: &str) -> String {
    let path = root().join(path);
    assert!(path.exists(), "{} is missing: run ./test, which makes it", path.display());
    path.display().to_string()
}

/// Returns the Python that the wheels are for.
fn python() -> &'static str {
    let is_fit = |name: &&str| {
        let version = Command::new(name).arg("--version").output();
        version.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).starts_with("Python 3.11."))
    };
    let found = ["/usr/bin/python3", "/usr/bin/python3.11", "/usr/local/bin/python3.11"]
        .into_iter()
        .find(is_fit);
    found.expect("Python 3.11 is missing, which the template's packages are for")
}

impl Server {
    /// Starts an interpreter with Python alone, and without libraries.
    pub(crate) async fn start() -> Self {
        Self::with(json!({})).await
    }

    /// Starts an interpreter with further settings. Folders of kernels are this repository's.
    pub(crate) async fn with(more: Value) -> Self {
        Self::launch(more, "").await
    }

    /// Starts an interpreter whose run folder is a file system of 1 MiB.
    pub(crate) async fn on_small_disk() -> Self {
        Self::launch(json!({}), "mount -t tmpfs -o size=1m none \"$1/run\"").await
    }

    /// Starts an interpreter after a shell's command, in a mount namespace of its own.
    async fn launch(more: Value, before: &str) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::Builder::new().prefix("wrenn-code-").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        std::fs::create_dir(dir.path().join("home")).unwrap();
        let settings = settings(dir.path(), more);
        std::fs::write(dir.path().join("settings.json"), settings.to_string()).unwrap();
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        let port = free_port();
        let process = spawn(dir.path(), port, before);
        let mut this = Self { dir, port, process, http };
        this.wait().await;
        this
    }

    /// Waits until the contexts of the start are up.
    async fn wait(&mut self) {
        let limit = Instant::now() + START;
        loop {
            let health = self.request(Method::GET, "/health").send().await;
            if health.is_ok_and(|answer| answer.status() == 200) {
                return;
            }
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "the interpreter ended: {ended:?}");
            assert!(Instant::now() < limit, "the interpreter is not ready in time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the interpreter by a signal. Its kernels live on.
    pub(crate) fn end(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
        self.process.wait().unwrap();
    }

    /// Starts the interpreter again.
    pub(crate) async fn resume(&mut self) {
        self.process = spawn(self.dir.path(), self.port, "");
        self.wait().await;
    }

    /// Path of a file in the test's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the most memory that the interpreter ever had, in MiB.
    pub(crate) fn peak_mib(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    /// Returns the number of the interpreter's process.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    /// Returns the processes that the interpreter has started and that live.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let own = self.pid();
        marked(self.dir.path()).into_iter().filter(|pid| *pid != own).collect()
    }

    /// Builds a request.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://127.0.0.1:{}{path}", self.port))
    }

    /// Sends a request without a body, and returns the head of the answer.
    pub(crate) async fn head(&self, method: Method, path: &str) -> Response {
        let sent = tokio::time::timeout(HEAD, self.request(method, path).send()).await;
        sent.expect("no answer came in time").unwrap()
    }

    /// Sends a request, and returns the status and the body.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let request = self.request(method, path).timeout(HEAD);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answer = request.send().await.unwrap();
        let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Returns the body of an answer with status 200.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// Makes a context. Returns its id.
    pub(crate) async fn context(&self, language: &str) -> String {
        let body = json!({ "language": language });
        let (status, made) = self.ask(Method::POST, "/contexts", Some(body)).await;
        assert_eq!(status, 200, "{made}");
        made["id"].as_str().unwrap().to_owned()
    }

    /// Begins an execution. Returns it with its first line read.
    pub(crate) async fn execute(&self, body: Value) -> Execution {
        let request = self.request(Method::POST, "/execute").json(&body).send();
        let answer = tokio::time::timeout(HEAD, request).await.expect("no head came").unwrap();
        assert_eq!(answer.status(), 200, "{body}");
        Execution::begin(answer).await
    }

    /// Runs code to its end.
    pub(crate) async fn ran(&self, body: Value) -> Outcome {
        self.execute(body).await.rest().await
    }

    /// Runs Python in the default context.
    pub(crate) async fn run(&self, code: &str) -> Outcome {
        self.ran(json!({ "code": code })).await
    }

    /// Runs code in the default context of a language.
    pub(crate) async fn run_in(&self, language: &str, code: &str) -> Outcome {
        self.ran(json!({ "code": code, "language": language })).await
    }

    /// Attaches to an execution. Returns the stream after some lines.
    pub(crate) async fn attach(&self, execution: &str, after: u64) -> Execution {
        let path = format!("/executions/{execution}?after={after}");
        let answer = self.head(Method::GET, &path).await;
        assert_eq!(answer.status(), 200, "{path}");
        Execution::attached(answer, execution)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // A process may fork while others die.
        for _ in 0..100 {
            let left = marked(self.dir.path());
            if left.is_empty() {
                return;
            }
            for pid in left.into_iter().filter_map(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Returns the settings of an interpreter in a folder.
fn settings(dir: &Path, more: Value) -> Value {
    let (package, site) =
        (made("images/code-interpreter/python"), made("target/code-interpreter/site"));
    let (node, host) =
        (made("target/code-interpreter/node/bin/node"), made("target/code-interpreter/host"));
    let path = format!("PYTHONPATH={package}:{site}");
    // The server gets no variables of the test, so its command sets them.
    let mark = format!("{MARK}={}", dir.display());
    let mut settings = json!({
        "cwd": dir.join("home"),
        "run": dir.join("run"),
        "warm": ["python"],
        "python": {
            "command": ["/usr/bin/env", path, mark, python(), "-m", "wrenn_kernel.server"],
            "path": package,
            "preload": [],
        },
        "node": { "command": [node, format!("{host}/host.mjs")] },
        "kernels": [],
    });
    let Value::Object(more) = more else { panic!("no object: {more}") };
    for (name, value) in more {
        match (&mut settings[&name], value) {
            (Value::Object(known), Value::Object(value)) => known.extend(value),
            (known, value) => *known = value,
        }
    }
    settings
}

fn spawn(dir: &Path, port: u16, before: &str) -> Child {
    let envd = made("target/debug/envd");
    let run = r#"exec "$2" interpreter --settings "$1/settings.json" --port "$3""#;
    let script = format!("set -e\n{before}\n{run}");
    let mut command = Command::new(if before.is_empty() { "sh" } else { "unshare" });
    if !before.is_empty() {
        command.args(["--mount", "--propagation", "private", "sh"]);
    }
    command.args(["-c", &script, "sh"]).arg(dir).arg(envd).arg(port.to_string());
    command.env_clear().env("HOME", dir.join("home")).env("LANG", "C.UTF-8").env(MARK, dir);
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().unwrap()
}

/// Returns the living processes that have the test's variable.
fn marked(dir: &Path) -> Vec<i32> {
    let wanted = format!("{MARK}={}", dir.display());
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let variables = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        variables.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    })
    .collect()
}
