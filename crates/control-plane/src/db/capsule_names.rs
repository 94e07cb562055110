//! Names of capsules, and settings that change in one statement with them. The unique index
//! `capsules_name` decides whose name it is.

use super::actor::setting;
use super::capsules::{Capsule, columns};
use crate::audit::Actor;
use crate::policy::Confinement;
use sqlx::types::Json;
use sqlx::{PgExecutor, PgPool};
use std::collections::BTreeMap;
use types::{CapsuleId, LogPolicy, TeamId};

/// Name of a capsule to insert.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum NewName {
    #[default]
    None,
    Given(String),
    /// The first free name of a copy of the capsule with this name.
    CopyOf(String),
}

/// Settings of a capsule to change. `None` leaves a setting as it is.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// New name. An empty name removes the name.
    pub name: Option<String>,
    pub metadata: Option<BTreeMap<String, String>>,
    pub auto_resume: Option<bool>,
    pub logs: Option<LogPolicy>,
}

/// Returns the living capsule with a name, within a caller's confinement.
pub(crate) async fn find_id(
    db: &PgPool,
    team: TeamId,
    confinement: Confinement,
    name: &str,
) -> sqlx::Result<Option<CapsuleId>> {
    let sql = "SELECT id FROM capsules WHERE team_id = $1 AND name = $2 AND status <> 'stopped' \
               AND build_id IS NULL AND ($3::uuid IS NULL OR id = $3) \
               AND ($4::uuid IS NULL OR template_id = $4)";
    let find = sqlx::query_scalar(sql).bind(team).bind(name);
    find.bind(confinement.capsule).bind(confinement.template).fetch_optional(db).await
}

/// Changes settings of a team's living capsule. Returns the capsule, or `None` if it is gone.
///
/// # Errors
/// An error for which [`is_taken`] holds, if another living capsule has the name.
pub(crate) async fn change(
    db: impl PgExecutor<'_>,
    team: TeamId,
    id: CapsuleId,
    changes: &Changes,
    by: &Actor,
) -> sqlx::Result<Option<Capsule>> {
    let sql = concat!(
        "UPDATE capsules SET updated_at = now(), \
               name = CASE WHEN $3::text IS NULL THEN name ELSE nullif($3, '') END, \
               metadata = coalesce($4::jsonb, metadata), \
               auto_resume = coalesce($5::boolean, auto_resume), \
               logs = coalesce($7::text, logs) \
               WHERE id = $1 AND team_id = $2 AND status <> 'stopped' AND build_id IS NULL \
               AND set_config('wrenn.actor', $6, true) IS NOT NULL RETURNING ",
        columns!()
    );
    let update = sqlx::query_as(sql).bind(id).bind(team).bind(&changes.name);
    let update = update.bind(changes.metadata.as_ref().map(Json)).bind(changes.auto_resume);
    let update = update.bind(setting(by)).bind(changes.logs);
    update.fetch_optional(db).await
}

/// Reports whether a statement failed since another living capsule of the team has the name.
pub(crate) fn is_taken(error: &sqlx::Error) -> bool {
    let constraint = error.as_database_error().and_then(|error| error.constraint());
    constraint == Some("capsules_name")
}

/// Removes an erased user's id and name from the capsules that they created.
pub(crate) async fn anonymise(db: impl PgExecutor<'_>, user: &str) -> sqlx::Result<()> {
    let sql = "UPDATE capsules SET created_by_id = NULL, created_by_label = NULL \
               WHERE created_by_id = $1";
    sqlx::query(sql).bind(user).execute(db).await.map(|_| ())
}
