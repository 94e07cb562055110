//! The record of a capsule that outlives the agent: one small file in the capsule's folder, always
//! replaced as a whole. It is written before any other part of the capsule is made.

use super::lifetime::Lifetime;
use crate::log::LogMode;
use crate::snapshot::{Layers, System};
use crate::version::Version;
use crate::vmm::VmmRecord;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use types::resources::Resources;
use types::{BuildId, CapsuleId, Egress};

const FILE: &str = "capsule.json";
const STAGED: &str = "capsule.json.new";

/// Last step in a capsule's life that was written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Phase {
    /// The capsule is being made, and nobody was let in.
    Starting,
    /// The guest has its identity.
    Running,
    /// No machine exists; the last snapshot holds the whole capsule.
    Paused,
    /// A machine is being made from a snapshot, and nobody was let in.
    Resuming,
    /// The capsule's time is over, and its remains wait for removal.
    Expired,
}

/// Record of one capsule.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct CapsuleRecord {
    pub id: CapsuleId,
    pub generation: u64,
    /// Id of the team that owns the capsule.
    pub team: String,
    pub template: String,
    /// Version of the template that the capsule began from, with the guest's settings. `None` for a
    /// template of the operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Build whose steps the capsule runs; `None` for a capsule that is no builder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builds: Option<BuildId>,
    pub resources: Resources,
    pub envd_token: String,
    #[serde(default)]
    pub envs: BTreeMap<String, String>,
    /// Rules for the capsule's outgoing connections.
    #[serde(default)]
    pub egress: Egress,
    /// Name of the machine's process and control group, if it is not the capsule's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<CapsuleId>,
    /// Number of the capsule's network, once there is one.
    pub slot: Option<u32>,
    /// The capsule's machine, once it was started.
    pub machine: Option<VmmRecord>,
    pub phase: Phase,
    /// Number of the capsule's newest own snapshot, 0 for none. A newer snapshot on disk comes from
    /// a pause that completed without updating the record.
    pub last: u64,
    /// Number of the snapshot that the platform's store has, 0 for none.
    #[serde(default)]
    pub stored: u64,
    /// Name of the tree in the store; empty when the number alone names the tree.
    #[serde(default)]
    pub tree: String,
    /// Base layers of the machine's memory. Their files are in the capsule's folder.
    #[serde(rename = "began")]
    pub base_layers: Layers,
    /// Number of the machine's placeholder drives. Machines of earlier versions have none.
    #[serde(default)]
    pub placeholders: u8,
    /// Versions of the software that runs in the machine's memory.
    #[serde(default)]
    pub system: System,
    pub life: Lifetime,
    /// Output that the capsule's log has.
    #[serde(default)]
    pub logs: LogMode,
}

impl CapsuleRecord {
    /// Writes the record to the capsule's folder, durably.
    pub(crate) fn save(&self, dir: &Path) -> io::Result<()> {
        self.note(dir)?;
        File::open(dir)?.sync_all()
    }

    /// Writes the record to the capsule's folder, for the next agent process. A loss of power may
    /// bring the earlier record back, but no machine or network outlives such a loss.
    pub(crate) fn note(&self, dir: &Path) -> io::Result<()> {
        let staged = dir.join(STAGED);
        let mut file = File::options().write(true).create(true).truncate(true).open(&staged)?;
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o600))?;
        file.write_all(&serde_json::to_vec(self)?)?;
        // Without this, a loss of power could leave a file without contents under the name.
        file.sync_all()?;
        fs::rename(&staged, dir.join(FILE))
    }

    /// Returns the record of a capsule about which nothing is known.
    pub(crate) fn unknown() -> Self {
        Self::new(CapsuleId(uuid::Uuid::nil()))
    }

    /// Returns the record of a capsule of which no part exists. The caller adds the values of the
    /// command that makes the capsule.
    pub(crate) fn new(id: CapsuleId) -> Self {
        Self {
            id,
            generation: 0,
            team: String::new(),
            template: String::new(),
            version: None,
            builds: None,
            resources: Resources::default(),
            envd_token: String::new(),
            envs: BTreeMap::new(),
            egress: Egress::default(),
            name: None,
            slot: None,
            machine: None,
            phase: Phase::Starting,
            last: 0,
            stored: 0,
            tree: String::new(),
            base_layers: Layers::default(),
            placeholders: 0,
            system: System::default(),
            life: Lifetime::default(),
            logs: LogMode::default(),
        }
    }

    /// Returns the name of the machine's process and control group.
    pub(crate) fn name(&self) -> String {
        self.name.unwrap_or(self.id).to_string()
    }

    /// Takes over the machine of a ready capsule, with everything that it brought.
    pub(crate) fn take_machine(&mut self, ready: &Self) {
        self.name = Some(ready.name.unwrap_or(ready.id));
        (self.slot, self.machine) = (ready.slot, ready.machine.clone());
        (self.base_layers, self.system) = (ready.base_layers.clone(), ready.system.clone());
        self.placeholders = ready.placeholders;
    }

    /// Returns the name of the template's folder on the host.
    pub(crate) fn template_folder(&self) -> String {
        self.version.as_ref().map_or_else(|| self.template.clone(), |v| v.id.to_string())
    }

    /// Removes the record from a folder that is no capsule's.
    pub(crate) fn remove(dir: &Path) -> io::Result<()> {
        fs::remove_file(dir.join(FILE))
    }

    /// Reports whether a file of this name in a capsule's folder is the record.
    pub(crate) fn is_named(name: &OsStr) -> bool {
        name == FILE
    }

    /// Reports whether the folder has a record, readable or not.
    pub(crate) fn exists(dir: &Path) -> bool {
        dir.join(FILE).exists()
    }

    /// Reads the record from a capsule's folder; none when it is missing or unreadable.
    pub(crate) fn load(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capsule_record_round_trips_and_torn_record_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(CapsuleRecord::load(dir.path()), None);
        let record = CapsuleRecord {
            id: CapsuleId::new(),
            generation: 3,
            team: "team".into(),
            template: "base".into(),
            version: Some(crate::version::example(BuildId::new())),
            builds: None,
            resources: Resources::default(),
            envd_token: "t".into(),
            envs: BTreeMap::new(),
            egress: Egress { allow: vec!["x.org".parse().unwrap()], ..Egress::default() },
            name: Some(CapsuleId::new()),
            slot: Some(4),
            machine: None,
            phase: Phase::Starting,
            last: 0,
            stored: 0,
            tree: String::new(),
            base_layers: Layers::default(),
            placeholders: 2,
            system: System::default(),
            life: Lifetime::default(),
            logs: LogMode::All,
        };
        record.save(dir.path()).unwrap();
        assert_eq!(CapsuleRecord::load(dir.path()), Some(record.clone()));
        let noted = CapsuleRecord { slot: Some(5), ..record };
        noted.note(dir.path()).unwrap();
        assert_eq!(CapsuleRecord::load(dir.path()), Some(noted));
        fs::write(dir.path().join(FILE), b"{\"id\":").unwrap();
        assert_eq!(CapsuleRecord::load(dir.path()), None);
    }
}
