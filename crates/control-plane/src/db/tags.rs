//! Tags of templates. A tag is a list of assignments, and stands for the newest one whose build is
//! ready. `recipe::tags` states the same rule, and a test compares the two.

use super::actor::setting;
use super::builds::{Build, columns};
use crate::audit::Actor;
use sqlx::{PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use types::{BuildId, TemplateId};

/// Newest assignment of a tag.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Tag {
    pub tag: String,
    pub build_id: BuildId,
    pub assigned_at: OffsetDateTime,
}

/// Assigns tags to a build. The caller has locked the template, so that assignments have an order.
pub(crate) async fn assign(
    tx: &mut PgConnection,
    template: TemplateId,
    build: BuildId,
    tags: &[String],
    by: &Actor,
) -> sqlx::Result<()> {
    let sql = "INSERT INTO template_tags (template_id, build_id, tag) \
               SELECT $1, $2, tag FROM unnest($3::text[]) AS tag \
               WHERE set_config('wrenn.actor', $4, true) IS NOT NULL";
    let insert = sqlx::query(sql).bind(template).bind(build).bind(tags).bind(setting(by));
    insert.execute(tx).await.map(|_| ())
}

/// Returns the version that a tag stands for.
pub(crate) async fn resolve(
    db: impl PgExecutor<'_>,
    template: TemplateId,
    tag: &str,
) -> sqlx::Result<Option<Build>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM builds WHERE id = (SELECT g.build_id FROM template_tags g \
               JOIN builds b ON b.id = g.build_id WHERE g.template_id = $1 AND g.tag = $2 \
               AND g.deleted_at IS NULL AND b.status = 'ready' ORDER BY g.seq DESC LIMIT 1)"
    );
    sqlx::query_as(sql).bind(template).bind(tag).fetch_optional(db).await
}

/// Lists the newest assignment of each tag, by tag.
pub(crate) async fn list(db: &PgPool, template: TemplateId) -> sqlx::Result<Vec<Tag>> {
    let sql = "SELECT DISTINCT ON (tag) tag, build_id, assigned_at FROM template_tags \
               WHERE template_id = $1 AND deleted_at IS NULL ORDER BY tag, seq DESC";
    sqlx::query_as(sql).bind(template).fetch_all(db).await
}

/// Lists the tags that a build was given and that were not deleted since.
pub(crate) async fn of_builds(
    db: &PgPool,
    builds: &[BuildId],
) -> sqlx::Result<Vec<(BuildId, String)>> {
    let sql = "SELECT DISTINCT build_id, tag FROM template_tags WHERE build_id = ANY($1) \
               AND deleted_at IS NULL ORDER BY build_id, tag";
    sqlx::query_as(sql).bind(builds).fetch_all(db).await
}

/// Deletes tags with all of their assignments. Returns the tags that existed.
pub(crate) async fn delete(
    tx: &mut PgConnection,
    template: TemplateId,
    tags: &[String],
    by: &Actor,
) -> sqlx::Result<Vec<String>> {
    let sql = "WITH gone AS (UPDATE template_tags SET deleted_at = now() WHERE template_id = $1 \
               AND tag = ANY($2) AND deleted_at IS NULL \
               AND set_config('wrenn.actor', $3, true) IS NOT NULL RETURNING tag) \
               SELECT DISTINCT tag FROM gone ORDER BY tag";
    let delete = sqlx::query_scalar(sql).bind(template).bind(tags).bind(setting(by));
    delete.fetch_all(tx).await
}
