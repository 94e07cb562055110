//! Pools of a platform: networks and machines that wait for a create. A test's platform has none
//! unless the test asks for them, since most tests count the things of their capsules.

use crate::PATIENCE;
use crate::client::Client;
use crate::eventually;
use crate::guard::{machines_below, processes_of};
use crate::platform::{Platform, firecracker};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

/// Settings of a platform without pools.
const NO_POOLS: [(&str, &str); 2] =
    [("WRENN_READY_MEMORY_PERCENT", "0"), ("WRENN_READY_NETWORKS", "0")];

/// Settings of a platform with pools: room for three ready machines of 256 MiB, and two networks.
pub const POOLS: [(&str, &str); 3] = [
    ("WRENN_MEMORY_MIB", "4096"),
    ("WRENN_READY_MEMORY_PERCENT", "20"),
    ("WRENN_READY_NETWORKS", "2"),
];

/// Pause between looks at a platform that settles.
const LOOK: Duration = Duration::from_millis(50);

/// Makes a command of the product keep nothing ready. Later settings of the command win.
pub(crate) fn set_no_pools(command: &mut Command) {
    command.envs(NO_POOLS);
}

/// Machine that waits for a create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyMachine {
    /// Name of its folder, its process and its control group.
    pub name: String,
    /// Team whose creates may take the machine.
    pub team: String,
    /// Token that its guest expects until a create takes the machine.
    pub token: String,
}

impl ReadyMachine {
    /// Reads a record; `None` for a record of anything else than a waiting machine.
    fn of(name: String, record: &Value) -> Option<Self> {
        let waits = record["phase"] == "Starting" && record["machine"].is_object();
        let text = |field: &str| record[field].as_str().unwrap_or_default().to_owned();
        waits.then(|| Self { name, team: text("team"), token: text("envd_token") })
    }

    /// Returns the processes of the machine.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        processes_of(&self.name)
    }
}

impl Platform {
    /// Returns a client of the platform's own control plane, even when the suite runs with two.
    #[must_use]
    pub fn own_client(&self) -> Client {
        let said = std::fs::read_to_string(self.said()).unwrap();
        let url = said.lines().find_map(|line| Some(line.split_once("Wrenn serves ")?.1));
        self.client().at(url.expect("the platform tells its URL"))
    }

    /// Returns one of the platform's metrics, or 0 before its first value. A name without labels
    /// gives the sum over all labels.
    ///
    /// # Panics
    /// When the value is no whole number.
    pub async fn figure(&self, name: &str) -> usize {
        let figures = self.own_client().get("/metrics").await.expect(200);
        let lines = figures.as_str().unwrap().lines();
        let values = lines.filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{']).then(|| line.rsplit(' ').next().unwrap_or_default())
        });
        values.map(|value| value.parse::<usize>().unwrap()).sum()
    }

    /// Reads the record in a capsule's folder, or `Value::Null` when there is none.
    #[must_use]
    pub fn record(&self, name: &str) -> Value {
        let file = self.dir().join(format!("capsules/{name}/capsule.json"));
        let text = std::fs::read(file).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Returns the name of a capsule's machine. A machine that was ready before its capsule has a
    /// name of its own.
    #[must_use]
    pub fn machine_name(&self, capsule: &str) -> String {
        self.record(capsule)["name"].as_str().unwrap_or(capsule).to_owned()
    }

    /// Returns the processes of a capsule's machine.
    #[must_use]
    pub fn machine(&self, capsule: &str) -> Vec<i32> {
        processes_of(&self.machine_name(capsule))
    }

    /// Returns the machines that wait for a create, by their records. A create that is under way
    /// looks the same.
    #[must_use]
    pub fn ready_machines(&self) -> Vec<ReadyMachine> {
        let folders = std::fs::read_dir(self.dir().join("capsules")).into_iter().flatten();
        let names = folders.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| ReadyMachine::of(name.clone(), &self.record(&name))).collect()
    }

    /// Waits until at least `count` machines are ready and no other is in the making. No create
    /// may be under way.
    ///
    /// # Panics
    /// When the machines are not ready in time.
    pub async fn ready(&self, count: usize) -> Vec<ReadyMachine> {
        eventually(&format!("{count} machines are ready"), async || {
            let told = self.figure("wrenn_host_ready_capsules").await;
            let found = self.ready_machines();
            (told >= count && found.len() == told).then_some(found)
        })
        .await
    }

    /// Waits until a platform of real guests has only `capsules` running capsules and the ready
    /// things of its metrics.
    ///
    /// # Panics
    /// When something else is left. The message quotes the last look.
    pub async fn settles(&self, capsules: usize) {
        let limit = Instant::now() + PATIENCE;
        while let Some(seen) = self.excess(capsules).await {
            assert!(Instant::now() < limit, "more or less than {capsules} capsules: {seen}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Describes the difference between the expected and the existing things; `None` without one.
    async fn excess(&self, capsules: usize) -> Option<String> {
        let ready = self.figure("wrenn_host_ready_capsules").await;
        let networks = self.figure("wrenn_host_ready_networks").await;
        let (machines, there) = (capsules + ready, self.leftovers());
        // In a jail, nothing tells whose processes they are.
        let jailed = firecracker().is_some();
        let processes = if jailed { machines } else { machines_below(&self.dir()) };
        // A group exists once for each controller. Some machines of developers have no controller.
        let groups: BTreeSet<&String> = there.cgroups.iter().collect();
        let grouped = if groups.is_empty() { machines } else { groups.len() };
        let found = [there.folders.len(), processes, grouped];
        let wired = [there.namespaces.len(), there.links.len()];
        let is_exact = found == [machines; 3] && wired == [machines + networks; 2];
        let told = format!("{ready} machines and {networks} networks are ready");
        (!is_exact).then(|| format!("{told}, {processes} processes of machines, {there:?}"))
    }
}
