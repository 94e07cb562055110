//! Output of a machine, read through a named pipe. The machine itself holds both ends open, so it
//! never waits for a reader and lives on without one. The end of the output is kept in memory, and
//! in a file for a later agent.

use super::files;
use crate::vmm::overwrite;
use daemon::{Signal, Tasks, blocking, lock};
use rustix::fs::{FileType, OFlags};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::Notify;

/// Most bytes of output that are kept.
const TAIL_MAX: usize = 64 * 1024;
/// Pause between two reads of a pipe that is written to all the time.
const PAUSE: Duration = Duration::from_millis(50);
/// Least time between two writes of the file.
const REST: Duration = Duration::from_secs(1);

/// Output of a machine, which is read until this is dropped.
pub(super) struct Output {
    path: PathBuf,
    /// Owner of the pipe.
    uid: u32,
    shared: Arc<Shared>,
    end: Signal,
}

/// State that the readers of the output share with the task that writes the file.
struct Shared {
    tail: Mutex<Tail>,
    /// Notifies the writing task that there may be new output.
    added: Notify,
    file: Mutex<File>,
}

struct Tail {
    pipe: File,
    bytes: Vec<u8>,
    /// Count of all bytes of the output.
    count: u64,
    /// True while the file lacks some of the output.
    unwritten: bool,
}

impl Output {
    /// Reads the pipe at `path`, which the user `uid` owns, from now on. `file` also keeps the end
    /// of the output.
    pub(super) fn open(path: &Path, file: &Path, uid: u32, tasks: &Tasks) -> io::Result<Self> {
        let pipe = open(path, uid)?;
        let receiver = pipe::Receiver::from_file(pipe.try_clone()?)?;
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(file)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let count = bytes.len() as u64;
        let tail = Mutex::new(Tail { pipe, bytes, count, unwritten: false });
        let shared = Arc::new(Shared { tail, added: Notify::new(), file: Mutex::new(file) });
        let (end, of) = (Signal::default(), Arc::clone(&shared));
        let ended = end.wait();
        tasks.spawn(async move {
            tokio::select! {
                () = follow(&receiver, &of) => {}
                () = write_now_and_then(&of) => {}
                () = ended => {}
            }
            write(&of).await;
        });
        Ok(Self { path: path.to_owned(), uid, shared, end })
    }

    /// Returns a file for a process to write to.
    pub(super) fn writer(&self) -> io::Result<File> {
        open(&self.path, self.uid)
    }

    /// Returns the end of the output until now.
    pub(super) fn read(&self) -> Vec<u8> {
        self.read_counted().0
    }

    /// Returns the end of the output until now, and the count of its bytes.
    pub(super) fn read_counted(&self) -> (Vec<u8>, u64) {
        let mut tail = self.shared.lock();
        tail.take();
        self.shared.added.notify_one();
        (tail.bytes.clone(), tail.count)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.end.trigger();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Tail> {
        lock(&self.tail)
    }

    /// Updates the file. A file that was removed is not made again.
    fn write(&self) -> io::Result<()> {
        // The file is locked before the output is read, so that no earlier output replaces later
        // output.
        let file = lock(&self.file);
        let bytes = {
            let mut tail = self.lock();
            if !std::mem::take(&mut tail.unwritten) {
                return Ok(());
            }
            tail.bytes.clone()
        };
        let written = overwrite(&file, &bytes);
        if written.is_err() {
            self.lock().unwritten = true;
        }
        written
    }
}

impl Tail {
    /// Reads new output from the pipe.
    fn take(&mut self) {
        let mut new = vec![0; TAIL_MAX];
        // The pipe holds as many bytes. Later output is read the next time.
        let count = self.pipe.read(&mut new).unwrap_or(0);
        self.add(&new[..count]);
    }

    fn add(&mut self, new: &[u8]) {
        if new.is_empty() {
            return;
        }
        self.bytes.extend_from_slice(new);
        self.count += new.len() as u64;
        let over = self.bytes.len().saturating_sub(TAIL_MAX);
        self.bytes.drain(..over);
        self.unwritten = true;
    }
}

async fn follow(receiver: &pipe::Receiver, shared: &Shared) {
    let mut new = vec![0; 4096];
    while receiver.readable().await.is_ok() {
        {
            let mut tail = shared.lock();
            if let Ok(count) = receiver.try_read(&mut new) {
                tail.add(&new[..count]);
            }
            tail.take();
        }
        shared.added.notify_one();
        tokio::time::sleep(PAUSE).await;
    }
}

async fn write_now_and_then(shared: &Arc<Shared>) {
    loop {
        shared.added.notified().await;
        write(shared).await;
        tokio::time::sleep(REST).await;
    }
}

async fn write(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    if let Err(error) = blocking(move || shared.write()).await {
        tracing::warn!(%error, "cannot store the output of a machine");
    }
}

/// Opens both ends of a pipe at once, so that neither waits for the other and the pipe never ends.
pub(super) fn open(path: &Path, uid: u32) -> io::Result<File> {
    files::open(path, OFlags::RDWR, FileType::Fifo, uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode};
    use std::collections::HashSet;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    use std::time::Instant;

    /// Makes a pipe in a folder, and reads it. The output is in the file `kept`.
    fn output(dir: &Path, tasks: &Tasks) -> (Output, PathBuf) {
        let (path, file) = (dir.join("pipe"), dir.join("kept"));
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let own = rustix::process::geteuid().as_raw();
        (Output::open(&path, &file, own, tasks).unwrap(), file)
    }

    #[tokio::test]
    async fn steady_output_is_flushed_once_a_second() {
        let (dir, tasks) = (tempfile::tempdir().unwrap(), Tasks::default());
        let (output, file) = output(dir.path(), &tasks);
        let mut writer = output.writer().unwrap();
        let (began, mut seen) = (Instant::now(), HashSet::new());
        for _ in 0..50 {
            writer.write_all(b"noise").unwrap();
            let found = fs::metadata(&file).ok();
            seen.extend(found.map(|found| (found.ino(), found.mtime(), found.mtime_nsec())));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The file has one time when it is made, and two for each write.
        let most = 1 + 2 * (began.elapsed().as_secs() + 1);
        assert!(u64::try_from(seen.len()).unwrap() <= most, "{seen:?}");
        let read = output.read();
        assert_eq!(read.len(), 50 * 5);
        drop(output);
        tasks.finish().await;
        assert_eq!(fs::read(file).unwrap(), read);
    }

    #[tokio::test]
    async fn removed_output_file_is_not_recreated() {
        let (dir, tasks) = (tempfile::tempdir().unwrap(), Tasks::default());
        fs::write(dir.path().join("kept"), "before ").unwrap();
        let (output, file) = output(dir.path(), &tasks);
        output.writer().unwrap().write_all(b"after").unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(output.read(), b"before after");
        drop(output);
        tasks.finish().await;
        assert!(!file.exists());
    }

    #[tokio::test]
    async fn output_tail_is_kept_and_writer_never_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("pipe"), dir.path().join("kept"));
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let (tasks, own) = (Tasks::default(), rustix::process::geteuid().as_raw());
        let output = Output::open(&path, &file, own, &tasks).unwrap();
        let mut writer = output.writer().unwrap();
        writer.write_all(b"first ").unwrap();
        // The pipe becomes full, since no task reads meanwhile.
        while writer.write(&[b'x'; 1000]).is_ok() {}
        tokio::time::sleep(PAUSE * 4).await;
        writer.write_all(b" last").unwrap();
        let read = output.read();
        assert!(read.len() <= TAIL_MAX && read.ends_with(b"x last"), "{}", read.len());
        drop(output);
        tasks.finish().await;
        let later = Output::open(&path, &file, own, &Tasks::default()).unwrap();
        assert_eq!(later.read(), read);
        assert!(Output::open(&file, &path, own, &Tasks::default()).is_err());
    }
}
