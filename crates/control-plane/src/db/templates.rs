//! Templates: those of a team, and those that the platform shares with all teams.

use super::insert::Insert;
use sqlx::{PgExecutor, PgPool};
use time::OffsetDateTime;
use types::resources::Resources;
use types::{Isolation, PLATFORM_TEAM, TeamId, TemplateId};

/// Columns of [`Template`].
macro_rules! columns {
    () => {
        "id, team_id, name, vcpus, memory_mib, disk_mib, isolation, created_at"
    };
}

#[derive(sqlx::FromRow)]
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
    pub created_at: OffsetDateTime,
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
) -> sqlx::Result<Option<Template>> {
    let sql = concat!(
        "UPDATE templates SET isolation = $3 WHERE team_id = $1 AND name = $2 RETURNING ",
        columns!()
    );
    let update = sqlx::query_as(sql).bind(PLATFORM_TEAM).bind(name).bind(tier);
    update.fetch_optional(db).await
}

/// Registers a shared template. An existing template stays as it is.
pub(crate) async fn share(db: &PgPool, name: &str) -> sqlx::Result<()> {
    let size = Resources::default();
    let insert = Insert::into("templates")
        .set("id", TemplateId::new())
        .set("team_id", PLATFORM_TEAM)
        .set("name", name)
        .set("vcpus", i64::from(size.vcpus))
        .set("memory_mib", i64::from(size.memory_mib))
        .set("disk_mib", i64::from(size.disk_mib))
        .or_keep("(team_id, name)");
    insert.execute(db).await.map(|_| ())
}

/// Finds a template by name. The team's own template has priority over the platform's.
pub(crate) async fn find(db: &PgPool, team: TeamId, name: &str) -> sqlx::Result<Option<Template>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM templates WHERE name = $1 AND team_id IN ($2, $3) \
               ORDER BY team_id = $3 LIMIT 1"
    );
    sqlx::query_as(sql).bind(name).bind(team).bind(PLATFORM_TEAM).fetch_optional(db).await
}

pub(crate) async fn list(db: &PgPool, team: TeamId) -> sqlx::Result<Vec<Template>> {
    let sql =
        concat!("SELECT ", columns!(), " FROM templates WHERE team_id IN ($1, $2) ORDER BY name");
    sqlx::query_as(sql).bind(team).bind(PLATFORM_TEAM).fetch_all(db).await
}
