//! Networks that are made ahead of creates. A create takes such a network, and only applies the
//! capsule's own rules in it. No guest is inside before, since the tap has no machine. So the rules
//! of a capsule without rules of its own are enough until then.
//!
//! A network that a capsule had never comes back here. The kernel may remember the capsule in its
//! tables of connections, neighbours and limits. Such a network is removed, and another one is
//! made. So every capsule gets a network that nobody used before.
//!
//! ```text
//!  make, one at a time ──▶ queue ──▶ take ──▶ the capsule's rules ──▶ its machine
//!     ▲                                │
//!     └────────── wake the task ───────┘
//! ```
//! The numbers of these networks count as used, and no record names them. So the next agent removes
//! the networks of an agent that died, like all networks without a capsule.

use super::{Error, Network, Networks};
use daemon::{Tasks, lock};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use types::Egress;

/// Divisor of the plan's numbers: networks may be made ahead for at most a quarter of them.
const SHARE: u32 = 4;
/// Delay before another attempt to make a network ahead, after a failure.
const AGAIN: Duration = Duration::from_secs(10);
/// Time limit for a create to wait for the network that is being made ahead.
const UNDER_WAY: Duration = Duration::from_secs(5);
/// Time limit for the removal of unused networks at the agent's end. The next agent removes the
/// rest.
const END: Duration = Duration::from_secs(3);

/// Networks that wait for capsules.
pub(super) struct ReadyNetworks {
    /// Most networks that wait at once.
    most: usize,
    queue: Mutex<Queue>,
    /// Lock that the maker holds while it makes a network.
    making: tokio::sync::Mutex<()>,
    /// Signal that a network was taken, or that a number became free.
    wanted: Notify,
}

#[derive(Default)]
struct Queue {
    networks: VecDeque<Network>,
    /// True once the agent ends. The queue then takes and gives nothing.
    closed: bool,
}

impl Queue {
    /// Updates the gauge of waiting networks.
    fn report(&self) {
        let count = u32::try_from(self.networks.len()).unwrap_or(u32::MAX);
        metrics::gauge!("wrenn_host_ready_networks").set(f64::from(count));
    }
}

impl ReadyNetworks {
    /// Returns an empty queue for at most `most` networks of a plan with `slots` numbers.
    pub(super) fn new(most: u32, slots: u32) -> Self {
        Self {
            most: usize::try_from(most.min(slots / SHARE)).unwrap_or(0),
            queue: Mutex::default(),
            making: tokio::sync::Mutex::default(),
            wanted: Notify::new(),
        }
    }

    /// Takes the network that waited longest; `None` when none waits.
    pub(super) fn take(&self) -> Option<Network> {
        let taken = {
            let mut queue = lock(&self.queue);
            let taken = queue.networks.pop_front();
            queue.report();
            taken
        };
        if taken.is_some() {
            self.wake();
        }
        taken
    }

    /// Takes a network once the one that is being made, if any, is ready. A plan without a free
    /// number may owe its last number to that network.
    pub(super) async fn take_under_way(&self) -> Option<Network> {
        let made = tokio::time::timeout(UNDER_WAY, self.making.lock()).await;
        drop(made);
        self.take()
    }

    /// Adds a network. Returns it when the queue is closed.
    fn put(&self, network: Network) -> Option<Network> {
        let mut queue = lock(&self.queue);
        if queue.closed {
            return Some(network);
        }
        queue.networks.push_back(network);
        queue.report();
        None
    }

    /// Counts the networks that wait.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(lock(&self.queue).networks.len()).unwrap_or(u32::MAX)
    }

    /// Reports whether another network may be made.
    fn is_short(&self) -> bool {
        let queue = lock(&self.queue);
        !queue.closed && queue.networks.len() < self.most
    }

    /// Closes the queue, and returns the networks that nobody took.
    fn close(&self) -> VecDeque<Network> {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        let left = std::mem::take(&mut queue.networks);
        queue.report();
        left
    }

    /// Has the maker look again.
    pub(super) fn wake(&self) {
        self.wanted.notify_one();
    }
}

/// The making of networks ahead.
impl Networks {
    /// Begins to make networks ahead, for as long as the agent runs. The numbers of all capsules
    /// that an earlier agent left must be claimed before.
    pub(crate) fn spawn_refill(self: &Arc<Self>, tasks: &Tasks) {
        if self.ready.most == 0 {
            return;
        }
        let (this, stop) = (Arc::clone(self), tasks.clone());
        tasks.spawn(async move {
            this.refill(&stop).await;
            this.remove_ready().await;
        });
    }

    /// Makes networks ahead, one at a time, until the agent ends. A network under way is completed,
    /// so no work is dropped halfway.
    async fn refill(self: &Arc<Self>, tasks: &Tasks) {
        while !tasks.stop_signal().is_triggered() {
            let failed = match self.make_ahead().await {
                Ok(true) => continue,
                Ok(false) => false,
                Err(error) => {
                    tracing::warn!(?error, "cannot make a network ahead");
                    true
                }
            };
            tokio::select! {
                () = tasks.stopping() => {}
                () = self.ready.wanted.notified(), if !failed => {}
                () = tokio::time::sleep(AGAIN), if failed => {}
            }
        }
    }

    /// Makes a network ahead. Returns false when enough networks wait, or no number is free.
    async fn make_ahead(self: &Arc<Self>) -> Result<bool, Error> {
        let _making = self.ready.making.lock().await;
        if !self.ready.is_short() {
            return Ok(false);
        }
        let Some(slot) = self.take_slot() else { return Ok(false) };
        let made = self.make(slot, &Egress::default()).await?;
        if let Some(unwanted) = self.ready.put(made) {
            self.discard_whole(unwanted).await;
        }
        Ok(true)
    }

    /// Removes the networks that nobody took.
    async fn remove_ready(self: &Arc<Self>) {
        let left = self.ready.close().into_iter();
        let removals = left.map(|network| self.discard_whole(network));
        if tokio::time::timeout(END, futures::future::join_all(removals)).await.is_err() {
            tracing::warn!("networks that were made ahead are left to the next agent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::namespace::Namespace;
    use crate::network::plan::Plan;
    use std::fs::File;
    use std::path::Path;

    /// Returns a network that has only a number. Its namespace is the test's own.
    fn network(slot: u32) -> Network {
        let namespace = Namespace::new(File::open("/proc/self/ns/net").unwrap());
        Network { slot, namespace, tap: None }
    }

    /// Returns the networks of a plan with eight numbers, two of which may be ready. The creation
    /// and the removal of each network fail, since a folder stands in the namespace's place.
    fn networks(dir: &Path, ready: u32) -> Arc<Networks> {
        for slot in 0..8 {
            std::fs::create_dir(dir.join(slot.to_string())).unwrap();
        }
        // An absolute path in place of an agent's tag puts the namespaces in this folder.
        let plan = Plan::new(dir.to_str().unwrap(), "198.18.0.0/28", &[]).unwrap();
        Networks::with_ready(plan, ready)
    }

    fn take_all(networks: &Networks) {
        while networks.take_slot().is_some() {}
    }

    #[test]
    fn ready_networks_are_bounded_by_setting_and_by_quarter_of_plan() {
        for (most, slots, wanted) in [(4, 32_768, 4), (4, 8, 2), (4, 2, 0), (0, 32_768, 0)] {
            let ready = ReadyNetworks::new(most, slots);
            let mut made = 0;
            while ready.is_short() {
                assert!(ready.put(network(made)).is_none());
                made += 1;
            }
            assert_eq!(made, wanted, "{most} of {slots}");
        }
    }

    #[test]
    fn closed_queue_returns_what_waits_and_takes_nothing() {
        let ready = ReadyNetworks::new(4, 64);
        for slot in [5, 6, 7] {
            assert!(ready.put(network(slot)).is_none());
        }
        assert_eq!(ready.take().map(|network| network.slot), Some(5));
        let left: Vec<u32> = ready.close().iter().map(|network| network.slot).collect();
        assert_eq!(left, [6, 7]);
        assert_eq!(ready.put(network(8)).map(|network| network.slot), Some(8));
        assert!(!ready.is_short() && ready.take().is_none());
    }

    #[tokio::test]
    async fn create_takes_ready_network_and_wakes_its_maker() {
        let dir = tempfile::tempdir().unwrap();
        let networks = networks(dir.path(), 2);
        assert!(networks.ready.put(network(3)).is_none());
        // The rules of a capsule without rules are those that the network has.
        let taken = networks.create(&Egress { revision: 9, ..Egress::default() }).await.unwrap();
        assert_eq!(taken.slot, 3);
        tokio::time::timeout(Duration::from_secs(20), networks.ready.wanted.notified())
            .await
            .expect("nobody makes another one");
    }

    #[tokio::test]
    async fn exhausted_plan_gives_up_ready_networks_before_it_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let networks = networks(dir.path(), 2);
        take_all(&networks);
        assert!(networks.ready.put(network(3)).is_none());
        assert_eq!(networks.create(&Egress::default()).await.unwrap().slot, 3);
        let full = networks.create(&Egress::default()).await.err().unwrap();
        assert!(matches!(full, Error::Full(8)), "{full:?}");
    }

    #[tokio::test]
    async fn create_on_exhausted_plan_waits_for_network_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let networks = networks(dir.path(), 2);
        take_all(&networks);
        let making = networks.ready.making.lock().await;
        let open = Egress::default();
        let maker = async {
            tokio::task::yield_now().await;
            assert!(networks.ready.put(network(6)).is_none());
            drop(making);
        };
        let (created, ()) = tokio::join!(networks.create(&open), maker);
        assert_eq!(created.unwrap().slot, 6);
    }

    #[tokio::test]
    async fn network_that_cannot_be_made_ahead_frees_its_slot() {
        let dir = tempfile::tempdir().unwrap();
        let networks = networks(dir.path(), 2);
        assert!(networks.make_ahead().await.is_err());
        assert!((0..8).all(|slot| !networks.is_used(slot)));
        assert!(networks.ready.is_short());
        take_all(&networks);
        assert!(!networks.make_ahead().await.unwrap(), "no number is free");
    }

    #[tokio::test]
    async fn ready_network_whose_rules_fail_is_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let networks = networks(dir.path(), 2);
        take_all(&networks);
        let broken = network(3);
        broken.namespace.close().await;
        assert!(networks.ready.put(broken).is_none());
        let deny = Egress { deny: vec!["0.0.0.0/0".parse().unwrap()], ..Egress::default() };
        // The number of the broken network is free again, and a network of that number is made.
        // This fails in this test.
        let failed = networks.create(&deny).await.err().unwrap();
        assert_eq!(failed.to_string(), "cannot create the capsule's network");
        assert!(!networks.is_used(3));
    }

    #[tokio::test]
    async fn end_of_agent_frees_ready_networks() {
        let dir = tempfile::tempdir().unwrap();
        let networks = networks(dir.path(), 2);
        let tasks = Tasks::default();
        assert!(networks.ready.put(network(networks.take_slot().unwrap())).is_none());
        assert!(networks.ready.put(network(networks.take_slot().unwrap())).is_none());
        networks.spawn_refill(&tasks);
        tasks.finish().await;
        assert!((0..8).all(|slot| !networks.is_used(slot)));
        assert!(networks.ready.take().is_none());
    }
}
