//! A job on Wrenn and on the other runtimes that this machine has. The job starts a sandbox, runs
//! `true`, runs Python, and stops the sandbox.
//!
//! All have one root file system, the template `base`. Jobs run one after another, then all at
//! once. Each row names the isolation, since a shared kernel costs less than a machine.

mod bundle;
mod by_hand;
mod container;
mod firecracker;
mod job;
mod wrenn;

use crate::bare::Bare;
use crate::guests;
use crate::leftovers::Watch;
use crate::pools::Pools;
use crate::stats::{high, middle};
use crate::table;
use by_hand::ByHand;
use container::Containers;
use firecracker::Firecracker;
use job::{Outcome, Runtime};
use serde_json::json;
use std::time::Duration;
use wrenn::Wrenn;

/// Memory of each guest, and limit of each container, in MiB.
const MEMORY_MIB: u32 = 256;
const HEADS: [&str; 12] = [
    "runtime",
    "isolation",
    "jobs",
    "start and `true`",
    "p99",
    "Python",
    "p99",
    "stop",
    "p99",
    "all jobs",
    "failed",
    "left",
];

/// Numbers of jobs.
#[derive(Clone, Copy)]
pub(crate) struct Counts {
    in_turn: usize,
    /// Jobs at once, if the machine's memory holds them.
    at_once: usize,
}

impl Counts {
    /// Reads the counts from arguments. Each is 100 by default, and at least 1.
    pub(crate) fn of(args: &[String]) -> Self {
        let count = |at: usize| args.get(at).and_then(|arg| arg.parse().ok()).unwrap_or(100).max(1);
        Self { in_turn: count(0), at_once: count(1) }
    }
}

/// Tables of the comparison while it runs.
struct Tables<'a> {
    counts: Counts,
    watch: &'a mut Watch,
    in_turn: Vec<Vec<String>>,
    at_once: Vec<Vec<String>>,
    /// Runtimes that were not measured, with the reasons.
    notes: Vec<String>,
}

/// Runs the jobs on each runtime. Returns the tables in Markdown.
pub(crate) async fn measure(counts: Counts, watch: &mut Watch) -> String {
    let head = || vec![HEADS.map(str::to_owned).to_vec()];
    let mut tables = Tables { counts, watch, in_turn: head(), at_once: head(), notes: Vec::new() };
    let bare = prepare().await;
    let root = bundle::root(bare.image());
    // The images and the unpacked root stay until the end.
    tables.watch.accept();
    let firecracker = tests::firecracker();
    for driver in drivers(firecracker.is_some()) {
        tables.add(Ok(Box::new(Wrenn::launch(&driver).await)));
    }
    for find in [Containers::runc, Containers::runsc] {
        tables.add(find(&root).map(|found| Box::new(found) as Box<dyn Runtime>));
    }
    let none = "Firecracker by hand: WRENN_TEST_GUESTS does not choose a Firecracker that boots";
    tables.add(match firecracker {
        Some(path) => Ok(Box::new(Firecracker::new(path, &bare))),
        None => Err(none.to_owned()),
    });
    tables.add(Ok(Box::new(ByHand::new(bare, &qemu_driver()))));
    tables.markdown()
}

/// Returns the drivers by which Wrenn is measured.
fn drivers(has_firecracker: bool) -> Vec<String> {
    let mut drivers = vec![guests::driver()];
    if has_firecracker && drivers[0] != "firecracker" {
        drivers.push("firecracker".to_owned());
    }
    drivers
}

/// Returns the accelerator of QEMU by hand. Where Firecracker runs guests, there is KVM.
fn qemu_driver() -> String {
    let driver = guests::driver();
    if driver == "firecracker" { "kvm".to_owned() } else { driver }
}

/// Makes the images, and takes the parameters of a booted machine of QEMU.
async fn prepare() -> Bare {
    let platform = guests::platform_by(&qemu_driver(), &Pools::Off.vars()).await;
    let client = platform.client();
    // No other capsule has this disk size, so this one is booted.
    let odd = 4000 + std::process::id() % 900;
    let size = json!({ "memory_mib": MEMORY_MIB, "disk_mib": odd });
    let made = client.post("/v1/capsules", &size).await.expect(201);
    assert_eq!(made["booted"], true, "run it again: {made}");
    let id = made["id"].as_str().unwrap();
    let bare = Bare::like(&platform, id);
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    platform.finish();
    bare
}

impl Tables<'_> {
    /// Measures a runtime, or notes why it is not measured.
    fn add(&mut self, runtime: Result<Box<dyn Runtime>, String>) {
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(reason) => return self.notes.push(reason),
        };
        let (name, isolation) = (runtime.name(), runtime.isolation());
        println!("{name}: {} jobs one after another", self.counts.in_turn);
        let in_turn = job::in_turn(&*runtime, self.counts.in_turn);
        let held = job::held(runtime.need_mib());
        let count = self.counts.at_once.min(held);
        println!("{name}: {count} jobs at once; memory holds {held}");
        let at_once = job::at_once(&*runtime, count);
        runtime.end();
        let left = self.watch.look();
        self.in_turn.push(cells(&name, &isolation, &in_turn, left));
        self.at_once.push(cells(&name, &isolation, &at_once, left));
    }

    fn markdown(&self) -> String {
        let mut text = format!("### Jobs one after another\n\n{}", table::markdown(&self.in_turn));
        text += &format!("\n### Jobs at once\n\n{}", table::markdown(&self.at_once));
        for note in &self.notes {
            text += &format!("\nNot measured: {note}.\n");
        }
        text
    }
}

/// Returns the line of a runtime in one of the tables.
fn cells(name: &str, isolation: &str, outcome: &Outcome, left: usize) -> Vec<String> {
    let jobs = outcome.jobs.len() + outcome.failed;
    let mut cells = vec![name.to_owned(), isolation.to_owned(), jobs.to_string()];
    let first: Vec<Duration> = outcome.jobs.iter().map(|job| job.first).collect();
    let python: Vec<Duration> = outcome.jobs.iter().map(|job| job.python).collect();
    let stop: Vec<Duration> = outcome.jobs.iter().map(|job| job.stop).collect();
    for times in [first, python, stop] {
        cells.extend([middle(&times), high(&times)]);
    }
    cells.push(format!("{:.1} s", outcome.all.as_secs_f64()));
    cells.extend([outcome.failed.to_string(), left.to_string()]);
    cells
}
