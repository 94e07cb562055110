//! Rows of hosts, with the facts that placement decides on.

use super::insert::Insert;
use crate::audit::Entry;
use crate::scheduler::ResourceAmounts;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use types::{HostId, HostState, Isolation, TeamId};

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Host {
    pub id: HostId,
    pub team_id: Option<TeamId>,
    pub name: String,
    pub address: String,
    #[sqlx(rename = "status")]
    pub state: HostState,
    pub draining: bool,
    pub arch: String,
    pub driver: String,
    pub accelerator: String,
    pub isolation: Isolation,
    pub version: String,
    pub templates: Vec<String>,
    pub cpu_cores: i32,
    pub max_vcpus: i64,
    pub memory_mib: i64,
    pub disk_mib: i64,
    pub store: bool,
    pub tags: Vec<String>,
    pub load: Json<api::HostLoad>,
    pub cert_fingerprint: Option<String>,
    pub cert_previous: Option<String>,
    pub cert_expires_at: Option<OffsetDateTime>,
    pub created_at: OffsetDateTime,
    pub last_heartbeat_at: Option<OffsetDateTime>,
    /// Number of capsules on the host that have not been removed.
    pub capsules: i64,
    pub used_vcpus: i64,
    pub used_memory_mib: i64,
    pub used_disk_mib: i64,
}

impl Host {
    /// Returns the resources that the host's capsules may have in total.
    pub(crate) fn room(&self) -> ResourceAmounts {
        size(self.max_vcpus, self.memory_mib, self.disk_mib)
    }

    /// Returns the resources that the host's capsules have.
    pub(crate) fn used(&self) -> ResourceAmounts {
        size(self.used_vcpus, self.used_memory_mib, self.used_disk_mib)
    }
}

fn size(vcpus: i64, memory_mib: i64, disk_mib: i64) -> ResourceAmounts {
    let whole = |n: i64| u64::try_from(n).unwrap_or(0);
    ResourceAmounts {
        vcpus: whole(vcpus),
        memory_mib: whole(memory_mib),
        disk_mib: whole(disk_mib),
    }
}

/// Query for every column, with the resources of the host's capsules. A paused or failed capsule
/// has no processor and no memory. Its disk counts until the capsule is removed.
const SELECT: &str = "SELECT h.*, coalesce(u.capsules, 0) AS capsules, \
    coalesce(u.vcpus, 0) AS used_vcpus, coalesce(u.memory_mib, 0) AS used_memory_mib, \
    coalesce(u.disk_mib, 0) AS used_disk_mib FROM hosts h LEFT JOIN (SELECT host_id, \
    count(*) AS capsules, sum(disk_mib) AS disk_mib, \
    sum(vcpus) FILTER (WHERE status NOT IN ('paused', 'error')) AS vcpus, \
    sum(memory_mib) FILTER (WHERE status NOT IN ('paused', 'error')) AS memory_mib \
    FROM capsules WHERE status <> 'stopped' GROUP BY host_id) u ON u.host_id = h.id";

pub(crate) async fn list(db: &PgPool) -> sqlx::Result<Vec<Host>> {
    let sql = sqlx::AssertSqlSafe(format!("{SELECT} ORDER BY h.created_at, h.id"));
    sqlx::query_as(sql).fetch_all(db).await
}

pub(crate) async fn find(db: impl sqlx::PgExecutor<'_>, id: HostId) -> sqlx::Result<Option<Host>> {
    let sql = sqlx::AssertSqlSafe(format!("{SELECT} WHERE h.id = $1"));
    sqlx::query_as(sql).bind(id).fetch_optional(db).await
}

/// Finds a host by name that has never enrolled. Such a row dates from before hosts had
/// certificates.
pub(crate) async fn not_enrolled(db: &PgPool, name: &str) -> sqlx::Result<Option<HostId>> {
    let sql = "SELECT id FROM hosts WHERE name = $1 AND enrolment = 0";
    sqlx::query_scalar(sql).bind(name).fetch_optional(db).await
}

/// Inserts a host that has yet to enrol; `false` when another host has its name.
pub(crate) async fn insert(
    db: &mut PgConnection,
    id: HostId,
    team: Option<TeamId>,
    name: &str,
    tags: &[String],
) -> sqlx::Result<bool> {
    let insert = Insert::into("hosts")
        .set("id", id)
        .set("team_id", team)
        .set("name", name)
        .set("address", "")
        .set("status", HostState::Pending)
        .set("tags", tags)
        .or_keep("(name)");
    insert.execute(db).await
}

/// Locks a host for the rest of the transaction; `false` when there is none.
pub(crate) async fn lock(db: &mut PgConnection, id: HostId) -> sqlx::Result<bool> {
    let sql = "SELECT 1 FROM hosts WHERE id = $1 FOR UPDATE";
    Ok(sqlx::query(sql).bind(id).fetch_optional(db).await?.is_some())
}

/// Finds another host at an address.
pub(crate) async fn at_address(
    db: &PgPool,
    address: &str,
    but: HostId,
) -> sqlx::Result<Option<HostId>> {
    let sql = "SELECT id FROM hosts WHERE address = $1 AND id <> $2 LIMIT 1";
    sqlx::query_scalar(sql).bind(address).bind(but).fetch_optional(db).await
}

/// A certificate that was just issued.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cert {
    pub fingerprint: Option<String>,
    pub expires_at: Option<OffsetDateTime>,
}

/// Enrols a host at an address, and invalidates everything that an earlier enrolment issued.
/// Returns the number of the enrolment.
pub(crate) async fn enrol(
    db: &mut PgConnection,
    id: HostId,
    address: &str,
    cert: &Cert,
) -> sqlx::Result<i32> {
    let sql = "UPDATE hosts SET address = $2, cert_fingerprint = $3, cert_expires_at = $4, \
               cert_previous = NULL, enrolment = enrolment + 1, status = 'online', \
               last_heartbeat_at = now() WHERE id = $1 RETURNING enrolment";
    let update = sqlx::query_scalar(sql).bind(id).bind(address);
    update.bind(&cert.fingerprint).bind(cert.expires_at).fetch_one(db).await
}

/// Stores a renewed certificate. The host's present certificate stays valid beside it. `keeps_last`
/// is true if the host has the last certificate. False means that the last certificate never
/// reached the host, which then has the previous one.
pub(crate) async fn renew(
    db: &mut PgConnection,
    id: HostId,
    cert: &Cert,
    keeps_last: bool,
) -> sqlx::Result<i32> {
    let sql = "UPDATE hosts SET cert_previous = CASE WHEN $4 THEN cert_fingerprint \
               ELSE cert_previous END, cert_fingerprint = $2, cert_expires_at = $3 \
               WHERE id = $1 RETURNING enrolment";
    let update = sqlx::query_scalar(sql).bind(id).bind(&cert.fingerprint);
    update.bind(cert.expires_at).bind(keeps_last).fetch_one(db).await
}

/// Invalidates everything that an enrolment issued. The host must enrol again.
pub(crate) async fn disown(db: &mut PgConnection, id: HostId) -> sqlx::Result<()> {
    let sql = "UPDATE hosts SET cert_fingerprint = NULL, cert_previous = NULL, \
               enrolment = enrolment + 1, status = 'unreachable' WHERE id = $1";
    sqlx::query(sql).bind(id).execute(&mut *db).await?;
    let sql = "DELETE FROM host_tokens WHERE host_id = $1";
    sqlx::query(sql).bind(id).execute(db).await.map(|_| ())
}

/// Stores a host's description of itself, and the time of the heartbeat; `false` when this
/// enrolment is over.
pub(crate) async fn heard(
    db: impl sqlx::PgExecutor<'_>,
    id: HostId,
    enrolment: i32,
    is: &api::HostSpecs,
    load: &api::HostLoad,
) -> sqlx::Result<bool> {
    let sql = "UPDATE hosts SET status = 'online', last_heartbeat_at = now(), arch = $3, \
               driver = $4, accelerator = $5, version = $6, templates = $7, cpu_cores = $8, \
               max_vcpus = $9, memory_mib = $10, disk_mib = $11, load = $12, store = $13, \
               isolation = $14 \
               WHERE id = $1 AND enrolment = $2";
    let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let update = sqlx::query(sql).bind(id).bind(enrolment).bind(&is.arch).bind(&is.driver);
    let update = update.bind(&is.accelerator).bind(&is.version).bind(&is.templates);
    let update = update.bind(i32::try_from(is.cpu_cores).unwrap_or(i32::MAX));
    let update = update.bind(whole(is.vcpus)).bind(whole(is.memory_mib)).bind(whole(is.disk_mib));
    // Agents of earlier versions do not report a tier.
    let tier = match is.isolation.as_str() {
        "" => Isolation::None,
        tier => tier.parse::<Isolation>().map_err(|error| sqlx::Error::Encode(Box::new(error)))?,
    };
    let update = update.bind(Json(load)).bind(is.store).bind(tier);
    Ok(update.execute(db).await?.rows_affected() == 1)
}

/// Reports whether hosts are online and none of them has sent a heartbeat for the given seconds.
pub(crate) async fn are_all_silent(db: &PgPool, seconds: f64) -> sqlx::Result<bool> {
    let sql = "SELECT coalesce(max(last_heartbeat_at) < now() - make_interval(secs => $1), false) \
               FROM hosts WHERE status = 'online'";
    sqlx::query_scalar(sql).bind(seconds).fetch_one(db).await
}

/// Marks hosts without a heartbeat for the given seconds as unreachable. Returns their ids.
pub(crate) async fn mark_unreachable(db: &PgPool, seconds: f64) -> sqlx::Result<Vec<HostId>> {
    let sql = "UPDATE hosts SET status = 'unreachable' WHERE status = 'online' \
               AND last_heartbeat_at < now() - make_interval(secs => $1) RETURNING id";
    sqlx::query_scalar(sql).bind(seconds).fetch_all(db).await
}

/// Closes a host to new capsules, or opens it again; `false` when there is none.
pub(crate) async fn set_draining(
    db: impl sqlx::PgExecutor<'_>,
    id: HostId,
    draining: bool,
) -> sqlx::Result<bool> {
    let sql = "UPDATE hosts SET draining = $2 WHERE id = $1";
    Ok(sqlx::query(sql).bind(id).bind(draining).execute(db).await?.rows_affected() == 1)
}

pub(crate) async fn set_tags(
    db: impl sqlx::PgExecutor<'_>,
    id: HostId,
    tags: &[String],
) -> sqlx::Result<bool> {
    let sql = "UPDATE hosts SET tags = $2 WHERE id = $1";
    Ok(sqlx::query(sql).bind(id).bind(tags).execute(db).await?.rows_affected() == 1)
}

/// Removes a host if the store or another host has everything that the host holds. Returns `false`
/// if they do not, or if there is no such host. With `force`, versions that only this host has end.
pub(crate) async fn remove(
    db: &PgPool,
    id: HostId,
    force: bool,
    entry: &Entry,
) -> sqlx::Result<bool> {
    let mut transaction = db.begin().await?;
    let there = lock(&mut transaction, id).await?;
    let sql = "SELECT EXISTS (SELECT 1 FROM capsules WHERE host_id = $1 AND status <> 'stopped' \
               AND NOT (status = 'paused' AND stored_newest)) \
               OR EXISTS (SELECT 1 FROM snapshots WHERE host_id = $1 AND NOT stored)";
    let has: bool = sqlx::query_scalar(sql).bind(id).fetch_one(&mut *transaction).await?;
    if !there || has {
        return Ok(false);
    }
    if force {
        super::versions::lose(&mut transaction, id).await?;
    } else if super::versions::count_only_there(&mut *transaction, id).await? > 0 {
        return Ok(false);
    }
    let sql = "UPDATE capsules SET host_id = NULL WHERE host_id = $1";
    sqlx::query(sql).bind(id).execute(&mut *transaction).await?;
    let sql = "UPDATE snapshots SET host_id = NULL WHERE host_id = $1";
    sqlx::query(sql).bind(id).execute(&mut *transaction).await?;
    sqlx::query("DELETE FROM hosts WHERE id = $1").bind(id).execute(&mut *transaction).await?;
    super::audit::write(&mut *transaction, entry).await?;
    transaction.commit().await?;
    Ok(true)
}
