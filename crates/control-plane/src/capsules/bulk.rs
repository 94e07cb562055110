//! Bulk changes: the same change of many capsules, each by its use case. A change that fails stops no
//! other change. After the client leaves, no further change begins.

use super::delete::delete;
use super::get::get;
use super::pause::pause;
use super::query;
use super::resume::{ResumeRequest, resume};
use crate::app::App;
use crate::auth::Caller;
use crate::db::capsule_list::Filter;
use crate::db::capsules::Capsule;
use crate::error::Result;
use futures::StreamExt;
use types::{CapsuleId, CapsuleState};

/// Most capsules of one request.
pub(crate) const BULK_MAX: usize = 100;
/// Most changes of one request at once.
const AT_ONCE: usize = 6;

/// Change of each capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BulkAction {
    Pause,
    Resume,
    Delete,
}

types::text_enum!(BulkAction, "action", {
    Pause = "pause",
    Resume = "resume",
    Delete = "delete",
});

impl BulkAction {
    /// Returns the states that a filter without states accepts; none stands for all states.
    pub(crate) fn states(self) -> Vec<CapsuleState> {
        match self {
            Self::Pause => vec![CapsuleState::Running],
            Self::Resume => vec![CapsuleState::Paused],
            Self::Delete => Vec::new(),
        }
    }
}

/// Capsules of a bulk change.
pub(crate) enum Selection {
    /// At most [`BULK_MAX`] capsules.
    Ids(Vec<CapsuleId>),
    Filter(Box<Filter>),
}

/// Result of a bulk change.
pub(crate) struct BulkChanged {
    pub items: Vec<(CapsuleId, Result<BulkState>)>,
    /// True if further capsules meet the filter.
    pub more: bool,
}

/// A capsule after its change.
pub(crate) struct BulkState {
    pub name: Option<String>,
    pub state: CapsuleState,
}

impl From<Capsule> for BulkState {
    fn from(capsule: Capsule) -> Self {
        Self { name: capsule.name, state: capsule.state }
    }
}

/// Changes the selected capsules. Without an `action`, only looks at them.
pub(crate) async fn bulk(
    app: &App,
    caller: Caller,
    action: Option<BulkAction>,
    selection: Selection,
) -> Result<BulkChanged> {
    let (ids, more) = select(app, caller, selection).await?;
    let changes = ids.into_iter().map(|id| {
        let app = app.clone();
        async move { (id, Box::pin(change(&app, caller, action, id)).await) }
    });
    let items = futures::stream::iter(changes).buffered(AT_ONCE).collect::<Vec<_>>().await;
    Ok(BulkChanged { items, more })
}

/// Returns the ids of the selected capsules, and whether further capsules meet the filter.
async fn select(app: &App, caller: Caller, selection: Selection) -> Result<(Vec<CapsuleId>, bool)> {
    let filter = match selection {
        Selection::Ids(ids) => return Ok((ids, false)),
        Selection::Filter(filter) => *filter,
    };
    // A capsule beyond the most tells of further ones.
    let limit = i64::try_from(BULK_MAX).unwrap_or(i64::MAX).saturating_add(1);
    let rows = query::list(app, caller, Filter { limit, ..filter }).await?;
    let more = rows.len() > BULK_MAX;
    Ok((rows.into_iter().take(BULK_MAX).map(|row| row.id).collect(), more))
}

async fn change(
    app: &App,
    caller: Caller,
    action: Option<BulkAction>,
    id: CapsuleId,
) -> Result<BulkState> {
    match action {
        None => Ok(get(app, caller, id).await?.into()),
        Some(BulkAction::Pause) => Ok(pause(app, caller, id, true).await?.into()),
        Some(BulkAction::Resume) => {
            Ok(resume(app, caller, id, ResumeRequest::default()).await?.into())
        }
        Some(BulkAction::Delete) => {
            let name = get(app, caller, id).await?.name;
            delete(app, caller, id).await?;
            Ok(BulkState { name, state: CapsuleState::Stopped })
        }
    }
}
