//! The programs that callers can still name, by pid or by tag.

use super::Process;
use super::hub::Hub;
use super::log::Log;
use super::replay::Replay;
use crate::error::{Error, Result};
use crate::lock::lock;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Time after its end in which a program can still be attached to.
const REMEMBER: Duration = Duration::from_secs(30);
/// Ended programs whose output is kept, since processes that outlive them still write.
const LINGERING: usize = 64;
/// Ended programs whose pipes are still read. Each takes two of envd's descriptors.
const DRAINS: usize = 8192;

/// A caller's name for a program.
#[derive(Debug, Clone)]
pub(crate) enum Selector {
    Pid(u32),
    Tag(String),
}

/// Programs by pid.
#[derive(Clone)]
pub(crate) struct Registry {
    known: Arc<Mutex<BTreeMap<u32, Arc<Process>>>>,
    /// Programs that keep output after their end, the oldest first.
    lingering: Arc<Mutex<VecDeque<Weak<Hub>>>>,
    /// Bytes that the subscribers of all programs have not taken.
    behind: Arc<AtomicUsize>,
    /// Bytes that all terminals keep of their output.
    replays: Arc<AtomicUsize>,
    drains: Arc<Semaphore>,
    log: Arc<Log>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            known: Arc::default(),
            lingering: Arc::default(),
            behind: Arc::default(),
            replays: Arc::default(),
            drains: Arc::new(Semaphore::new(DRAINS)),
            log: Arc::default(),
        }
    }
}

impl Registry {
    /// Takes a place among the ended programs whose pipes are still read. Returns `None` when all
    /// places are taken.
    pub(super) fn drain(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.drains).try_acquire_owned().ok()
    }

    /// Returns the log of programs in the background.
    pub(crate) fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// Makes the hub of a program that starts.
    pub(super) fn hub(&self) -> Arc<Hub> {
        Arc::new(Hub::new(Arc::clone(&self.behind)))
    }

    /// Makes the hub of a program that starts on a terminal.
    pub(super) fn hub_of_terminal(&self) -> Arc<Hub> {
        let replay = Replay::new(Arc::clone(&self.replays));
        Arc::new(Hub::of_terminal(Arc::clone(&self.behind), replay))
    }

    pub(super) fn insert(&self, process: &Arc<Process>) {
        self.lock().insert(process.pid, Arc::clone(process));
    }

    /// Finds a program. Prefers a running program if several have the tag.
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

    /// Returns every running program, by pid.
    pub(crate) fn running(&self) -> Vec<Arc<Process>> {
        self.lock().values().filter(|p| !p.hub.ended()).cloned().collect()
    }

    /// Makes an ended program keep the output of processes that outlive it. Beyond the bound, the
    /// oldest such program drops its kept output.
    pub(super) fn linger(&self, hub: &Arc<Hub>) {
        hub.linger();
        let mut lingering = lock(&self.lingering);
        lingering.retain(|hub| hub.upgrade().is_some_and(|hub| hub.lingers()));
        if lingering.len() >= LINGERING
            && let Some(oldest) = lingering.pop_front().and_then(|hub| hub.upgrade())
        {
            oldest.forget();
        }
        lingering.push_back(Arc::downgrade(hub));
    }

    /// Forgets an ended program after a while, but not before its kept output is complete.
    pub(super) async fn forget_later(&self, process: Arc<Process>) {
        tokio::time::sleep(REMEMBER).await;
        process.hub.settled().await;
        let mut known = self.lock();
        // By then the pid may belong to another program.
        if known.get(&process.pid).is_some_and(|p| Arc::ptr_eq(p, &process)) {
            known.remove(&process.pid);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Process>>> {
        lock(&self.known)
    }
}

#[cfg(test)]
mod tests {
    use super::super::exit::Exit;
    use super::super::hub::{Event, Output};
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[tokio::test]
    async fn only_the_latest_ended_programs_keep_output() {
        let registry = Registry::default();
        let hubs: Vec<_> = (0..=LINGERING).map(|_| registry.hub()).collect();
        for hub in &hubs {
            hub.end(&Exit::from(Ok(std::process::ExitStatus::from_raw(0))));
            registry.linger(hub);
            hub.keep(Output::Stdout, b"x");
        }
        for (number, hub) in hubs.iter().enumerate() {
            let first = hub.subscribe().unwrap().next().await;
            let kept = matches!(first, Some(Ok(Event::Data(..))));
            assert_eq!((kept, hub.lingers()), (number > 0, number > 0), "{number}");
        }
    }
}
