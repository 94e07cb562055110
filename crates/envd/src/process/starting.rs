//! The guard of a start under way. No child is lost while it starts.

use super::child::Child;
use crate::cgroup::Leaf;
use crate::guest::Guest;
use crate::sys::spawner::{Asked, Outcome};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Guard of a start under way. A drop kills the child with its group, and reaps the child. So a
/// start that takes too long, or whose caller has gone, leaves no unknown program.
pub(super) struct Starting {
    guest: Arc<Guest>,
    leaf: Option<Leaf>,
    /// The start's outcome to come. `None` once it has come.
    asked: Option<Asked>,
    /// Descriptors that the start copies.
    theirs: Vec<OwnedFd>,
}

impl Starting {
    pub(super) fn new(
        guest: &Arc<Guest>,
        leaf: Option<Leaf>,
        asked: Asked,
        theirs: Vec<OwnedFd>,
    ) -> Self {
        Self { guest: Arc::clone(guest), leaf, asked: Some(asked), theirs }
    }

    /// Waits for the outcome. Returns `None` when there will be none.
    pub(super) async fn outcome(&mut self) -> Option<Outcome> {
        let outcome = self.asked.as_mut()?.outcome().await;
        self.asked = None;
        outcome
    }

    /// Hands over the control group of a running program.
    pub(super) fn finish(mut self) -> Option<Leaf> {
        self.leaf.take()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let (leaf, theirs) = (self.leaf.take(), std::mem::take(&mut self.theirs));
        let guest = Arc::clone(&self.guest);
        if let Some(asked) = &self.asked {
            asked.cancel();
            if let Some(leaf) = &leaf {
                leaf.kill();
            }
        }
        let end = move || leaf.into_iter().for_each(|leaf| guest.cgroups.end(leaf));
        let Some(mut asked) = self.asked.take() else { return end() };
        tokio::spawn(async move {
            // Both the program's end and the outcome of the start may take as long as its file
            // system.
            if let Some(Outcome::Runs(pid)) = asked.outcome().await {
                let _ = Child::new(pid).wait().await;
            }
            drop(theirs);
            end();
        });
    }
}
