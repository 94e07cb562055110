//! News of builds that change, for whoever runs or watches them. PostgreSQL announces each change,
//! and a listener that misses some looks at every build again.

use crate::db::listen::Change;
use tokio::sync::broadcast;
use types::BuildId;

/// Most changes that wait for a slow listener.
const WAITING: usize = 1024;

/// Changes of builds, as this replica hears of them.
pub(crate) struct BuildChanges(broadcast::Sender<Option<BuildId>>);

impl BuildChanges {
    pub(crate) fn new() -> Self {
        Self(broadcast::channel(WAITING).0)
    }

    /// Passes a change on to the listeners.
    pub(crate) fn apply(&self, change: &Change) {
        // Without a listener, nobody needs the news.
        match change {
            Change::Build(id) => drop(self.0.send(Some(*id))),
            Change::All => drop(self.0.send(None)),
            Change::Capsule(_)
            | Change::Key(_)
            | Change::Host(_)
            | Change::User(_)
            | Change::Session(_)
            | Change::Team(_)
            | Change::Events(_)
            | Change::Nothing => {}
        }
    }

    /// Listens for changes from now on.
    pub(crate) fn listen(&self) -> BuildListener {
        BuildListener(self.0.subscribe())
    }
}

/// A listener for changes of builds.
pub(crate) struct BuildListener(broadcast::Receiver<Option<BuildId>>);

impl BuildListener {
    /// Waits for a change. `None` means that any build may have changed.
    pub(crate) async fn next(&mut self) -> Option<BuildId> {
        match self.0.recv().await {
            Ok(change) => change,
            Err(broadcast::error::RecvError::Lagged(_)) => None,
            // The process ends, and its tasks with it.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn listener_hears_of_its_build_and_of_lost_news() {
        let (changes, id) = (BuildChanges::new(), BuildId::new());
        let mut listener = changes.listen();
        changes.apply(&Change::Nothing);
        changes.apply(&Change::Build(id));
        assert_eq!(listener.next().await, Some(id));
        changes.apply(&Change::All);
        assert_eq!(listener.next().await, None);
        for _ in 0..=WAITING {
            changes.apply(&Change::Build(id));
        }
        assert_eq!(listener.next().await, None);
    }
}
