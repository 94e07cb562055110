//! Lists of sandboxes: filters, order and pages.

use super::names;
use super::wire::{self, Listed};
use crate::app::App;
use crate::auth::Caller;
use crate::capsules;
use crate::db::capsule_list::{Filter, Order, OrderKey, Position, Template};
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use crate::http::extract::Query;
use crate::http::paging::PAGE;
use axum::Json;
use axum::extract::State;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::percent_decode_str;
use std::collections::BTreeMap;
use std::sync::Arc;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::resources::in_range;
use types::{CapsuleId, CapsuleState, SnapshotId};

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Asked {
    metadata: Option<String>,
    state: Option<String>,
    order: Option<String>,
    started_after: Option<String>,
    template: Option<String>,
    limit: Option<u32>,
    next_token: Option<String>,
}

pub(super) async fn page(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(asked): Query<Asked>,
) -> Result<Response> {
    let limit = asked.limit.unwrap_or(PAGE);
    in_range("limit", limit, 1, PAGE)?;
    let rows = find(&app, caller, &asked, i64::from(limit) + 1).await?;
    Ok(super::paged::<_, Listed>(rows, limit as usize, token))
}

/// Lists sandboxes for clients of the first API, on one page. By default only running sandboxes are
/// listed.
pub(super) async fn all(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(asked): Query<Asked>,
) -> Result<Json<Vec<Listed>>> {
    let state = asked.state.or_else(|| Some("running".to_owned()));
    let asked = Asked { metadata: asked.metadata, state, ..Asked::default() };
    let rows = find(&app, caller, &asked, 1000).await?;
    Ok(Json(rows.into_iter().map(Listed::from).collect()))
}

async fn find(app: &App, caller: Caller, asked: &Asked, limit: i64) -> Result<Vec<Capsule>> {
    let metadata = metadata(asked.metadata.as_deref().unwrap_or(""))?;
    let since = asked.started_after.as_deref().map(|text| {
        OffsetDateTime::parse(text, &Rfc3339)
            .map_err(|_| Error::invalid("startedAfter", "must be a time in RFC 3339 form"))
    });
    let after = asked.next_token.as_deref().map(|text| {
        parse_cursor(text)
            .ok_or_else(|| Error::invalid("nextToken", "is not a token of this platform"))
    });
    let ascending = match asked.order.as_deref() {
        None | Some("desc") => false,
        Some("asc") => true,
        Some(_) => return Err(Error::invalid("order", "must be `asc` or `desc`")),
    };
    let template = asked.template.as_deref().map(names::untagged);
    let snapshot = template.and_then(|name| name.parse::<SnapshotId>().ok());
    let filter = Filter {
        states: states(asked.state.as_deref())?,
        metadata,
        template: template.filter(|_| snapshot.is_none()).map(Template::read),
        snapshot,
        since: since.transpose()?,
        order: Order { key: OrderKey::CreatedAt, ascending },
        after: after.transpose()?.map(|(at, id)| Position::At(at, id)),
        limit,
        ..Filter::default()
    };
    capsules::list(app, caller, filter).await
}

/// Returns the states to list. The default is running and paused.
fn states(asked: Option<&str>) -> Result<Vec<CapsuleState>> {
    let mut states = Vec::new();
    for state in asked.filter(|asked| !asked.is_empty()).unwrap_or("running,paused").split(',') {
        match state {
            "running" => states.extend(wire::RUNNING),
            "paused" => states.extend(wire::PAUSED),
            _ => return Err(Error::invalid("state", "must be `running`, `paused` or both")),
        }
    }
    Ok(states)
}

/// Parses metadata: pairs of a query, whose keys and values were each percent-encoded before.
fn metadata(text: &str) -> Result<BTreeMap<String, String>> {
    let wrong = || Error::invalid("metadata", "must be pairs of the form key=value&…, in UTF-8");
    let plain = |text: &str| {
        let spaced = text.replace('+', " ");
        let once = percent_decode_str(&spaced).decode_utf8().map_err(|_| wrong())?;
        let twice = percent_decode_str(&once).decode_utf8().map_err(|_| wrong())?;
        Ok::<_, Error>(twice.into_owned())
    };
    let mut pairs = BTreeMap::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
        pairs.insert(plain(key)?, plain(value)?);
    }
    Ok(pairs)
}

/// Returns the token of the page after a sandbox.
fn token(row: &Capsule) -> String {
    let at = row.created_at.unix_timestamp_nanos() / 1000;
    URL_SAFE_NO_PAD.encode(format!("{at}__{}", row.id.0))
}

/// Parses a token: creation, to the microsecond, and id of the last sandbox on the previous page.
fn parse_cursor(token: &str) -> Option<(OffsetDateTime, CapsuleId)> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let (at, id) = text.split_once("__")?;
    let at: i128 = at.parse().ok()?;
    let at = OffsetDateTime::from_unix_timestamp_nanos(at.checked_mul(1000)?).ok()?;
    Some((at, CapsuleId(id.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_filter_is_parsed_as_sdks_encode_it() {
        // This text remains of `a%252520b%3Dc%252526d` once the query was decoded.
        let read = metadata("a%2520b=c%2526d&plain=x").unwrap();
        let pairs = [("a b", "c&d"), ("plain", "x")];
        let wanted = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(read, BTreeMap::from(wanted));
        assert!(metadata("").unwrap().is_empty() && metadata("x").is_err());
        assert!(metadata("a=%25ff").is_err());
    }

    #[test]
    fn list_cursor_is_parsed_and_garbage_is_refused() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_000).unwrap();
        let id = CapsuleId::new();
        let text = format!("{}__{}", at.unix_timestamp_nanos() / 1000, id.0);
        assert_eq!(parse_cursor(&URL_SAFE_NO_PAD.encode(text)), Some((at, id)));
        for garbage in ["", "x", "AAAA", &URL_SAFE_NO_PAD.encode("1__x"), &"9".repeat(400)] {
            assert_eq!(parse_cursor(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn list_without_state_includes_running_and_paused() {
        assert_eq!(states(None).unwrap().len(), 7);
        assert_eq!(states(Some("paused")).unwrap(), wire::PAUSED);
        assert!(states(Some("running,gone")).is_err());
    }
}
