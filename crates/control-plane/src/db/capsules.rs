//! Rows of capsules, and the compare-and-set statements that move capsules between states.

use super::actor::setting;
use super::decode::{Unsigned, ZeroIsNone, or_zero, signed};
use crate::audit::{Actor, ActorKind};
use crate::limits::PUBLIC_PORTS_MAX;
use crate::scheduler::ResourceAmounts;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{PgExecutor, PgPool};
use std::collections::BTreeMap;
use std::time::Duration;
use time::OffsetDateTime;
use types::{
    ApiKeyId, BuildId, CapsuleId, CapsuleState, Egress, HostId, Isolation, LogPolicy, OnTimeout,
    SnapshotId, TeamId, TemplateId,
};
use uuid::Uuid;

/// Columns of [`Capsule`].
macro_rules! columns {
    () => {
        "id, team_id, host_id, template_id, template, snapshot_id, version_id, build_id, status, \
         operation, \
         generation, vcpus, memory_mib, disk_mib, timeout_sec, ends_at, on_timeout, auto_resume, \
         envd_token, stored, stored_tree, stored_newest, traffic_token, link_generation, \
         public_ports, public_traffic, host_header, egress, e2b, created_by_key, disk_full, \
         storage_bytes, placed, error, metadata, logs, created_at, started_at, updated_at, \
         name, created_by_type, created_by_id, created_by_label, parent_type, parent_id, \
         state_since, paused_at, last_active_at, ended_at, \
         (SELECT h.isolation FROM hosts h WHERE h.id = host_id) AS isolation"
    };
}
pub(super) use columns;

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Capsule {
    pub id: CapsuleId,
    pub team_id: TeamId,
    pub host_id: Option<HostId>,
    pub template_id: Option<TemplateId>,
    pub template: String,
    pub snapshot_id: Option<SnapshotId>,
    /// Version that the capsule began from; `None` for an operator's template.
    pub version_id: Option<BuildId>,
    /// Build that the capsule works for. Only the build's runner finds such a capsule.
    pub build_id: Option<BuildId>,
    #[sqlx(rename = "status")]
    pub state: CapsuleState,
    /// Name of the current pause or resume, with its parameters. Empty for an unnamed one.
    pub operation: String,
    #[sqlx(try_from = "Unsigned")]
    pub generation: u64,
    #[sqlx(try_from = "i32")]
    pub vcpus: u32,
    #[sqlx(try_from = "i32")]
    pub memory_mib: u32,
    #[sqlx(try_from = "i32")]
    pub disk_mib: u32,
    /// Seconds without activity after which the capsule is paused; `None` for never.
    #[sqlx(rename = "timeout_sec", try_from = "ZeroIsNone<i32>")]
    pub idle_sec: Option<u32>,
    pub ends_at: Option<OffsetDateTime>,
    pub on_timeout: OnTimeout,
    pub auto_resume: bool,
    pub envd_token: String,
    /// Number of the capsule's snapshot in the store.
    #[sqlx(try_from = "ZeroIsNone<i64>")]
    pub stored: Option<u64>,
    /// Name of the stored snapshot's tree. Empty when the number alone names the tree.
    pub stored_tree: String,
    /// True if the capsule has not run since the store received that snapshot.
    pub stored_newest: bool,
    pub traffic_token: String,
    /// Generation of preview links. Links of earlier generations no longer admit.
    pub link_generation: i64,
    pub public_ports: Vec<i32>,
    /// True if anyone may reach every port except envd's.
    pub public_traffic: bool,
    /// Value of the `Host` header that the capsule's programs receive.
    pub host_header: Option<String>,
    pub egress: Json<Egress>,
    /// True for a capsule that was created through E2B's API.
    pub e2b: bool,
    /// Key that created the capsule. The key may have been removed since.
    pub created_by_key: Option<ApiKeyId>,
    /// True if a create or resume booted the guest. Only the row that such a call returns has it.
    #[sqlx(skip)]
    pub booted: bool,
    /// Set while the guest stands still until there is room on its host's disk.
    pub disk_full: bool,
    /// Bytes on disk that only the capsule's snapshots hold, as the host last reported.
    #[sqlx(try_from = "Unsigned")]
    pub storage_bytes: u64,
    /// Generation of the command that placed the capsule on its host; `None` when unknown.
    #[sqlx(try_from = "ZeroIsNone<i64>")]
    pub placed: Option<u64>,
    /// Seconds since `updated_at` by the database's clock. Queries that do not select it leave it
    /// at 0.
    #[sqlx(default)]
    pub age: f64,
    pub error: Option<String>,
    pub metadata: Json<BTreeMap<String, String>>,
    /// Output that the capsule's log keeps.
    pub logs: LogPolicy,
    pub created_at: OffsetDateTime,
    pub started_at: Option<OffsetDateTime>,
    pub updated_at: OffsetDateTime,
    pub name: Option<String>,
    /// Kind, id on the wire and name of the creator. `None` for rows of earlier versions.
    pub created_by_type: Option<ActorKind>,
    pub created_by_id: Option<String>,
    pub created_by_label: Option<String>,
    /// Origin of the capsule, which may be gone.
    pub parent_type: Option<ParentKind>,
    pub parent_id: Option<Uuid>,
    /// Begin of the present state. A trigger sets this and the times below.
    pub state_since: OffsetDateTime,
    /// Begin of the present pause.
    pub paused_at: Option<OffsetDateTime>,
    pub last_active_at: OffsetDateTime,
    pub ended_at: Option<OffsetDateTime>,
    /// Isolation tier of the host, if the host exists.
    pub isolation: Option<Isolation>,
}

/// Kind of a capsule's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ParentKind {
    /// Another capsule, of which this one is a fork.
    Capsule,
    Snapshot,
    Template,
}

types::text_enum!(ParentKind, "parent_type", {
    Capsule = "capsule",
    Snapshot = "snapshot",
    Template = "template",
});

impl ParentKind {
    /// Returns an id of this kind as the wire writes it.
    pub(crate) fn id(self, id: Uuid) -> String {
        match self {
            Self::Capsule => CapsuleId(id).to_string(),
            Self::Snapshot => SnapshotId(id).to_string(),
            Self::Template => TemplateId(id).to_string(),
        }
    }
}

impl Capsule {
    /// Reports whether the store has everything that exists of the capsule.
    pub(crate) fn is_safe(&self) -> bool {
        self.state == CapsuleState::Paused && self.stored_newest
    }

    /// Returns the resources that the capsule takes from its host.
    pub(crate) fn size(&self) -> ResourceAmounts {
        ResourceAmounts {
            vcpus: self.vcpus.into(),
            memory_mib: self.memory_mib.into(),
            disk_mib: self.disk_mib.into(),
        }
    }
}

/// Places a capsule that is starting on another host. Returns the new generation, or `None` if its
/// generation or state has changed.
pub(crate) async fn move_start(
    db: &PgPool,
    id: CapsuleId,
    seen: u64,
    host: HostId,
) -> sqlx::Result<Option<u64>> {
    let sql = "UPDATE capsules SET host_id = $3, generation = generation + 1, \
               placed = generation + 1, updated_at = now() \
               WHERE id = $1 AND generation = $2 AND status = 'starting' RETURNING generation";
    let update = sqlx::query_scalar(sql).bind(id).bind(signed(seen)).bind(host);
    Ok(changed(update.fetch_optional(db).await?))
}

/// Returns the new generation of a capsule, if a statement has changed the capsule.
fn changed(generation: Option<Unsigned>) -> Option<u64> {
    generation.map(u64::from)
}

/// Removes a capsule from its host, if it is still on the host of `seen`.
pub(crate) async fn unplace(db: &PgPool, seen: &Capsule) -> sqlx::Result<()> {
    let sql = "UPDATE capsules SET host_id = NULL WHERE id = $1 AND host_id = $2";
    sqlx::query(sql).bind(seen.id).bind(seen.host_id).execute(db).await.map(|_| ())
}

/// Lists capsules that were active on hosts that are unreachable now. Their present state is
/// unknown.
pub(crate) async fn list_lost(db: &PgPool) -> sqlx::Result<Vec<Capsule>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM capsules \
               WHERE status IN ('running', 'pausing', 'resuming') \
               AND host_id IN (SELECT id FROM hosts WHERE status = 'unreachable')"
    );
    sqlx::query_as(sql).fetch_all(db).await
}

/// Lists hosts with a capsule that is changing its state or is missing.
pub(crate) async fn unsettled_hosts(db: &PgPool) -> sqlx::Result<Vec<HostId>> {
    let sql = "SELECT DISTINCT host_id FROM capsules WHERE host_id IS NOT NULL \
               AND status IN ('starting', 'pausing', 'resuming', 'stopping', 'missing')";
    sqlx::query_scalar(sql).fetch_all(db).await
}

/// Sets the end of a capsule's lifetime to `left` seconds from now, as its host reported; `None`
/// means never. `seen` is the generation of the command that the host answered. The next generation
/// is accepted too, since the reconciler may have marked the capsule as running meanwhile. A later
/// command has set an end of its own.
pub(crate) async fn set_end(
    db: &PgPool,
    id: CapsuleId,
    seen: u64,
    left: Option<f64>,
) -> sqlx::Result<()> {
    let sql = "UPDATE capsules SET ends_at = now() + make_interval(secs => $3) \
               WHERE id = $1 AND generation BETWEEN $2 AND $2 + 1";
    sqlx::query(sql).bind(id).bind(signed(seen)).bind(left).execute(db).await.map(|_| ())
}

/// Rules for the time that a capsule may run.
pub(crate) struct Rules {
    pub on_timeout: OnTimeout,
    pub idle_sec: Option<u32>,
}

/// Stores the rules for a capsule's time. `left` is the seconds that its host has set, and `seen`
/// is the generation at that moment. The end stays when the generation has changed, since a later
/// resume has set an end of its own.
pub(crate) async fn set_lifetime(
    db: impl PgExecutor<'_>,
    id: CapsuleId,
    seen: u64,
    left: Option<f64>,
    rules: &Rules,
    by: &Actor,
) -> sqlx::Result<()> {
    let sql = "UPDATE capsules SET on_timeout = $4, timeout_sec = $5, updated_at = now(), \
               ends_at = CASE WHEN generation = $2 THEN now() + make_interval(secs => $3) \
               ELSE ends_at END WHERE id = $1 AND set_config('wrenn.actor', $6, true) IS NOT NULL";
    let update = sqlx::query(sql).bind(id).bind(signed(seen)).bind(left);
    let update = update.bind(rules.on_timeout).bind(or_zero(rules.idle_sec));
    update.bind(setting(by)).execute(db).await.map(|_| ())
}

/// Returns the time that a capsule has left, by the database's clock; `None` means no end.
pub(crate) async fn left(db: &PgPool, id: CapsuleId) -> sqlx::Result<Option<Duration>> {
    let sql = "SELECT extract(epoch FROM ends_at - now())::float8 FROM capsules WHERE id = $1";
    let found: Option<Option<f64>> = sqlx::query_scalar(sql).bind(id).fetch_optional(db).await?;
    Ok(found.flatten().map(|left| Duration::try_from_secs_f64(left).unwrap_or_default()))
}

/// Replaces a capsule's outbound rules and increments their revision.
pub(crate) async fn set_egress(
    db: impl PgExecutor<'_>,
    id: CapsuleId,
    egress: &Egress,
    by: &Actor,
) -> sqlx::Result<()> {
    let sql = "UPDATE capsules SET egress = jsonb_set($2, '{revision}', \
               to_jsonb(COALESCE((egress->>'revision')::bigint, 0) + 1)), updated_at = now() \
               WHERE id = $1 AND set_config('wrenn.actor', $3, true) IS NOT NULL";
    let set = sqlx::query(sql).bind(id).bind(Json(egress)).bind(setting(by));
    set.execute(db).await.map(|_| ())
}

/// Returns a capsule's state and generation.
pub(crate) async fn stands(
    db: &PgPool,
    id: CapsuleId,
) -> sqlx::Result<Option<(CapsuleState, u64)>> {
    let sql = "SELECT status, generation FROM capsules WHERE id = $1";
    let found: Option<(CapsuleState, Unsigned)> =
        sqlx::query_as(sql).bind(id).fetch_optional(db).await?;
    Ok(found.map(|(state, generation)| (state, generation.into())))
}

/// Returns a team's capsule, unless it has been removed or works for a build.
pub(crate) async fn find(
    db: &PgPool,
    team: TeamId,
    id: CapsuleId,
) -> sqlx::Result<Option<Capsule>> {
    find_of(db, team, id, None).await
}

/// Returns a capsule that works for `build`, or for no build, unless it has been removed.
pub(crate) async fn find_of(
    db: &PgPool,
    team: TeamId,
    id: CapsuleId,
    build: Option<BuildId>,
) -> sqlx::Result<Option<Capsule>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM capsules WHERE id = $1 AND team_id = $2 AND status <> 'stopped' \
               AND build_id IS NOT DISTINCT FROM $3"
    );
    sqlx::query_as(sql).bind(id).bind(team).bind(build).fetch_optional(db).await
}

/// Returns a team's capsule, living or ended, unless it works for a build.
pub(crate) async fn find_ever(
    db: &PgPool,
    team: TeamId,
    id: CapsuleId,
) -> sqlx::Result<Option<Capsule>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM capsules WHERE id = $1 AND team_id = $2 AND build_id IS NULL"
    );
    sqlx::query_as(sql).bind(id).bind(team).fetch_optional(db).await
}

/// Reports whether a capsule exists, whatever its team.
pub(crate) async fn exists(db: &PgPool, id: CapsuleId) -> sqlx::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM capsules WHERE id = $1 AND status <> 'stopped' \
               AND build_id IS NULL)";
    sqlx::query_scalar(sql).bind(id).fetch_one(db).await
}

/// Lists a host's capsules that have not been removed, with their age.
pub(crate) async fn list_by_host(db: &PgPool, host: HostId) -> sqlx::Result<Vec<Capsule>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        ", \
               extract(epoch FROM now() - updated_at)::float8 AS age FROM capsules \
               WHERE host_id = $1 AND status <> 'stopped'"
    );
    sqlx::query_as(sql).bind(host).fetch_all(db).await
}

/// Actor of a move, with the audit entry. The entry names no team, since the statement takes the
/// team from the row.
pub(crate) struct MoveEntry {
    pub by: Actor,
    /// Action of the entry; `None` for a move without an entry.
    pub action: Option<&'static str>,
    pub metadata: Value,
}

/// Moves a capsule to a state, if its generation is still `seen` and the move is legal. The
/// statement also writes the entry in the audit log, if it has an action. Returns the new
/// generation, or `None` if another writer was faster.
pub(crate) async fn transition(
    db: &PgPool,
    id: CapsuleId,
    seen: u64,
    to: CapsuleState,
    error: Option<&str>,
    entry: &MoveEntry,
) -> sqlx::Result<Option<u64>> {
    let sql = "WITH moved AS (\
               UPDATE capsules SET status = $3, generation = generation + 1, updated_at = now(), \
               error = $4, started_at = CASE WHEN $3 = 'running' THEN \
               coalesce(started_at, now()) ELSE started_at END, \
               stored_newest = stored_newest AND $3 <> 'running', \
               disk_full = disk_full AND $3 = 'running', \
               operation = '' \
               WHERE id = $1 AND generation = $2 AND status = ANY($5) \
               AND set_config('wrenn.actor', $12, true) IS NOT NULL \
               RETURNING team_id, build_id, generation), \
               noted AS (INSERT INTO audit_logs (id, team_id, actor_type, actor_id, address, \
               resource_type, resource_id, action, status, metadata) \
               SELECT gen_random_uuid() AS id, team_id, $6 AS actor_type, $7 AS actor_id, \
               $8 AS address, 'capsule' AS resource_type, $9 AS resource_id, $10 AS action, \
               'ok' AS status, $11 AS metadata FROM moved \
               WHERE $10::text IS NOT NULL AND build_id IS NULL) SELECT generation FROM moved";
    let update = sqlx::query_scalar(sql).bind(id).bind(signed(seen)).bind(to);
    let update = update.bind(error).bind(to.previous());
    let by = &entry.by;
    let update = update.bind(by.principal.kind()).bind(by.principal.id());
    let update = update.bind(by.from.map(|ip| ip.to_string()));
    let update = update.bind(id.to_string()).bind(entry.action);
    let update = update.bind(&entry.metadata).bind(setting(by));
    Ok(changed(update.fetch_optional(db).await?))
}

/// Moves a capsule that starts or resumes to `running`, which has no entry in the audit log. Sets
/// the end of its lifetime to `left` seconds from now; `None` means never. Returns the new row, or
/// `None` if another writer was faster.
pub(crate) async fn set_running(
    db: &PgPool,
    id: CapsuleId,
    seen: u64,
    left: Option<f64>,
    by: &Actor,
) -> sqlx::Result<Option<Capsule>> {
    let sql = concat!(
        "UPDATE capsules SET status = 'running', generation = generation + 1, \
               updated_at = now(), error = NULL, started_at = coalesce(started_at, now()), \
               stored_newest = false, operation = '', ends_at = now() + make_interval(secs => $4) \
               WHERE id = $1 AND generation = $2 AND status = ANY($3) \
               AND set_config('wrenn.actor', $5, true) IS NOT NULL RETURNING ",
        columns!()
    );
    let update = sqlx::query_as(sql).bind(id).bind(signed(seen));
    let update = update.bind(CapsuleState::Running.previous()).bind(left);
    update.bind(setting(by)).fetch_optional(db).await
}

/// Moves a capsule to `pausing`, under a name that contains the pause's parameters. Returns the new
/// generation, or `None` if the generation is no longer `seen` or the move is illegal.
pub(crate) async fn begin_pause(
    db: impl PgExecutor<'_>,
    id: CapsuleId,
    seen: u64,
    operation: &str,
    by: &Actor,
) -> sqlx::Result<Option<u64>> {
    let sql = "UPDATE capsules SET status = 'pausing', operation = $3, error = NULL, \
               disk_full = false, generation = generation + 1, updated_at = now() \
               WHERE id = $1 AND generation = $2 AND status = ANY($4) \
               AND set_config('wrenn.actor', $5, true) IS NOT NULL RETURNING generation";
    let update = sqlx::query_scalar(sql).bind(id).bind(signed(seen)).bind(operation);
    let update = update.bind(CapsuleState::Pausing.previous()).bind(setting(by));
    Ok(changed(update.fetch_optional(db).await?))
}

/// Moves a capsule to `resuming`, under a name that contains the resume's parameters. The host may
/// differ from the one where the capsule was paused. Returns the new generation, or `None` if the
/// generation is no longer `seen` or the move is illegal.
pub(crate) async fn resume_on(
    db: impl PgExecutor<'_>,
    id: CapsuleId,
    seen: u64,
    host: HostId,
    operation: &str,
    by: &Actor,
) -> sqlx::Result<Option<u64>> {
    let sql = "UPDATE capsules SET status = 'resuming', host_id = $3, error = NULL, \
               placed = CASE WHEN host_id IS DISTINCT FROM $3 THEN generation + 1 \
               ELSE placed END, generation = generation + 1, updated_at = now(), operation = $5 \
               WHERE id = $1 AND generation = $2 AND status = ANY($4) \
               AND set_config('wrenn.actor', $6, true) IS NOT NULL RETURNING generation";
    let update = sqlx::query_scalar(sql).bind(id).bind(signed(seen)).bind(host);
    let update = update.bind(CapsuleState::Resuming.previous()).bind(operation);
    Ok(changed(update.bind(setting(by)).fetch_optional(db).await?))
}

/// Puts a capsule back on the host in `before`, if its generation is still `seen`.
pub(crate) async fn place_back(db: &PgPool, seen: u64, before: &Capsule) -> sqlx::Result<()> {
    let sql = "UPDATE capsules SET host_id = $3, placed = $4 WHERE id = $1 AND generation = $2";
    let update = sqlx::query(sql).bind(before.id).bind(signed(seen)).bind(before.host_id);
    update.bind(or_zero(before.placed)).execute(db).await.map(|_| ())
}

/// Records that the store has a paused capsule's snapshot, in the named tree. A capsule that has
/// changed since `seen` has a newer snapshot, and its row stays as it is. Returns whether the row
/// was changed.
pub(crate) async fn set_stored(
    db: &PgPool,
    seen: &Capsule,
    stored: u64,
    tree: &str,
) -> sqlx::Result<bool> {
    let sql = "UPDATE capsules SET stored = $4, stored_tree = $5, stored_newest = true \
               WHERE id = $1 AND generation = $2 AND host_id = $3 AND status = 'paused'";
    let update = sqlx::query(sql).bind(seen.id).bind(signed(seen.generation)).bind(seen.host_id);
    let noted = update.bind(signed(stored)).bind(tree).execute(db).await?;
    Ok(noted.rows_affected() == 1)
}

/// Stores a capsule's storage and whether its guest waits for disk space, as its host reported.
/// Does nothing once the generation has changed.
pub(crate) async fn set_usage(
    db: &PgPool,
    id: CapsuleId,
    seen: u64,
    storage_bytes: u64,
    disk_full: bool,
) -> sqlx::Result<()> {
    let sql = "UPDATE capsules SET storage_bytes = $3, disk_full = $4 AND status = 'running' \
               WHERE id = $1 AND generation = $2 AND status <> 'stopped'";
    let update =
        sqlx::query(sql).bind(id).bind(signed(seen)).bind(signed(storage_bytes)).bind(disk_full);
    update.execute(db).await.map(|_| ())
}

/// Stores the last activity in capsules, as seconds before now. An earlier one than the row's counts
/// for nothing. Skips rows that another transaction changes, since the next round tells them again.
pub(crate) async fn note_use(db: &PgPool, used: &[(CapsuleId, f64)]) -> sqlx::Result<()> {
    let (ids, idle): (Vec<Uuid>, Vec<f64>) = used.iter().map(|(id, idle)| (id.0, *idle)).unzip();
    let sql = "WITH free AS (SELECT c.id, u.idle FROM capsules c \
               JOIN unnest($1::uuid[], $2::float8[]) AS u (id, idle) ON u.id = c.id \
               WHERE c.status <> 'stopped' FOR NO KEY UPDATE OF c SKIP LOCKED) \
               UPDATE capsules c SET last_active_at = \
               greatest(c.last_active_at, now() - make_interval(secs => free.idle)) \
               FROM free WHERE c.id = free.id";
    sqlx::query(sql).bind(ids).bind(idle).execute(db).await.map(|_| ())
}

/// Makes a port of a team's capsule public or private. Returns the capsule. Returns `None` if the
/// capsule is not the team's, or would have too many public ports.
pub(crate) async fn set_public(
    db: impl PgExecutor<'_>,
    team: TeamId,
    id: CapsuleId,
    port: u16,
    public: bool,
    by: &Actor,
) -> sqlx::Result<Option<Capsule>> {
    let sql = concat!(
        "UPDATE capsules SET public_ports = array_remove(public_ports, $3) || \
               CASE WHEN $4 THEN ARRAY[$3] ELSE '{}' END, updated_at = now() \
               WHERE id = $1 AND team_id = $2 AND status <> 'stopped' \
               AND (NOT $4 OR cardinality(array_remove(public_ports, $3)) < $5) \
               AND set_config('wrenn.actor', $6, true) IS NOT NULL RETURNING ",
        columns!()
    );
    let most = i32::try_from(PUBLIC_PORTS_MAX).unwrap_or(i32::MAX);
    let update = sqlx::query_as(sql).bind(id).bind(team).bind(i32::from(port));
    update.bind(public).bind(most).bind(setting(by)).fetch_optional(db).await
}

/// Replaces the traffic token of a team's capsule; `false` when the capsule is gone.
pub(crate) async fn set_traffic_token(
    db: impl PgExecutor<'_>,
    team: TeamId,
    id: CapsuleId,
    token: &str,
    by: &Actor,
) -> sqlx::Result<bool> {
    let sql = "UPDATE capsules SET traffic_token = $3, updated_at = now() \
               WHERE id = $1 AND team_id = $2 AND status <> 'stopped' \
               AND set_config('wrenn.actor', $4, true) IS NOT NULL";
    let set = sqlx::query(sql).bind(id).bind(team).bind(token).bind(setting(by));
    Ok(set.execute(db).await?.rows_affected() == 1)
}

/// Starts a new generation of preview links; `false` when the capsule is gone.
pub(crate) async fn rotate_links(
    db: impl PgExecutor<'_>,
    team: TeamId,
    id: CapsuleId,
    by: &Actor,
) -> sqlx::Result<bool> {
    let sql = "UPDATE capsules SET link_generation = link_generation + 1, updated_at = now() \
               WHERE id = $1 AND team_id = $2 AND status <> 'stopped' \
               AND set_config('wrenn.actor', $3, true) IS NOT NULL";
    let update = sqlx::query(sql).bind(id).bind(team).bind(setting(by));
    Ok(update.execute(db).await?.rows_affected() == 1)
}

/// Reports whether a host should have a machine of this capsule. The host of the row should. While
/// a capsule resumes elsewhere, the host where it was paused keeps its machine too.
pub(crate) async fn is_wanted(db: &PgPool, id: CapsuleId, host: HostId) -> sqlx::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM capsules \
               WHERE id = $1 AND status <> 'stopped' AND (host_id = $2 OR status = 'resuming'))";
    sqlx::query_scalar(sql).bind(id).bind(host).fetch_one(db).await
}
