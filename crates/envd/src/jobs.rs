//! Threads for work that may block for ever.
//!
//! A guest's file system can hang, as when a FUSE server stops or nobody opens a named pipe. A
//! thread in such a call cannot be ended from outside. So the caller waits for a limited time, and
//! the number of such threads is bounded. The thread that serves never makes such a call itself.

use crate::error::{Error, Result};
use connectrpc::ErrorCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Time that a call may take, unless its caller has another limit.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// File system calls at once. A hanging call keeps its place until the kernel lets go.
const FILES: usize = 128;
/// Program starts at once. They have places of their own, so that hanging files do not hold them
/// up.
const STARTS: usize = 32;
/// Archives at once. A slow client holds its archive's place, so files have other places.
const ARCHIVES: usize = 32;
/// Reads of the guest's metrics, ports and processes, and writes of its metadata, at once. A guest
/// may cover their files with a mount that hangs, so program starts have other places.
const LOOKS: usize = 4;
/// Reads of processes' command lines at once. A process may hold up the read of its own for ever.
const COMMANDS: usize = 2;
/// Calls of the host at once. Neither hanging files nor hanging starts hold them up.
const HOST: usize = 8;
/// Writes of every file system's data at once. A hanging file system holds up the only place.
const SYNCS: usize = 1;
/// Time that a call waits for a place, so that a burst of short calls is served whole.
const QUEUE: Duration = Duration::from_secs(2);
/// Threads of the runtime's pool. Each place has a thread, so that no work waits in the pool's
/// queue.
pub(crate) const THREADS: usize = FILES + ARCHIVES + STARTS + LOOKS + COMMANDS + HOST + SYNCS;

/// Places for work that may block.
pub(crate) struct Jobs {
    /// Places for calls on a caller's path.
    pub files: Pool,
    /// Places for archives, each of which takes as long as its client.
    pub archives: Pool,
    /// Places for program starts.
    pub starts: Pool,
    /// Places for metrics, ports, processes and metadata of the guest.
    pub looks: Pool,
    /// Places for command lines of processes.
    pub commands: Pool,
    /// Places for the beginning and the end of an epoch, at the host's request.
    pub host: Pool,
    /// Place for the write of every file system's data, which waits for hanging file systems.
    pub syncs: Pool,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            files: Pool::new(FILES, "too many calls wait for a file system that does not answer"),
            archives: Pool::new(ARCHIVES, "too many archives are under way"),
            starts: Pool::new(STARTS, "too many programs are being started"),
            looks: Pool::new(LOOKS, "too many reads of statistics and ports are under way"),
            commands: Pool::new(COMMANDS, "too many reads of command lines are under way"),
            host: Pool::new(HOST, "too many calls of the host are under way"),
            syncs: Pool::new(SYNCS, "an earlier sync of all file systems is under way"),
        }
    }
}

/// A bounded number of places. Clones share them.
#[derive(Clone)]
pub(crate) struct Pool {
    places: Arc<Semaphore>,
    /// Reason that a caller is given when every place is taken.
    taken: &'static str,
}

impl Pool {
    fn new(places: usize, taken: &'static str) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), taken }
    }

    fn refusal(&self) -> Error {
        Error::new(ErrorCode::Unavailable, self.taken)
    }

    /// Takes a place for work that the caller itself runs on a thread.
    ///
    /// # Errors
    /// Returns `unavailable` when every place is taken.
    pub(crate) fn place(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| self.refusal())
    }

    /// Waits for a place, for at most [`QUEUE`].
    pub(crate) async fn free_place(&self) -> Result<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.places).acquire_owned();
        match tokio::time::timeout(QUEUE, place).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => Err(self.refusal()),
        }
    }

    /// Runs work whose end no caller awaits, such as the close of a file, once a place is free.
    /// Outside of a runtime, the caller's own thread runs it.
    pub(crate) fn later(&self, work: impl FnOnce() + Send + 'static) {
        let Ok(runtime) = Handle::try_current() else { return work() };
        let place = Arc::clone(&self.places).acquire_owned();
        runtime.spawn(async move {
            // The semaphore is never closed.
            if let Ok(place) = place.await {
                tokio::task::spawn_blocking(move || {
                    let _place = place;
                    work();
                });
            }
        });
    }

    /// Runs work on a thread and waits for at most `limit` for its end. Work that takes longer goes
    /// on and keeps its place. Its result is dropped.
    ///
    /// # Errors
    /// Returns `unavailable` when every place stays taken, and `deadline_exceeded` after `limit`.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let place = self.free_place().await?;
        let work = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        match tokio::time::timeout(limit, work).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => Err(Error::internal(error.to_string())),
            Err(_) => {
                let message = format!("the file system did not answer within {limit:?}");
                Err(Error::new(ErrorCode::DeadlineExceeded, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn hanging_job_times_out_its_caller_and_keeps_its_permit() {
        let pool = Pool::new(1, "taken");
        let (release, hanging) = mpsc::channel::<()>();
        let hang = move || {
            let _ = hanging.recv();
            Ok(())
        };
        let error = pool.run(Duration::from_millis(10), hang).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::DeadlineExceeded);
        let error = pool.run(LIMIT, || Ok(())).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unavailable);
        release.send(()).unwrap();
        let freed = async {
            while pool.place().is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LIMIT, freed).await.unwrap();
        assert_eq!(pool.run(LIMIT, || Ok(7)).await.unwrap(), 7);
    }

    #[test]
    fn full_pool_refuses_with_its_own_reason() {
        let jobs = Jobs::default();
        let pools = [
            &jobs.files,
            &jobs.archives,
            &jobs.starts,
            &jobs.looks,
            &jobs.commands,
            &jobs.host,
            &jobs.syncs,
        ];
        let refusals: Vec<String> = pools
            .map(|pool| {
                let _taken: Vec<_> = std::iter::from_fn(|| pool.place().ok()).collect();
                pool.place().unwrap_err().message
            })
            .into();
        let distinct = std::collections::HashSet::<&String>::from_iter(&refusals);
        assert_eq!(distinct.len(), refusals.len(), "{refusals:?}");
        // A slow client holds its archive's place, whatever the file system does.
        assert!(!refusals[1].contains("file system"), "{refusals:?}");
    }

    #[tokio::test]
    async fn deferred_job_waits_for_a_permit_off_the_serving_thread() {
        let pool = Pool::new(1, "taken");
        let place = pool.place().unwrap();
        let serving = std::thread::current().id();
        let (tell, told) = tokio::sync::oneshot::channel();
        pool.later(move || {
            let _ = tell.send(std::thread::current().id());
        });
        drop(place);
        let thread = tokio::time::timeout(LIMIT, told).await.unwrap().unwrap();
        assert_ne!(thread, serving);
    }

    #[tokio::test]
    async fn burst_of_short_jobs_beyond_the_permits_is_served_whole() {
        let pool = Pool::new(2, "taken");
        let calls = (0..100).map(|n| pool.run(LIMIT, move || Ok(n)));
        let done = futures::future::join_all(calls).await;
        assert!(done.into_iter().enumerate().all(|(n, done)| done.unwrap() == n));
    }
}
