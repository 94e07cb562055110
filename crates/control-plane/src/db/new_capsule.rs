//! Insert of a capsule, by one statement. The statement checks the team's limits, inserts row,
//! audit entry and idempotency key, and counts the template's creates. The statement is one round
//! trip and, outside of a transaction, a transaction of its own.
//!
//! The function `admit_capsule` of the database takes the team's lock and counts after that.
//! Concurrent creates of a team therefore never both get the last place.

use super::actor::setting;
use super::audit;
use super::capsule_names::NewName;
use super::capsules::Capsule;
use super::decode::or_zero;
use super::insert::Insert;
use crate::audit::{Actor, Entry, Principal};
use crate::limits::Held;
use sqlx::error::BoxDynError;
use sqlx::postgres::PgArguments;
use sqlx::{Arguments, AssertSqlSafe, PgExecutor};
use types::CapsuleState;

/// A capsule to insert as `starting`.
#[derive(Clone, Copy)]
pub(crate) struct NewCapsule<'a> {
    pub row: &'a Capsule,
    pub name: &'a NewName,
    /// Creator of the capsule.
    pub by: Principal,
    /// Entry in the audit log; `None` for a capsule that works for a build.
    pub entry: Option<&'a Entry>,
    /// Idempotency key, and the hash of its request.
    pub key: Option<(&'a str, &'a [u8; 32])>,
    /// Most that the team may hold before the insert; `None` if nothing is to be counted.
    pub most: Option<Held>,
}

/// Result of an insert. Nothing is changed unless the result is `Done`.
#[derive(Debug)]
pub(crate) enum Inserted {
    Done,
    /// The team has ended.
    NoTeam,
    /// The team holds this much, which is too much for another capsule.
    NoRoom(Held),
    /// The team has used the idempotency key.
    KeyInUse,
}

/// Result of the statement; no row if the team has ended.
#[derive(sqlx::FromRow)]
struct Outcome {
    #[sqlx(flatten)]
    held: Held,
    fits: bool,
    made: bool,
}

/// Inserts a capsule, if its team's limits admit it.
pub(crate) async fn insert(
    db: impl PgExecutor<'_>,
    new: &NewCapsule<'_>,
) -> sqlx::Result<Inserted> {
    let (sql, arguments) = statement(new)?;
    let run = sqlx::query_as_with(AssertSqlSafe(sql), arguments);
    let outcome: Option<Outcome> = run.fetch_optional(db).await?;
    Ok(match outcome {
        None => Inserted::NoTeam,
        Some(Outcome { made: true, .. }) => Inserted::Done,
        Some(Outcome { fits: true, .. }) => Inserted::KeyInUse,
        Some(Outcome { held, .. }) => Inserted::NoRoom(held),
    })
}

/// Makes the statement and the values of its parameters. Parameters 1 to 10 are those of
/// [`shared`], and those of the inserts follow.
fn statement(new: &NewCapsule<'_>) -> sqlx::Result<(String, PgArguments)> {
    let shared = shared(new).map_err(sqlx::Error::Encode)?;
    // The key is inserted first. Its reference to the capsule is checked at the statement's end.
    let source = "fits WHERE $6 IS NULL OR EXISTS (SELECT 1 FROM keyed)";
    let (capsule, mut arguments) =
        fill(Insert::into("capsules").after(shared), new).for_each(source)?;
    let mut noted = String::new();
    if let Some(entry) = new.entry {
        let insert = audit::fill(Insert::into(audit::TABLE).after(arguments), entry);
        let (insert, all) = insert.for_each("made")?;
        arguments = all;
        noted = format!(", noted AS ({insert})");
    }
    let sql = format!(
        "WITH held AS MATERIALIZED \
         (SELECT capsules, vcpus, memory_mib FROM admit_capsule($1, $2)), \
         fits AS MATERIALIZED (SELECT true AS yes FROM held \
         WHERE (NOT $2 OR (capsules <= $3 AND vcpus <= $4 AND memory_mib <= $5)) \
         AND set_config('wrenn.actor', $10, true) IS NOT NULL), \
         keyed AS (INSERT INTO idempotency_keys (team_id, key, request_hash, capsule_id) \
         SELECT $1, $6, $7, $8 FROM fits WHERE $6 IS NOT NULL ON CONFLICT DO NOTHING \
         RETURNING key), \
         made AS ({capsule} RETURNING id){noted} \
         SELECT capsules, vcpus, memory_mib, EXISTS (SELECT 1 FROM fits) AS fits, \
         EXISTS (SELECT 1 FROM made) AS made, \
         (SELECT count_spawn($9) FROM made WHERE $9 IS NOT NULL) AS spawns FROM held"
    );
    Ok((sql, arguments))
}

/// Encodes the parameters that several parts of the statement use.
fn shared(new: &NewCapsule<'_>) -> Result<PgArguments, BoxDynError> {
    let (row, most) = (new.row, new.most.unwrap_or_default());
    // Only creates from versions count, and the capsules of builds never do.
    let spawned = row.version_id.and(row.template_id).filter(|_| row.build_id.is_none());
    let mut shared = PgArguments::default();
    shared.add(row.team_id)?;
    shared.add(new.most.is_some())?;
    shared.add(most.capsules)?;
    shared.add(most.vcpus)?;
    shared.add(most.memory_mib)?;
    shared.add(new.key.map(|(key, _)| key))?;
    shared.add(new.key.map(|(_, request)| request.as_slice()))?;
    shared.add(row.id)?;
    shared.add(spawned)?;
    shared.add(setting(new.entry.map_or(&Actor::SYSTEM, |entry| &entry.by)))?;
    Ok(shared)
}

/// Sets the columns of a new row.
fn fill(insert: Insert, new: &NewCapsule<'_>) -> Insert {
    let row = new.row;
    fill_creator(fill_name(insert, new.name), new.by)
        .set("id", row.id)
        .set("team_id", row.team_id)
        .set("host_id", row.host_id)
        .set("template_id", row.template_id)
        .set("template", &row.template)
        .set("snapshot_id", row.snapshot_id)
        .set("version_id", row.version_id)
        .set("build_id", row.build_id)
        .set("status", CapsuleState::Starting)
        .set("vcpus", i64::from(row.vcpus))
        .set("memory_mib", i64::from(row.memory_mib))
        .set("disk_mib", i64::from(row.disk_mib))
        .set("timeout_sec", or_zero(row.idle_sec))
        .set("on_timeout", row.on_timeout)
        .set("auto_resume", row.auto_resume)
        .set("envd_token", &row.envd_token)
        .set("traffic_token", &row.traffic_token)
        .set("public_ports", &row.public_ports)
        .set("public_traffic", row.public_traffic)
        .set("host_header", &row.host_header)
        .set("egress", &row.egress)
        .set("e2b", row.e2b)
        .set("created_by_key", row.created_by_key)
        .set("metadata", &row.metadata)
        .set("logs", row.logs)
        .set("parent_type", row.parent_type)
        .set("parent_id", row.parent_id)
}

/// Sets the name. The first parameter of the statement is the team.
fn fill_name(insert: Insert, name: &NewName) -> Insert {
    match name {
        NewName::None => insert,
        NewName::Given(name) => insert.set("name", name),
        NewName::CopyOf(origin) => insert.set_with("name", "free_capsule_name($1, ?)", origin),
    }
}

/// Sets the creator, with the name that the creator has now.
fn fill_creator(insert: Insert, by: Principal) -> Insert {
    let insert = insert.set("created_by_type", by.kind());
    match by {
        Principal::Key(id) => insert.set("created_by_id", by.id()).set_with(
            "created_by_label",
            "(SELECT k.name FROM api_keys k WHERE k.id = ?)",
            id,
        ),
        Principal::User(id) => insert.set("created_by_id", by.id()).set_with(
            "created_by_label",
            "(SELECT u.name FROM users u WHERE u.id = ?)",
            id,
        ),
        Principal::Host(_) | Principal::System | Principal::Nobody => insert,
    }
}
