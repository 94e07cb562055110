//! Closed minutes on the disk, until the control plane has them.
//!
//! A batch is one file with a number for its name. A rename makes it appear whole. The files are the
//! whole state, so an agent that starts again goes on with those of the one before.

use super::history::MinuteRow;
use daemon::lock;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Most bytes of all batches. The oldest ones go first.
const BYTES_MAX: u64 = 64 << 20;
/// Bytes that even a small file takes on the disk.
const BLOCK: u64 = 4096;
/// Most rows of a batch, so that one answer to the control plane stays small.
const ROWS_MAX: usize = 2000;
/// Largest file that is read. A batch of the agent's own is smaller.
const FILE_MAX: u64 = 8 << 20;

/// Batches of minutes in a folder.
pub(super) struct Spool {
    dir: PathBuf,
    /// Number of the batch that was written last. The lock is held during each change.
    last: Mutex<u64>,
    bytes_max: u64,
}

impl Spool {
    /// Opens the folder of batches, and removes what an interrupted write left.
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "new") {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self { dir, last: Mutex::new(0), bytes_max: BYTES_MAX })
    }

    /// Writes rows durably. Drops the oldest batches above the limit, and counts them.
    pub(super) fn append(&self, rows: &[MinuteRow], now_ms: u64) -> io::Result<()> {
        let mut last = lock(&self.last);
        for batch in rows.chunks(ROWS_MAX) {
            let newest = self.batches()?.last().map_or(0, |(number, _)| *number);
            // No batch gets the number of an earlier one, which may yet be acknowledged.
            *last = now_ms.max(newest + 1).max(*last + 1);
            self.write(*last, batch)?;
        }
        self.trim()
    }

    fn write(&self, number: u64, rows: &[MinuteRow]) -> io::Result<()> {
        let path = self.path(number);
        let staged = path.with_extension("new");
        let mut file = File::create(&staged)?;
        file.write_all(&serde_json::to_vec(rows)?)?;
        file.sync_all()?;
        daemon::failpoint("stats.staged")?;
        fs::rename(&staged, path)?;
        File::open(&self.dir)?.sync_all()
    }

    /// Removes the oldest batches above the limit.
    fn trim(&self) -> io::Result<()> {
        let batches = self.batches()?;
        let mut bytes: u64 = batches.iter().map(|(_, bytes)| bytes).sum();
        for (number, size) in batches {
            if bytes <= self.bytes_max {
                break;
            }
            self.drop_batch(number, "the spool of stats is full")?;
            bytes -= size;
        }
        Ok(())
    }

    /// Removes a batch that nobody will get.
    fn drop_batch(&self, number: u64, why: &str) -> io::Result<()> {
        tracing::warn!(number, why, "dropped a batch of stats");
        metrics::counter!("wrenn_host_stats_dropped_total").increment(1);
        remove(&self.path(number))
    }

    /// Returns the oldest batch with its number; `None` when there is none. A batch that cannot be
    /// read is dropped.
    pub(super) fn oldest(&self) -> io::Result<Option<(u64, Vec<MinuteRow>)>> {
        let _held = lock(&self.last);
        for (number, bytes) in self.batches()? {
            let rows = match bytes {
                ..=FILE_MAX => serde_json::from_slice(&fs::read(self.path(number))?),
                _ => serde_json::from_slice(b""),
            };
            match rows {
                Ok(rows) => return Ok(Some((number, rows))),
                Err(_) => self.drop_batch(number, "the batch is damaged")?,
            }
        }
        Ok(None)
    }

    /// Removes a batch that the control plane has. An unknown number is success.
    pub(super) fn acknowledge(&self, number: u64) -> io::Result<()> {
        let _held = lock(&self.last);
        remove(&self.path(number))
    }

    /// Lists the batches in order, with their bytes on the disk.
    fn batches(&self) -> io::Result<Vec<(u64, u64)>> {
        let entries = fs::read_dir(&self.dir)?.flatten();
        let batch = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_suffix(".json")?.parse().ok()?;
            Some((number, entry.metadata().ok()?.len().max(BLOCK)))
        };
        let mut batches: Vec<(u64, u64)> = entries.filter_map(batch).collect();
        batches.sort_unstable();
        Ok(batches)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:020}.json"))
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::History;
    use super::super::history::tests::sample;
    use super::*;
    use types::CapsuleId;

    fn row(memory: u64) -> MinuteRow {
        let mut history = History::default();
        history.add(CapsuleId::new(), sample(1_700_000_040_000, memory));
        history.close(u64::MAX).unwrap()
    }

    fn memories(rows: &[MinuteRow]) -> Vec<u64> {
        rows.iter().map(|row| row.memory[0]).collect()
    }

    #[test]
    fn batches_come_in_order_and_again_until_they_are_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path().join("stats")).unwrap();
        assert!(spool.oldest().unwrap().is_none());
        spool.append(&[row(1), row(2)], 100).unwrap();
        // The clock went back, and the order stays.
        spool.append(&[row(3)], 50).unwrap();
        let (first, rows) = spool.oldest().unwrap().unwrap();
        assert_eq!((first, memories(&rows)), (100, vec![1, 2]));
        assert_eq!(spool.oldest().unwrap().unwrap().0, first);
        let again = Spool::open(dir.path().join("stats")).unwrap();
        again.acknowledge(first).unwrap();
        again.acknowledge(first).unwrap();
        let (second, rows) = again.oldest().unwrap().unwrap();
        assert_eq!((second, memories(&rows)), (101, vec![3]));
        again.acknowledge(second).unwrap();
        assert!(again.oldest().unwrap().is_none());
    }

    #[test]
    fn interrupted_write_and_damaged_batch_lose_no_other_batch() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path().to_owned()).unwrap();
        spool.append(&[row(1)], 100).unwrap();
        fs::write(dir.path().join("00000000000000000002.json"), b"[{\"capsule\":").unwrap();
        fs::write(dir.path().join("00000000000000000200.new"), b"[]").unwrap();
        fs::write(dir.path().join("unknown"), b"").unwrap();
        let spool = Spool::open(dir.path().to_owned()).unwrap();
        assert!(!dir.path().join("00000000000000000200.new").exists());
        let (number, rows) = spool.oldest().unwrap().unwrap();
        assert_eq!((number, memories(&rows)), (100, vec![1]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn oldest_batches_go_above_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool { bytes_max: 3 * BLOCK, ..Spool::open(dir.path().to_owned()).unwrap() };
        for n in 1..=5 {
            spool.append(&[row(n)], n).unwrap();
        }
        assert_eq!(memories(&spool.oldest().unwrap().unwrap().1), [3]);
        assert_eq!(spool.batches().unwrap().len(), 3);
    }

    #[test]
    fn rows_of_many_capsules_are_split_into_batches() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path().to_owned()).unwrap();
        let rows: Vec<MinuteRow> = (0..2001).map(row).collect();
        spool.append(&rows, 5).unwrap();
        let (number, first) = spool.oldest().unwrap().unwrap();
        assert_eq!((number, first.len()), (5, 2000));
        spool.acknowledge(number).unwrap();
        assert_eq!(memories(&spool.oldest().unwrap().unwrap().1), [2000]);
    }
}
