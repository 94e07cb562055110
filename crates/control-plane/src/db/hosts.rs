//! Hosts.

use protocol::host::DescribeResponse;
use sqlx::PgPool;
use types::HostId;
use uuid::Uuid;

/// Enters the host at an address, or brings its row up to date.
pub(crate) async fn upsert(
    db: &PgPool,
    address: &str,
    host: &DescribeResponse,
) -> sqlx::Result<HostId> {
    let id = first(db).await?.unwrap_or_else(HostId::new).0;
    let sql = "INSERT INTO hosts (id, name, address, status, arch, driver, accelerator, version, \
               templates, cpu_cores, memory_mib, disk_mib, last_heartbeat_at) \
               VALUES ($1, 'local', $2, 'online', $3, $4, $5, $6, $7, $8, $9, $10, now()) \
               ON CONFLICT (id) DO UPDATE SET address = $2, status = 'online', arch = $3, \
               driver = $4, accelerator = $5, version = $6, templates = $7, cpu_cores = $8, \
               memory_mib = $9, disk_mib = $10, last_heartbeat_at = now()";
    sqlx::query(sql)
        .bind(id)
        .bind(address)
        .bind(&host.arch)
        .bind(&host.driver)
        .bind(&host.accelerator)
        .bind(&host.version)
        .bind(&host.templates)
        .bind(i32::try_from(host.cpu_cores).unwrap_or(i32::MAX))
        .bind(i64::try_from(host.memory_mib).unwrap_or(i64::MAX))
        .bind(i64::try_from(host.disk_mib).unwrap_or(i64::MAX))
        .execute(db)
        .await?;
    Ok(HostId(id))
}

/// The host that was made known first, if one was.
pub(crate) async fn first(db: &PgPool) -> sqlx::Result<Option<HostId>> {
    let sql = "SELECT id FROM hosts ORDER BY created_at LIMIT 1";
    Ok(sqlx::query_scalar(sql).fetch_optional(db).await?.map(HostId))
}

/// Notes whether a host has just answered.
pub(crate) async fn heard(db: &PgPool, host: HostId, answered: bool) -> sqlx::Result<()> {
    let sql = "UPDATE hosts SET status = CASE WHEN $2 THEN 'online' ELSE 'unreachable' END, \
               last_heartbeat_at = CASE WHEN $2 THEN now() ELSE last_heartbeat_at END \
               WHERE id = $1 AND status IN ('online', 'unreachable')";
    sqlx::query(sql).bind(host.0).bind(answered).execute(db).await.map(|_| ())
}

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    name: String,
    status: String,
    arch: String,
    driver: String,
    accelerator: String,
    cpu_cores: i32,
    memory_mib: i64,
    disk_mib: i64,
    capsules: i64,
}

pub(crate) async fn list(db: &PgPool) -> sqlx::Result<Vec<api::Host>> {
    let sql = "SELECT h.*, (SELECT count(*) FROM capsules c WHERE c.host_id = h.id \
               AND c.status <> 'stopped') AS capsules FROM hosts h ORDER BY h.created_at";
    let rows: Vec<Row> = sqlx::query_as(sql).fetch_all(db).await?;
    let shown = |row: Row| api::Host {
        id: HostId(row.id).to_string(),
        name: row.name,
        status: row.status,
        arch: row.arch,
        driver: row.driver,
        accelerator: row.accelerator,
        cpu_cores: row.cpu_cores,
        memory_mb: row.memory_mib,
        disk_mb: row.disk_mib,
        capsules: row.capsules,
    };
    Ok(rows.into_iter().map(shown).collect())
}
