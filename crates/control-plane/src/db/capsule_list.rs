//! Lists of a team's capsules: filters, orders and pages. Each filter has an index that goes on in
//! the order of the list (migration 0006). The statement holds only the given conditions, and
//! PostgreSQL plans it for the given values.

use super::capsules::{Capsule, columns};
use crate::policy::Confinement;
use sqlx::types::Json;
use sqlx::{PgPool, Postgres, QueryBuilder};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use types::{CapsuleId, CapsuleState, HostId, SnapshotId, TeamId, TemplateId};
use uuid::Uuid;

/// Conditions on a team's capsules, and the order of the list. The default lists all living
/// capsules, newest first.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    pub confinement: Confinement,
    /// True to list ended capsules in place of living ones.
    pub ended: bool,
    /// Accepted states; all if the list is empty.
    pub states: Vec<CapsuleState>,
    pub template: Option<Template>,
    pub snapshot: Option<SnapshotId>,
    pub host: Option<HostId>,
    /// Id of the creator on the wire.
    pub created_by: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub name: Option<String>,
    pub prefix: Option<Prefix>,
    /// Earliest start of a capsule. The start is the first run, or the creation before that.
    pub since: Option<OffsetDateTime>,
    pub order: Order,
    /// Position after which the page begins.
    pub after: Option<Position>,
    pub limit: i64,
}

/// Template that capsules began from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Template {
    /// A team's template and a public one may have the same name.
    Name(String),
    Id(TemplateId),
}

impl Template {
    /// Reads the id or the name of a template.
    pub(crate) fn read(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Id)
    }
}

/// Begin of a name or of an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Prefix {
    Name(String),
    /// Lowest and highest id that begin so; `None` if no id does.
    Id(Option<(CapsuleId, CapsuleId)>),
}

impl Prefix {
    /// Reads a prefix. No name begins as ids do, so a prefix is of one kind.
    pub(crate) fn read(text: &str) -> Self {
        match text.strip_prefix(CapsuleId::PREFIX) {
            Some(digits) => Self::Id(id_range(digits)),
            None => Self::Name(text.to_owned()),
        }
    }
}

/// Returns the lowest and the highest id whose digits begin so.
fn id_range(digits: &str) -> Option<(CapsuleId, CapsuleId)> {
    use types::ids::{ENCODED_LEN, ParseIdError, decode};
    // The padding counts characters, and a wrong character fails to decode.
    let lowest = decode(&format!("{digits:0<ENCODED_LEN$}")).ok()?;
    let highest = match decode(&format!("{digits:z<ENCODED_LEN$}")) {
        Ok(highest) => highest,
        Err(ParseIdError::TooLarge) => Uuid::max(),
        Err(ParseIdError::Malformed | ParseIdError::Prefix(_)) => return None,
    };
    Some((CapsuleId(lowest), CapsuleId(highest)))
}

/// Order of a list. Equal keys are ordered by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Order {
    pub key: OrderKey,
    pub ascending: bool,
}

/// Value that orders a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum OrderKey {
    #[default]
    CreatedAt,
    StateSince,
    /// Capsules without a name follow all names.
    Name,
}

impl OrderKey {
    /// Returns the expression of the key, as the indexes have it.
    fn sql(self) -> &'static str {
        match self {
            Self::CreatedAt => "created_at",
            Self::StateSince => "state_since",
            Self::Name => "coalesce(name, '~')",
        }
    }
}

/// Position in a list: the last capsule of the previous page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Position {
    /// The capsule's creation, whose time never changes.
    Created(CapsuleId),
    /// Key of the capsule when the page was made, and its id.
    At(OffsetDateTime, CapsuleId),
    Name(String, CapsuleId),
}

/// Returns a page of a team's capsules that meet the conditions.
pub(crate) async fn list(db: &PgPool, team: TeamId, filter: &Filter) -> sqlx::Result<Vec<Capsule>> {
    let mut sql = QueryBuilder::<Postgres>::new(concat!(
        "SELECT ",
        columns!(),
        " FROM capsules WHERE build_id IS NULL AND team_id = "
    ));
    sql.push_bind(team);
    sql.push(if filter.ended { " AND status = 'stopped'" } else { " AND status <> 'stopped'" });
    push_columns(&mut sql, filter);
    push_contents(&mut sql, filter);
    if let Some(after) = &filter.after {
        push_after(&mut sql, team, filter.order, after);
    }
    let (key, direction) =
        (filter.order.key.sql(), if filter.order.ascending { "ASC" } else { "DESC" });
    sql.push(format_args!(" ORDER BY {key} {direction}, id {direction} LIMIT "));
    sql.push_bind(filter.limit);
    // A statement that is not kept is planned for its values. A plan for all values would be wrong
    // for either rare or frequent ones.
    sql.build_query_as().persistent(false).fetch_all(db).await
}

/// Adds the conditions on single columns.
fn push_columns(sql: &mut QueryBuilder<Postgres>, filter: &Filter) {
    if let Some(id) = filter.confinement.capsule {
        sql.push(" AND id = ").push_bind(id);
    }
    if let Some(id) = filter.confinement.template {
        sql.push(" AND template_id = ").push_bind(id);
    }
    match filter.states.as_slice() {
        [] => {}
        // An equality keeps the order of the index.
        [state] => {
            sql.push(" AND status = ").push_bind(*state);
        }
        states => {
            sql.push(" AND status = ANY(").push_bind(states.to_vec()).push(")");
        }
    }
    match &filter.template {
        None => {}
        Some(Template::Name(name)) => {
            sql.push(" AND template = ").push_bind(name.clone());
        }
        // The index has the template's name.
        Some(Template::Id(id)) => {
            sql.push(" AND template_id = ").push_bind(*id);
            sql.push(" AND template = (SELECT t.name FROM templates t WHERE t.id = ");
            sql.push_bind(*id).push(")");
        }
    }
    if let Some(id) = filter.snapshot {
        sql.push(" AND snapshot_id = ").push_bind(id);
    }
    if let Some(host) = filter.host {
        sql.push(" AND host_id = ").push_bind(host);
    }
    if let Some(creator) = &filter.created_by {
        sql.push(" AND created_by_id = ").push_bind(creator.clone());
    }
}

/// Adds the conditions on metadata, names, ids and starts.
fn push_contents(sql: &mut QueryBuilder<Postgres>, filter: &Filter) {
    if !filter.metadata.is_empty() {
        sql.push(" AND metadata <> '{}' AND metadata @> ").push_bind(Json(filter.metadata.clone()));
    }
    if let Some(name) = &filter.name {
        sql.push(" AND name = ").push_bind(name.clone());
    }
    match &filter.prefix {
        None => {}
        Some(Prefix::Name(prefix)) => {
            sql.push(" AND name >= ").push_bind(prefix.clone());
            // No name has the character `~`, and it follows those that names have.
            sql.push(" AND name < ").push_bind(format!("{prefix}~"));
        }
        Some(Prefix::Id(None)) => {
            sql.push(" AND false");
        }
        Some(Prefix::Id(Some((lowest, highest)))) => {
            sql.push(" AND id BETWEEN ").push_bind(*lowest);
            sql.push(" AND ").push_bind(*highest);
        }
    }
    if let Some(since) = filter.since {
        sql.push(" AND coalesce(started_at, created_at) >= ").push_bind(since);
    }
}

/// Adds the condition on the capsules that follow a position.
fn push_after(sql: &mut QueryBuilder<Postgres>, team: TeamId, order: Order, after: &Position) {
    let (key, than) = (order.key.sql(), if order.ascending { ">" } else { "<" });
    sql.push(format_args!(" AND ({key}, id) {than} ("));
    match after {
        Position::Created(id) => {
            sql.push("SELECT created_at, id FROM capsules WHERE id = ").push_bind(*id);
            sql.push(" AND team_id = ").push_bind(team);
        }
        Position::At(at, id) => {
            sql.push_bind(*at).push(", ").push_bind(*id);
        }
        Position::Name(name, id) => {
            sql.push_bind(name.clone()).push(", ").push_bind(*id);
        }
    }
    sql.push(")");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_of_an_id_is_a_range_of_ids() {
        let id = CapsuleId::new();
        let text = id.to_string();
        for length in 3..=text.len() {
            let Prefix::Id(Some((lowest, highest))) = Prefix::read(&text[..length]) else {
                panic!("{length}");
            };
            assert!(lowest <= id && id <= highest, "{length}");
        }
        assert_eq!(Prefix::read(&text), Prefix::Id(Some((id, id))));
        for none in ["cl-z", "cl-é", "cl-A", "cl-a b", &format!("{text}0")] {
            assert_eq!(Prefix::read(none), Prefix::Id(None), "{none}");
        }
        assert_eq!(Prefix::read("c"), Prefix::Name("c".to_owned()));
    }

    #[test]
    fn template_is_an_id_or_a_name() {
        let id = TemplateId::new();
        assert_eq!(Template::read(&id.to_string()), Template::Id(id));
        assert_eq!(Template::read("base"), Template::Name("base".to_owned()));
    }
}
