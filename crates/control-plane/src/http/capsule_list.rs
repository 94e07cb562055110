//! `GET /v1/capsules` and `…/summary`: filters, orders and positions of lists of capsules.

use super::extract::read_query;
use crate::app::App;
use crate::auth::Caller;
use crate::capsules;
use crate::db::capsule_list::{Filter, Order, OrderKey, Position, Prefix, Template};
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use axum::Json;
use axum::extract::{FromRequestParts, State};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Uri;
use http::request::Parts;
use percent_encoding::percent_decode_str;
use std::collections::BTreeMap;
use std::sync::Arc;
use time::OffsetDateTime;
use types::resources::in_range;
use types::{CapsuleId, CapsuleState};

/// Largest page, and the default.
const LIMIT_MAX: u32 = 1000;
const LIMIT: u32 = 100;
/// Most pairs of metadata in a query, and the longest text that is searched for.
pub(super) const PAIRS_MAX: usize = 32;
pub(super) const TEXT_MAX: usize = 64;

#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Listed {
    /// Accepted states, with commas between them.
    status: Option<String>,
    /// Name or id of the template that the capsules were created from.
    template: Option<String>,
    /// Id of the snapshot that the capsules were created from.
    snapshot: Option<String>,
    /// Id of the capsules' host. Only operators of the platform may give it.
    host: Option<String>,
    /// Id of the user or key that created the capsules.
    created_by: Option<String>,
    /// Name of the capsules. Only one living capsule has a name.
    name: Option<String>,
    /// Begin of the capsules' names. A text that begins with `cl-` is the begin of an id.
    q: Option<String>,
    /// True to list the capsules that ended in the last 30 days, in place of living ones.
    #[serde(default)]
    ended: bool,
    /// Order: `created_at`, `state_since` or `name`. A `-` before it reverses the order. The default
    /// is `-created_at`. Capsules without a name follow all names.
    sort: Option<String>,
    /// Value of `next` from the previous page, in the same order.
    before: Option<String>,
    /// Number of items, 1 to 1000. The default is 100.
    limit: Option<u32>,
}

/// Query of the list: its fields, and its pairs of metadata.
pub(crate) struct Asked {
    listed: Listed,
    metadata: BTreeMap<String, String>,
}

impl FromRequestParts<Arc<App>> for Asked {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self> {
        let (metadata, rest) = split(parts.uri.query().unwrap_or(""))?;
        let rest = format!("/?{rest}").parse::<Uri>();
        let rest = rest.map_err(|_| Error::invalid("query", "is invalid"))?;
        Ok(Self { listed: read_query(&rest)?, metadata })
    }
}

/// Lists the team's capsules. Filters combine: a listed capsule meets all of them.
#[utoipa::path(
    operation_id = "list_capsules",
    get, path = "/v1/capsules", tag = "capsules",
    params(
        Listed,
        ("metadata[KEY]" = Option<String>, Query, description = "Value that the metadata has for \
            the key KEY. Repeatable for other keys"),
    ),
    responses((status = 200, body = api::CapsulePage), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    asked: Asked,
) -> Result<Json<api::CapsulePage>> {
    let limit = asked.listed.limit.unwrap_or(LIMIT);
    in_range("limit", limit, 1, LIMIT_MAX)?;
    let order = order(asked.listed.sort.as_deref())?;
    let filter = filter(caller, asked, order, limit)?;
    let mut rows = capsules::list(&app, caller, filter).await?;
    let size = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > size;
    rows.truncate(size);
    let next = rows.last().filter(|_| more).map(|row| cursor(row, order.key));
    let items = rows.into_iter().map(capsules::to_api).collect();
    Ok(Json(api::CapsulePage { items, next }))
}

/// Counts the team's capsules by state.
#[utoipa::path(
    operation_id = "summarize_capsules",
    get, path = "/v1/capsules/summary", tag = "capsules",
    responses((status = 200, body = api::CapsuleSummary), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn summary(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<api::CapsuleSummary>> {
    Ok(Json(capsules::summary(&app, caller).await?))
}

/// Separates the pairs of metadata from the rest of a query.
fn split(query: &str) -> Result<(BTreeMap<String, String>, String)> {
    let wrong = || Error::invalid("query", "must be UTF-8");
    let plain = |text: &str| {
        let spaced = text.replace('+', " ");
        let text = percent_decode_str(&spaced).decode_utf8().map_err(|_| wrong())?;
        Ok::<_, Error>(text.into_owned())
    };
    let (mut pairs, mut rest) = (BTreeMap::new(), Vec::new());
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = plain(key)?;
        let Some(key) = key.strip_prefix("metadata[").and_then(|key| key.strip_suffix(']')) else {
            rest.push(pair);
            continue;
        };
        let earlier = pairs.insert(key.to_owned(), plain(value)?);
        if earlier.is_some() || pairs.len() > PAIRS_MAX {
            let must = format!("must have at most {PAIRS_MAX} keys, each once");
            return Err(Error::invalid("metadata", must));
        }
    }
    Ok((pairs, rest.join("&")))
}

/// Reads the order of a list.
fn order(sort: Option<&str>) -> Result<Order> {
    let text = sort.unwrap_or("-created_at");
    let (ascending, key) = text.strip_prefix('-').map_or((true, text), |key| (false, key));
    let key = match key {
        "created_at" => OrderKey::CreatedAt,
        "state_since" => OrderKey::StateSince,
        "name" => OrderKey::Name,
        _ => {
            let must = "must be `created_at`, `state_since` or `name`, or one of them after a `-`";
            return Err(Error::invalid("sort", must));
        }
    };
    Ok(Order { key, ascending })
}

/// Makes the conditions of a list. The statement asks for one item more than the page, which shows
/// if a next page exists.
fn filter(caller: Caller, asked: Asked, order: Order, limit: u32) -> Result<Filter> {
    let Asked { listed, metadata } = asked;
    if listed.host.is_some() && !caller.operator {
        return Err(Error::Forbidden("platform"));
    }
    if listed.ended && order.key == OrderKey::Name {
        return Err(Error::invalid("sort", "must not be `name` for ended capsules"));
    }
    if listed.q.as_ref().is_some_and(|text| text.len() > TEXT_MAX) {
        return Err(Error::invalid("q", format!("must be at most {TEXT_MAX} bytes")));
    }
    let snapshot = |text: &str| {
        text.parse().map_err(|_| Error::invalid("snapshot", "is not the id of a snapshot"))
    };
    let host =
        |text: &str| text.parse().map_err(|_| Error::invalid("host", "is not the id of a host"));
    Ok(Filter {
        ended: listed.ended,
        states: states(listed.status.as_deref(), listed.ended)?,
        template: listed.template.as_deref().map(Template::read),
        snapshot: listed.snapshot.as_deref().map(snapshot).transpose()?,
        host: listed.host.as_deref().map(host).transpose()?,
        created_by: listed.created_by,
        metadata,
        name: listed.name,
        prefix: listed.q.as_deref().filter(|text| !text.is_empty()).map(Prefix::read),
        order,
        after: listed.before.as_deref().map(|text| position(text, order.key)).transpose()?,
        limit: i64::from(limit) + 1,
        ..Filter::default()
    })
}

/// Reads the accepted states.
fn states(asked: Option<&str>, ended: bool) -> Result<Vec<CapsuleState>> {
    let Some(asked) = asked.filter(|asked| !asked.is_empty()) else { return Ok(Vec::new()) };
    let mut states = Vec::new();
    for state in asked.split(',') {
        let state = state.parse::<CapsuleState>()?;
        if ended != (state == CapsuleState::Stopped) {
            let must = "must be `stopped` with `ended=true`, and any other state without it";
            return Err(Error::invalid("status", must));
        }
        if !states.contains(&state) {
            states.push(state);
        }
    }
    Ok(states)
}

/// Returns the position of the page after a capsule. A creation never changes, so its position is
/// the capsule's id.
fn cursor(row: &Capsule, key: OrderKey) -> String {
    let key = match key {
        OrderKey::CreatedAt => return row.id.to_string(),
        OrderKey::StateSince => (row.state_since.unix_timestamp_nanos() / 1000).to_string(),
        OrderKey::Name => row.name.clone().unwrap_or_else(|| "~".to_owned()),
    };
    URL_SAFE_NO_PAD.encode(format!("{key}_{}", row.id))
}

/// Reads a position of a list in this order.
fn position(text: &str, key: OrderKey) -> Result<Position> {
    if key == OrderKey::CreatedAt {
        let id =
            text.parse().map_err(|_| Error::invalid("before", "is not the id of a capsule"))?;
        return Ok(Position::Created(id));
    }
    let wrong = || Error::invalid("before", "is not the `next` of a page in this order");
    let (value, id) = decode(text).ok_or_else(wrong)?;
    match key {
        OrderKey::CreatedAt | OrderKey::Name => Ok(Position::Name(value, id)),
        OrderKey::StateSince => Ok(Position::At(time(&value).ok_or_else(wrong)?, id)),
    }
}

/// Decodes a position into the key of the capsule, and its id.
fn decode(text: &str) -> Option<(String, CapsuleId)> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let (key, id) = text.rsplit_once('_')?;
    Some((key.to_owned(), id.parse().ok()?))
}

/// Reads a time in microseconds since 1970. The database knows no time of the farthest past.
fn time(text: &str) -> Option<OffsetDateTime> {
    let micros = text.parse::<i128>().ok().filter(|micros| *micros >= 0)?;
    OffsetDateTime::from_unix_timestamp_nanos(micros.checked_mul(1000)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_separated_from_the_rest_of_a_query() {
        let (pairs, rest) =
            split("limit=2&metadata[a+b]=c%26d&metadata%5Bjob%5D=42&status=paused").unwrap();
        let wanted = [("a b", "c&d"), ("job", "42")];
        let wanted = wanted.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(pairs, BTreeMap::from(wanted));
        assert_eq!(rest, "limit=2&status=paused");
        assert!(split("metadata[a]=1&metadata[a]=2").is_err());
        assert!(split("metadata[%ff]=1").is_err());
        let many = (0..=PAIRS_MAX).map(|n| format!("metadata[{n}]=x")).collect::<Vec<_>>();
        assert!(split(&many.join("&")).is_err());
    }

    #[test]
    fn order_is_a_key_that_may_be_reversed() {
        assert_eq!(order(None).unwrap(), Order::default());
        let name = Order { key: OrderKey::Name, ascending: true };
        assert_eq!(order(Some("name")).unwrap(), name);
        assert_eq!(order(Some("-name")).unwrap(), Order { ascending: false, ..name });
        for wrong in ["", "-", "--name", "age", "Name"] {
            assert!(order(Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn position_belongs_to_its_order_and_garbage_is_refused() {
        let id = CapsuleId::new();
        let encoded = |key: &str| URL_SAFE_NO_PAD.encode(format!("{key}_{id}"));
        let created = position(&id.to_string(), OrderKey::CreatedAt).unwrap();
        assert_eq!(created, Position::Created(id));
        let named = position(&encoded("web-2"), OrderKey::Name).unwrap();
        assert_eq!(named, Position::Name("web-2".to_owned(), id));
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_000).unwrap();
        let since = position(&encoded("1700000000123456"), OrderKey::StateSince).unwrap();
        assert_eq!(since, Position::At(at, id));
        let far = [encoded(&"9".repeat(60)), encoded("-370000000000000000")];
        for garbage in ["", "x", "AAAA", &encoded("x"), &far[0], &far[1]] {
            assert!(position(garbage, OrderKey::StateSince).is_err(), "{garbage}");
        }
        assert!(position(&encoded("x"), OrderKey::CreatedAt).is_err());
    }

    #[test]
    fn stopped_is_a_state_of_ended_capsules_alone() {
        assert!(states(None, false).unwrap().is_empty());
        let both = [CapsuleState::Paused, CapsuleState::Error];
        assert_eq!(states(Some("paused,error,paused"), false).unwrap(), both);
        assert_eq!(states(Some("stopped"), true).unwrap(), [CapsuleState::Stopped]);
        for (wrong, ended) in [("stopped", false), ("paused", true), ("gone", false), (",", false)]
        {
            assert!(states(Some(wrong), ended).is_err(), "{wrong}");
        }
    }
}
