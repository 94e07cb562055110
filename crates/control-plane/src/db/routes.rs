//! Facts about a capsule and a caller's key, for the sandbox proxy.

use super::keys::Key;
use sqlx::PgPool;
use sqlx::types::Json;
use time::OffsetDateTime;
use types::{CapsuleId, CapsuleState, HostId, TeamId, TemplateId};

/// Result of [`get_sandbox_proxy_target`]: a capsule and a key, either of which may be missing.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct SandboxProxyTarget {
    /// Team of the capsule. Every field of the capsule is `None` when there is no such capsule.
    pub team_id: Option<TeamId>,
    pub template_id: Option<TemplateId>,
    #[sqlx(rename = "status")]
    pub state: Option<CapsuleState>,
    pub envd_token: Option<String>,
    pub traffic_token: Option<String>,
    pub link_generation: Option<i64>,
    pub public_ports: Option<Vec<i32>>,
    pub public_traffic: Option<bool>,
    pub host_header: Option<String>,
    pub e2b: Option<bool>,
    pub auto_resume: Option<bool>,
    pub host_id: Option<HostId>,
    /// The key; `None` when it is not valid.
    pub key: Option<Json<Key>>,
    pub key_expires: Option<OffsetDateTime>,
}

/// Reads a capsule and a key in one query. Either may be missing. Records the use of the key at
/// most once a minute.
pub(crate) async fn get_sandbox_proxy_target(
    db: &PgPool,
    capsule: Option<CapsuleId>,
    key_hash: Option<&[u8]>,
) -> sqlx::Result<SandboxProxyTarget> {
    let sql = "WITH used AS (UPDATE api_keys SET last_used_at = now() WHERE key_hash = $2 \
               AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')) \
               SELECT c.team_id, c.template_id, c.status, c.envd_token, c.traffic_token, \
               c.link_generation, c.public_ports, c.public_traffic, c.host_header, c.e2b, c.auto_resume, c.host_id, \
               to_jsonb(k) - 'key_hash' AS key, k.expires_at AS key_expires \
               FROM (SELECT 1) AS always \
               LEFT JOIN capsules c ON c.id = $1 AND (c.status <> 'stopped' OR c.e2b) \
               AND c.build_id IS NULL \
               LEFT JOIN api_keys k ON k.key_hash = $2 AND k.revoked_at IS NULL \
               AND (k.expires_at IS NULL OR k.expires_at > now()) \
               AND EXISTS (SELECT 1 FROM teams t WHERE t.id = k.team_id AND t.deleted_at IS NULL)";
    sqlx::query_as(sql).bind(capsule).bind(key_hash).fetch_one(db).await
}
