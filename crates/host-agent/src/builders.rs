//! Parts that the build engine hands to the capsules of its builds: the disks of a builder, and the
//! reader of a version's start and ready output. Both are in memory alone, since a build does not
//! outlive the agent.

use daemon::lock;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use types::BuildId;

/// Read-only disks of a builder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BuilderDisks {
    /// Image that is the first drive.
    pub image: PathBuf,
    /// Disks of the read-only drives after the builder's own disk, in order.
    pub read_only: Vec<PathBuf>,
}

/// Weight of a line of a build's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Debug,
    Info,
}

/// Reader of the lines that start and ready commands of a version cause.
pub(crate) trait StartLog: Send + Sync {
    /// Takes a line without its end. A line of the guest may hold any character but a newline.
    fn line(&self, level: Level, text: String);
}

/// A reader that drops all lines.
pub(crate) struct NoLog;

impl StartLog for NoLog {
    fn line(&self, _: Level, _: String) {}
}

/// Parts of the builds under way, by build.
#[derive(Default)]
pub(crate) struct Builders {
    disks: Mutex<HashMap<BuildId, BuilderDisks>>,
    logs: Mutex<HashMap<BuildId, Arc<dyn StartLog>>>,
}

impl Builders {
    /// Registers the disks of a build's builder, before the builder is created.
    pub(crate) fn set_disks(&self, build: BuildId, disks: BuilderDisks) {
        lock(&self.disks).insert(build, disks);
    }

    /// Registers the reader of a build's start and ready output, before the version's capsule is
    /// created.
    pub(crate) fn set_log(&self, build: BuildId, log: Arc<dyn StartLog>) {
        lock(&self.logs).insert(build, log);
    }

    /// Forgets everything about a build.
    pub(crate) fn forget(&self, build: BuildId) {
        lock(&self.disks).remove(&build);
        lock(&self.logs).remove(&build);
    }

    /// Returns the disks of a build's builder.
    pub(crate) fn disks(&self, build: BuildId) -> Option<BuilderDisks> {
        lock(&self.disks).get(&build).cloned()
    }

    /// Returns the reader of a build's start and ready output. Without a build, or for an unknown
    /// build, the lines are dropped.
    pub(crate) fn log(&self, build: Option<BuildId>) -> Arc<dyn StartLog> {
        let found = build.and_then(|build| lock(&self.logs).get(&build).cloned());
        found.unwrap_or_else(|| Arc::new(NoLog))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_build_are_found_until_it_is_forgotten() {
        let (builders, build) = (Builders::default(), BuildId::new());
        assert_eq!(builders.disks(build), None);
        let disks = BuilderDisks { image: "/i".into(), read_only: vec!["/a".into()] };
        builders.set_disks(build, disks.clone());
        builders.set_log(build, Arc::new(NoLog));
        assert_eq!(builders.disks(build), Some(disks));
        builders.forget(build);
        assert_eq!(builders.disks(build), None);
        builders.log(Some(build)).line(Level::Info, "dropped".to_owned());
    }
}
