//! Makes a version of a capsule with its memory: an ordinary snapshot without a name, which the
//! build's row names. A create restores it. A snapshot that no row names is removed like that of an
//! interrupted fork.

use super::decide::End;
use crate::app::App;
use crate::auth::Caller;
use crate::db::build_runs::Files;
use crate::db::builds::Build;
use crate::error::{Error, Result};
use crate::{capsules, snapshots};
use recipe::Provenance;
use types::{CapsuleId, CapsuleState};

/// Takes the snapshot. `Err` has the reason to end the build.
pub(super) async fn capture(
    app: &App,
    build: &Build,
    source: CapsuleId,
) -> Result<std::result::Result<Files, End>> {
    let caller = Caller::of(build.team_id);
    let capsule = match capsules::settled(app, caller, source).await {
        Ok(capsule) => capsule,
        Err(Error::NotFound(_)) => return Ok(Err(End::because("the capsule was deleted"))),
        Err(error) => return Err(error),
    };
    if !matches!(capsule.state, CapsuleState::Running | CapsuleState::Paused) {
        let why = format!("the capsule is {}; it must run or be paused", capsule.state);
        return Ok(Err(End::because(why)));
    }
    super::failpoint("control.build.capture")?;
    match snapshots::take(app, caller, &capsule, None, true, false).await {
        Ok(taken) => Ok(Ok(Files::Snapshot {
            id: taken.id,
            bytes: taken.storage_bytes,
            provenance: Box::new(Provenance::default()),
        })),
        Err(error) => Ok(Err(End::because(error.to_string()))),
    }
}
