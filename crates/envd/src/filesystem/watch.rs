//! Watches of directories, through inotify. Each watch has a thread of its own, which alone calls
//! the file system. Callers fetch events from a queue and never wait for a hanging file system.
//!
//! No event is lost silently. A watch ends with `resource_exhausted` when the kernel or a queue
//! cannot hold its events. A watch whose folder is gone ends with `not_found`. Either way it first
//! delivers the events before its end.

mod events;
mod queue;
mod thread;
mod tree;
mod watcher;

pub(crate) use events::{Change, Event, Events};

use crate::error::{Error, Result};
use crate::lock::lock;
use connectrpc::ErrorCode;
use queue::{Budget, Next, Queue};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};

/// Most watches at once. Each has a thread, and a hanging watch keeps its place.
const WATCHES_MAX: usize = 256;
/// Most polled watches, whose events wait to be fetched.
const POLLED_MAX: usize = 192;
/// Time without a fetch after which a polled watch gives way to a new one.
const POLLED_IDLE: Duration = Duration::from_secs(600);
/// Stack of a watch's thread, in bytes.
const STACK: usize = 256 * 1024;

/// A caller's options for a watch.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    pub recursive: bool,
    /// Set if each event describes the path that it names.
    pub include_entry: bool,
    /// Set if a network mount is allowed. Changes by other machines cannot be seen there.
    pub allow_network: bool,
}

/// A running watch. Its thread ends when the watch is dropped.
pub(crate) struct Watch {
    queue: Arc<Queue>,
}

impl Watch {
    /// Waits for events. Returns `None` once the watch has ended.
    pub(crate) async fn next(&self) -> Option<Events> {
        loop {
            match self.queue.next() {
                Next::Events(events) => return Some(events),
                Next::Ended => return None,
                Next::Nothing => self.queue.ready.notified().await,
            }
        }
    }

    /// Returns all events up to now. Waits for at most `limit` until the thread has read them.
    ///
    /// # Errors
    /// Returns the reason for the watch's end, once the events before it were returned. Returns
    /// `deadline_exceeded` when the thread is late.
    pub(crate) async fn fetch(&self, limit: Duration) -> Result<Vec<Events>> {
        let is_late = tokio::time::timeout(limit, self.queue.flush()).await.is_err();
        let events = self.queue.take();
        if !events.is_empty() {
            return Ok(events);
        }
        match self.queue.ended() {
            Some(error) => Err(error),
            None if is_late => Err(late(limit)),
            None => Ok(events),
        }
    }

    /// Returns the reason why the watch has ended.
    pub(crate) fn ended(&self) -> Option<Error> {
        self.queue.ended()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.queue.stop();
    }
}

/// A watch whose events wait to be fetched.
struct Polled {
    watch: Arc<Watch>,
    asked: Instant,
}

/// Count of all polled watches so far, and the remaining ones.
type Known = (u64, BTreeMap<String, Polled>);

/// The watches of a guest.
pub(crate) struct Watchers {
    places: Arc<Semaphore>,
    budget: Arc<Budget>,
    known: Mutex<Known>,
}

impl Default for Watchers {
    fn default() -> Self {
        let places = Arc::new(Semaphore::new(WATCHES_MAX));
        Self { places, budget: Arc::default(), known: Mutex::default() }
    }
}

impl Watchers {
    /// Begins a watch, and waits for at most `limit` until it runs. `locate` finds the folder on
    /// the watch's thread.
    ///
    /// # Errors
    /// Returns errors of the watch's beginning, `deadline_exceeded`, or `resource_exhausted` when
    /// there are too many watches.
    pub(crate) async fn start(
        &self,
        locate: impl FnOnce() -> Result<PathBuf> + Send + 'static,
        options: Options,
        limit: Duration,
    ) -> Result<Watch> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| too_many(WATCHES_MAX))?;
        let queue = Queue::new(Arc::clone(&self.budget));
        let queue = Arc::new(queue.map_err(|e| Error::io("watching", &e))?);
        let watch = Watch { queue: Arc::clone(&queue) };
        let (sender, begun) = oneshot::channel();
        let work = move || {
            let _place = place;
            thread::run(locate, options, &queue, sender);
        };
        let builder = std::thread::Builder::new().name("watch".to_owned()).stack_size(STACK);
        builder.spawn(work).map_err(|e| Error::io("watching", &e))?;
        match tokio::time::timeout(limit, begun).await {
            Ok(Ok(begun)) => begun.map(|()| watch),
            Ok(Err(_)) => Err(Error::internal("the watch's thread ended")),
            Err(_) => Err(late(limit)),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// Stores a polled watch and returns its name.
    ///
    /// # Errors
    /// Returns `resource_exhausted` when there are too many watches whose events are being fetched.
    pub(crate) fn insert(&self, watch: Watch) -> Result<String> {
        self.insert_at(watch, Instant::now())
    }

    fn insert_at(&self, watch: Watch, now: Instant) -> Result<String> {
        let mut known = self.known();
        if known.1.len() >= POLLED_MAX {
            let oldest = known.1.iter().min_by_key(|(_, polled)| polled.asked);
            let idle = oldest.filter(|(_, polled)| now.duration_since(polled.asked) >= POLLED_IDLE);
            let id = idle.map(|(id, _)| id.clone()).ok_or_else(|| too_many(POLLED_MAX))?;
            known.1.remove(&id);
        }
        known.0 += 1;
        let id = format!("w{}", known.0);
        known.1.insert(id.clone(), Polled { watch: Arc::new(watch), asked: now });
        Ok(id)
    }

    /// Finds a watch whose events a caller fetches.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Watch>> {
        let mut known = self.known();
        let polled = known.1.get_mut(id).ok_or_else(|| unknown(id))?;
        polled.asked = Instant::now();
        Ok(Arc::clone(&polled.watch))
    }

    /// Ends a watch.
    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        let removed = self.known().1.remove(id);
        removed.map(|_| ()).ok_or_else(|| unknown(id))
    }
}

fn unknown(id: &str) -> Error {
    Error::not_found(format!("watcher with id {id} not found"))
}

fn too_many(count: usize) -> Error {
    let message = format!("the capsule has {count} watchers already; remove unused ones");
    Error::new(ErrorCode::ResourceExhausted, message)
}

fn late(limit: Duration) -> Error {
    let message = format!("the watched file system did not answer within {limit:?}");
    Error::new(ErrorCode::DeadlineExceeded, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::LIMIT;
    use std::fs;
    use std::path::Path;
    use std::sync::mpsc;

    fn names(events: &[Events]) -> Vec<(String, Change)> {
        let all = events.iter().flat_map(Events::iter);
        all.map(|event| (event.name.to_owned(), event.change)).collect()
    }

    async fn start(watchers: &Watchers, root: &Path) -> Watch {
        let root = root.to_owned();
        watchers.start(move || Ok(root), Options::default(), LIMIT).await.unwrap()
    }

    /// Makes a watch without a thread.
    fn idle_watch(watchers: &Watchers) -> Watch {
        Watch { queue: Arc::new(Queue::new(Arc::clone(&watchers.budget)).unwrap()) }
    }

    #[tokio::test]
    async fn fetch_returns_events_that_happened_right_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let watchers = Watchers::default();
        let watch = start(&watchers, dir.path()).await;
        for n in 0..20 {
            let name = n.to_string();
            fs::File::create(dir.path().join(&name)).unwrap();
            assert_eq!(names(&watch.fetch(LIMIT).await.unwrap()), [(name, Change::Create)]);
        }
        assert!(watch.fetch(LIMIT).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn watch_of_removed_directory_reports_its_events_then_ends() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let watchers = Watchers::default();
        let watch = start(&watchers, &root).await;
        fs::File::create(root.join("f")).unwrap();
        // A program that stays in the folder keeps the kernel from reporting its removal.
        let held = fs::File::open(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        let first = names(&[watch.next().await.unwrap()]);
        assert_eq!(first[0], ("f".to_owned(), Change::Create));
        let error = loop {
            match watch.fetch(LIMIT).await {
                Ok(events) => assert!(names(&events).len() <= 1),
                Err(error) => break error,
            }
        };
        assert_eq!(error.code, ErrorCode::NotFound);
        assert_eq!(watch.ended().unwrap().message, error.message);
        drop(held);
    }

    #[tokio::test]
    async fn hanging_watch_start_times_out_and_keeps_its_permit() {
        let watchers = Watchers::default();
        let (release, hanging) = mpsc::channel::<()>();
        let hang = move || {
            let _ = hanging.recv();
            Err(Error::internal("released"))
        };
        let short = Duration::from_millis(10);
        let error = watchers.start(hang, Options::default(), short).await.err().unwrap();
        assert_eq!(error.code, ErrorCode::DeadlineExceeded);
        assert_eq!(watchers.places.available_permits(), WATCHES_MAX - 1);
        release.send(()).unwrap();
        let all = watchers.places.acquire_many(u32::try_from(WATCHES_MAX).unwrap());
        let all = tokio::time::timeout(LIMIT, all).await;
        assert!(all.is_ok());
    }

    #[tokio::test]
    async fn dropped_watch_ends_its_thread() {
        let dir = tempfile::tempdir().unwrap();
        let watchers = Watchers::default();
        drop(start(&watchers, dir.path()).await);
        let all = watchers.places.acquire_many(u32::try_from(WATCHES_MAX).unwrap());
        assert!(tokio::time::timeout(LIMIT, all).await.is_ok());
    }

    #[test]
    fn unpolled_watch_is_evicted_by_a_new_one() {
        let watchers = Watchers::default();
        let begin = Instant::now();
        let first = watchers.insert_at(idle_watch(&watchers), begin).unwrap();
        let soon = begin + Duration::from_secs(1);
        for _ in 1..POLLED_MAX {
            watchers.insert_at(idle_watch(&watchers), soon).unwrap();
        }
        let error = watchers.insert_at(idle_watch(&watchers), soon).unwrap_err();
        assert_eq!(error.code, ErrorCode::ResourceExhausted);
        assert!(watchers.known().1.contains_key(&first));
        watchers.insert_at(idle_watch(&watchers), begin + POLLED_IDLE).unwrap();
        assert_eq!(watchers.get(&first).err().unwrap().code, ErrorCode::NotFound);
        assert_eq!(watchers.known().1.len(), POLLED_MAX);
    }
}
