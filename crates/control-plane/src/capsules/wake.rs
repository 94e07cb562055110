//! Wakes paused capsules for requests. A paused capsule is woken once for all concurrent requests.

use super::get::get;
use super::resume::{ResumeRequest, resume};
use super::settle::settled;
use super::timeouts;
use crate::app::App;
use crate::auth::Caller;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use types::{CapsuleId, CapsuleState};

/// Returns a capsule whose guest can answer. Resumes a paused capsule if its `auto_resume` is set.
pub(crate) async fn awake(app: &App, caller: Caller, id: CapsuleId) -> Result<Capsule> {
    let mut capsule = get(app, caller, id).await?;
    if capsule.auto_resume && capsule.state != CapsuleState::Running {
        capsule = settled(app, caller, id).await?;
        if capsule.state == CapsuleState::Paused {
            let timeout = timeouts::after_waking(&capsule);
            let wanted = ResumeRequest { timeout, patient: true, ..ResumeRequest::default() };
            capsule = Box::pin(resume(app, caller, id, wanted)).await?;
        }
    }
    let state = capsule.state;
    if state == CapsuleState::Running { Ok(capsule) } else { Err(Error::NotRunning(state)) }
}

/// Wakes a capsule, or joins a wake that is under way.
pub(crate) async fn wake(app: &App, caller: Caller, id: CapsuleId) -> Result<()> {
    let (task, outcome) = app.waiters.join_wake(id);
    if let Some(task) = task {
        let at = app.clone();
        // The wake goes on when its client leaves, since others may wait for it.
        app.tasks.spawn(async move {
            let woken = Box::pin(awake(&at, caller, id)).await;
            task.finish(woken.map(|_| ()));
        });
    }
    outcome.wait().await
}
