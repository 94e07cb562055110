//! Benchmarks of the platform against its floor. Prints a table.
//!
//! Both sides of a row are measured in turns in one run, so the machine's noise falls on both. A
//! row's figure is a ratio, or a difference, of medians. The run fails when anything is left over.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that cannot run says so")]

mod accounts;
mod attempt;
mod bare;
mod buildah;
mod burst;
mod clones;
mod code;
mod compare;
mod create;
mod creates;
mod description;
mod exec;
mod files;
mod firecracker;
mod fleet;
mod guests;
mod history;
mod idle;
mod images;
mod inside;
mod keep;
mod leftovers;
mod logs;
mod pools;
mod proxy;
mod rival;
mod stats;
mod table;
mod templates;

use compare::Counts;
use leftovers::Watch;
use serde_json::json;
use stats::Row;
use std::path::PathBuf;
use std::process::ExitCode;
use tests::Platform;

/// Groups that share a platform with real guests.
const SHARED: [&str; 5] = ["idle", "create", "keep", "exec", "files"];
/// First argument of a run that writes a report. The second argument names the file, which gets a
/// description of the machine and the results.
const REPORT: &str = "report";

#[tokio::main]
async fn main() -> ExitCode {
    let args = std::env::args().skip(1);
    let (counts, mut named): (Vec<String>, Vec<String>) =
        args.partition(|arg| arg.parse::<usize>().is_ok());
    let report = named.first().is_some_and(|first| first == REPORT);
    let report = report.then(|| named.drain(..2).nth(1).map(PathBuf::from)).flatten();
    let counts = Counts::of(&counts);
    let (watch, rows, compared) = (Watch::begin(), Vec::new(), String::new());
    let mut run = Run { named, counts, watch, rows, compared };
    // Idleness comes first, since a guest goes on writing to its disk for a while after its use.
    run.guests().await;
    run.hosts().await;
    run.compare().await;
    let mut results = run.results();
    if let Some(path) = report {
        results = format!("{}\n## Results\n\n{results}", description::markdown(&guests::driver()));
        std::fs::write(path, &results).unwrap();
    }
    println!("\n{results}");
    if run.watch.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A run of the named groups. Without names, the run has all groups but `listing` and `compare`.
struct Run {
    named: Vec<String>,
    /// Jobs of each runtime in the comparison.
    counts: Counts,
    watch: Watch,
    rows: Vec<Row>,
    /// Tables of the comparison, in Markdown.
    compared: String,
}

impl Run {
    /// Returns the tables and the summary of what was left.
    fn results(&self) -> String {
        let rows = if self.rows.is_empty() { String::new() } else { stats::markdown(&self.rows) };
        let all = [rows, self.compared.clone(), self.watch.summary()];
        all.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
    }

    fn wants(&self, name: &str) -> bool {
        self.named.is_empty() || self.asks(name)
    }

    /// Reports whether a group is named, as a group that takes long must be.
    fn asks(&self, name: &str) -> bool {
        self.named.iter().any(|one| one == name)
    }

    /// Runs the same job on several runtimes.
    async fn compare(&mut self) {
        if self.asks("compare") {
            self.compared = Box::pin(compare::measure(self.counts, &mut self.watch)).await;
        }
    }

    /// Keeps a group's rows, with the number of things that the group left on the machine.
    fn keep(&mut self, rows: Vec<Row>) {
        let left = self.watch.look();
        self.rows.extend(rows.into_iter().map(|row| row.left(left)));
    }

    /// Runs the groups that need real guests.
    async fn guests(&mut self) {
        if SHARED.into_iter().any(|name| self.wants(name)) {
            let rows = Box::pin(shared(|name| self.wants(name))).await;
            self.keep(rows);
        }
        if self.wants("creates") {
            let rows = Box::pin(creates::measure()).await;
            self.keep(rows);
        }
        if self.wants("clones") {
            let rows = Box::pin(clones::measure()).await;
            self.keep(rows);
        }
        if self.wants("burst") {
            let rows = Box::pin(burst::measure()).await;
            self.keep(rows);
        }
        if self.wants("templates") {
            let rows = Box::pin(templates::measure()).await;
            self.keep(rows);
        }
        if self.wants("code") {
            let rows = Box::pin(code::measure()).await;
            self.keep(rows);
        }
        if self.wants("jail") {
            self.keep(firecracker::jail());
        }
        if self.wants("firecracker") {
            let rows = Box::pin(firecracker::measure()).await;
            self.keep(rows);
        }
    }

    /// Runs the groups without guests.
    async fn hosts(&mut self) {
        if self.wants("proxy") {
            let rows = Box::pin(proxy::measure()).await;
            self.keep(rows);
        }
        if self.wants("admission") {
            let rows = Box::pin(accounts::admission()).await;
            self.keep(rows);
        }
        // The listing takes minutes and gigabytes.
        if self.asks("listing") {
            let rows = Box::pin(accounts::listing()).await;
            self.keep(rows);
        }
        if self.wants("images") {
            self.keep(images::measure());
        }
        if self.wants("history") {
            let rows = Box::pin(history::measure()).await;
            self.keep(rows);
        }
        if self.wants("logs") {
            let rows = Box::pin(logs::measure()).await;
            self.keep(rows);
        }
        if self.wants("fleet") {
            let rows = Box::pin(fleet::measure()).await;
            self.keep(rows);
        }
    }
}

/// Runs groups that share a platform, and a capsule that was booted.
async fn shared(wanted: impl Fn(&str) -> bool) -> Vec<Row> {
    let platform = guests::platform(&keep::POOLS.vars()).await;
    let client = platform.client();
    // No other capsule has this disk size, so this one is booted.
    let odd = 4000 + std::process::id() % 900;
    let made = client.post("/v1/capsules", &json!({ "disk_mib": odd })).await.expect(201);
    assert_eq!(made["booted"], true, "run it again: {made}");
    let id = made["id"].as_str().unwrap().to_owned();
    let rows = Box::pin(over(&platform, &id, wanted)).await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    platform.finish();
    rows
}

async fn over(platform: &Platform, id: &str, wanted: impl Fn(&str) -> bool) -> Vec<Row> {
    let mut rows = Vec::new();
    if wanted("idle") {
        rows.extend(idle::measure(platform, id).await);
    }
    if wanted("create") {
        rows.extend(create::measure(platform).await);
    }
    if wanted("keep") {
        rows.extend(keep::measure(platform, &bare::Bare::like(platform, id)).await);
    }
    if wanted("exec") {
        rows.push(exec::measure(platform, id).await);
    }
    if wanted("files") {
        rows.extend(files::measure(platform, id).await);
    }
    rows
}
