//! Machines that the host has beside its capsules: those that are made again after an upgrade, and
//! ready ones. Each has a lease on memory, which ends when a capsule needs that memory.

use daemon::lock;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

/// Leases of all machines in the background.
#[derive(Default)]
pub(super) struct Background(Mutex<Leases>);

#[derive(Default)]
struct Leases {
    /// Leases by number, from the oldest to the newest.
    held: BTreeMap<u64, Held>,
    next: u64,
}

struct Held {
    memory_mib: u64,
    token: CancellationToken,
}

/// Lease of one machine. Its holder drops it when the machine is gone, or belongs to a capsule.
pub(super) struct Lease {
    of: Arc<Background>,
    number: u64,
    token: CancellationToken,
}

impl Lease {
    /// Returns the token that is cancelled when the machine has to end.
    pub(super) fn token(&self) -> &CancellationToken {
        &self.token
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.of.lock().held.remove(&self.number);
    }
}

impl Background {
    /// Begins the lease of a machine of `memory_mib` MiB.
    pub(super) fn begin(self: &Arc<Self>, memory_mib: u64) -> Lease {
        let token = CancellationToken::new();
        let mut leases = self.lock();
        let number = leases.next;
        leases.next += 1;
        leases.held.insert(number, Held { memory_mib, token: token.clone() });
        Lease { of: Arc::clone(self), number, token }
    }

    /// Returns the MiB of memory of all machines in the background.
    pub(super) fn memory_mib(&self) -> u64 {
        self.lock().held.values().map(|held| held.memory_mib).sum()
    }

    /// Ends machines, the oldest first, until all others fit into `free_mib` MiB.
    pub(super) fn give_way(&self, free_mib: u64) {
        let leases = self.lock();
        let live = || leases.held.values().filter(|held| !held.token.is_cancelled());
        let mut used: u64 = live().map(|held| held.memory_mib).sum();
        for held in live() {
            if used <= free_mib {
                return;
            }
            used -= held.memory_mib;
            held.token.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Leases> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_machines_give_way_until_the_others_fit() {
        let background = Arc::<Background>::default();
        let leases = [100, 200, 300].map(|memory_mib| background.begin(memory_mib));
        let ended = || leases.each_ref().map(|lease| lease.token().is_cancelled());
        background.give_way(600);
        assert_eq!(ended(), [false; 3]);
        background.give_way(350);
        assert_eq!(ended(), [true, true, false]);
        // A machine that has to end counts until it is gone, and is not asked twice.
        assert_eq!(background.memory_mib(), 600);
        background.give_way(300);
        assert_eq!(ended(), [true, true, false]);
        drop(leases);
        assert_eq!(background.memory_mib(), 0);
        background.give_way(0);
    }
}
