//! Sessions, sign-ins in progress at a provider, and failed sign-ins.

use super::insert::Insert;
use sqlx::{PgExecutor, PgPool};
use time::OffsetDateTime;
use types::{SessionId, UserId};

/// Columns of [`SessionRow`].
macro_rules! columns {
    () => {
        "id, user_id, kind, address, agent, created_at, expires_at, last_used_at"
    };
}

/// Client of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionKind {
    /// A browser, which sends the token as a cookie.
    Browser,
    /// A program, which sends the token in a header.
    Program,
}

types::text_enum!(SessionKind, "kind", { Browser = "browser", Program = "program" });

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct SessionRow {
    pub id: SessionId,
    pub user_id: UserId,
    pub kind: SessionKind,
    pub address: String,
    pub agent: String,
    pub created_at: OffsetDateTime,
    pub expires_at: OffsetDateTime,
    pub last_used_at: OffsetDateTime,
}

pub(crate) async fn insert(
    db: impl PgExecutor<'_>,
    session: &SessionRow,
    hash: &[u8],
) -> sqlx::Result<()> {
    let insert = Insert::into("sessions")
        .set("id", session.id)
        .set("user_id", session.user_id)
        .set("token_hash", hash)
        .set("kind", session.kind)
        .set("address", &session.address)
        .set("agent", &session.agent)
        .set("expires_at", session.expires_at);
    insert.execute(db).await.map(|_| ())
}

/// Finds a valid session by its token's hash. Records its use at most once a minute.
pub(crate) async fn find(db: &PgPool, hash: &[u8]) -> sqlx::Result<Option<SessionRow>> {
    let sql = concat!(
        "WITH used AS (UPDATE sessions SET last_used_at = now() WHERE token_hash = $1 \
               AND last_used_at < now() - interval '1 minute') \
               SELECT ",
        columns!(),
        " FROM sessions WHERE token_hash = $1 AND expires_at > now()"
    );
    sqlx::query_as(sql).bind(hash).fetch_optional(db).await
}

/// Keeps a user's session from being ended for the rest of the transaction. Returns `false` when
/// the session has ended.
pub(crate) async fn hold(
    db: impl PgExecutor<'_>,
    user: UserId,
    id: SessionId,
) -> sqlx::Result<bool> {
    let sql = "SELECT 1 FROM sessions WHERE id = $1 AND user_id = $2 AND expires_at > now() \
               FOR SHARE";
    Ok(sqlx::query(sql).bind(id).bind(user).fetch_optional(db).await?.is_some())
}

pub(crate) async fn list(db: &PgPool, user: UserId) -> sqlx::Result<Vec<SessionRow>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM sessions WHERE user_id = $1 AND expires_at > now() \
               ORDER BY created_at DESC, id DESC LIMIT 1000"
    );
    sqlx::query_as(sql).bind(user).fetch_all(db).await
}

/// Ends a session of a user. Returns the hash of its token, or `None` if the user has no such
/// session.
pub(crate) async fn remove(
    db: impl PgExecutor<'_>,
    user: UserId,
    id: SessionId,
) -> sqlx::Result<Option<Vec<u8>>> {
    let sql = "DELETE FROM sessions WHERE user_id = $1 AND id = $2 RETURNING token_hash";
    sqlx::query_scalar(sql).bind(user).bind(id).fetch_optional(db).await
}

/// Ends a user's sessions except `but`. Returns the hashes of their tokens.
pub(crate) async fn remove_all(
    db: impl PgExecutor<'_>,
    user: UserId,
    but: Option<SessionId>,
) -> sqlx::Result<Vec<Vec<u8>>> {
    let sql = "DELETE FROM sessions WHERE user_id = $1 AND ($2::uuid IS NULL OR id <> $2) \
               RETURNING token_hash";
    sqlx::query_scalar(sql).bind(user).bind(but).fetch_all(db).await
}

/// A sign-in in progress at a provider.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct SignIn {
    pub provider: String,
    pub verifier: String,
    pub nonce: String,
    /// User who adds the provider, and their session; `None` for a sign-in.
    pub user_id: Option<UserId>,
    pub session_id: Option<SessionId>,
}

pub(crate) async fn begin(
    db: &PgPool,
    state: &[u8],
    sign_in: &SignIn,
    seconds: f64,
) -> sqlx::Result<()> {
    let insert = Insert::into("sign_ins")
        .set("state_hash", state)
        .set("provider", &sign_in.provider)
        .set("verifier", &sign_in.verifier)
        .set("nonce", &sign_in.nonce)
        .set("user_id", sign_in.user_id)
        .set("session_id", sign_in.session_id)
        .set_after("expires_at", seconds);
    insert.execute(db).await.map(|_| ())
}

/// Takes a sign-in in progress. Each can be taken once.
pub(crate) async fn take(db: &PgPool, state: &[u8]) -> sqlx::Result<Option<SignIn>> {
    let sql = "DELETE FROM sign_ins WHERE state_hash = $1 AND expires_at > now() \
               RETURNING provider, verifier, nonce, user_id, session_id";
    sqlx::query_as(sql).bind(state).fetch_optional(db).await
}

/// Returns the number of a subject's failures, and the seconds since the last.
pub(crate) async fn failures(db: &PgPool, subject: &[u8]) -> sqlx::Result<(i32, f64)> {
    let sql = "SELECT failures, extract(epoch FROM now() - last_at)::float8 \
               FROM sign_in_failures WHERE subject = $1";
    let found: Option<(i32, f64)> = sqlx::query_as(sql).bind(subject).fetch_optional(db).await?;
    Ok(found.unwrap_or((0, 0.0)))
}

/// Counts a failure. Failures older than `forgotten` seconds do not count any more.
pub(crate) async fn failed(db: &PgPool, subject: &[u8], forgotten: f64) -> sqlx::Result<()> {
    let sql = "INSERT INTO sign_in_failures AS f (subject, failures) VALUES ($1, 1) \
               ON CONFLICT (subject) DO UPDATE SET last_at = now(), failures = 1 + CASE \
               WHEN f.last_at < now() - make_interval(secs => $2) THEN 0 ELSE f.failures END";
    sqlx::query(sql).bind(subject).bind(forgotten).execute(db).await.map(|_| ())
}

/// Counts one more attempt, unless a wait is not over. Beyond `free` attempts the wait is one
/// second, then doubles with each attempt, up to `longest` seconds. A single statement counts, so
/// that simultaneous attempts cannot evade it. Returns whether the attempt was counted.
pub(crate) async fn count(
    db: &PgPool,
    subject: &[u8],
    free: i32,
    longest: f64,
    forgotten: f64,
) -> sqlx::Result<bool> {
    let sql = "INSERT INTO sign_in_failures AS f (subject, failures) VALUES ($1, 1) \
               ON CONFLICT (subject) DO UPDATE SET last_at = now(), failures = 1 + CASE \
               WHEN f.last_at < now() - make_interval(secs => $4) THEN 0 ELSE f.failures END \
               WHERE f.failures <= $2 OR f.last_at < now() - make_interval(secs => $4) \
               OR f.last_at <= now() - make_interval(secs => \
                  least($3, power(2::float8, least(f.failures - $2 - 1, 30))))";
    let count = sqlx::query(sql).bind(subject).bind(free).bind(longest).bind(forgotten);
    Ok(count.execute(db).await?.rows_affected() == 1)
}

pub(crate) async fn forgive(db: &PgPool, subject: &[u8]) -> sqlx::Result<()> {
    let sql = "DELETE FROM sign_in_failures WHERE subject = $1";
    sqlx::query(sql).bind(subject).execute(db).await.map(|_| ())
}
