//! Users, their memberships, mailed tokens and identities at providers.

use super::decode;
use super::insert::Insert;
use super::makers::Maker;
use crate::policy::Role;
use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use types::{TeamId, UserId, UserState};

/// Columns of [`User`].
macro_rules! columns {
    () => {
        "id, email, name, password_hash, is_admin, status, created_at"
    };
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct User {
    pub id: UserId,
    pub email: String,
    pub name: String,
    pub password_hash: Option<String>,
    pub is_admin: bool,
    #[sqlx(rename = "status")]
    pub state: UserState,
    pub created_at: OffsetDateTime,
}

impl User {
    pub(crate) fn is_active(&self) -> bool {
        self.state == UserState::Active
    }
}

/// A user with the facts that authorization needs.
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
    #[serde(deserialize_with = "decode::id")]
    team: TeamId,
    role: Role,
    default: bool,
}

/// Returns an active user with their teams.
pub(crate) async fn person(db: &PgPool, id: UserId) -> sqlx::Result<Option<Person>> {
    let sql = "SELECT u.is_admin, (SELECT coalesce(jsonb_agg(jsonb_build_object('team', m.team_id, \
               'role', m.role, 'default', m.is_default) ORDER BY m.created_at), '[]') \
               FROM memberships m JOIN teams t ON t.id = m.team_id AND t.deleted_at IS NULL \
               WHERE m.user_id = u.id) FROM users u WHERE u.id = $1 AND u.status = 'active'";
    let found: Option<(bool, Json<Vec<Member>>)> =
        sqlx::query_as(sql).bind(id).fetch_optional(db).await?;
    Ok(found.map(|(admin, Json(members))| {
        let default = members.iter().find(|m| m.default).or(members.first());
        let default_team = default.map(|m| m.team);
        let teams = members.into_iter().map(|m| (m.team, m.role)).collect();
        Person { admin, teams, default_team }
    }))
}

pub(crate) async fn find(db: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<Option<User>> {
    sqlx::query_as(concat!("SELECT ", columns!(), " FROM users WHERE id = $1"))
        .bind(id)
        .fetch_optional(db)
        .await
}

pub(crate) async fn by_email(db: impl PgExecutor<'_>, email: &str) -> sqlx::Result<Option<User>> {
    sqlx::query_as(concat!("SELECT ", columns!(), " FROM users WHERE email = $1"))
        .bind(email)
        .fetch_optional(db)
        .await
}

/// Reads a user and keeps them as they are for the rest of the transaction. Several transactions
/// may hold one user.
pub(crate) async fn hold(db: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<Option<User>> {
    let sql = concat!("SELECT ", columns!(), " FROM users WHERE id = $1 FOR SHARE");
    sqlx::query_as(sql).bind(id).fetch_optional(db).await
}

/// Reads a user and locks them, so that no other transaction may change or hold them until the end.
pub(crate) async fn lock(db: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<Option<User>> {
    let sql = concat!("SELECT ", columns!(), " FROM users WHERE id = $1 FOR UPDATE");
    sqlx::query_as(sql).bind(id).fetch_optional(db).await
}

/// Locks the user of an e-mail, as `lock` does.
pub(crate) async fn lock_by_email(
    db: impl PgExecutor<'_>,
    email: &str,
) -> sqlx::Result<Option<User>> {
    let sql = concat!("SELECT ", columns!(), " FROM users WHERE email = $1 FOR UPDATE");
    sqlx::query_as(sql).bind(email).fetch_optional(db).await
}

/// Inserts a user who has yet to activate their account, unless the e-mail has an account. Returns
/// the e-mail's account, locked, and whether it is new. A new account has no password before it is
/// active.
pub(crate) async fn insert(
    db: &mut PgConnection,
    email: &str,
    name: &str,
) -> sqlx::Result<Option<(User, bool)>> {
    let insert = Insert::into("users")
        .set("id", UserId::new())
        .set("email", email)
        .set("name", name)
        .set("status", UserState::Inactive)
        .or_keep("(email)");
    if let Some(user) = insert.returning(columns!(), &mut *db).await? {
        return Ok(Some((user, true)));
    }
    Ok(lock_by_email(db, email).await?.map(|user| (user, false)))
}

/// Activates an inactive user. The platform's first active user becomes an admin, so activations
/// wait for each other. Returns whether the user is an admin.
pub(crate) async fn activate(db: &mut PgConnection, id: UserId) -> sqlx::Result<Option<bool>> {
    lock_admins(db).await?;
    let sql = "UPDATE users SET status = 'active', updated_at = now(), is_admin = is_admin OR \
               NOT EXISTS (SELECT 1 FROM users WHERE is_admin AND status = 'active') \
               WHERE id = $1 AND status = 'inactive' RETURNING is_admin";
    sqlx::query_scalar(sql).bind(id).fetch_optional(db).await
}

/// Takes the lock on changes of who is an admin, for the rest of the transaction.
pub(crate) async fn lock_admins(db: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("SELECT pg_advisory_xact_lock(7777001)").execute(db).await.map(|_| ())
}

/// Counts the active admins except this user.
pub(crate) async fn other_admins(db: &mut PgConnection, id: UserId) -> sqlx::Result<i64> {
    let sql = "SELECT count(*) FROM users WHERE is_admin AND status = 'active' AND id <> $1";
    sqlx::query_scalar(sql).bind(id).fetch_one(db).await
}

pub(crate) async fn set_name(db: impl PgExecutor<'_>, id: UserId, name: &str) -> sqlx::Result<()> {
    let sql = "UPDATE users SET name = $2, updated_at = now() WHERE id = $1";
    sqlx::query(sql).bind(id).bind(name).execute(db).await.map(|_| ())
}

pub(crate) async fn set_password(
    db: impl PgExecutor<'_>,
    id: UserId,
    hash: &str,
) -> sqlx::Result<()> {
    let sql = "UPDATE users SET password_hash = $2, updated_at = now() WHERE id = $1";
    sqlx::query(sql).bind(id).bind(hash).execute(db).await.map(|_| ())
}

pub(crate) async fn set_admin(db: impl PgExecutor<'_>, id: UserId, on: bool) -> sqlx::Result<()> {
    let sql = "UPDATE users SET is_admin = $2, updated_at = now() WHERE id = $1";
    sqlx::query(sql).bind(id).bind(on).execute(db).await.map(|_| ())
}

pub(crate) async fn set_state(
    db: impl PgExecutor<'_>,
    id: UserId,
    state: UserState,
) -> sqlx::Result<()> {
    let sql = "UPDATE users SET status = $2, updated_at = now() WHERE id = $1";
    sqlx::query(sql).bind(id).bind(state).execute(db).await.map(|_| ())
}

pub(crate) async fn remove(db: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM users WHERE id = $1").bind(id).execute(db).await.map(|_| ())
}

/// Returns a page of users, newest first.
pub(crate) async fn list(
    db: &PgPool,
    before: Option<UserId>,
    limit: i64,
) -> sqlx::Result<Vec<User>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM users WHERE $1::uuid IS NULL OR (created_at, id) < \
               (SELECT created_at, id FROM users WHERE id = $1) \
               ORDER BY created_at DESC, id DESC LIMIT $2"
    );
    sqlx::query_as(sql).bind(before).bind(limit).fetch_all(db).await
}

/// Purpose of a mailed token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Activate,
    Reset,
}

types::text_enum!(Purpose, "kind", { Activate = "activate", Reset = "reset" });

/// A valid mailed token.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Mailed {
    pub user_id: UserId,
    /// Password and name of the sign-up that the token was mailed for.
    pub password_hash: Option<String>,
    pub name: Option<String>,
}

/// A mailed token to store.
pub(crate) struct NewToken<'a> {
    pub user: UserId,
    pub purpose: Purpose,
    pub hash: &'a [u8],
    /// Seconds until the token expires.
    pub seconds: f64,
    pub maker: Maker,
    /// Hashed password and name of a sign-up.
    pub sign_up: Option<(&'a str, &'a str)>,
}

/// Stores a mailed token by its hash. Earlier tokens stay valid, so that a request in somebody's
/// name cannot end their token.
pub(crate) async fn insert_token(
    db: impl PgExecutor<'_>,
    token: &NewToken<'_>,
) -> sqlx::Result<()> {
    let (password, name) = token.sign_up.unzip();
    let insert = Insert::into("user_tokens")
        .set("token_hash", token.hash)
        .set("user_id", token.user)
        .set("kind", token.purpose)
        .set_after("expires_at", token.seconds)
        .set("created_by", token.maker.user)
        .set("made_by_key", token.maker.key)
        .set("password_hash", password)
        .set("name", name);
    insert.execute(db).await.map(|_| ())
}

/// Condition of a valid token: it has not expired, and its maker may still make such tokens.
const GOOD: &str = "token_hash = $1 AND kind = $2 AND expires_at > now() \
    AND operator_stands(created_by, made_by_key)";

/// Uses up a mailed token; `None` when the token is not valid.
pub(crate) async fn use_token(
    db: impl PgExecutor<'_>,
    purpose: Purpose,
    hash: &[u8],
) -> sqlx::Result<Option<Mailed>> {
    let sql =
        format!("DELETE FROM user_tokens WHERE {GOOD} RETURNING user_id, password_hash, name");
    let token = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(hash).bind(purpose);
    token.fetch_optional(db).await
}

/// Reads a mailed token and leaves it as it is; `None` when the token is not valid.
pub(crate) async fn peek_token(
    db: impl PgExecutor<'_>,
    purpose: Purpose,
    hash: &[u8],
) -> sqlx::Result<Option<Mailed>> {
    let sql = format!("SELECT user_id, password_hash, name FROM user_tokens WHERE {GOOD}");
    let token = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(hash).bind(purpose);
    token.fetch_optional(db).await
}

/// Reports whether an admin of the platform has invited an e-mail, and may still do so.
pub(crate) async fn is_invited(db: impl PgExecutor<'_>, email: &str) -> sqlx::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM user_tokens t JOIN users u ON u.id = t.user_id \
               WHERE u.email = $1 AND t.kind = 'activate' AND t.password_hash IS NULL \
               AND t.expires_at > now() AND operator_stands(t.created_by, t.made_by_key))";
    sqlx::query_scalar(sql).bind(email).fetch_one(db).await
}

/// Removes all mailed tokens of a user.
pub(crate) async fn remove_tokens(db: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM user_tokens WHERE user_id = $1").bind(id).execute(db).await?;
    Ok(())
}

/// Finds the user of an account at a provider. User and account stay as they are for the rest of
/// the transaction.
pub(crate) async fn by_identity(
    db: impl PgExecutor<'_>,
    provider: &str,
    subject: &str,
) -> sqlx::Result<Option<User>> {
    let sql = "SELECT u.id, u.email, u.name, u.password_hash, u.is_admin, u.status, u.created_at \
               FROM users u JOIN identities i ON i.user_id = u.id \
               WHERE i.provider = $1 AND i.subject = $2 FOR SHARE";
    sqlx::query_as(sql).bind(provider).bind(subject).fetch_optional(db).await
}

/// Adds an account at a provider; `false` when that account, or one of the user's at that provider,
/// exists.
pub(crate) async fn add_identity(
    db: impl PgExecutor<'_>,
    id: UserId,
    provider: &str,
    subject: &str,
) -> sqlx::Result<bool> {
    let sql = "INSERT INTO identities (provider, subject, user_id) VALUES ($1, $2, $3) \
               ON CONFLICT DO NOTHING";
    let insert = sqlx::query(sql).bind(provider).bind(subject).bind(id);
    Ok(insert.execute(db).await?.rows_affected() == 1)
}

pub(crate) async fn identities(db: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<Vec<String>> {
    let sql = "SELECT provider FROM identities WHERE user_id = $1 ORDER BY provider";
    sqlx::query_scalar(sql).bind(id).fetch_all(db).await
}

pub(crate) async fn remove_identity(
    db: impl PgExecutor<'_>,
    id: UserId,
    provider: &str,
) -> sqlx::Result<bool> {
    let sql = "DELETE FROM identities WHERE user_id = $1 AND provider = $2";
    Ok(sqlx::query(sql).bind(id).bind(provider).execute(db).await?.rows_affected() == 1)
}
