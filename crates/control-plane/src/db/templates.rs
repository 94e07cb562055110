//! Templates: those of a team, and those that the platform shares with all teams.

use super::decode::Unsigned;
use super::insert::Insert;
use super::versions::{Version, ready_within_default, version_columns};
use sqlx::{FromRow, PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use types::resources::Resources;
use types::{BuildId, HostId, Isolation, PLATFORM_TEAM, TeamId, TemplateId};

/// Columns of [`Template`], of the table alias `t`.
macro_rules! columns {
    () => {
        "t.id, t.team_id, t.name, t.vcpus, t.memory_mib, t.disk_mib, t.isolation, t.public, \
         t.common, t.build_host_id, t.spawn_count, t.last_spawned_at, t.created_at, t.updated_at"
    };
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Template {
    pub id: TemplateId,
    pub team_id: TeamId,
    pub name: String,
    #[sqlx(try_from = "i32")]
    pub vcpus: u32,
    #[sqlx(try_from = "i32")]
    pub memory_mib: u32,
    #[sqlx(try_from = "i32")]
    pub disk_mib: u32,
    /// Lowest isolation tier that the template accepts.
    pub isolation: Isolation,
    /// True if every team may create capsules from the template.
    pub public: bool,
    /// True if every team finds the template by its name alone, while it is public.
    pub common: bool,
    /// Host that built the template last, and has its cache and uploaded files.
    pub build_host_id: Option<HostId>,
    #[sqlx(try_from = "Unsigned")]
    pub spawn_count: u64,
    pub last_spawned_at: Option<OffsetDateTime>,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
}

/// A template with facts about its builds. Builds of other teams' templates are left out.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Overview {
    #[sqlx(flatten)]
    pub template: Template,
    /// Version that the tag `default` stands for.
    pub version: Option<BuildId>,
    /// Tags with a ready build.
    pub tags: Vec<String>,
    /// Bytes of all versions.
    #[sqlx(try_from = "Unsigned")]
    pub bytes: u64,
    pub newest_build: Option<BuildId>,
    pub newest_state: Option<super::builds::BuildState>,
    #[sqlx(try_from = "Unsigned")]
    pub builds: u64,
}

/// Selects [`Overview`]. Parameter 1 is the asking team, and the caller adds the conditions.
macro_rules! overview {
    () => {
        concat!(
            "SELECT ",
            columns!(),
            ", \
             (SELECT b.id FROM template_tags g JOIN builds b ON b.id = g.build_id \
              WHERE g.template_id = t.id AND g.tag = 'default' AND g.deleted_at IS NULL \
              AND b.status = 'ready' AND t.team_id = $1 ORDER BY g.seq DESC LIMIT 1) AS version, \
             ARRAY(SELECT DISTINCT g.tag FROM template_tags g JOIN builds b ON b.id = g.build_id \
              WHERE g.template_id = t.id AND g.deleted_at IS NULL AND b.status = 'ready' \
              AND t.team_id = $1 ORDER BY g.tag) AS tags, \
             (SELECT coalesce(sum(b.bytes), 0)::bigint FROM builds b WHERE b.template_id = t.id \
              AND t.team_id = $1) AS bytes, \
             n.id AS newest_build, n.status AS newest_state, \
             (SELECT count(*) FROM builds b WHERE b.template_id = t.id AND t.team_id = $1) \
             AS builds \
             FROM templates t LEFT JOIN LATERAL (SELECT b.id, b.status FROM builds b WHERE b.template_id = t.id \
              AND t.team_id = $1 ORDER BY b.created_at DESC, b.id DESC LIMIT 1) n ON true \
             WHERE "
        )
    };
}

/// Returns the lowest isolation tier that a template accepts. A template that is gone accepts any.
pub(crate) async fn isolation(db: &PgPool, id: TemplateId) -> sqlx::Result<Isolation> {
    let sql = "SELECT isolation FROM templates WHERE id = $1";
    let tier: Option<Isolation> = sqlx::query_scalar(sql).bind(id).fetch_optional(db).await?;
    Ok(tier.unwrap_or_default())
}

/// Sets the lowest isolation tier of a shared template; `None` when there is none of this name.
pub(crate) async fn set_isolation(
    db: impl PgExecutor<'_>,
    name: &str,
    tier: Isolation,
) -> sqlx::Result<Option<TemplateId>> {
    let sql = "UPDATE templates SET isolation = $3 WHERE team_id = $1 AND name = $2 RETURNING id";
    let update = sqlx::query_scalar(sql).bind(PLATFORM_TEAM).bind(name).bind(tier);
    update.fetch_optional(db).await
}

/// Registers a shared template. An existing template stays as it is.
pub(crate) async fn share(db: &PgPool, name: &str) -> sqlx::Result<()> {
    insert(db, PLATFORM_TEAM, name, Resources::default(), false).await.map(|_| ())
}

/// Inserts a template; `false` when the team has one of this name.
pub(crate) async fn insert(
    db: impl PgExecutor<'_>,
    team: TeamId,
    name: &str,
    size: Resources,
    public: bool,
) -> sqlx::Result<bool> {
    let insert = Insert::into("templates")
        .set("id", TemplateId::new())
        .set("team_id", team)
        .set("name", name)
        .set("vcpus", i64::from(size.vcpus))
        .set("memory_mib", i64::from(size.memory_mib))
        .set("disk_mib", i64::from(size.disk_mib))
        .set("public", public)
        .or_keep("(team_id, name)");
    insert.execute(db).await
}

/// Finds a template by name. The team's own template has priority over the platform's.
pub(crate) async fn find(
    db: impl PgExecutor<'_>,
    team: TeamId,
    name: &str,
) -> sqlx::Result<Option<Template>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM templates t WHERE t.name = $1 AND t.team_id IN ($2, $3) \
               ORDER BY t.team_id = $3 LIMIT 1"
    );
    sqlx::query_as(sql).bind(name).bind(team).bind(PLATFORM_TEAM).fetch_optional(db).await
}

/// Finds a template by its id, if the team may use it: its own, the platform's or a public one.
pub(crate) async fn find_by_id(
    db: impl PgExecutor<'_>,
    team: TeamId,
    id: TemplateId,
) -> sqlx::Result<Option<Template>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM templates t WHERE t.id = $1 AND (t.team_id IN ($2, $3) OR t.public)"
    );
    sqlx::query_as(sql).bind(id).bind(team).bind(PLATFORM_TEAM).fetch_optional(db).await
}

/// Finds a template by the short name of its team, if the asking team may use it.
pub(crate) async fn find_in(
    db: impl PgExecutor<'_>,
    team: TeamId,
    namespace: &str,
    name: &str,
) -> sqlx::Result<Option<Template>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM templates t JOIN teams o ON o.id = t.team_id WHERE o.slug = $1 AND t.name = $2 \
               AND o.deleted_at IS NULL AND (t.team_id IN ($3, $4) OR t.public)"
    );
    let find = sqlx::query_as(sql).bind(namespace).bind(name).bind(team).bind(PLATFORM_TEAM);
    find.fetch_optional(db).await
}

/// Finds a template `t` by name alone, for team `$1`. The first name of `$3` counts that is a
/// template of the team or of the platform `$2`. Without such a name, the first common template
/// counts. A snapshot of the team with the first name has priority over a common template.
macro_rules! named {
    () => {
        " WHERE t.name = ANY($3) AND (t.team_id IN ($1, $2) OR (t.common AND t.public \
         AND EXISTS (SELECT 1 FROM teams o WHERE o.id = t.team_id AND o.deleted_at IS NULL) \
         AND NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.team_id = $1 AND s.name = ($3)[1]))) \
         ORDER BY t.team_id NOT IN ($1, $2), array_position($3, t.name), t.team_id = $2 LIMIT 1"
    };
}

/// Finds the template that one of these names means to a team.
pub(crate) async fn find_named(
    db: &PgPool,
    team: TeamId,
    names: &[&str],
) -> sqlx::Result<Option<Template>> {
    let sql = concat!("SELECT ", columns!(), " FROM templates t", named!());
    sqlx::query_as(sql).bind(team).bind(PLATFORM_TEAM).bind(names).fetch_optional(db).await
}

/// Finds the template that one of these names means to a team, and the version that its tag stands
/// for.
pub(crate) async fn find_tagged(
    db: &PgPool,
    team: TeamId,
    names: &[&str],
    tag: &str,
) -> sqlx::Result<Option<(Template, Option<Version>)>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        ", ",
        version_columns!("$5"),
        " FROM templates t LEFT JOIN LATERAL (SELECT g.build_id FROM template_tags g \
         JOIN builds r ON r.id = g.build_id WHERE g.template_id = t.id AND g.tag = $4 \
         AND g.deleted_at IS NULL AND r.status = 'ready' ORDER BY g.seq DESC LIMIT 1) v ON true \
         LEFT JOIN builds b ON b.id = v.build_id",
        named!()
    );
    let find = sqlx::query(sql).bind(team).bind(PLATFORM_TEAM).bind(names).bind(tag);
    let found = find.bind(ready_within_default()).fetch_optional(db).await?;
    found.map(|row| Ok((Template::from_row(&row)?, Version::beside(&row)?))).transpose()
}

/// Finds a team's own template by name, and locks it until the transaction ends.
pub(crate) async fn lock(
    tx: &mut PgConnection,
    team: TeamId,
    name: &str,
) -> sqlx::Result<Option<Template>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM templates t WHERE t.team_id = $1 AND t.name = $2 FOR UPDATE"
    );
    sqlx::query_as(sql).bind(team).bind(name).fetch_optional(tx).await
}

/// Locks a template until the transaction ends; `false` when it is gone.
pub(crate) async fn lock_by_id(tx: &mut PgConnection, id: TemplateId) -> sqlx::Result<bool> {
    let sql = "SELECT true FROM templates WHERE id = $1 FOR UPDATE";
    let found: Option<bool> = sqlx::query_scalar(sql).bind(id).fetch_optional(tx).await?;
    Ok(found.is_some())
}

/// Lists the templates of a team, those of the platform and common ones, by name. A common template
/// whose name the team's own has is left out.
pub(crate) async fn list(db: &PgPool, team: TeamId) -> sqlx::Result<Vec<Overview>> {
    let sql = concat!(
        overview!(),
        "t.team_id IN ($1, $2) OR (t.common AND t.public \
               AND t.team_id IN (SELECT o.id FROM teams o WHERE o.deleted_at IS NULL) \
               AND NOT EXISTS (SELECT 1 FROM templates o \
               WHERE o.team_id = $1 AND o.name = t.name)) ORDER BY t.name, t.id"
    );
    sqlx::query_as(sql).bind(team).bind(PLATFORM_TEAM).fetch_all(db).await
}

/// Returns a template with facts about its builds.
pub(crate) async fn overview(
    db: &PgPool,
    team: TeamId,
    id: TemplateId,
) -> sqlx::Result<Option<Overview>> {
    let sql = concat!(overview!(), "t.id = $2");
    sqlx::query_as(sql).bind(team).bind(id).fetch_optional(db).await
}

/// Counts a team's templates.
pub(crate) async fn count(db: impl PgExecutor<'_>, team: TeamId) -> sqlx::Result<i64> {
    let sql = "SELECT count(*) FROM templates WHERE team_id = $1";
    sqlx::query_scalar(sql).bind(team).fetch_one(db).await
}

/// Sums the bytes of a team's versions.
pub(crate) async fn bytes(db: impl PgExecutor<'_>, team: TeamId) -> sqlx::Result<u64> {
    let sql = "SELECT coalesce(sum(bytes), 0)::bigint FROM builds WHERE team_id = $1";
    let bytes: Unsigned = sqlx::query_scalar(sql).bind(team).fetch_one(db).await?;
    Ok(bytes.into())
}

/// Makes a template public or private; `false` when it is so already. A private template is not
/// common.
pub(crate) async fn set_public(
    db: impl PgExecutor<'_>,
    id: TemplateId,
    public: bool,
) -> sqlx::Result<bool> {
    let sql = "UPDATE templates SET public = $2, common = common AND $2, updated_at = now() \
               WHERE id = $1 AND public <> $2";
    Ok(sqlx::query(sql).bind(id).bind(public).execute(db).await?.rows_affected() == 1)
}

/// Makes a template common and public, or no longer common; `false` when it is so already.
pub(crate) async fn set_common(
    db: impl PgExecutor<'_>,
    id: TemplateId,
    common: bool,
) -> sqlx::Result<bool> {
    let sql = "UPDATE templates SET common = $2, public = public OR $2, updated_at = now() \
               WHERE id = $1 AND (common <> $2 OR ($2 AND NOT public))";
    Ok(sqlx::query(sql).bind(id).bind(common).execute(db).await?.rows_affected() == 1)
}

/// Records a change of a template, such as a new build.
pub(crate) async fn touch(db: impl PgExecutor<'_>, id: TemplateId) -> sqlx::Result<()> {
    let sql = "UPDATE templates SET updated_at = now() WHERE id = $1";
    sqlx::query(sql).bind(id).execute(db).await.map(|_| ())
}

/// Records the host that builds a template next.
pub(crate) async fn set_build_host(
    db: impl PgExecutor<'_>,
    id: TemplateId,
    host: HostId,
) -> sqlx::Result<()> {
    let sql = "UPDATE templates SET build_host_id = $2 WHERE id = $1";
    sqlx::query(sql).bind(id).bind(host).execute(db).await.map(|_| ())
}

/// Something that needs a template's versions.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Use {
    /// `running`, `paused`, `snapshot`, `build` or `template`.
    pub kind: String,
    /// Id of a capsule or build, or name of a snapshot or template.
    pub name: String,
}

/// Lists up to `limit` things that need a template: capsules, snapshots, builds under way, and
/// templates that were built from it. Only those of its own team are named.
pub(crate) async fn uses(
    tx: &mut PgConnection,
    id: TemplateId,
    limit: i64,
) -> sqlx::Result<Vec<Use>> {
    let sql = "WITH versions AS (SELECT id, team_id FROM builds WHERE template_id = $1) \
         (SELECT CASE WHEN c.status = 'paused' THEN 'paused' ELSE 'running' END AS kind, \
          CASE WHEN c.team_id = t.team_id THEN c.id::text ELSE '' END AS name \
          FROM capsules c JOIN templates t ON t.id = $1 WHERE c.status <> 'stopped' \
          AND c.build_id IS NULL AND (c.version_id IN (SELECT id FROM versions) OR c.template_id = $1) LIMIT $2) \
         UNION ALL (SELECT 'snapshot' AS kind, coalesce(s.name, '') AS name FROM snapshots s \
          WHERE s.version_id IN (SELECT id FROM versions) AND s.status <> 'removing' \
          AND NOT EXISTS (SELECT 1 FROM builds o WHERE o.snapshot_id = s.id \
          AND o.template_id = $1) LIMIT $2) \
         UNION ALL (SELECT 'build' AS kind, b.id::text AS name FROM builds b \
          WHERE b.template_id = $1 AND b.status = 'building' LIMIT $2) \
         UNION ALL (SELECT DISTINCT 'template' AS kind, \
          CASE WHEN o.team_id = t.team_id THEN o.name ELSE '' END AS name FROM builds b \
          JOIN templates o ON o.id = b.template_id JOIN templates t ON t.id = $1 \
          WHERE b.template_id <> $1 AND b.status IN ('building', 'ready') AND EXISTS \
          (SELECT 1 FROM jsonb_each(b.bases) AS base (name, value) JOIN versions v \
           ON value ->> 'version' = v.id::text) LIMIT $2) LIMIT $2";
    sqlx::query_as(sql).bind(id).bind(limit).fetch_all(tx).await
}

/// Deletes a template with its builds and tags.
pub(crate) async fn delete(db: impl PgExecutor<'_>, id: TemplateId) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM templates WHERE id = $1").bind(id).execute(db).await.map(|_| ())
}
