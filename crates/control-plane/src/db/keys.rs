//! API keys.

use crate::limits::Limits;
use crate::policy::{self, Permissions, ResourceScope};
use serde::Deserialize;
use sqlx::{PgExecutor, PgPool};
use time::OffsetDateTime;
use types::{ApiKeyId, CapsuleId, Isolation, TeamId, TemplateId, UserId};
use uuid::Uuid;

/// A key with the fields that authorization needs.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Key {
    id: Uuid,
    team_id: Uuid,
    created_by: Option<Uuid>,
    pub operator: bool,
    scopes: Vec<String>,
    template_id: Option<Uuid>,
    capsule_id: Option<Uuid>,
    counted_as: Option<Uuid>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    #[serde(flatten)]
    pub limits: KeyLimits,
}

/// Limits of a single key. `None` means no limit beyond the team's.
#[derive(Debug, Clone, Copy, Default, Deserialize, sqlx::FromRow)]
pub(crate) struct KeyLimits {
    max_capsules: Option<i32>,
    max_vcpus: Option<i32>,
    max_memory_mib: Option<i64>,
    creates_per_sec: Option<i32>,
    requests_per_sec: Option<i32>,
}

impl KeyLimits {
    pub(crate) fn limits(self) -> Limits {
        let whole = |n: Option<i32>| n.map_or(0, i32::unsigned_abs);
        Limits {
            capsules: whole(self.max_capsules),
            vcpus: whole(self.max_vcpus),
            memory_mib: self.max_memory_mib.map_or(0, i64::unsigned_abs),
            snapshots: 0,
            storage_mib: 0,
            creates_per_sec: whole(self.creates_per_sec),
            requests_per_sec: whole(self.requests_per_sec),
            isolation: Isolation::None,
        }
    }
}

impl Key {
    pub(crate) fn id(&self) -> ApiKeyId {
        ApiKeyId(self.id)
    }

    pub(crate) fn team(&self) -> TeamId {
        TeamId(self.team_id)
    }

    /// Returns the user who made the key. The key never exceeds that user's permissions.
    pub(crate) fn creator(&self) -> Option<UserId> {
        self.created_by.map(UserId)
    }

    pub(crate) fn permissions(&self) -> Permissions {
        permissions(self.operator, &self.scopes)
    }

    /// Returns the key under which this key's requests and creates are counted.
    pub(crate) fn counted_as(&self) -> ApiKeyId {
        ApiKeyId(self.counted_as.unwrap_or(self.id))
    }

    pub(crate) fn scope(&self) -> ResourceScope {
        ResourceScope {
            capsule: self.capsule_id.map(CapsuleId),
            template: self.template_id.map(TemplateId),
        }
    }
}

/// Returns the permissions of a key by itself. An operator's key without scopes may do everything.
fn permissions(operator: bool, scopes: &[String]) -> Permissions {
    if operator && scopes.is_empty() {
        return Permissions::ALL;
    }
    policy::scoped(scopes.iter().map(String::as_str))
}

/// Columns of [`Row`].
macro_rules! columns {
    () => {
        "id, team_id, name, key_prefix, created_by, created_at, expires_at, last_used_at, \
         operator, scopes, template_id, capsule_id, made_by_key, counted_as, max_capsules, \
         max_vcpus, max_memory_mib, creates_per_sec, requests_per_sec"
    };
}

/// A key as its team sees it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Row {
    pub id: Uuid,
    pub team_id: Uuid,
    pub name: String,
    pub key_prefix: String,
    pub created_by: Option<Uuid>,
    pub created_at: OffsetDateTime,
    pub expires_at: Option<OffsetDateTime>,
    pub last_used_at: Option<OffsetDateTime>,
    pub operator: bool,
    pub scopes: Vec<String>,
    pub template_id: Option<Uuid>,
    pub capsule_id: Option<Uuid>,
    /// Key that this key was made with.
    pub made_by_key: Option<Uuid>,
    /// Key under which requests and creates are counted; this key itself when `None`.
    pub counted_as: Option<Uuid>,
    #[sqlx(flatten)]
    pub limits: KeyLimits,
}

impl Row {
    pub(crate) fn permissions(&self) -> Permissions {
        permissions(self.operator, &self.scopes)
    }
}

pub(crate) async fn any(db: impl PgExecutor<'_>) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM api_keys)").fetch_one(db).await
}

/// Stores a key by its hash, with limits of its own. A limit of 0 is stored as none.
pub(crate) async fn insert(
    db: impl PgExecutor<'_>,
    row: &Row,
    key: &str,
    limits: &super::limits::Row,
) -> sqlx::Result<()> {
    let sql = "INSERT INTO api_keys (id, team_id, name, key_hash, key_prefix, created_by, \
               expires_at, operator, scopes, template_id, capsule_id, max_capsules, max_vcpus, \
               max_memory_mib, creates_per_sec, requests_per_sec, made_by_key, counted_as) \
               VALUES ($1, $2, $3, $4, $5, $6, \
               $7, $8, $9, $10, $11, nullif($12, 0), nullif($13, 0), nullif($14::bigint, 0), \
               nullif($15, 0), nullif($16, 0), $17, $18)";
    let insert = sqlx::query(sql).bind(row.id).bind(row.team_id).bind(&row.name);
    let insert = insert.bind(crate::secret::hash(key).as_slice()).bind(&row.key_prefix);
    let insert = insert.bind(row.created_by).bind(row.expires_at).bind(row.operator);
    let insert = insert.bind(&row.scopes).bind(row.template_id).bind(row.capsule_id);
    let insert = insert.bind(limits.capsules).bind(limits.vcpus).bind(limits.memory_mib);
    let insert = insert.bind(limits.creates_per_sec).bind(limits.requests_per_sec);
    let insert = insert.bind(row.made_by_key).bind(row.counted_as);
    insert.execute(db).await.map(|_| ())
}

/// Returns a page of a team's keys that are not revoked, newest first.
pub(crate) async fn list(
    db: &PgPool,
    team: TeamId,
    before: Option<ApiKeyId>,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM api_keys WHERE team_id = $1 AND revoked_at IS NULL \
               AND ($2::uuid IS NULL OR (created_at, id) < \
                    (SELECT created_at, id FROM api_keys WHERE id = $2 AND team_id = $1)) \
               ORDER BY created_at DESC, id DESC LIMIT $3"
    );
    sqlx::query_as(sql).bind(team.0).bind(before.map(|b| b.0)).bind(limit).fetch_all(db).await
}

pub(crate) async fn find(
    db: impl PgExecutor<'_>,
    team: TeamId,
    id: ApiKeyId,
) -> sqlx::Result<Option<Row>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM api_keys WHERE id = $1 AND team_id = $2 AND revoked_at IS NULL"
    );
    sqlx::query_as(sql).bind(id.0).bind(team.0).fetch_optional(db).await
}

/// Reads a valid key, and keeps it valid for the rest of the transaction.
pub(crate) async fn hold(db: impl PgExecutor<'_>, id: ApiKeyId) -> sqlx::Result<Option<Row>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM api_keys WHERE id = $1 AND revoked_at IS NULL \
               AND (expires_at IS NULL OR expires_at > now()) FOR SHARE"
    );
    sqlx::query_as(sql).bind(id.0).fetch_optional(db).await
}

/// Returns the user who made a key. Only the user's erasure changes it.
pub(crate) async fn creator(db: impl PgExecutor<'_>, id: ApiKeyId) -> sqlx::Result<Option<UserId>> {
    let sql = "SELECT created_by FROM api_keys WHERE id = $1";
    let user: Option<Option<Uuid>> = sqlx::query_scalar(sql).bind(id.0).fetch_optional(db).await?;
    Ok(user.flatten().map(UserId))
}

/// Returns the length of the chain of keys that led to this one, itself included. A key that no key
/// made has a depth of one.
pub(crate) async fn depth(db: impl PgExecutor<'_>, id: ApiKeyId) -> sqlx::Result<i64> {
    let sql = "WITH RECURSIVE line (id, from_key) AS (\
               SELECT id, made_by_key FROM api_keys WHERE id = $1 UNION \
               SELECT k.id, k.made_by_key FROM api_keys k JOIN line l ON k.id = l.from_key) \
               SELECT count(*) FROM line";
    sqlx::query_scalar(sql).bind(id.0).fetch_one(db).await
}

/// Returns the hash of a key, valid or not. The hash never changes.
pub(crate) async fn hash(db: &PgPool, id: ApiKeyId) -> sqlx::Result<Option<Vec<u8>>> {
    let sql = "SELECT key_hash FROM api_keys WHERE id = $1";
    sqlx::query_scalar(sql).bind(id.0).fetch_optional(db).await
}

/// Revokes keys of a team, of a user, or of both; `None` sets no condition. Returns the number of
/// revoked keys.
pub(crate) async fn revoke_of(
    db: impl PgExecutor<'_>,
    team: Option<TeamId>,
    user: Option<UserId>,
) -> sqlx::Result<u64> {
    let sql = "UPDATE api_keys SET revoked_at = now() WHERE revoked_at IS NULL \
               AND ($1::uuid IS NULL OR team_id = $1) AND ($2::uuid IS NULL OR created_by = $2)";
    let revoke = sqlx::query(sql).bind(team.map(|t| t.0)).bind(user.map(|u| u.0));
    Ok(revoke.execute(db).await?.rows_affected())
}
