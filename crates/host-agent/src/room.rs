//! Room on the disk that holds the agent's folder: the reserve, the claims, and the ballast.
//!
//! A part of the disk, the reserve, is kept back for the database and for removals. A pause, a
//! snapshot, a create or a fetch first claims the most bytes that it may write. The claim is
//! refused when it would reach into the reserve. Guests write to sparse disks without asking;
//! `capsule/disk_pressure.rs` stops guests that take room while half of the reserve is gone. The
//! ballast is a file that holds some of the reserve physically. The agent deletes it when the disk
//! is full nevertheless, so that the database can write and removals are recorded.

use crate::storage;
use daemon::lock;
use rustix::fs::FallocateFlags;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The reserve is the disk's size divided by this figure.
const SHARE: u64 = 20;
/// Least and greatest reserve, in bytes.
const LEAST: u64 = 256 << 20;
const MOST: u64 = 1 << 30;
/// Size of the ballast, in bytes.
const BALLAST: u64 = 64 << 20;
/// Free bytes beside the reserve and the claims below which logs stop.
const SPARE: u64 = 64 << 20;
/// Free bytes below which a disk is full.
pub(crate) const FULL: u64 = 16 << 20;
const BALLAST_FILE: &str = "ballast";
/// Delay before another attempt to make a ballast after a failure.
const MAKE_AGAIN: Duration = Duration::from_secs(60);

/// Level of free room on the disk, which decides on guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// The reserve is untouched, and the guests' disks need no check.
    Plenty,
    /// The reserve is touched, and stopped guests run again.
    Enough,
    /// Guests stay as they are, running or stopped.
    Scarce,
    /// Guests whose disks grow are stopped.
    Low,
}

/// Decides on the level from the free bytes and the reserve. Pure.
fn level(free: u64, reserve: u64) -> Level {
    match free {
        free if free >= reserve => Level::Plenty,
        free if free >= reserve / 4 * 3 => Level::Enough,
        free if free >= reserve / 2 => Level::Scarce,
        _ => Level::Low,
    }
}

/// Returns the size of a disk's reserve, in bytes. Pure.
fn reserve(total: u64) -> u64 {
    (total / SHARE).clamp(LEAST, MOST)
}

/// The room on the disk of one agent.
pub(crate) struct Room {
    dir: PathBuf,
    /// True if a ballast is kept; drivers without machines need none.
    ballast: bool,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Bytes that are claimed and perhaps not written yet.
    claimed: u64,
    /// True when the disk was full at the last check.
    full: bool,
    /// Earliest time for another attempt to make a ballast; `None` after a successful attempt.
    make_after: Option<Instant>,
}

/// Refusal of a claim that would reach into the reserve.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoRoom(pub String);

/// Bytes that the holder may write; dropping the claim returns them. If a thread writes for a task
/// that may be dropped, the thread has to own the claim.
pub(crate) struct Claim {
    state: Arc<Mutex<State>>,
    bytes: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.state).claimed -= self.bytes;
    }
}

impl Room {
    pub(crate) fn new(dir: &Path, ballast: bool) -> Self {
        Self { dir: dir.to_owned(), ballast, state: Arc::default() }
    }

    /// Claims the most bytes that an operation may write.
    ///
    /// # Errors
    /// Fails when the bytes would reach into the reserve.
    pub(crate) fn claim(&self, bytes: u64) -> Result<Claim, NoRoom> {
        self.claim_of(bytes, || storage::capacity(&self.dir))
    }

    fn claim_of(&self, bytes: u64, capacity: impl FnOnce() -> (u64, u64)) -> Result<Claim, NoRoom> {
        let mut state = self.lock();
        // No claim ends while the lock is held. So bytes that were written under a claim are either
        // still claimed or no longer free.
        let (total, free) = capacity();
        let wanted = state.claimed.saturating_add(bytes);
        if free < reserve(total).saturating_add(wanted) {
            let (free, back) = (free >> 20, reserve(total) >> 20);
            let said =
                format!("the host's disk has {free} MiB free, of which {back} MiB are reserved");
            return Err(NoRoom(match wanted.div_ceil(1 << 20) {
                0 => said,
                most => format!("{said}, and up to {most} MiB would be written"),
            }));
        }
        state.claimed = wanted;
        Ok(Claim { state: Arc::clone(&self.state), bytes })
    }

    /// Reports whether the disk has room that nothing but logs would take. Logs stop before any
    /// claim is refused.
    pub(crate) fn has_spare(&self) -> bool {
        let (total, free) = storage::capacity(&self.dir);
        free >= reserve(total).saturating_add(self.lock().claimed).saturating_add(SPARE)
    }

    /// Reports whether the disk is full.
    pub(crate) fn is_full(&self) -> bool {
        storage::capacity(&self.dir).1 < FULL
    }

    /// Checks the disk. Deletes the ballast when the disk is full at two checks in a row, since a
    /// full disk may soon have room again. Makes the ballast again at [`Level::Plenty`].
    pub(crate) fn look(&self) -> Level {
        let (total, free) = storage::capacity(&self.dir);
        let level = level(free, reserve(total));
        let full = free < FULL;
        let was = std::mem::replace(&mut self.lock().full, full);
        let path = self.dir.join(BALLAST_FILE);
        if full && was && path.exists() {
            tracing::error!("the disk is full; deleting the ballast");
            delete_ballast(&self.dir);
        } else if self.ballast
            && level == Level::Plenty
            && !is_whole(&path)
            && self.begin_try(Instant::now())
        {
            // Claims need the lock, so the slow part runs without it.
            match make(&path) {
                Ok(()) => self.lock().make_after = None,
                Err(error) => tracing::warn!(%error, "cannot reserve room on the disk"),
            }
        }
        level
    }

    /// Reports whether an attempt to make the ballast is due, and puts off the next one.
    fn begin_try(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let due = state.make_after.is_none_or(|at| at <= now);
        if due {
            state.make_after = Some(now + MAKE_AGAIN);
        }
        due
    }

    /// Returns the bytes that are claimed.
    #[cfg(test)]
    pub(crate) fn claimed(&self) -> u64 {
        self.lock().claimed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn is_whole(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.len() == BALLAST)
}

fn make(path: &Path) -> io::Result<()> {
    let file = File::create(path)?;
    let made = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BALLAST);
    match made {
        Ok(()) => Ok(()),
        // A file system without `fallocate` reserves nothing; an empty file of that size marks
        // the attempt.
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(BALLAST),
        Err(error) => {
            let _ = fs::remove_file(path);
            Err(error.into())
        }
    }
}

/// Deletes the ballast of a folder; a missing ballast is success.
fn delete_ballast(dir: &Path) {
    match fs::remove_file(dir.join(BALLAST_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!(%error, "cannot delete the ballast");
        }
        _ => {}
    }
}

/// Reports whether the disk that holds `dir` is full. A disk of unknown size is not full.
#[must_use]
pub fn is_full(dir: &Path) -> bool {
    let (total, free) = storage::capacity(dir);
    total > 0 && free < FULL
}

/// Deletes an agent's ballast in `dir` if the disk is full. So the platform itself can write when
/// it starts.
pub fn make_room(dir: &Path) {
    if is_full(dir) && dir.join(BALLAST_FILE).exists() {
        tracing::error!("the disk is full; deleting the ballast");
        delete_ballast(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, OFlags};
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn guests_freeze_before_disk_is_full_and_thaw_at_a_higher_level() {
        let back = reserve(100 << 30);
        assert_eq!(back, MOST);
        assert_eq!(reserve(1700 << 20), LEAST);
        assert_eq!(level(back, back), Level::Plenty);
        assert_eq!(level(back - 1, back), Level::Enough);
        assert_eq!(level(back / 4 * 3 - 1, back), Level::Scarce);
        assert_eq!(level(back / 2, back), Level::Scarce);
        assert_eq!(level(back / 2 - 1, back), Level::Low);
        assert!(reserve(0) / 2 > FULL + BALLAST, "the ballast is a part of what guests leave");
    }

    #[test]
    fn disk_claims_add_up_and_are_released() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::new(dir.path(), true);
        let (total, free) = storage::capacity(dir.path());
        let most = free.saturating_sub(reserve(total));
        let Some(half) = (most / 2).checked_sub(64 << 20).filter(|half| *half > 256 << 20) else {
            return;
        };
        let first = room.claim(half).unwrap();
        let second = room.claim(half).unwrap();
        let refused = room.claim(half).err().map(|error| error.to_string());
        assert!(refused.unwrap().contains("are reserved"));
        drop(second);
        let third = room.claim(half).unwrap();
        drop((first, third));
        assert_eq!(room.claimed(), 0);
    }

    #[test]
    fn claim_reads_free_space_under_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::new(dir.path(), false);
        let capacity = || {
            assert!(room.state.try_lock().is_err(), "a claim can end after the room was read");
            (0, LEAST + 5)
        };
        let first = room.claim_of(4, capacity).unwrap();
        assert!(room.claim_of(2, capacity).is_err());
        drop(first);
        assert!(room.claim_of(2, capacity).is_ok());
    }

    #[test]
    fn claim_does_not_wait_for_ballast_creation() {
        let dir = tempfile::tempdir().unwrap();
        let (total, free) = storage::capacity(dir.path());
        if level(free, reserve(total)) != Level::Plenty {
            return;
        }
        // Opening a pipe to write waits for a reader.
        let path = dir.path().join(BALLAST_FILE);
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, mode, 0).unwrap();
        let room = Room::new(dir.path(), true);
        let begun = std::thread::scope(|scope| {
            let looks = scope.spawn(|| room.look());
            let begun = (0..5000).any(|_| {
                std::thread::sleep(Duration::from_millis(1));
                room.state.try_lock().is_ok_and(|state| state.make_after.is_some())
            });
            let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
            let _reader = File::options().read(true).custom_flags(flags).open(&path).unwrap();
            looks.join().unwrap();
            begun
        });
        assert!(begun, "the lock is held while the ballast is made");
    }

    #[test]
    fn ballast_allocates_blocks_and_is_deleted_idempotently() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(BALLAST_FILE);
        make(&path).unwrap();
        assert!(is_whole(&path));
        delete_ballast(dir.path());
        delete_ballast(dir.path());
        assert!(!path.exists());
    }
}
