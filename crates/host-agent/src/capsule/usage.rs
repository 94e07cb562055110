//! Room that a capsule takes on its host's disk, and the pure decision on its guest.
//! `disk_pressure` carries the decision out.

use crate::room::Level;
use std::time::{Duration, Instant};

/// Time between two attempts to thaw a guest.
pub(super) const AGAIN: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 2000 });

/// Room that a capsule takes on its host's disk.
#[derive(Default)]
pub(super) struct Usage {
    /// Bytes of its own disk at the last check; `None` while there is plenty of room.
    disk: Option<u64>,
    /// True while the guest stands still for want of room.
    pub waits: bool,
    /// True from before a freeze or an attempt to thaw until a thaw has succeeded.
    pub thaw_owed: bool,
    /// Earliest time of the next attempt to thaw the guest.
    next_thaw: Option<Instant>,
    /// Bytes on the host's disk that only its snapshots hold.
    pub snapshot_bytes: u64,
}

/// Action to take with a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Note the guest as waiting, since its VMM has stopped it.
    NoteWaiting,
    Freeze,
    Thaw,
}

impl Usage {
    /// Returns the usage of a capsule that begins to run and whose snapshots have `snapshot_bytes`
    /// bytes.
    pub(super) fn of(snapshot_bytes: u64) -> Self {
        Self { snapshot_bytes, ..Self::default() }
    }

    /// Decides on a running guest whose disk has `disk` bytes. Pure.
    pub(super) fn decide(
        &mut self,
        level: Level,
        disk: Option<u64>,
        stopped: bool,
        now: Instant,
    ) -> Action {
        let grows = self.disk.zip(disk).is_some_and(|(before, now)| now > before);
        self.disk = disk;
        let due = self.next_thaw.is_none_or(|at| at <= now);
        let room = matches!(level, Level::Plenty | Level::Enough);
        let thaws = if self.waits || stopped { room } else { self.thaw_owed };
        if thaws && due {
            self.next_thaw = Some(now + AGAIN);
            return Action::Thaw;
        }
        match (stopped, self.waits) {
            (_, true) => Action::Nothing,
            (true, false) => Action::NoteWaiting,
            (false, false) if level == Level::Low && grows => Action::Freeze,
            (false, false) => Action::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owed_thaw_is_due_unless_guest_waits_for_disk_space() {
        let (mut usage, now) = (Usage { thaw_owed: true, ..Usage::default() }, Instant::now());
        assert_eq!(usage.decide(Level::Low, Some(5), false, now), Action::Thaw);
        // A failed attempt clears nothing, and the next one comes after a pause.
        assert_eq!(usage.decide(Level::Low, Some(5), false, now), Action::Nothing);
        assert_eq!(usage.decide(Level::Low, Some(5), false, now + AGAIN), Action::Thaw);
        usage.waits = true;
        assert_eq!(usage.decide(Level::Low, Some(5), false, now + 2 * AGAIN), Action::Nothing);
        assert_eq!(usage.decide(Level::Plenty, None, false, now + 2 * AGAIN), Action::Thaw);
    }

    #[test]
    fn low_disk_space_freezes_only_guests_that_write() {
        let (mut writer, mut quiet, now) = (Usage::default(), Usage::default(), Instant::now());
        for level in [Level::Enough, Level::Scarce] {
            assert_eq!(writer.decide(level, Some(5), false, now), Action::Nothing);
            assert_eq!(quiet.decide(level, Some(5), false, now), Action::Nothing);
        }
        assert_eq!(writer.decide(Level::Low, Some(6), false, now), Action::Freeze);
        assert_eq!(quiet.decide(Level::Low, Some(5), false, now), Action::Nothing);
        writer.waits = true;
        assert_eq!(writer.decide(Level::Low, Some(7), false, now), Action::Nothing);
        assert_eq!(writer.decide(Level::Scarce, Some(7), false, now), Action::Nothing);
        assert_eq!(writer.decide(Level::Enough, Some(7), false, now), Action::Thaw);
    }

    #[test]
    fn guest_stopped_by_its_vmm_is_noted_and_thaw_is_retried() {
        let (mut usage, now) = (Usage::default(), Instant::now());
        assert_eq!(usage.decide(Level::Low, Some(5), true, now), Action::NoteWaiting);
        usage.waits = true;
        assert_eq!(usage.decide(Level::Low, Some(5), true, now), Action::Nothing);
        assert_eq!(usage.decide(Level::Plenty, None, true, now), Action::Thaw);
        // A full quota, for example, lets nothing be written although the disk has room.
        assert_eq!(usage.decide(Level::Plenty, None, true, now), Action::Nothing);
        assert_eq!(usage.decide(Level::Plenty, None, true, now + AGAIN), Action::Thaw);
    }
}
