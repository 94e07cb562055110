//! Tests of reads that wait, of segments in the store, and of erasures.

use super::*;
use crate::capsule::logs::{LifecycleEvent, note, upkeep};
use crate::context::AgentContext;
use crate::log::{CapsuleLog, Entry};
use crate::vmm::null::NullDriver;
use std::path::Path;
use store::Store;

fn host(dir: &Path, store: Option<&Path>) -> Host {
    let context = AgentContext::for_tests(dir, Box::new(NullDriver { port: 1 }));
    let stored = store.map(|store| {
        let store = Store::open(store.to_str().unwrap(), Some([7; 32]), std::iter::empty());
        Arc::new(Stored::new(store.unwrap(), dir.join("sending")).unwrap())
    });
    Host::new(Arc::new(context), stored)
}

/// Adds a line if the disk has room for logs; false on a machine whose disk has none.
async fn add(host: &Host, log: &Arc<CapsuleLog>, event: LifecycleEvent) -> bool {
    note(host, log, &event).await;
    host.context.room.has_spare()
}

fn all() -> Query {
    Query { limit: 1000, ..Query::default() }
}

fn streams(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.stream.as_str()).collect()
}

#[tokio::test]
async fn read_waits_for_a_line_that_it_looks_for() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), None);
    let id = CapsuleId::new();
    let log = host.context.logs.open("team", id).unwrap();
    if !add(&host, &log, LifecycleEvent::Created).await {
        return;
    }
    let first = read(&host, "team", id, all(), Duration::from_secs(20)).await.unwrap();
    assert_eq!(streams(&first.entries), ["create"]);
    let later = Query { cursor: first.cursor, search: "paused".to_owned(), ..all() };
    let reads = read(&host, "team", id, later, Duration::from_secs(20));
    let writes = async {
        note(&host, &log, &LifecycleEvent::Resumed).await;
        note(&host, &log, &LifecycleEvent::Paused).await;
    };
    let (found, ()) = tokio::join!(reads, writes);
    assert_eq!(streams(&found.unwrap().entries), ["pause"]);
    let other = read(&host, "other", id, all(), Duration::ZERO).await.unwrap();
    assert_eq!(other, Page::default(), "another team reads the log");
    let unknown = read(&host, "../team", id, all(), Duration::ZERO).await.unwrap();
    assert_eq!(unknown, Page::default());
}

#[tokio::test]
async fn log_goes_on_at_another_host_and_is_erased_everywhere() {
    let [here, there, store] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let first = host(here.path(), Some(store.path()));
    let second = host(there.path(), Some(store.path()));
    let id = CapsuleId::new();
    let log = first.context.logs.open("team", id).unwrap();
    if !add(&first, &log, LifecycleEvent::Created).await {
        return;
    }
    note(&first, &log, &LifecycleEvent::Paused).await;
    log.close().unwrap();
    let stored = first.stored.clone().unwrap();
    for segment in first.context.logs.pending().unsent {
        upkeep::send(&first, &stored, &segment).await.unwrap();
    }
    assert!(first.context.logs.pending().unsent.is_empty(), "a sent segment is sent again");
    let log = second.context.logs.open("team", id).unwrap();
    note(&second, &log, &LifecycleEvent::Resumed).await;
    let page = read(&second, "team", id, all(), Duration::ZERO).await.unwrap();
    assert_eq!(streams(&page.entries), ["create", "pause", "resume"]);
    assert!(page.entries.is_sorted_by_key(|entry| entry.number));
    let back = Query { backward: true, limit: 2, ..Query::default() };
    let page = read(&second, "team", id, back.clone(), Duration::ZERO).await.unwrap();
    assert_eq!((streams(&page.entries), page.more), (vec!["resume", "pause"], true));
    let back = Query { cursor: page.cursor, ..back };
    let page = read(&second, "team", id, back, Duration::ZERO).await.unwrap();
    assert_eq!((streams(&page.entries), page.cursor), (vec!["create"], None));
    erase(&second, "team", Some(id)).await.unwrap();
    let page = read(&second, "team", id, all(), Duration::ZERO).await.unwrap();
    assert_eq!(page, Page::default());
    assert!(stored.store.names("team", STORED).await.unwrap().is_empty());
    erase(&first, "team", None).await.unwrap();
    assert!(erase(&first, "../team", None).await.is_err());
}

#[tokio::test]
async fn segment_that_is_erased_while_it_is_sent_does_not_stay_in_the_store() {
    let [here, store] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let host = host(here.path(), Some(store.path()));
    let id = CapsuleId::new();
    let log = host.context.logs.open("team", id).unwrap();
    if !add(&host, &log, LifecycleEvent::Created).await {
        return;
    }
    log.close().unwrap();
    let segment = host.context.logs.pending().unsent.remove(0);
    let stored = host.stored.clone().unwrap();
    // The erasure comes between the upload and the mark.
    let name = segment.stored_name();
    let from = here.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::copy(host.context.logs.file(&segment).unwrap(), from.join(FILE)).unwrap();
    stored.store.put("team", &name, &from).await.unwrap();
    host.context.logs.erase("team", Some(id), &|_| false).unwrap();
    assert!(!host.context.logs.mark_sent(&segment).unwrap());
    // A send of a segment that is gone sends nothing.
    stored.store.remove("team", &name).await.unwrap();
    upkeep::send(&host, &stored, &segment).await.unwrap();
    assert!(stored.store.names("team", STORED).await.unwrap().is_empty());
}
