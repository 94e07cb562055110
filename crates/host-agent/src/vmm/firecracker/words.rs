//! What a machine writes and nobody may have waited for: it goes into a pipe with a name, which
//! the machine itself holds open, so that it never waits for a reader and lives on without one.
//! The last of it is kept, in memory and in a file for a later agent.

use super::jail;
use daemon::{Signal, Tasks};
use rustix::fs::{FileType, OFlags};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::unix::pipe;

/// Bytes that are kept.
const KEPT: usize = 64 * 1024;
/// Between two readings of one that is written to all the time.
const PAUSE: Duration = Duration::from_millis(50);

/// One of a machine's outputs; it is read for as long as this is there.
pub(super) struct Words {
    path: PathBuf,
    /// Owner of the pipe.
    uid: u32,
    last: Arc<Mutex<Last>>,
    end: Signal,
}

struct Last {
    pipe: File,
    words: Vec<u8>,
    file: PathBuf,
}

impl Words {
    /// Reads the pipe at `path`, which the user `uid` owns, from now on; the last of it is in
    /// `file` too.
    pub(super) fn open(path: &Path, file: PathBuf, uid: u32, tasks: &Tasks) -> io::Result<Self> {
        let pipe = open(path, uid)?;
        let receiver = pipe::Receiver::from_file(pipe.try_clone()?)?;
        let words = fs::read(&file).unwrap_or_default();
        let last = Arc::new(Mutex::new(Last { pipe, words, file }));
        let (end, of) = (Signal::default(), Arc::clone(&last));
        let ended = end.wait();
        tasks.spawn(async move {
            tokio::select! {
                () = follow(&receiver, &of) => {}
                () = ended => {}
            }
        });
        Ok(Self { path: path.to_owned(), uid, last, end })
    }

    /// For a process to write to.
    pub(super) fn writer(&self) -> io::Result<File> {
        open(&self.path, self.uid)
    }

    /// The last of what was written until now.
    pub(super) fn read(&self) -> Vec<u8> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.take();
        last.words.clone()
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        self.end.give();
    }
}

impl Last {
    /// Takes what is new out of the pipe.
    fn take(&mut self) {
        let mut new = vec![0; KEPT];
        // Its room is as much; whoever writes meanwhile is read the next time.
        let count = self.pipe.read(&mut new).unwrap_or(0);
        self.add(&new[..count]);
    }

    fn add(&mut self, new: &[u8]) {
        if new.is_empty() {
            return;
        }
        self.words.extend_from_slice(new);
        let over = self.words.len().saturating_sub(KEPT);
        self.words.drain(..over);
        if let Err(error) = fs::write(&self.file, &self.words) {
            tracing::warn!(%error, "keeping what a machine wrote");
        }
    }
}

async fn follow(receiver: &pipe::Receiver, last: &Mutex<Last>) {
    let mut new = vec![0; 4096];
    while receiver.readable().await.is_ok() {
        {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if let Ok(count) = receiver.try_read(&mut new) {
                last.add(&new[..count]);
            }
            last.take();
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Both ends at once: neither waits for the other, and it never ends.
pub(super) fn open(path: &Path, uid: u32) -> io::Result<File> {
    jail::open(path, OFlags::RDWR, FileType::Fifo, uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode};
    use std::io::Write;

    #[tokio::test]
    async fn the_last_words_are_kept_and_the_writer_never_waits() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("pipe"), dir.path().join("kept"));
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let (tasks, own) = (Tasks::default(), rustix::process::geteuid().as_raw());
        let words = Words::open(&path, file.clone(), own, &tasks).unwrap();
        let mut writer = words.writer().unwrap();
        writer.write_all(b"first ").unwrap();
        // Until it is full; nobody reads meanwhile.
        while writer.write(&[b'x'; 1000]).is_ok() {}
        tokio::time::sleep(PAUSE * 4).await;
        writer.write_all(b" last").unwrap();
        let read = words.read();
        assert!(read.len() <= KEPT && read.ends_with(b"x last"), "{}", read.len());
        drop(words);
        tasks.finish().await;
        let later = Words::open(&path, file, own, &Tasks::default()).unwrap();
        assert_eq!(later.read(), read);
        assert!(Words::open(&dir.path().join("kept"), path, own, &Tasks::default()).is_err());
    }
}
