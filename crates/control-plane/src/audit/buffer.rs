//! Refusals and accesses between two writes of the audit log. Equal events are counted, and written
//! once a second as one entry.

use super::{Actor, AuditEvent, Principal};
use crate::db;
use daemon::{Tasks, lock};
use sqlx::PgPool;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use types::{ClientNetwork, PLATFORM_TEAM};

/// Time between two writes of noted events.
const FLUSH: Duration = Duration::from_secs(1);
/// Most different events that are told apart between two writes. Further events are counted
/// together.
const EVENTS_MAX: usize = 256;

/// Key of noted events: an event without its address, and the client's network. A client has every
/// address of its network, so a key with the address would bound nothing.
type EventKey = (AuditEvent, Option<ClientNetwork>);

/// Events to write in the next second, each with its count and the address that it first came from.
#[derive(Default)]
pub(crate) struct AuditBuffer(Mutex<HashMap<EventKey, (u32, Option<IpAddr>)>>);

impl AuditBuffer {
    pub(crate) fn note(&self, event: AuditEvent) {
        let mut notes = lock(&self.0);
        let from = event.by.from;
        let by = Actor { from: None, ..event.by };
        let key = (AuditEvent { by, ..event }, from.map(ClientNetwork::from));
        let (key, from) = if notes.len() < EVENTS_MAX || notes.contains_key(&key) {
            (key, from)
        } else {
            let (event, _) = key;
            let by = if event.refused { Actor { principal: Principal::Nobody, ..by } } else { by };
            let many = AuditEvent { team: PLATFORM_TEAM, by, resource: "many".to_owned(), ..event };
            ((many, None), None)
        };
        notes.entry(key).or_insert((0, from)).0 += 1;
    }

    /// Returns the number of different events that wait for the next write.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.0).len()
    }

    fn take(&self) -> Vec<(AuditEvent, u32)> {
        let notes = std::mem::take(&mut *lock(&self.0));
        let with_address = |((event, _), (times, from)): (EventKey, _)| {
            let by = Actor { from, ..event.by };
            (AuditEvent { by, ..event }, times)
        };
        notes.into_iter().map(with_address).collect()
    }
}

/// Writes noted events for as long as the process lives.
pub(crate) fn spawn_writer(buffer: &Arc<AuditBuffer>, db: &PgPool, tasks: &Tasks) {
    let (buffer, db) = (Arc::clone(buffer), db.clone());
    let mut stop = tasks.stop_signal().wait();
    tasks.spawn(async move {
        loop {
            let stopped = tokio::select! {
                () = tokio::time::sleep(FLUSH) => false,
                () = &mut stop => true,
            };
            for (event, times) in buffer.take() {
                let entry = event.entry(times);
                if let Err(error) = db::audit::write(&db, &entry).await {
                    tracing::warn!(%error, ?entry, "cannot write the audit log; dropping an entry");
                }
            }
            if stopped {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_refusals_are_counted_and_entries_are_bounded() {
        let notes = AuditBuffer::default();
        let by = Actor { principal: Principal::Nobody, ..Actor::SYSTEM };
        for round in 0..3 {
            for n in 0..1000 {
                notes.note(AuditEvent {
                    team: PLATFORM_TEAM,
                    by,
                    action: "auth.refused",
                    resource: format!("/{n}"),
                    refused: true,
                    code: "unauthorized",
                });
            }
            assert!(round < 3);
        }
        let taken = notes.take();
        assert_eq!(taken.len(), EVENTS_MAX + 1);
        assert_eq!(taken.iter().map(|(_, times)| times).sum::<u32>(), 3000);
        assert!(notes.take().is_empty());
    }

    #[test]
    fn refusals_from_one_ipv6_network_share_an_entry() {
        let notes = AuditBuffer::default();
        for from in ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "192.0.2.1", "192.0.2.2"] {
            notes.note(AuditEvent {
                team: PLATFORM_TEAM,
                by: Actor { principal: Principal::Nobody, from: from.parse().ok(), reason: None },
                action: "auth.refused",
                resource: "/".to_owned(),
                refused: true,
                code: "unauthorized",
            });
        }
        let mut taken: Vec<_> = notes
            .take()
            .into_iter()
            .map(|(event, times)| (event.by.from.unwrap().to_string(), times))
            .collect();
        taken.sort();
        let wanted =
            [("192.0.2.1", 1), ("192.0.2.2", 1), ("2001:db8:0:1::1", 1), ("2001:db8::1", 2)];
        assert_eq!(taken, wanted.map(|(from, times)| (from.to_owned(), times)));
    }
}
