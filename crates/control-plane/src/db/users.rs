//! Users, and what they are of teams.

use crate::auth::policy::Role;
use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use types::{TeamId, UserId};
use uuid::Uuid;

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct User {
    pub id: Uuid,
    pub email: String,
    pub name: String,
    pub password_hash: Option<String>,
    pub is_admin: bool,
    pub status: String,
    pub created_at: OffsetDateTime,
}

impl User {
    pub(crate) fn id(&self) -> UserId {
        UserId(self.id)
    }

    pub(crate) fn is_active(&self) -> bool {
        self.status == "active"
    }
}

/// A user as they are admitted.
#[derive(Debug, Clone)]
pub(crate) struct Person {
    pub admin: bool,
    teams: Vec<(TeamId, Role)>,
    pub default_team: Option<TeamId>,
}

impl Person {
    pub(crate) fn role(&self, team: TeamId) -> Option<Role> {
        self.teams.iter().find(|(id, _)| *id == team).map(|(_, role)| *role)
    }
}

#[derive(serde::Deserialize)]
struct Member {
    team: Uuid,
    role: String,
    default: bool,
}

/// A user who is active, with their teams.
pub(crate) async fn person(db: &PgPool, id: UserId) -> sqlx::Result<Option<Person>> {
    let sql = "SELECT u.is_admin, (SELECT coalesce(jsonb_agg(jsonb_build_object('team', m.team_id, \
               'role', m.role, 'default', m.is_default) ORDER BY m.created_at), '[]') \
               FROM memberships m JOIN teams t ON t.id = m.team_id AND t.deleted_at IS NULL \
               WHERE m.user_id = u.id) FROM users u WHERE u.id = $1 AND u.status = 'active'";
    let found: Option<(bool, Json<Vec<Member>>)> =
        sqlx::query_as(sql).bind(id.0).fetch_optional(db).await?;
    Ok(found.map(|(admin, Json(members))| {
        let default = members.iter().find(|m| m.default).or(members.first());
        let default_team = default.map(|m| TeamId(m.team));
        let role = |m: &Member| Some((TeamId(m.team), Role::parse(&m.role)?));
        Person { admin, teams: members.iter().filter_map(role).collect(), default_team }
    }))
}

pub(crate) async fn find(db: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<Option<User>> {
    sqlx::query_as("SELECT * FROM users WHERE id = $1").bind(id.0).fetch_optional(db).await
}

pub(crate) async fn by_email(db: impl PgExecutor<'_>, email: &str) -> sqlx::Result<Option<User>> {
    sqlx::query_as("SELECT * FROM users WHERE email = $1").bind(email).fetch_optional(db).await
}

/// Enters a user who is to activate their account; false when there is one of the e-mail.
pub(crate) async fn insert(
    db: impl PgExecutor<'_>,
    id: UserId,
    email: &str,
    name: &str,
    password_hash: Option<&str>,
) -> sqlx::Result<bool> {
    let sql = "INSERT INTO users (id, email, name, password_hash, status) \
               VALUES ($1, $2, $3, $4, 'inactive') ON CONFLICT (email) DO NOTHING";
    let insert = sqlx::query(sql).bind(id.0).bind(email).bind(name).bind(password_hash);
    Ok(insert.execute(db).await?.rows_affected() == 1)
}

/// Makes a user active who is not yet. Returns whether they are an admin: the first becomes the
/// platform's, so whoever activates waits for whoever does at the same time.
pub(crate) async fn activate(db: &mut PgConnection, id: UserId) -> sqlx::Result<Option<bool>> {
    lock_admins(db).await?;
    let sql = "UPDATE users SET status = 'active', updated_at = now(), is_admin = is_admin OR \
               NOT EXISTS (SELECT 1 FROM users WHERE is_admin AND status = 'active') \
               WHERE id = $1 AND status = 'inactive' RETURNING is_admin";
    sqlx::query_scalar(sql).bind(id.0).fetch_optional(db).await
}

/// Held by whoever changes who is an admin, for the rest of the transaction.
pub(crate) async fn lock_admins(db: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("SELECT pg_advisory_xact_lock(7777001)").execute(db).await.map(|_| ())
}

/// Admins that are active, but this one.
pub(crate) async fn other_admins(db: &mut PgConnection, id: UserId) -> sqlx::Result<i64> {
    let sql = "SELECT count(*) FROM users WHERE is_admin AND status = 'active' AND id <> $1";
    sqlx::query_scalar(sql).bind(id.0).fetch_one(db).await
}

pub(crate) async fn set_name(db: impl PgExecutor<'_>, id: UserId, name: &str) -> sqlx::Result<()> {
    let sql = "UPDATE users SET name = $2, updated_at = now() WHERE id = $1";
    sqlx::query(sql).bind(id.0).bind(name).execute(db).await.map(|_| ())
}

pub(crate) async fn set_password(
    db: impl PgExecutor<'_>,
    id: UserId,
    hash: &str,
) -> sqlx::Result<()> {
    let sql = "UPDATE users SET password_hash = $2, updated_at = now() WHERE id = $1";
    sqlx::query(sql).bind(id.0).bind(hash).execute(db).await.map(|_| ())
}

pub(crate) async fn set_admin(db: impl PgExecutor<'_>, id: UserId, on: bool) -> sqlx::Result<()> {
    let sql = "UPDATE users SET is_admin = $2, updated_at = now() WHERE id = $1";
    sqlx::query(sql).bind(id.0).bind(on).execute(db).await.map(|_| ())
}

pub(crate) async fn set_status(
    db: impl PgExecutor<'_>,
    id: UserId,
    status: &str,
) -> sqlx::Result<()> {
    let sql = "UPDATE users SET status = $2, updated_at = now() WHERE id = $1";
    sqlx::query(sql).bind(id.0).bind(status).execute(db).await.map(|_| ())
}

pub(crate) async fn remove(db: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM users WHERE id = $1").bind(id.0).execute(db).await.map(|_| ())
}

/// A page of users, newest first.
pub(crate) async fn list(
    db: &PgPool,
    before: Option<UserId>,
    limit: i64,
) -> sqlx::Result<Vec<User>> {
    let sql = "SELECT * FROM users WHERE $1::uuid IS NULL OR (created_at, id) < \
               (SELECT created_at, id FROM users WHERE id = $1) \
               ORDER BY created_at DESC, id DESC LIMIT $2";
    sqlx::query_as(sql).bind(before.map(|b| b.0)).bind(limit).fetch_all(db).await
}

/// What a mailed token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Activate,
    Reset,
}

impl Purpose {
    fn as_str(self) -> &'static str {
        match self {
            Self::Activate => "activate",
            Self::Reset => "reset",
        }
    }
}

/// Keeps a mailed token by its hash, in place of those of the same purpose before it.
pub(crate) async fn insert_token(
    db: &mut PgConnection,
    id: UserId,
    purpose: Purpose,
    hash: &[u8],
    seconds: f64,
) -> sqlx::Result<()> {
    let sql = "DELETE FROM user_tokens WHERE user_id = $1 AND kind = $2";
    sqlx::query(sql).bind(id.0).bind(purpose.as_str()).execute(&mut *db).await?;
    let sql = "INSERT INTO user_tokens (token_hash, user_id, kind, expires_at) \
               VALUES ($1, $2, $3, now() + make_interval(secs => $4))";
    let insert = sqlx::query(sql).bind(hash).bind(id.0).bind(purpose.as_str()).bind(seconds);
    insert.execute(db).await.map(|_| ())
}

/// Uses a mailed token up; whose it was, if it was good.
pub(crate) async fn use_token(
    db: impl PgExecutor<'_>,
    purpose: Purpose,
    hash: &[u8],
) -> sqlx::Result<Option<UserId>> {
    let sql = "DELETE FROM user_tokens WHERE token_hash = $1 AND kind = $2 \
               AND expires_at > now() RETURNING user_id";
    let id: Option<Uuid> =
        sqlx::query_scalar(sql).bind(hash).bind(purpose.as_str()).fetch_optional(db).await?;
    Ok(id.map(UserId))
}

/// Whose a mailed token is, left as it is.
pub(crate) async fn peek_token(
    db: impl PgExecutor<'_>,
    purpose: Purpose,
    hash: &[u8],
) -> sqlx::Result<Option<UserId>> {
    let sql = "SELECT user_id FROM user_tokens WHERE token_hash = $1 AND kind = $2 \
               AND expires_at > now()";
    let id: Option<Uuid> =
        sqlx::query_scalar(sql).bind(hash).bind(purpose.as_str()).fetch_optional(db).await?;
    Ok(id.map(UserId))
}

/// The user of an account elsewhere.
pub(crate) async fn by_identity(
    db: impl PgExecutor<'_>,
    provider: &str,
    subject: &str,
) -> sqlx::Result<Option<User>> {
    let sql = "SELECT u.* FROM users u JOIN identities i ON i.user_id = u.id \
               WHERE i.provider = $1 AND i.subject = $2";
    sqlx::query_as(sql).bind(provider).bind(subject).fetch_optional(db).await
}

/// Adds an account elsewhere; false when it, or the user's of that provider, is there.
pub(crate) async fn add_identity(
    db: impl PgExecutor<'_>,
    id: UserId,
    provider: &str,
    subject: &str,
) -> sqlx::Result<bool> {
    let sql = "INSERT INTO identities (provider, subject, user_id) VALUES ($1, $2, $3) \
               ON CONFLICT DO NOTHING";
    let insert = sqlx::query(sql).bind(provider).bind(subject).bind(id.0);
    Ok(insert.execute(db).await?.rows_affected() == 1)
}

pub(crate) async fn identities(db: &PgPool, id: UserId) -> sqlx::Result<Vec<String>> {
    let sql = "SELECT provider FROM identities WHERE user_id = $1 ORDER BY provider";
    sqlx::query_scalar(sql).bind(id.0).fetch_all(db).await
}

pub(crate) async fn remove_identity(
    db: impl PgExecutor<'_>,
    id: UserId,
    provider: &str,
) -> sqlx::Result<bool> {
    let sql = "DELETE FROM identities WHERE user_id = $1 AND provider = $2";
    Ok(sqlx::query(sql).bind(id.0).bind(provider).execute(db).await?.rows_affected() == 1)
}
