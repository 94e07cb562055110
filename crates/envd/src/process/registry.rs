//! The programs that callers can still name, by pid or by tag.

use super::Process;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long after its end a program can still be attached to.
const REMEMBER: Duration = Duration::from_secs(30);

/// How a caller names a program.
#[derive(Debug, Clone)]
pub(crate) enum Selector {
    Pid(u32),
    Tag(String),
}

/// Programs by pid.
#[derive(Clone, Default)]
pub(crate) struct Registry {
    known: Arc<Mutex<BTreeMap<u32, Arc<Process>>>>,
}

impl Registry {
    pub(super) fn insert(&self, process: &Arc<Process>) {
        self.lock().insert(process.pid, Arc::clone(process));
    }

    /// Finds a program; of several with one tag, one that runs is preferred.
    pub(crate) fn get(&self, selector: &Selector) -> Result<Arc<Process>> {
        let known = self.lock();
        let found = match selector {
            Selector::Pid(pid) => known.get(pid),
            Selector::Tag(tag) => {
                let tagged = || known.values().filter(|p| p.spec.tag.as_ref() == Some(tag));
                tagged().find(|p| !p.hub.ended()).or_else(|| tagged().next())
            }
        };
        found.cloned().ok_or_else(|| match selector {
            Selector::Pid(pid) => Error::not_found(format!("process with pid {pid} not found")),
            Selector::Tag(tag) => Error::not_found(format!("process with tag {tag} not found")),
        })
    }

    /// Every program that runs, by pid.
    pub(crate) fn running(&self) -> Vec<Arc<Process>> {
        self.lock().values().filter(|p| !p.hub.ended()).cloned().collect()
    }

    pub(super) fn forget_later(&self, process: Arc<Process>) {
        let registry = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(REMEMBER).await;
            let mut known = registry.lock();
            // By then the number may belong to another.
            if known.get(&process.pid).is_some_and(|p| Arc::ptr_eq(p, &process)) {
                known.remove(&process.pid);
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Process>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
