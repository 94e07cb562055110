//! Statements of the build runner. Each change of a build's status or host names the generation
//! that its caller saw. Events are stored once, since their transaction names the last number that
//! the row has.

use super::build_logs::Level;
use super::builds::{Build, BuildPhase, Reason};
use super::capsules::{Capsule, columns};
use super::decode::signed;
use super::versions;
use crate::audit::Entry;
use recipe::Provenance;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use std::time::Duration;
use time::OffsetDateTime;
use types::{BuildId, CapsuleId, CapsuleState, HostId, HostState, Isolation, SnapshotId, TeamId};

/// Lists the builds under way.
pub(crate) async fn list_under_way(db: &PgPool) -> sqlx::Result<Vec<BuildId>> {
    let sql = "SELECT id FROM builds WHERE status = 'building' ORDER BY created_at, id";
    sqlx::query_scalar(sql).fetch_all(db).await
}

/// Facts about a build that other tables hold.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Around {
    /// Name of the template.
    pub template: String,
    /// Lowest isolation tier that the template accepts.
    pub isolation: Isolation,
    /// Host that built the template last.
    pub last_host: Option<HostId>,
    pub team_deleted: bool,
    /// True if the key that asked for the build was revoked.
    pub key_revoked: bool,
    /// Seconds since the build was requested.
    pub age: f64,
    /// State of the build's host; `None` without one.
    pub host: Option<HostState>,
    /// State of the capsule that the row names; `None` before the capsule exists.
    pub capsule: Option<CapsuleState>,
    /// True if that capsule has run.
    pub capsule_ran: bool,
}

impl Around {
    pub(crate) fn age(&self) -> Duration {
        Duration::try_from_secs_f64(self.age).unwrap_or_default()
    }
}

/// Returns the facts around a build; `None` when the build is gone.
pub(crate) async fn around(db: &PgPool, id: BuildId) -> sqlx::Result<Option<Around>> {
    let sql = "SELECT t.name AS template, t.isolation, t.build_host_id AS last_host, \
               EXISTS (SELECT 1 FROM teams o WHERE o.id = b.team_id \
                       AND o.deleted_at IS NOT NULL) AS team_deleted, \
               EXISTS (SELECT 1 FROM api_keys k WHERE k.id = b.created_by_key \
                       AND k.revoked_at IS NOT NULL) AS key_revoked, \
               extract(epoch FROM now() - coalesce(b.started_at, b.created_at))::float8 AS age, \
               h.status AS host, c.status AS capsule, c.started_at IS NOT NULL AS capsule_ran \
               FROM builds b JOIN templates t ON t.id = b.template_id \
               LEFT JOIN hosts h ON h.id = b.host_id \
               LEFT JOIN capsules c ON c.id = b.capsule_id WHERE b.id = $1";
    sqlx::query_as(sql).bind(id).fetch_optional(db).await
}

/// Reports whether a build is to end, or has ended.
pub(crate) async fn is_ending(db: &PgPool, id: BuildId) -> sqlx::Result<bool> {
    let sql = "SELECT NOT EXISTS (SELECT 1 FROM builds WHERE id = $1 AND status = 'building' \
               AND NOT cancelled)";
    sqlx::query_scalar(sql).bind(id).fetch_one(db).await
}

/// Reports whether a build under way names this capsule. The build cannot change before the
/// transaction ends.
pub(crate) async fn holds_capsule(
    db: &mut PgConnection,
    id: BuildId,
    capsule: CapsuleId,
) -> sqlx::Result<bool> {
    let sql = "SELECT 1 FROM builds WHERE id = $1 AND capsule_id = $2 AND status = 'building' \
               AND NOT cancelled FOR SHARE";
    Ok(sqlx::query(sql).bind(id).bind(capsule).fetch_optional(db).await?.is_some())
}

/// Lists the capsules that work for a build and have not been removed.
pub(crate) async fn list_capsules(db: &PgPool, build: BuildId) -> sqlx::Result<Vec<Capsule>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM capsules WHERE build_id = $1 AND status <> 'stopped'"
    );
    sqlx::query_as(sql).bind(build).fetch_all(db).await
}

/// Lists capsules that work for a build which has ended, or which has moved on to another capsule.
pub(crate) async fn list_left_capsules(db: &PgPool) -> sqlx::Result<Vec<Capsule>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM capsules WHERE status <> 'stopped' AND build_id IS NOT NULL \
               AND NOT EXISTS (SELECT 1 FROM builds b WHERE b.id = capsules.build_id \
               AND b.status = 'building' AND b.capsule_id = capsules.id)"
    );
    sqlx::query_as(sql).fetch_all(db).await
}

/// Lists the hosts that have all of these archives of a team.
pub(crate) async fn hosts_with_files(
    db: &PgPool,
    team: TeamId,
    hashes: &[String],
) -> sqlx::Result<Vec<HostId>> {
    let sql = "SELECT host_id FROM build_files WHERE team_id = $1 AND hash = ANY($2) \
               GROUP BY host_id HAVING count(*) = cardinality($2) ORDER BY host_id";
    sqlx::query_scalar(sql).bind(team).bind(hashes).fetch_all(db).await
}

/// Places a build on a host, and remembers the host for the template's next builds. Returns `false`
/// when another change was faster.
pub(crate) async fn place(db: &PgPool, build: &Build, host: HostId) -> sqlx::Result<bool> {
    let mut tx = db.begin().await?;
    let sql = "UPDATE builds SET host_id = $3, phase = 'image', generation = generation + 1 \
               WHERE id = $1 AND generation = $2 AND status = 'building' AND events_seen = 0";
    let update = sqlx::query(sql).bind(build.id).bind(signed(build.generation)).bind(host);
    if update.execute(&mut *tx).await?.rows_affected() == 0 {
        return Ok(false);
    }
    let sql = "UPDATE templates SET build_host_id = $2 WHERE id = $1";
    sqlx::query(sql).bind(build.template_id).bind(host).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(true)
}

/// Names another capsule, or none, as the one that works for a build. Returns `false` when another
/// change was faster.
pub(crate) async fn plan_capsule(
    db: &PgPool,
    build: &Build,
    capsule: Option<CapsuleId>,
) -> sqlx::Result<bool> {
    let sql = "UPDATE builds SET capsule_id = $3 WHERE id = $1 AND generation = $2 \
               AND status = 'building' AND capsule_id IS NOT DISTINCT FROM $4";
    let update = sqlx::query(sql).bind(build.id).bind(signed(build.generation)).bind(capsule);
    Ok(update.bind(build.capsule_id).execute(db).await?.rows_affected() == 1)
}

/// A line of a build's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub at: OffsetDateTime,
    pub level: Level,
    pub step: Option<i32>,
    pub text: String,
}

/// Version that a host reported as complete.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Built {
    pub provenance: Provenance,
    pub bytes: u64,
}

/// Effect of a host's events on a build. A field that is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Batch {
    /// Number of the last event.
    pub seen: u64,
    pub lines: Vec<Line>,
    pub phase: Option<BuildPhase>,
    pub step: Option<u32>,
    pub steps: Option<u32>,
    /// Capsule that the build needs next; `Some(None)` for none any more.
    pub capsule: Option<Option<CapsuleId>>,
    pub built: Option<Built>,
    pub failed: Option<Reason>,
}

/// Stores a host's events, all or none. Returns `false` when the row is no longer as `build` shows
/// it, so that another runner may have stored them. A host that tells events has the logins, so they
/// are removed here.
pub(crate) async fn store(db: &PgPool, build: &Build, batch: &Batch) -> sqlx::Result<bool> {
    let mut tx = db.begin().await?;
    let sql = "UPDATE builds SET events_seen = $4, lines = lines + $5, \
               phase = coalesce($6, phase), step = greatest(step, $7), \
               steps = coalesce($8, steps), \
               capsule_id = CASE WHEN $9 THEN $10 ELSE capsule_id END, \
               provenance = coalesce($11, provenance), bytes = coalesce($12, bytes), \
               reason = coalesce(reason, $13), sealed_logins = NULL \
               WHERE id = $1 AND generation = $2 AND status = 'building' AND events_seen = $3 \
               RETURNING lines - $5";
    let count = i64::try_from(batch.lines.len()).unwrap_or(i64::MAX);
    let update = sqlx::query_scalar(sql).bind(build.id).bind(signed(build.generation));
    let update = update.bind(signed(build.events_seen)).bind(signed(batch.seen)).bind(count);
    let update = update.bind(batch.phase).bind(batch.step.map(i64::from));
    let update = update.bind(batch.steps.map(i64::from)).bind(batch.capsule.is_some());
    let update = update.bind(batch.capsule.flatten());
    let update = update.bind(batch.built.as_ref().map(|built| Json(&built.provenance)));
    let update = update.bind(batch.built.as_ref().map(|built| signed(built.bytes)));
    let update = update.bind(batch.failed.as_ref().map(Json));
    // The runner itself may have written lines since it read the row.
    let before: Option<i64> = update.fetch_optional(&mut *tx).await?;
    let Some(before) = before else { return Ok(false) };
    let before = u64::try_from(before).unwrap_or_default();
    append(&mut tx, build.id, before, &batch.lines).await?;
    tx.commit().await?;
    Ok(true)
}

/// Appends lines to a build's log, after the first `before` lines.
async fn append(
    db: &mut PgConnection,
    id: BuildId,
    before: u64,
    lines: &[Line],
) -> sqlx::Result<()> {
    let seqs: Vec<i64> = (before + 1..).take(lines.len()).map(signed).collect();
    let at: Vec<OffsetDateTime> = lines.iter().map(|line| line.at).collect();
    let levels: Vec<&str> = lines.iter().map(|line| line.level.as_str()).collect();
    let steps: Vec<Option<i32>> = lines.iter().map(|line| line.step).collect();
    let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    let sql = "INSERT INTO build_logs (build_id, seq, at, level, step, text) \
               SELECT $1, v.* FROM unnest($2::bigint[], $3::timestamptz[], $4::text[], \
               $5::integer[], $6::text[]) AS v (seq, at, level, step, text)";
    let insert = sqlx::query(sql).bind(id).bind(&seqs).bind(&at).bind(&levels);
    insert.bind(&steps).bind(&texts).execute(db).await.map(|_| ())
}

/// Appends a line of the platform's own to the log of a build under way.
pub(crate) async fn say(db: &PgPool, id: BuildId, line: &Line) -> sqlx::Result<()> {
    let mut tx = db.begin().await?;
    let sql = "UPDATE builds SET lines = lines + 1 WHERE id = $1 AND status = 'building' \
               RETURNING lines - 1";
    let before: Option<i64> = sqlx::query_scalar(sql).bind(id).fetch_optional(&mut *tx).await?;
    if let Some(before) = before {
        let before = u64::try_from(before).unwrap_or_default();
        append(&mut tx, id, before, std::slice::from_ref(line)).await?;
    }
    tx.commit().await
}

/// Ends a build with an error, and appends the reason to its log. Returns `false` when another
/// change was faster.
pub(crate) async fn fail(
    db: &PgPool,
    build: &Build,
    reason: &Reason,
    line: Option<&Line>,
    entry: &Entry,
) -> sqlx::Result<bool> {
    let mut tx = db.begin().await?;
    let sql = "UPDATE builds SET status = 'error', phase = NULL, reason = $3, \
               sealed_logins = NULL, capsule_id = NULL, ended_at = now(), lines = lines + $4, \
               generation = generation + 1 \
               WHERE id = $1 AND generation = $2 AND status = 'building' RETURNING lines";
    let end = sqlx::query_scalar(sql).bind(build.id).bind(signed(build.generation));
    let end = end.bind(Json(reason)).bind(i64::from(line.is_some()));
    let lines: Option<i64> = end.fetch_optional(&mut *tx).await?;
    let Some(lines) = lines else { return Ok(false) };
    if let Some(line) = line {
        let before = u64::try_from(lines - 1).unwrap_or_default();
        append(&mut tx, build.id, before, std::slice::from_ref(line)).await?;
    }
    super::audit::write(&mut *tx, entry).await?;
    tx.commit().await?;
    Ok(true)
}

/// Files of a version that is ready.
pub(crate) enum Files {
    /// The build's host has them.
    Host(HostId),
    /// The version is a snapshot.
    Snapshot { id: SnapshotId, bytes: u64, provenance: Box<Provenance> },
}

/// Makes a build a version of its template. Returns `false` when another change was faster. The
/// template takes the version's sizes and user, unless a newer version has set them.
pub(crate) async fn complete(
    db: &PgPool,
    build: &Build,
    files: &Files,
    entry: &Entry,
) -> sqlx::Result<bool> {
    let mut tx = db.begin().await?;
    let (snapshot, bytes, made) = match files {
        Files::Host(_) => (None, None, None),
        Files::Snapshot { id, bytes, provenance } => {
            (Some(*id), Some(signed(*bytes)), Some(Json(&**provenance)))
        }
    };
    let sql = "UPDATE builds SET status = 'ready', phase = NULL, capsule_id = NULL, \
               reason = NULL, sealed_logins = NULL, ended_at = now(), snapshot_id = $3, \
               bytes = coalesce($4, bytes), provenance = coalesce($5, provenance), \
               generation = generation + 1 \
               WHERE id = $1 AND generation = $2 AND status = 'building' AND NOT cancelled";
    let update = sqlx::query(sql).bind(build.id).bind(signed(build.generation)).bind(snapshot);
    if update.bind(bytes).bind(made).execute(&mut *tx).await?.rows_affected() == 0 {
        return Ok(false);
    }
    if let Files::Host(host) = files {
        let sql = "INSERT INTO host_versions (host_id, build_id, bytes) \
                   SELECT $2, id, bytes FROM builds WHERE id = $1 ON CONFLICT DO NOTHING";
        sqlx::query(sql).bind(build.id).bind(host).execute(&mut *tx).await?;
    }
    let user = build.provenance.as_ref().and_then(|made| made.config.user.clone());
    versions::improve_template(&mut tx, build, user.as_deref()).await?;
    super::audit::write(&mut *tx, entry).await?;
    tx.commit().await?;
    Ok(true)
}

#[cfg(test)]
impl Around {
    /// Makes the facts around a build whose host answers, and which has no capsule.
    pub(crate) fn of_online_host() -> Self {
        Self {
            template: "app".to_owned(),
            isolation: Isolation::None,
            last_host: None,
            team_deleted: false,
            key_revoked: false,
            age: 0.0,
            host: Some(HostState::Online),
            capsule: None,
            capsule_ran: false,
        }
    }

    /// Sets the time since the build was requested.
    pub(crate) fn aged(self, age: Duration) -> Self {
        Self { age: age.as_secs_f64(), ..self }
    }
}
