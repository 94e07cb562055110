//! Templates: those of a team, and those that the platform shares with all teams.

use sqlx::{PgExecutor, PgPool};
use time::OffsetDateTime;
use types::resources::Resources;
use types::{Isolation, PLATFORM_TEAM, TeamId, TemplateId};
use uuid::Uuid;

/// Columns of [`Template`].
macro_rules! columns {
    () => {
        "id, team_id, name, vcpus, memory_mib, disk_mib, isolation, created_at"
    };
}

#[derive(sqlx::FromRow)]
pub(crate) struct Template {
    pub id: Uuid,
    pub team_id: Uuid,
    pub name: String,
    pub vcpus: i32,
    pub memory_mib: i32,
    pub disk_mib: i32,
    pub isolation: String,
    pub created_at: OffsetDateTime,
}

impl Template {
    /// Returns the lowest isolation tier that the template accepts.
    pub(crate) fn isolation(&self) -> Isolation {
        self.isolation.parse().unwrap_or_default()
    }
}

/// Returns the lowest isolation tier that a template accepts. A template that is gone accepts any.
pub(crate) async fn isolation(db: &PgPool, id: Uuid) -> sqlx::Result<Isolation> {
    let sql = "SELECT isolation FROM templates WHERE id = $1";
    let tier: Option<String> = sqlx::query_scalar(sql).bind(id).fetch_optional(db).await?;
    Ok(tier.and_then(|tier| tier.parse().ok()).unwrap_or_default())
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
    let update = sqlx::query_as(sql).bind(PLATFORM_TEAM.0).bind(name).bind(tier.as_str());
    update.fetch_optional(db).await
}

/// Registers a shared template. An existing template stays as it is.
pub(crate) async fn share(db: &PgPool, name: &str) -> sqlx::Result<()> {
    let sql = "INSERT INTO templates (id, team_id, name, vcpus, memory_mib, disk_mib) \
               VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (team_id, name) DO NOTHING";
    let size = Resources::default();
    let int = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let insert = sqlx::query(sql).bind(TemplateId::new().0).bind(PLATFORM_TEAM.0).bind(name);
    let insert = insert.bind(int(size.vcpus)).bind(int(size.memory_mib)).bind(int(size.disk_mib));
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
    sqlx::query_as(sql).bind(name).bind(team.0).bind(PLATFORM_TEAM.0).fetch_optional(db).await
}

pub(crate) async fn list(db: &PgPool, team: TeamId) -> sqlx::Result<Vec<Template>> {
    let sql =
        concat!("SELECT ", columns!(), " FROM templates WHERE team_id IN ($1, $2) ORDER BY name");
    sqlx::query_as(sql).bind(team.0).bind(PLATFORM_TEAM.0).fetch_all(db).await
}
