//! Rows of builds. A ready build is a version of its template.

use super::actor::setting;
use super::decode::Unsigned;
use super::insert::Insert;
use crate::audit::Actor;
use recipe::{BuildSpec, Provenance};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use sqlx::{PgExecutor, PgPool};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use types::resources::Resources;
use types::{ApiKeyId, BuildId, CapsuleId, HostId, SnapshotId, TeamId, TemplateId};

/// Columns of [`Build`].
macro_rules! columns {
    () => {
        "id, team_id, template_id, status, generation, phase, step, steps, spec, provenance, \
         snapshot_id, bases, vcpus, memory_mib, disk_mib, host_id, capsule_id, events_seen, \
         bytes, reason, requested_by, created_by_key, cancelled, created_at, started_at, ended_at"
    };
}
pub(super) use columns;

/// State of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BuildState {
    /// The build is declared, and its steps are unknown.
    Waiting,
    /// The build is queued or runs.
    Building,
    /// The build is a version of its template.
    Ready,
    /// The build failed or was cancelled.
    Error,
}

types::text_enum!(BuildState, "status", {
    Waiting = "waiting",
    Building = "building",
    Ready = "ready",
    Error = "error",
});

impl BuildState {
    /// Reports whether the build never changes again.
    pub(crate) fn has_ended(self) -> bool {
        matches!(self, Self::Ready | Self::Error)
    }
}

/// Work that a building build does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BuildPhase {
    /// The build waits for a replica and a host.
    Queued,
    /// The host gets the images.
    Image,
    /// A capsule runs the steps.
    Steps,
    /// The host makes the version's files.
    Layer,
    /// The start command runs.
    Start,
}

types::text_enum!(BuildPhase, "phase", {
    Queued = "queued",
    Image = "image",
    Steps = "steps",
    Layer = "layer",
    Start = "start",
});

/// Reason why a build failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Reason {
    pub message: String,
    /// `base`, the number of a step, or `finalize`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Last lines of the failed command.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub output: Vec<String>,
}

/// Version of a template that a recipe names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Base {
    /// Absent for a template that the operator put on the hosts.
    pub version: Option<BuildId>,
    /// Name of the template, without tag and namespace.
    pub template: String,
    /// Team that owns the version.
    pub team: TeamId,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Build {
    pub id: BuildId,
    pub team_id: TeamId,
    pub template_id: TemplateId,
    #[sqlx(rename = "status")]
    pub state: BuildState,
    #[sqlx(try_from = "Unsigned")]
    pub generation: u64,
    pub phase: Option<BuildPhase>,
    /// Number of the last stage's step that ended last.
    #[sqlx(try_from = "i32")]
    pub step: u32,
    /// Number of steps of the last stage.
    #[sqlx(try_from = "i32")]
    pub steps: u32,
    /// Absent while the build waits.
    pub spec: Option<Json<BuildSpec>>,
    pub provenance: Option<Json<Provenance>>,
    /// Snapshot that is the version.
    #[allow(dead_code, reason = "creates read it from `db::versions`")]
    pub snapshot_id: Option<SnapshotId>,
    /// Version of each template that the recipe names, by the name in the recipe.
    pub bases: Json<BTreeMap<String, Base>>,
    #[sqlx(try_from = "i32")]
    pub vcpus: u32,
    #[sqlx(try_from = "i32")]
    pub memory_mib: u32,
    #[sqlx(try_from = "i32")]
    pub disk_mib: u32,
    /// Host that builds or built.
    pub host_id: Option<HostId>,
    /// Capsule that runs the steps or the start command.
    pub capsule_id: Option<CapsuleId>,
    /// Number of the host's last event that is in the database.
    #[sqlx(try_from = "Unsigned")]
    pub events_seen: u64,
    /// Bytes on one host's disk.
    #[sqlx(try_from = "Unsigned")]
    pub bytes: u64,
    pub reason: Option<Json<Reason>>,
    /// Id of the key or user that asked for the build.
    pub requested_by: String,
    pub created_by_key: Option<ApiKeyId>,
    /// True once the build is to end.
    pub cancelled: bool,
    pub created_at: OffsetDateTime,
    pub started_at: Option<OffsetDateTime>,
    pub ended_at: Option<OffsetDateTime>,
}

impl Build {
    /// Returns the default size of the version's capsules.
    pub(crate) fn size(&self) -> Resources {
        Resources { vcpus: self.vcpus, memory_mib: self.memory_mib, disk_mib: self.disk_mib }
    }
}

/// Inserts a waiting or building build. `sealed` holds its own logins, encrypted.
pub(crate) async fn insert(
    db: impl PgExecutor<'_>,
    row: &Build,
    sealed: Option<&[u8]>,
) -> sqlx::Result<()> {
    let insert = Insert::into("builds")
        .set("id", row.id)
        .set("team_id", row.team_id)
        .set("template_id", row.template_id)
        .set("status", row.state)
        .set("phase", row.phase)
        .set("steps", i64::from(row.steps))
        .set("spec", row.spec.as_ref())
        .set("bases", &row.bases)
        .set("vcpus", i64::from(row.vcpus))
        .set("memory_mib", i64::from(row.memory_mib))
        .set("disk_mib", i64::from(row.disk_mib))
        .set("host_id", row.host_id)
        .set("capsule_id", row.capsule_id)
        .set("requested_by", &row.requested_by)
        .set("created_by_key", row.created_by_key)
        .set("started_at", row.started_at)
        .set("sealed_logins", sealed);
    insert.execute(db).await.map(|_| ())
}

/// Finds a build, whatever its team.
pub(crate) async fn find(db: impl PgExecutor<'_>, id: BuildId) -> sqlx::Result<Option<Build>> {
    let sql = concat!("SELECT ", columns!(), " FROM builds WHERE id = $1");
    sqlx::query_as(sql).bind(id).fetch_optional(db).await
}

/// Filter of a list of builds.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Filter {
    pub template: Option<TemplateId>,
    pub state: Option<BuildState>,
}

/// Returns a page of a team's builds, newest first.
pub(crate) async fn list(
    db: &PgPool,
    team: TeamId,
    filter: Filter,
    before: Option<BuildId>,
    limit: i64,
) -> sqlx::Result<Vec<Build>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM builds WHERE team_id = $1 AND ($2::uuid IS NULL OR template_id = $2) \
               AND ($3::text IS NULL OR status = $3) AND ($4::uuid IS NULL OR (created_at, id) < \
                    (SELECT created_at, id FROM builds WHERE id = $4 AND team_id = $1)) \
               ORDER BY created_at DESC, id DESC LIMIT $5"
    );
    let list = sqlx::query_as(sql).bind(team).bind(filter.template).bind(filter.state);
    list.bind(before).bind(limit).fetch_all(db).await
}

/// Steps and bases of a build that begins.
pub(crate) struct Begun<'a> {
    pub spec: &'a BuildSpec,
    pub bases: &'a BTreeMap<String, Base>,
    pub steps: u32,
    /// The build's own logins, encrypted.
    pub sealed: Option<&'a [u8]>,
}

/// Moves a waiting build to `building`; `false` when it no longer waits.
pub(crate) async fn begin(
    db: impl PgExecutor<'_>,
    id: BuildId,
    begun: &Begun<'_>,
) -> sqlx::Result<bool> {
    let sql = "UPDATE builds SET status = 'building', phase = 'queued', spec = $2, bases = $3, \
               steps = $4, sealed_logins = $5, started_at = now(), generation = generation + 1 \
               WHERE id = $1 AND status = 'waiting'";
    let update = sqlx::query(sql).bind(id).bind(Json(begun.spec)).bind(Json(begun.bases));
    let update = update.bind(i64::from(begun.steps)).bind(begun.sealed);
    Ok(update.execute(db).await?.rows_affected() == 1)
}

/// Asks a build to end. A waiting build ends at once. Returns the state after the statement;
/// `None` when the build had ended before.
pub(crate) async fn cancel(
    db: impl PgExecutor<'_>,
    id: BuildId,
    message: &str,
    by: &Actor,
) -> sqlx::Result<Option<BuildState>> {
    let sql = "UPDATE builds SET cancelled = true, generation = generation + 1, \
               reason = CASE status WHEN 'waiting' THEN $2 ELSE reason END, \
               ended_at = CASE status WHEN 'waiting' THEN now() ELSE ended_at END, \
               sealed_logins = CASE status WHEN 'waiting' THEN NULL ELSE sealed_logins END, \
               status = CASE status WHEN 'waiting' THEN 'error' ELSE status END \
               WHERE id = $1 AND status IN ('waiting', 'building') \
               AND set_config('wrenn.actor', $3, true) IS NOT NULL RETURNING status";
    let reason = Reason { message: message.to_owned(), ..Reason::default() };
    let update = sqlx::query_scalar(sql).bind(id).bind(Json(reason)).bind(setting(by));
    update.fetch_optional(db).await
}

/// Ends the waiting builds of a template that have one of the tags. Returns their ids.
pub(crate) async fn supersede(
    db: impl PgExecutor<'_>,
    template: TemplateId,
    tags: &[String],
    message: &str,
) -> sqlx::Result<Vec<BuildId>> {
    let sql = "UPDATE builds b SET status = 'error', cancelled = true, ended_at = now(), \
               generation = generation + 1, reason = $3, sealed_logins = NULL \
               WHERE b.template_id = $1 AND b.status = 'waiting' AND EXISTS \
               (SELECT 1 FROM template_tags t WHERE t.build_id = b.id AND t.tag = ANY($2) \
                AND t.deleted_at IS NULL) RETURNING b.id";
    let reason = Reason { message: message.to_owned(), ..Reason::default() };
    let update = sqlx::query_scalar(sql).bind(template).bind(tags).bind(Json(reason));
    update.fetch_all(db).await
}

/// Ends the builds that have waited for `hours` hours for their steps.
pub(crate) async fn expire_waiting(db: &PgPool, hours: i32, message: &str) -> sqlx::Result<u64> {
    let sql = "UPDATE builds SET status = 'error', cancelled = true, ended_at = now(), \
               generation = generation + 1, reason = $2, sealed_logins = NULL \
               WHERE status = 'waiting' AND created_at < now() - make_interval(hours => $1)";
    let reason = Reason { message: message.to_owned(), ..Reason::default() };
    let update = sqlx::query(sql).bind(hours).bind(Json(reason));
    Ok(update.execute(db).await?.rows_affected())
}

/// Counts a team's builds under way. Waiting ones count only if they are of the last `minutes`.
pub(crate) async fn under_way(
    db: impl PgExecutor<'_>,
    team: TeamId,
    minutes: i32,
) -> sqlx::Result<i64> {
    let sql = "SELECT count(*) FROM builds WHERE team_id = $1 AND (status = 'building' \
               OR status = 'waiting' AND created_at > now() - make_interval(mins => $2))";
    sqlx::query_scalar(sql).bind(team).bind(minutes).fetch_one(db).await
}

/// Returns a build's own logins, encrypted.
pub(crate) async fn sealed_logins(db: &PgPool, id: BuildId) -> sqlx::Result<Option<Vec<u8>>> {
    let sql = "SELECT sealed_logins FROM builds WHERE id = $1";
    let found: Option<Option<Vec<u8>>> =
        sqlx::query_scalar(sql).bind(id).fetch_optional(db).await?;
    Ok(found.flatten())
}

/// Ends a waiting build with a reason and one line in its log; `false` when it no longer waits.
pub(crate) async fn fail_waiting(
    db: impl PgExecutor<'_>,
    id: BuildId,
    reason: &Reason,
    by: &Actor,
) -> sqlx::Result<bool> {
    let sql = "WITH failed AS (UPDATE builds SET status = 'error', reason = $2, lines = 1, \
               ended_at = now(), generation = generation + 1, sealed_logins = NULL \
               WHERE id = $1 AND status = 'waiting' \
               AND set_config('wrenn.actor', $4, true) IS NOT NULL RETURNING id) \
               INSERT INTO build_logs (build_id, seq, at, level, text) \
               SELECT id, 1, now(), 'error', $3 FROM failed";
    let line = format!("Build failed: {}", reason.message);
    let update = sqlx::query(sql).bind(id).bind(Json(reason)).bind(line).bind(setting(by));
    Ok(update.execute(db).await?.rows_affected() == 1)
}

/// State of a build, for those who poll it.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Progress {
    pub team_id: TeamId,
    pub template_id: TemplateId,
    #[sqlx(rename = "status")]
    pub state: BuildState,
    pub reason: Option<Json<Reason>>,
}

/// Returns the state of a build.
pub(crate) async fn progress(db: &PgPool, id: BuildId) -> sqlx::Result<Option<Progress>> {
    let sql = "SELECT team_id, template_id, status, reason FROM builds WHERE id = $1";
    sqlx::query_as(sql).bind(id).fetch_optional(db).await
}

/// Returns the hash of the request that a team's key was used for, and the build that it made.
pub(crate) async fn find_by_key(
    db: impl PgExecutor<'_>,
    team: TeamId,
    key: &str,
) -> sqlx::Result<Option<(Vec<u8>, BuildId)>> {
    let sql = "SELECT request_hash, build_id FROM build_keys WHERE team_id = $1 AND key = $2";
    sqlx::query_as(sql).bind(team).bind(key).fetch_optional(db).await
}

/// Inserts a key with the build that it made; `false` when the team has used the key.
pub(crate) async fn insert_key(
    db: impl PgExecutor<'_>,
    team: TeamId,
    key: &str,
    request: &[u8; 32],
    build: BuildId,
) -> sqlx::Result<bool> {
    let sql = "INSERT INTO build_keys (team_id, key, request_hash, build_id) \
               VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    let insert = sqlx::query(sql).bind(team).bind(key).bind(request.as_slice()).bind(build);
    Ok(insert.execute(db).await?.rows_affected() == 1)
}

/// Returns the names of templates by their ids.
pub(crate) async fn template_names(
    db: &PgPool,
    ids: &[TemplateId],
) -> sqlx::Result<Vec<(TemplateId, String)>> {
    let sql = "SELECT id, name FROM templates WHERE id = ANY($1)";
    sqlx::query_as(sql).bind(ids).fetch_all(db).await
}
