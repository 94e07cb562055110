//! API keys.

use super::decode;
use super::decode::{Nullable, signed};
use super::insert::Insert;
use crate::limits::Limits;
use crate::policy;
use crate::policy::{Confinement, KeyScope, Permissions};
use serde::Deserialize;
use sqlx::{PgExecutor, PgPool};
use std::num::{NonZeroU32, NonZeroU64};
use time::OffsetDateTime;
use types::{ApiKeyId, CapsuleId, Isolation, LogPolicy, TeamId, TemplateId, UserId};

/// A key with the fields that authorization needs.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Key {
    #[serde(deserialize_with = "decode::id")]
    pub id: ApiKeyId,
    #[serde(deserialize_with = "decode::id")]
    pub team_id: TeamId,
    /// User who made the key. The key never exceeds that user's permissions.
    #[serde(deserialize_with = "decode::optional_id")]
    pub created_by: Option<UserId>,
    pub operator: bool,
    scopes: Vec<KeyScope>,
    #[serde(deserialize_with = "decode::optional_id")]
    template_id: Option<TemplateId>,
    #[serde(deserialize_with = "decode::optional_id")]
    capsule_id: Option<CapsuleId>,
    #[serde(deserialize_with = "decode::optional_id")]
    counted_as: Option<ApiKeyId>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    #[serde(flatten)]
    pub limits: KeyLimits,
}

/// Limits of a single key. `None` means no limit beyond the team's.
#[derive(Debug, Clone, Copy, Default, Deserialize, sqlx::FromRow)]
pub(crate) struct KeyLimits {
    #[sqlx(try_from = "Nullable<i32>")]
    max_capsules: Option<u32>,
    #[sqlx(try_from = "Nullable<i32>")]
    max_vcpus: Option<u32>,
    #[sqlx(try_from = "Nullable<i64>")]
    max_memory_mib: Option<u64>,
    #[sqlx(try_from = "Nullable<i32>")]
    creates_per_sec: Option<u32>,
    #[sqlx(try_from = "Nullable<i32>")]
    requests_per_sec: Option<u32>,
}

impl KeyLimits {
    pub(crate) fn limits(self) -> Limits {
        Limits {
            capsules: self.max_capsules.and_then(NonZeroU32::new),
            vcpus: self.max_vcpus.and_then(NonZeroU32::new),
            memory_mib: self.max_memory_mib.and_then(NonZeroU64::new),
            snapshots: None,
            storage_mib: None,
            templates: None,
            builds: None,
            template_mib: None,
            creates_per_sec: self.creates_per_sec.and_then(NonZeroU32::new),
            requests_per_sec: self.requests_per_sec.and_then(NonZeroU32::new),
            isolation: Isolation::None,
            logs: LogPolicy::default(),
        }
    }
}

impl Key {
    pub(crate) fn permissions(&self) -> Permissions {
        permissions(self.operator, &self.scopes)
    }

    /// Returns the key under which this key's requests and creates are counted.
    pub(crate) fn counted_as(&self) -> ApiKeyId {
        self.counted_as.unwrap_or(self.id)
    }

    pub(crate) fn confinement(&self) -> Confinement {
        Confinement { capsule: self.capsule_id, template: self.template_id }
    }
}

/// Returns the permissions of a key by itself. An operator's key without scopes may do everything.
fn permissions(operator: bool, scopes: &[KeyScope]) -> Permissions {
    if operator && scopes.is_empty() {
        return Permissions::ALL;
    }
    policy::scoped(scopes.iter().copied())
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
    pub id: ApiKeyId,
    pub team_id: TeamId,
    pub name: String,
    pub key_prefix: String,
    pub created_by: Option<UserId>,
    pub created_at: OffsetDateTime,
    pub expires_at: Option<OffsetDateTime>,
    pub last_used_at: Option<OffsetDateTime>,
    pub operator: bool,
    pub scopes: Vec<KeyScope>,
    pub template_id: Option<TemplateId>,
    pub capsule_id: Option<CapsuleId>,
    /// Key that this key was made with.
    pub made_by_key: Option<ApiKeyId>,
    /// Key under which requests and creates are counted; this key itself when `None`.
    pub counted_as: Option<ApiKeyId>,
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
    let insert = Insert::into("api_keys")
        .set("id", row.id)
        .set("team_id", row.team_id)
        .set("name", &row.name)
        .set("key_hash", crate::secret::hash(key).as_slice())
        .set("key_prefix", &row.key_prefix)
        .set("created_by", row.created_by)
        .set("expires_at", row.expires_at)
        .set("operator", row.operator)
        .set("scopes", &row.scopes)
        .set("template_id", row.template_id)
        .set("capsule_id", row.capsule_id)
        .set_with("max_capsules", "nullif(?, 0)", limits.capsules.map(i64::from))
        .set_with("max_vcpus", "nullif(?, 0)", limits.vcpus.map(i64::from))
        .set_with("max_memory_mib", "nullif(?, 0)", limits.memory_mib.map(signed))
        .set_with("creates_per_sec", "nullif(?, 0)", limits.creates_per_sec.map(i64::from))
        .set_with("requests_per_sec", "nullif(?, 0)", limits.requests_per_sec.map(i64::from))
        .set("made_by_key", row.made_by_key)
        .set("counted_as", row.counted_as);
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
    sqlx::query_as(sql).bind(team).bind(before).bind(limit).fetch_all(db).await
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
    sqlx::query_as(sql).bind(id).bind(team).fetch_optional(db).await
}

/// Reads a valid key, and keeps it valid for the rest of the transaction.
pub(crate) async fn hold(db: impl PgExecutor<'_>, id: ApiKeyId) -> sqlx::Result<Option<Row>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM api_keys WHERE id = $1 AND revoked_at IS NULL \
               AND (expires_at IS NULL OR expires_at > now()) FOR SHARE"
    );
    sqlx::query_as(sql).bind(id).fetch_optional(db).await
}

/// Returns the user who made a key. Only the user's erasure changes it.
pub(crate) async fn creator(db: impl PgExecutor<'_>, id: ApiKeyId) -> sqlx::Result<Option<UserId>> {
    let sql = "SELECT created_by FROM api_keys WHERE id = $1";
    let user: Option<Option<UserId>> = sqlx::query_scalar(sql).bind(id).fetch_optional(db).await?;
    Ok(user.flatten())
}

/// Returns the length of the chain of keys that led to this one, itself included. A key that no key
/// made has a depth of one.
pub(crate) async fn depth(db: impl PgExecutor<'_>, id: ApiKeyId) -> sqlx::Result<i64> {
    let sql = "WITH RECURSIVE line (id, from_key) AS (\
               SELECT id, made_by_key FROM api_keys WHERE id = $1 UNION \
               SELECT k.id, k.made_by_key FROM api_keys k JOIN line l ON k.id = l.from_key) \
               SELECT count(*) FROM line";
    sqlx::query_scalar(sql).bind(id).fetch_one(db).await
}

/// Returns the hash of a key, valid or not. The hash never changes.
pub(crate) async fn hash(db: &PgPool, id: ApiKeyId) -> sqlx::Result<Option<Vec<u8>>> {
    let sql = "SELECT key_hash FROM api_keys WHERE id = $1";
    sqlx::query_scalar(sql).bind(id).fetch_optional(db).await
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
    let revoke = sqlx::query(sql).bind(team).bind(user);
    Ok(revoke.execute(db).await?.rows_affected())
}
