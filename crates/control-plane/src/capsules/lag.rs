//! Capsules whose rows may lag behind their hosts, since a host pauses and ends capsules by itself.

use super::settle::settled;
use super::timeouts;
use crate::app::App;
use crate::auth::Caller;
use crate::db::capsules::Capsule;
use crate::error::Result;
use time::OffsetDateTime;
use types::CapsuleState;

/// Reports whether a host may have paused or ended a capsule whose row still says `running`. Hosts
/// do so by themselves at the end of a capsule's time, or after idleness.
pub(crate) fn may_lag(row: &Capsule) -> bool {
    let over = row.ends_at.is_some_and(|end| end <= OffsetDateTime::now_utc());
    row.state == CapsuleState::Running && (over || row.idle_sec.is_some())
}

/// Has the row of a capsule that may lag follow its host, and reads it again. The host answers only
/// after a pause that is under way.
pub(crate) async fn caught_up(app: &App, caller: Caller, capsule: Capsule) -> Result<Capsule> {
    if !may_lag(&capsule) {
        return Ok(capsule);
    }
    let id = capsule.id;
    // The error of a capsule that has ended does not matter, since its row shows the end next.
    let _ = timeouts::ping(app, caller, id).await;
    if let Some(host) = capsule.host_id {
        app.rounds.run(host).await;
    }
    settled(app, caller, id).await
}
