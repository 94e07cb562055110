//! Lines of the start and ready commands of a version, which go to the log of the build that made it.

use super::events::Level;
use super::log::Log;
use crate::builders::{self, StartLog};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Line that ends a start. Lines of the guest have a mark before them, so none equals it.
const READY: &str = "Template is ready";

/// Log of a version's start.
pub(super) struct VersionLog {
    log: Arc<Log>,
    /// Time at which the build began.
    begun: Instant,
    has_begun: AtomicBool,
}

impl VersionLog {
    pub(super) fn new(log: Arc<Log>, begun: Instant) -> Self {
        Self { log, begun, has_begun: AtomicBool::new(false) }
    }
}

impl StartLog for VersionLog {
    fn line(&self, level: builders::Level, text: String) {
        if !self.has_begun.swap(true, Ordering::Relaxed) {
            self.log.phase("start");
        }
        let level = match level {
            builders::Level::Debug => Level::Debug,
            builders::Level::Info => Level::Info,
        };
        self.log.line(level, None, &text);
        if level == Level::Info && text == READY {
            note_finished(&self.log, self.begun);
        }
    }
}

/// Writes the last line of a build.
pub(super) fn note_finished(log: &Log, begun: Instant) {
    log.info(&format!("Build finished, took {}s", begun.elapsed().as_secs()));
}
