//! Reads of a capsule's log, on this host and in the store, and its erasure. A capsule may be
//! unknown here: its log outlives it, and may come from another host.

use super::upkeep::FILE;
use super::{find, is_living};
use crate::capsule::host::Host;
use crate::capsule::store::{Stored, failure};
use crate::capsule::{Error, chain, io_error};
use crate::log::{
    Location, Page, Part, Query, Reading, SEGMENT_MAX, STORED, Span, is_team, local, stored_folder,
};
use daemon::blocking;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use types::CapsuleId;

/// Longest wait for an entry.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// Period of the looks at a log that nobody writes.
const LOOK: Duration = Duration::from_secs(1);
/// Attempts of a read whose segments are closed or removed meanwhile.
const TRIES: u32 = 5;

/// Reads a capsule's log. A read forward without an entry waits at most `wait` for one.
///
/// # Errors
/// Fails when this host's files or the store's objects cannot be read.
pub(in crate::capsule) async fn read(
    host: &Host,
    team: &str,
    id: CapsuleId,
    mut query: Query,
    wait: Duration,
) -> Result<Page, Error> {
    let until = Instant::now() + wait.min(WAIT_MAX);
    let mut dropped: u64 = 0;
    loop {
        let log = find(host, team, id).await;
        // The watch begins before the read, so that no entry in between is missed.
        let newest = log.as_ref().map(|log| log.watch());
        let mut page = read_now(host, team, id, &query).await?;
        dropped = dropped.saturating_add(page.dropped);
        page.dropped = dropped;
        let waits = !query.backward && page.entries.is_empty() && !page.more;
        if !waits || Instant::now() >= until {
            return Ok(page);
        }
        query.cursor = page.cursor;
        let rest = match newest {
            Some(_) => until,
            None => until.min(Instant::now() + LOOK),
        };
        let changed = async {
            match newest {
                Some(mut newest) => {
                    // The sender lives as long as the log, which `log` holds.
                    let _ = newest.changed().await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep_until(rest) => {}
            () = host.context.tasks.stopping() => return Ok(page),
        }
    }
}

/// Reads the log as it is.
async fn read_now(host: &Host, team: &str, id: CapsuleId, query: &Query) -> Result<Page, Error> {
    let mut tries = 1;
    loop {
        match read_once(host, team, id, query).await {
            // A segment was closed, sent or removed since it was listed.
            Err(Error::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound && tries < TRIES =>
            {
                tries += 1;
            }
            done => return done,
        }
    }
}

async fn read_once(host: &Host, team: &str, id: CapsuleId, query: &Query) -> Result<Page, Error> {
    let failed = "cannot read the capsule's log";
    let _place = host.context.logs.place_of_read().await;
    let mut reading = Reading::new(query.clone());
    for part in parts(host, team, id, query.backward).await? {
        if !reading.wants(&part.span) {
            continue;
        }
        if reading.ends() {
            break;
        }
        let fetched = match part.location {
            Location::Store => match fetch(host, team, id, &part.span).await? {
                Some(bytes) => Location::Bytes(bytes),
                None => continue,
            },
            location @ (Location::Bytes(_) | Location::File(_)) => location,
        };
        let scan = move || {
            match fetched {
                Location::Bytes(bytes) => reading.scan(&bytes)?,
                Location::File(path) => reading.scan(&fs::read(path)?)?,
                Location::Store => {}
            }
            Ok(reading)
        };
        reading = blocking(scan).await.map_err(io_error(failed))?;
    }
    Ok(reading.finish())
}

/// Lists the segments of a log on this host and in the store, in the order of the read.
async fn parts(host: &Host, team: &str, id: CapsuleId, backward: bool) -> Result<Vec<Part>, Error> {
    let Some(dir) = host.context.logs.folder(team, id) else { return Ok(Vec::new()) };
    let listed = blocking(move || local(&dir)).await;
    let mut parts = listed.map_err(io_error("cannot list the capsule's log"))?;
    let oldest = host.context.logs.oldest_ms();
    for span in stored_spans(host, team, id).await {
        let is_new = parts.iter().all(|part| part.span != span);
        if is_new && span.max_ms >= oldest {
            parts.push(Part { span, location: Location::Store });
        }
    }
    parts.sort_by_key(|part| part.span.first);
    if backward {
        parts.reverse();
    }
    Ok(parts)
}

/// Lists the segments that the store has. A store that does not answer hides no lines of this host.
async fn stored_spans(host: &Host, team: &str, id: CapsuleId) -> Vec<Span> {
    let Some(stored) = &host.stored else { return Vec::new() };
    let fetched = &host.context.logs.fetched;
    if let Some(known) = fetched.listing(team, id) {
        return known;
    }
    match stored.store.names(team, &stored_folder(id)).await {
        Ok(names) => {
            let last = names.iter().filter_map(|name| name.rsplit('/').next());
            let spans: Vec<Span> = last.filter_map(Span::parse).collect();
            fetched.list(team, id, spans.clone());
            spans
        }
        Err(error) => {
            tracing::warn!(%id, error = chain(&error), "cannot list a log in the store");
            Vec::new()
        }
    }
}

/// Fetches a segment from the store; `None` if it was removed meanwhile.
async fn fetch(
    host: &Host,
    team: &str,
    id: CapsuleId,
    span: &Span,
) -> Result<Option<Arc<Vec<u8>>>, Error> {
    let Some(stored) = &host.stored else { return Ok(None) };
    if let Some(bytes) = host.context.logs.fetched.segment(team, id, span) {
        return Ok(Some(bytes));
    }
    let bytes = match get(stored, team, &format!("{}/{}", stored_folder(id), span.name())).await {
        Err(Error::NotFound(_)) => return Ok(None),
        got => Arc::new(got?),
    };
    host.context.logs.fetched.keep(team, id, span.clone(), &bytes);
    Ok(Some(bytes))
}

/// Returns the bytes of a segment in the store.
async fn get(stored: &Stored, team: &str, name: &str) -> Result<Vec<u8>, Error> {
    let bytes = stored.store.bytes(team, name).await.map_err(failure)?;
    if bytes > 2 * SEGMENT_MAX {
        return Err(Error::Invalid(format!("{name} in the store is no segment of a log")));
    }
    let to = stored.dir.join(format!("log-read-{:016x}", rand::random::<u64>()));
    let failed = "cannot fetch a segment of a log";
    fs::create_dir_all(&to).map_err(io_error(failed))?;
    let _removed = Removed(to.clone());
    let got = stored.store.get(team, name, &to).await.map_err(failure);
    got?;
    blocking(move || fs::read(to.join(FILE))).await.map_err(io_error(failed))
}

/// Folder that is removed at the end of a read, also of a read that its caller gave up.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Erases the log of a capsule, or all logs of a team, on this host and in the store. Unknown logs
/// are success.
///
/// # Errors
/// Fails when something stays. The call may be repeated.
pub(in crate::capsule) async fn erase(
    host: &Host,
    team: &str,
    id: Option<CapsuleId>,
) -> Result<(), Error> {
    if !is_team(team) {
        return Err(Error::Invalid("team_id: is not the id of a team".to_owned()));
    }
    let (context, of) = (Arc::clone(&host.context), team.to_owned());
    let erased = blocking(move || context.logs.erase(&of, id, &|id| is_living(&context, id))).await;
    erased.map_err(io_error("cannot erase a log"))?;
    let Some(stored) = &host.stored else { return Ok(()) };
    let folder = id.map_or_else(|| STORED.to_owned(), stored_folder);
    for name in stored.store.names(team, &folder).await.map_err(failure)? {
        stored.store.remove(team, &name).await.map_err(failure)?;
    }
    // A read may have kept segments until their removal.
    host.context.logs.fetched.forget(team, id);
    Ok(())
}

#[cfg(test)]
mod tests;
