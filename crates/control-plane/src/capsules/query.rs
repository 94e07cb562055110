//! Reads of a team's capsules for callers: lists, counts and the rest of a lifetime.

use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::capsule_list::Filter;
use crate::db::capsules::Capsule;
use crate::error::Result;
use std::collections::BTreeMap;
use std::time::Duration;
use types::CapsuleState;

/// Returns a page of the capsules that meet the conditions and that the caller may see.
pub(crate) async fn list(app: &App, caller: Caller, filter: Filter) -> Result<Vec<Capsule>> {
    let filter = Filter { confinement: caller.confinement, ..filter };
    Ok(db::capsule_list::list(&app.db, caller.team, &filter).await?)
}

/// Returns the number of the team's capsules in each state.
pub(crate) async fn summary(app: &App, caller: Caller) -> Result<api::CapsuleSummary> {
    Ok(to_summary(db::capsule_counts::of(&app.db, caller.team).await?))
}

fn to_summary(counts: Vec<(CapsuleState, i64)>) -> api::CapsuleSummary {
    let (mut by_status, mut ended) = (BTreeMap::new(), 0);
    for (state, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        if state == CapsuleState::Stopped {
            ended = count;
        } else {
            by_status.insert(state.to_string(), count);
        }
    }
    api::CapsuleSummary { total: by_status.values().sum(), by_status, ended }
}

/// Returns the rest of a capsule's lifetime by the database's clock. Returns `None` for a lifetime
/// without an end.
pub(crate) async fn time_left(app: &App, capsule: &Capsule) -> Result<Option<Duration>> {
    match capsule.ends_at {
        Some(_) => Ok(db::capsules::left(&app.db, capsule.id).await?),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_counts_ended_capsules_apart_and_omits_empty_states() {
        let counts = [
            (CapsuleState::Running, 3),
            (CapsuleState::Paused, 2),
            (CapsuleState::Starting, 0),
            (CapsuleState::Stopped, 7),
        ];
        let summary = to_summary(counts.to_vec());
        assert_eq!((summary.total, summary.ended), (5, 7));
        let states: Vec<_> = summary.by_status.into_iter().collect();
        assert_eq!(states, [("paused".to_owned(), 2), ("running".to_owned(), 3)]);
    }
}
