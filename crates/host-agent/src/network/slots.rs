//! Numbers of networks that are in use. Pure.

use std::collections::BTreeSet;

/// A set of slot numbers. `take` goes round robin, so that a number rests before it returns.
#[derive(Debug)]
pub(crate) struct Slots {
    count: u32,
    next: u32,
    used: BTreeSet<u32>,
}

impl Slots {
    pub(crate) fn new(count: u32) -> Self {
        Self { count, next: 0, used: BTreeSet::new() }
    }

    pub(crate) fn take(&mut self) -> Option<u32> {
        for step in 0..self.count {
            let slot = (self.next + step) % self.count;
            if self.used.insert(slot) {
                self.next = (slot + 1) % self.count;
                return Some(slot);
            }
        }
        None
    }

    pub(crate) fn claim(&mut self, slot: u32) {
        self.used.insert(slot);
    }

    pub(crate) fn release(&mut self, slot: u32) {
        self.used.remove(&slot);
    }

    pub(crate) fn is_used(&self, slot: u32) -> bool {
        self.used.contains(&slot)
    }

    /// Counts the numbers that are not in use.
    pub(crate) fn free(&self) -> u32 {
        let used = u32::try_from(self.used.len()).unwrap_or(u32::MAX);
        self.count.saturating_sub(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slots_are_never_shared(steps in prop::collection::vec(any::<Option<u8>>(), 0..200)) {
            let mut slots = Slots::new(16);
            let mut held = BTreeSet::new();
            for step in steps {
                match step {
                    None => match slots.take() {
                        Some(slot) => prop_assert!(slot < 16 && held.insert(slot)),
                        None => prop_assert_eq!((held.len(), slots.free()), (16, 0)),
                    },
                    Some(slot) => {
                        slots.release(u32::from(slot % 16));
                        held.remove(&u32::from(slot % 16));
                    }
                }
            }
        }
    }
}
