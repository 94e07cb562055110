//! The clients of the proxy's benchmarks: wrk, curl and h2load, and their reports.

use std::process::Command;
use std::time::Duration;

/// Bytes of a small answer.
const SMALL: usize = 1024;

/// A base URL and the headers that requests to it carry.
pub(super) struct Way {
    url: String,
    headers: Vec<String>,
}

/// A client's report about many requests.
pub(super) struct Measured {
    /// Requests a second.
    pub rate: f64,
    /// The 99th of a hundred latencies, if the client tells it.
    pub p99: Option<Duration>,
    /// Requests without a good answer.
    pub failed: usize,
}

impl Way {
    pub(super) fn new(url: &str, headers: &[&str]) -> Self {
        let headers = headers.iter().map(|header| (*header).to_owned()).collect();
        Self { url: url.to_owned(), headers }
    }

    /// Returns the way to a port of this machine.
    pub(super) fn http(port: u16) -> Self {
        Self::new(&format!("http://127.0.0.1:{port}"), &[])
    }

    /// Returns the way to a port of this machine by TLS. Requests name `domain`.
    pub(super) fn https(domain: &str, port: u16) -> Self {
        Self::new(&format!("https://127.0.0.1:{port}"), &[&format!(":authority: {domain}:{port}")])
    }

    /// Runs a client against a path and returns its output.
    fn run(&self, program: &str, args: &[&str], path: &str) -> String {
        let mut command = Command::new(program);
        command.args(args);
        for header in &self.headers {
            command.args(["-H", header]);
        }
        let out = command.arg(format!("{}{path}", self.url)).output().unwrap();
        assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Checks that a request gets the upstream's answer.
    pub(super) fn check(&self) {
        let size = self.run("curl", &["-sSf", "-o", "/dev/null", "-w", "%{size_download}"], "/1k");
        assert_eq!(size, SMALL.to_string(), "{}", self.url);
    }

    /// Measures requests with 64 connections and answers of 1 KiB.
    pub(super) fn rate(&self) -> Measured {
        let out = self.run("wrk", &["-t1", "-c64", "-d3", "--latency"], "/1k");
        let rate = after(&out, "Requests/sec:").unwrap().parse().unwrap();
        let p99 = after(&out, "99%").map(time);
        Measured { rate, p99, failed: wrk_failures(&out) }
    }

    /// Measures requests by HTTP/2 with 4 connections of 16 streams and answers of 1 KiB.
    pub(super) fn h2_rate(&self) -> Measured {
        let out = self.run("h2load", &["-t1", "-c4", "-m16", "-D3"], "/1k");
        assert!(out.contains("Application protocol: h2"), "{out}");
        let line = after(&out, "finished in").unwrap();
        // `finished in 3.00s, 12345.67 req/s, 12.34MB/s`
        let rate = line.split(", ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let (data, good) = (h2load_data(&out), h2load_count(&out, "requests:", &["succeeded"]));
        assert!(data >= good * SMALL, "answers are too short: {out}");
        Measured { rate, p99: None, failed: h2load_failures(&out) }
    }

    /// Measures a request when one is under way at a time. Returns the median time and the 99th of
    /// a hundred.
    pub(super) fn latency(&self) -> (Duration, Duration) {
        let out = self.run("wrk", &["-t1", "-c1", "-d2", "--latency"], "/1k");
        assert_eq!(wrk_failures(&out), 0, "{out}");
        (time(after(&out, "50%").unwrap()), time(after(&out, "99%").unwrap()))
    }

    /// Measures the time of a large body.
    pub(super) fn large(&self) -> Duration {
        let out = self.run("curl", &["-sSf", "-o", "/dev/null", "-w", "%{time_total}"], "/large");
        Duration::from_secs_f64(out.parse().unwrap())
    }
}

/// Returns the rest of the line that begins with a word.
fn after<'a>(text: &'a str, begin: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim().strip_prefix(begin)).map(str::trim)
}

/// Reads a time of wrk, such as `812.00us` or `1.20ms`.
fn time(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.find(char::is_alphabetic).unwrap());
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        other => panic!("wrk has a unit `{other}`"),
    };
    Duration::from_secs_f64(number.parse::<f64>().unwrap() * scale)
}

/// Returns the numbers in a text.
fn numbers(text: &str) -> impl Iterator<Item = usize> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok())
}

/// Counts bad answers and broken connections in a report of wrk, which is silent about none.
fn wrk_failures(report: &str) -> usize {
    let lines = ["Non-2xx or 3xx responses:", "Socket errors:"];
    lines.iter().filter_map(|begin| after(report, begin)).flat_map(numbers).sum()
}

/// Sums counts with these names in a line of h2load's report, such as
/// `requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout`.
fn h2load_count(report: &str, line: &str, names: &[&str]) -> usize {
    let parts = after(report, line).unwrap_or_default().split(", ");
    let named = parts.filter_map(|part| part.split_once(' '));
    let named = named.filter(|(_, name)| names.contains(name));
    named.filter_map(|(count, _)| count.parse::<usize>().ok()).sum()
}

/// Counts failed requests and bad answers. A bad status is a failure to h2load too.
fn h2load_failures(report: &str) -> usize {
    let failed = h2load_count(report, "requests:", &["failed"]);
    failed.max(h2load_count(report, "status codes:", &["3xx", "4xx", "5xx"]))
}

/// Returns the bytes of all bodies, from the end of a line such as
/// `traffic: 2.10KB (2154) total, 40B (40) headers (space savings 90.00%), 2.00KB (2048) data`.
fn h2load_data(report: &str) -> usize {
    let parts = after(report, "traffic:").unwrap_or_default().split(", ");
    let data = parts.filter(|part| part.ends_with(" data")).last().unwrap_or_default();
    let bytes = data.split(['(', ')']).nth(1).unwrap_or_default();
    bytes.parse().unwrap_or(0)
}
