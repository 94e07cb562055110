//! The state file: facts by which a later interpreter finds contexts and kernels again. Each change
//! writes a new file, and renames it over the earlier one. A file that cannot be read is as none.

use crate::kernel::Saved;
use crate::lock::lock;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Name of the file in the run folder.
const NAME: &str = "state.json";
/// Largest file that is read, in bytes.
const SIZE_MAX: u64 = 4 << 20;

/// Facts of one context.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub id: String,
    pub language: String,
    /// Folder as the caller gave it, and as an absolute path.
    pub cwd: String,
    pub folder: PathBuf,
    /// Set for the context that answers to its language's name.
    pub default: bool,
    pub pristine: bool,
    pub executions: u64,
    /// Id of the newest kernel, which names its sockets and its control group.
    pub kernel_id: String,
    /// `None` while no kernel runs.
    pub kernel: Option<Saved>,
    /// Id of the execution under way, whose run is the kernel's newest.
    pub running: Option<String>,
}

/// The state file and the contexts that it lists, in the order of their creation.
pub(crate) struct State {
    path: PathBuf,
    records: Mutex<Vec<Record>>,
}

impl State {
    /// Opens the state of a run folder. Returns the records of an earlier interpreter as well. They
    /// stay listed until each is replaced or removed.
    pub(crate) fn open(run: &Path) -> (Self, Vec<Record>) {
        let path = run.join(NAME);
        let found = read(&path).unwrap_or_default();
        (Self { path, records: Mutex::new(found.clone()) }, found)
    }

    pub(crate) fn insert(&self, record: Record) {
        let mut records = lock(&self.records);
        records.retain(|other| other.id != record.id);
        records.push(record);
        self.write(&records);
    }

    /// Changes a context's record, if the context is listed.
    pub(crate) fn update(&self, id: &str, change: impl FnOnce(&mut Record)) {
        let mut records = lock(&self.records);
        if let Some(record) = records.iter_mut().find(|record| record.id == id) {
            change(record);
            self.write(&records);
        }
    }

    pub(crate) fn remove(&self, id: &str) {
        let mut records = lock(&self.records);
        records.retain(|record| record.id != id);
        self.write(&records);
    }

    /// Writes the file. A full disk loses nothing but the chance to find kernels again.
    fn write(&self, records: &[Record]) {
        let _ = replace(&self.path, records);
    }
}

fn read(path: &Path) -> Option<Vec<Record>> {
    let size = std::fs::symlink_metadata(path).ok()?;
    if !size.is_file() || size.len() > SIZE_MAX {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn replace(path: &Path, records: &[Record]) -> io::Result<()> {
    let text = serde_json::to_vec(records)?;
    let fresh = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record {
            id: id.to_owned(),
            language: "python".to_owned(),
            cwd: "~".to_owned(),
            folder: PathBuf::from("/root"),
            default: true,
            pristine: true,
            executions: 0,
            kernel_id: String::new(),
            kernel: None,
            running: None,
        }
    }

    #[test]
    fn records_are_read_back_in_the_order_of_creation() {
        let dir = tempfile::tempdir().unwrap();
        let (state, found) = State::open(dir.path());
        assert!(found.is_empty());
        for id in ["b", "a", "c"] {
            state.insert(record(id));
        }
        let saved = r#"{"pid":3,"started":4,"group":null,"run":7,"driver":1}"#;
        state.update("a", |record| {
            record.kernel = serde_json::from_str(saved).ok();
            record.running = Some("e".to_owned());
        });
        state.update("missing", |record| record.executions = 9);
        state.remove("b");
        let (_, found) = State::open(dir.path());
        let ids: Vec<&str> = found.iter().map(|record| record.id.as_str()).collect();
        assert_eq!(ids, ["a", "c"]);
        assert_eq!(found[0].kernel.as_ref().unwrap().run, 7);
        assert_eq!(found[0].running.as_deref(), Some("e"));
        assert!(!dir.path().join("state.new").exists());
    }

    #[test]
    fn broken_file_is_as_none_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(NAME), "[{").unwrap();
        let (state, found) = State::open(dir.path());
        assert!(found.is_empty());
        state.insert(record("a"));
        assert_eq!(State::open(dir.path()).1.len(), 1);
    }

    #[test]
    fn full_disk_fails_no_change() {
        let (state, _) = State::open(Path::new("/nonexistent"));
        state.insert(record("a"));
        state.update("a", |record| assert_eq!(record.executions, 0));
    }
}
