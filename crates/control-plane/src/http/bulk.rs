//! `POST /v1/capsules/bulk`: translates between the wire and `capsules::bulk`.

use super::capsule_list::{PAIRS_MAX, TEXT_MAX};
use super::extract::Json as Body;
use crate::app::App;
use crate::auth::Caller;
use crate::capsules::{self, BULK_MAX, BulkAction, BulkState, Selection};
use crate::db::capsule_list::{Filter, Prefix, Template};
use crate::error::{Error, Result};
use axum::Json;
use axum::extract::State;
use std::collections::BTreeSet;
use std::sync::Arc;
use types::{CapsuleId, CapsuleState};

/// Pauses, resumes or deletes up to 100 capsules. The server answers when all of them are done.
#[utoipa::path(
    operation_id = "change_capsules",
    post, path = "/v1/capsules/bulk", tag = "capsules", request_body = api::BulkChange,
    responses((status = 200, body = api::BulkResult), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(wanted): Body<api::BulkChange>,
) -> Result<Json<api::BulkResult>> {
    let action = wanted.action.parse::<BulkAction>()?;
    let selection = match (wanted.ids, wanted.filter) {
        (Some(ids), None) => Selection::Ids(read_ids(&ids)?),
        (None, Some(conditions)) => Selection::Filter(Box::new(filter(conditions, action)?)),
        (None, None) => return Err(Error::invalid("ids", "or `filter` must select capsules")),
        (Some(_), Some(_)) => return Err(Error::invalid("filter", "must be absent beside `ids`")),
    };
    let action = Some(action).filter(|_| !wanted.dry_run);
    let changed = Box::pin(capsules::bulk(&app, caller, action, selection)).await?;
    let items = changed.items.into_iter().map(|(id, result)| item(id, result)).collect();
    Ok(Json(api::BulkResult { items, more: changed.more }))
}

fn item(id: CapsuleId, result: Result<BulkState>) -> api::BulkItem {
    let id = id.to_string();
    match result {
        Ok(BulkState { name, state }) => {
            api::BulkItem { id, name, status: Some(state.to_string()), error: None }
        }
        Err(error) => {
            let (code, message) = (error.code().to_owned(), error.to_string());
            let error = Some(api::BulkError { code, message });
            api::BulkItem { id, name: None, status: None, error }
        }
    }
}

/// Reads ids, each once.
fn read_ids(texts: &[String]) -> Result<Vec<CapsuleId>> {
    if !(1..=BULK_MAX).contains(&texts.len()) {
        return Err(Error::invalid("ids", format!("must name 1 to {BULK_MAX} capsules")));
    }
    let mut seen = BTreeSet::new();
    let mut ids = Vec::with_capacity(texts.len());
    for text in texts {
        let wrong =
            |_| Error::invalid("ids", format!("contains `{text}`, which is no capsule's id"));
        let id = text.parse::<CapsuleId>().map_err(wrong)?;
        if seen.insert(id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn filter(wanted: api::BulkFilter, action: BulkAction) -> Result<Filter> {
    let api::BulkFilter { status, template, created_by, metadata, q } = wanted;
    if metadata.len() > PAIRS_MAX {
        let must = format!("must have at most {PAIRS_MAX} keys");
        return Err(Error::invalid("filter.metadata", must));
    }
    if q.as_ref().is_some_and(|text| text.len() > TEXT_MAX) {
        return Err(Error::invalid("filter.q", format!("must be at most {TEXT_MAX} bytes")));
    }
    Ok(Filter {
        states: states(&status, action)?,
        template: template.as_deref().map(Template::read),
        created_by,
        metadata,
        prefix: q.as_deref().filter(|text| !text.is_empty()).map(Prefix::read),
        ..Filter::default()
    })
}

fn states(texts: &[String], action: BulkAction) -> Result<Vec<CapsuleState>> {
    let mut states = Vec::new();
    for text in texts {
        let state = text.parse::<CapsuleState>()?;
        if state == CapsuleState::Stopped {
            return Err(Error::invalid("filter.status", "must not be `stopped`"));
        }
        if !states.contains(&state) {
            states.push(state);
        }
    }
    Ok(if states.is_empty() { action.states() } else { states })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_once_each_and_bounded() {
        let id = CapsuleId::new();
        assert_eq!(read_ids(&[id.to_string(), id.to_string()]).unwrap(), [id]);
        let many = vec![id.to_string(); BULK_MAX + 1];
        for wrong in [Vec::new(), vec!["web".to_owned()], many] {
            assert!(read_ids(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn filter_without_states_selects_those_that_the_action_can_change() {
        let paused = [CapsuleState::Paused];
        assert_eq!(states(&[], BulkAction::Pause).unwrap(), [CapsuleState::Running]);
        assert_eq!(states(&[], BulkAction::Resume).unwrap(), paused);
        assert!(states(&[], BulkAction::Delete).unwrap().is_empty());
        let texts = ["paused", "paused"].map(str::to_owned);
        assert_eq!(states(&texts, BulkAction::Delete).unwrap(), paused);
        for wrong in ["stopped", "gone"] {
            assert!(states(&[wrong.to_owned()], BulkAction::Delete).is_err(), "{wrong}");
        }
    }
}
