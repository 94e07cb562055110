//! Cache of segments and listings of the store. A reader of several pages fetches each of them
//! once.

use super::segment::Span;
use daemon::lock;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use types::CapsuleId;

/// Segments that are kept. Each has a few MiB.
const SEGMENTS: usize = 8;
/// Listings that are kept.
const LISTINGS: usize = 256;
/// Time after which a listing is read again.
const FRESH: Duration = Duration::from_secs(30);

type Key = (String, CapsuleId);
/// A segment with its bytes.
type Segment = (Key, Span, Arc<Vec<u8>>);

/// Segments and listings of the store.
#[derive(Default)]
pub(crate) struct Fetched {
    segments: Mutex<VecDeque<Segment>>,
    listings: Mutex<HashMap<Key, (Instant, Vec<Span>)>>,
}

impl Fetched {
    /// Returns a segment that was fetched lately.
    pub(crate) fn segment(&self, team: &str, id: CapsuleId, span: &Span) -> Option<Arc<Vec<u8>>> {
        let all = lock(&self.segments);
        let found = all
            .iter()
            .find(|((of, capsule), one, _)| of.as_str() == team && *capsule == id && one == span);
        found.map(|(_, _, bytes)| Arc::clone(bytes))
    }

    /// Keeps a segment, in place of the one that was fetched first.
    pub(crate) fn keep(&self, team: &str, id: CapsuleId, span: Span, bytes: &Arc<Vec<u8>>) {
        let mut all = lock(&self.segments);
        if all.len() >= SEGMENTS {
            all.pop_front();
        }
        all.push_back(((team.to_owned(), id), span, Arc::clone(bytes)));
    }

    /// Returns the spans of a log's segments in the store, if they were listed lately.
    pub(crate) fn listing(&self, team: &str, id: CapsuleId) -> Option<Vec<Span>> {
        let all = lock(&self.listings);
        let (at, spans) = all.get(&(team.to_owned(), id))?;
        (at.elapsed() < FRESH).then(|| spans.clone())
    }

    /// Keeps a listing.
    pub(crate) fn list(&self, team: &str, id: CapsuleId, spans: Vec<Span>) {
        let mut all = lock(&self.listings);
        all.retain(|_, (at, _)| at.elapsed() < FRESH);
        if all.len() < LISTINGS {
            all.insert((team.to_owned(), id), (Instant::now(), spans));
        }
    }

    /// Forgets everything about a log, or about all logs of a team.
    pub(crate) fn forget(&self, team: &str, id: Option<CapsuleId>) {
        let is_of = |(of, capsule): &Key| of.as_str() == team && id.is_none_or(|id| *capsule == id);
        lock(&self.listings).retain(|key, _| !is_of(key));
        lock(&self.segments).retain(|(key, ..)| !is_of(key));
    }
}
