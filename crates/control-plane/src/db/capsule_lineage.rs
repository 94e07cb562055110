//! Lineage of capsules: origins, copies and snapshots. Every statement names the team and reads a
//! bounded number of rows.

use super::capsules::ParentKind;
use crate::policy::Confinement;
use sqlx::PgPool;
use time::OffsetDateTime;
use types::{CapsuleId, CapsuleState, TeamId};
use uuid::Uuid;

/// Most origins of a capsule that are followed.
pub(crate) const DEPTH: i32 = 32;

/// A capsule, snapshot or template. All but kind and id is `None` if it no longer exists.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Relative {
    pub kind: ParentKind,
    pub id: Uuid,
    pub name: Option<String>,
    /// State of a capsule.
    pub status: Option<CapsuleState>,
    pub parent_kind: Option<ParentKind>,
    pub parent_id: Option<Uuid>,
    pub created_at: Option<OffsetDateTime>,
    /// Template that a capsule was made from.
    pub template_id: Option<Uuid>,
}

/// Lists the origins of a capsule, the nearest first, at most [`DEPTH`].
pub(crate) async fn parents(
    db: &PgPool,
    team: TeamId,
    id: CapsuleId,
) -> sqlx::Result<Vec<Relative>> {
    let sql = "WITH RECURSIVE up (depth, kind, id) AS (\
               SELECT 1, parent_type, parent_id FROM capsules \
               WHERE id = $1 AND team_id = $2 AND build_id IS NULL AND parent_id IS NOT NULL \
               UNION ALL \
               SELECT up.depth + 1, origin.kind, origin.id FROM up CROSS JOIN LATERAL (\
               SELECT c.parent_type AS kind, c.parent_id AS id FROM capsules c \
               WHERE up.kind = 'capsule' AND c.id = up.id AND c.team_id = $2 \
               UNION ALL SELECT 'capsule', s.capsule_id FROM snapshots s \
               WHERE up.kind = 'snapshot' AND s.id = up.id AND s.team_id = $2) origin \
               WHERE origin.id IS NOT NULL AND up.depth < $3) \
               SELECT up.kind, up.id, coalesce(c.name, s.name, t.name) AS name, c.status, \
               CASE up.kind WHEN 'snapshot' THEN CASE WHEN s.capsule_id IS NOT NULL \
               THEN 'capsule' END ELSE c.parent_type END AS parent_kind, \
               coalesce(s.capsule_id, c.parent_id) AS parent_id, \
               coalesce(c.created_at, s.created_at, t.created_at) AS created_at, c.template_id \
               FROM up LEFT JOIN capsules c \
               ON up.kind = 'capsule' AND c.id = up.id AND c.team_id = $2 \
               LEFT JOIN snapshots s ON up.kind = 'snapshot' AND s.id = up.id AND s.team_id = $2 \
               LEFT JOIN templates t ON up.kind = 'template' AND t.id = up.id ORDER BY up.depth";
    sqlx::query_as(sql).bind(id).bind(team).bind(DEPTH).fetch_all(db).await
}

/// Lists the forks of a capsule and the capsules that started from its snapshots, newest first,
/// within a caller's confinement.
pub(crate) async fn children(
    db: &PgPool,
    team: TeamId,
    id: CapsuleId,
    confinement: Confinement,
    limit: i64,
) -> sqlx::Result<Vec<Relative>> {
    let sql = "SELECT 'capsule' AS kind, child.* FROM (\
               (SELECT id, name, status, parent_type AS parent_kind, parent_id, created_at, \
               template_id FROM capsules WHERE parent_type = 'capsule' \
               AND parent_type <> 'template' AND parent_id = $1 AND team_id = $2 \
               AND ($3::uuid IS NULL OR id = $3) AND ($4::uuid IS NULL OR template_id = $4) \
               ORDER BY created_at DESC, id DESC LIMIT $5) UNION ALL \
               (SELECT id, name, status, parent_type, parent_id, created_at, template_id \
               FROM capsules WHERE parent_type = 'snapshot' AND parent_type <> 'template' \
               AND parent_id IN (SELECT s.id FROM snapshots s \
               WHERE s.capsule_id = $1 AND s.team_id = $2 \
               ORDER BY s.created_at DESC, s.id DESC LIMIT $5) AND team_id = $2 \
               AND ($3::uuid IS NULL OR id = $3) AND ($4::uuid IS NULL OR template_id = $4) \
               ORDER BY created_at DESC, id DESC LIMIT $5)) child \
               ORDER BY created_at DESC, id DESC LIMIT $5";
    let list = sqlx::query_as(sql).bind(id).bind(team).bind(confinement.capsule);
    list.bind(confinement.template).bind(limit).fetch_all(db).await
}

/// Lists the named snapshots of a capsule, newest first.
pub(crate) async fn snapshots(
    db: &PgPool,
    team: TeamId,
    id: CapsuleId,
    limit: i64,
) -> sqlx::Result<Vec<Relative>> {
    let sql = "SELECT 'snapshot' AS kind, id, name, NULL::text AS status, \
               'capsule' AS parent_kind, capsule_id AS parent_id, created_at, template_id \
               FROM snapshots WHERE capsule_id = $1 AND team_id = $2 AND status = 'ready' \
               AND name IS NOT NULL ORDER BY created_at DESC, id DESC LIMIT $3";
    sqlx::query_as(sql).bind(id).bind(team).bind(limit).fetch_all(db).await
}
