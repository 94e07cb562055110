//! Teams, their members, and their invitations.

use super::actor;
use super::insert::Insert;
use super::makers::Maker;
use crate::audit::Actor;
use crate::policy::Role;
use sqlx::{PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use types::{InvitationId, Isolation, LogPolicy, PLATFORM_TEAM, TeamId, UserId};

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Team {
    pub id: TeamId,
    pub name: String,
    pub isolation: Isolation,
    pub logs: LogPolicy,
    pub created_at: OffsetDateTime,
}

/// A team with a user's role in it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Joined {
    pub id: TeamId,
    pub name: String,
    pub isolation: Isolation,
    pub logs: LogPolicy,
    pub created_at: OffsetDateTime,
    pub role: Role,
    pub is_default: bool,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Member {
    pub user_id: UserId,
    pub name: String,
    pub email: String,
    pub role: Role,
    pub created_at: OffsetDateTime,
}

pub(crate) async fn insert(db: impl PgExecutor<'_>, id: TeamId, name: &str) -> sqlx::Result<()> {
    let slug = types::ids::encode(id.0);
    let insert = sqlx::query("INSERT INTO teams (id, name, slug) VALUES ($1, $2, $3)");
    insert.bind(id).bind(name).bind(slug).execute(db).await.map(|_| ())
}

pub(crate) async fn first(db: &PgPool) -> sqlx::Result<Option<TeamId>> {
    let sql =
        "SELECT id FROM teams WHERE id <> $1 AND deleted_at IS NULL ORDER BY created_at LIMIT 1";
    sqlx::query_scalar(sql).bind(PLATFORM_TEAM).fetch_optional(db).await
}

pub(crate) async fn exists(db: &PgPool, id: TeamId) -> sqlx::Result<bool> {
    Ok(find(db, id).await?.is_some())
}

pub(crate) async fn find(db: impl PgExecutor<'_>, id: TeamId) -> sqlx::Result<Option<Team>> {
    let sql = "SELECT id, name, isolation, logs, created_at FROM teams \
               WHERE id = $1 AND deleted_at IS NULL";
    sqlx::query_as(sql).bind(id).fetch_optional(db).await
}

/// Locks a team for the rest of the transaction, whose events name the actor; `false` when there is
/// no such team.
pub(crate) async fn lock(db: &mut PgConnection, id: TeamId, by: &Actor) -> sqlx::Result<bool> {
    let sql = "SELECT set_config('wrenn.actor', $2, true) FROM teams \
               WHERE id = $1 AND deleted_at IS NULL FOR UPDATE";
    let lock = sqlx::query(sql).bind(id).bind(actor::setting(by));
    Ok(lock.fetch_optional(db).await?.is_some())
}

/// Keeps a team from being ended for the rest of the transaction; `false` when it has ended.
pub(crate) async fn hold(db: impl PgExecutor<'_>, id: TeamId) -> sqlx::Result<bool> {
    let sql = "SELECT 1 FROM teams WHERE id = $1 AND deleted_at IS NULL FOR KEY SHARE";
    Ok(sqlx::query(sql).bind(id).fetch_optional(db).await?.is_some())
}

/// Lists a user's teams, oldest first.
pub(crate) async fn of_user(db: &PgPool, user: UserId) -> sqlx::Result<Vec<Joined>> {
    let sql = "SELECT t.id, t.name, t.isolation, t.logs, t.created_at, m.role, m.is_default FROM memberships m \
               JOIN teams t ON t.id = m.team_id AND t.deleted_at IS NULL \
               WHERE m.user_id = $1 ORDER BY t.created_at, t.id";
    sqlx::query_as(sql).bind(user).fetch_all(db).await
}

pub(crate) async fn set_isolation(
    db: impl PgExecutor<'_>,
    id: TeamId,
    tier: Isolation,
) -> sqlx::Result<()> {
    let sql = "UPDATE teams SET isolation = $2 WHERE id = $1";
    sqlx::query(sql).bind(id).bind(tier).execute(db).await.map(|_| ())
}

pub(crate) async fn set_logs(
    db: impl PgExecutor<'_>,
    id: TeamId,
    logs: LogPolicy,
) -> sqlx::Result<()> {
    let sql = "UPDATE teams SET logs = $2 WHERE id = $1";
    sqlx::query(sql).bind(id).bind(logs).execute(db).await.map(|_| ())
}

pub(crate) async fn set_name(db: impl PgExecutor<'_>, id: TeamId, name: &str) -> sqlx::Result<()> {
    let sql = "UPDATE teams SET name = $2 WHERE id = $1";
    sqlx::query(sql).bind(id).bind(name).execute(db).await.map(|_| ())
}

pub(crate) async fn members(db: &PgPool, id: TeamId) -> sqlx::Result<Vec<Member>> {
    let sql = "SELECT m.user_id, u.name, u.email, m.role, m.created_at FROM memberships m \
               JOIN users u ON u.id = m.user_id WHERE m.team_id = $1 \
               ORDER BY m.created_at, m.user_id";
    sqlx::query_as(sql).bind(id).fetch_all(db).await
}

/// Returns a user's role in a team, locked for the rest of the transaction.
pub(crate) async fn role(
    db: &mut PgConnection,
    team: TeamId,
    user: UserId,
) -> sqlx::Result<Option<Role>> {
    let sql = "SELECT role FROM memberships WHERE team_id = $1 AND user_id = $2 FOR UPDATE";
    sqlx::query_scalar(sql).bind(team).bind(user).fetch_optional(db).await
}

/// Makes a user a member; `false` when they are a member already. A user's first team becomes their
/// default.
pub(crate) async fn join(
    db: impl PgExecutor<'_>,
    team: TeamId,
    user: UserId,
    role: Role,
) -> sqlx::Result<bool> {
    let sql = "INSERT INTO memberships (team_id, user_id, role, is_default) \
               VALUES ($1, $2, $3, NOT EXISTS (SELECT 1 FROM memberships WHERE user_id = $2 \
               AND is_default)) ON CONFLICT (team_id, user_id) DO NOTHING";
    let insert = sqlx::query(sql).bind(team).bind(user).bind(role);
    Ok(insert.execute(db).await?.rows_affected() == 1)
}

pub(crate) async fn set_role(
    db: impl PgExecutor<'_>,
    team: TeamId,
    user: UserId,
    role: Role,
) -> sqlx::Result<()> {
    let sql = "UPDATE memberships SET role = $3 WHERE team_id = $1 AND user_id = $2";
    sqlx::query(sql).bind(team).bind(user).bind(role).execute(db).await.map(|_| ())
}

pub(crate) async fn set_default(
    db: &mut PgConnection,
    team: TeamId,
    user: UserId,
) -> sqlx::Result<()> {
    let sql = "UPDATE memberships SET is_default = false WHERE user_id = $1 AND is_default";
    sqlx::query(sql).bind(user).execute(&mut *db).await?;
    let sql = "UPDATE memberships SET is_default = true WHERE user_id = $1 AND team_id = $2";
    sqlx::query(sql).bind(user).bind(team).execute(db).await.map(|_| ())
}

pub(crate) async fn part(
    db: impl PgExecutor<'_>,
    team: TeamId,
    user: UserId,
) -> sqlx::Result<bool> {
    let sql = "DELETE FROM memberships WHERE team_id = $1 AND user_id = $2";
    Ok(sqlx::query(sql).bind(team).bind(user).execute(db).await?.rows_affected() == 1)
}

/// Makes a user the owner of every team without members, except the platform's. Such teams date
/// from before there were users.
pub(crate) async fn adopt(db: impl PgExecutor<'_>, user: UserId) -> sqlx::Result<()> {
    let sql = "INSERT INTO memberships (team_id, user_id, role, is_default) \
               SELECT t.id, $1, 'owner', false FROM teams t WHERE t.id <> $2 \
               AND t.deleted_at IS NULL \
               AND NOT EXISTS (SELECT 1 FROM memberships m WHERE m.team_id = t.id)";
    sqlx::query(sql).bind(user).bind(PLATFORM_TEAM).execute(db).await.map(|_| ())
}

/// Counts what a team still has: capsules, snapshots and hosts.
pub(crate) async fn has(db: &mut PgConnection, id: TeamId) -> sqlx::Result<(i64, i64, i64)> {
    let sql = "SELECT (SELECT count(*) FROM capsules WHERE team_id = $1 AND status <> 'stopped' \
                AND build_id IS NULL), \
               (SELECT count(*) FROM snapshots WHERE team_id = $1), \
               (SELECT count(*) FROM hosts WHERE team_id = $1)";
    sqlx::query_as(sql).bind(id).fetch_one(db).await
}

/// Ends a team. Its memberships, keys, invitations and channels end with it.
pub(crate) async fn end(db: &mut PgConnection, id: TeamId) -> sqlx::Result<()> {
    super::keys::revoke_of(&mut *db, Some(id), None).await?;
    for sql in [
        "DELETE FROM memberships WHERE team_id = $1",
        "DELETE FROM invitations WHERE team_id = $1",
        "DELETE FROM channels WHERE team_id = $1",
        "UPDATE teams SET deleted_at = now() WHERE id = $1",
    ] {
        sqlx::query(sql).bind(id).execute(&mut *db).await?;
    }
    Ok(())
}

/// Returns the teams that a user owns, in the order in which they are locked.
pub(crate) async fn owned(db: &mut PgConnection, user: UserId) -> sqlx::Result<Vec<TeamId>> {
    let sql = "SELECT team_id FROM memberships WHERE user_id = $1 AND role = 'owner' \
               ORDER BY team_id";
    sqlx::query_scalar(sql).bind(user).fetch_all(db).await
}

/// Counts a team's members except one. The caller holds the team.
pub(crate) async fn others(db: &mut PgConnection, team: TeamId, user: UserId) -> sqlx::Result<i64> {
    let sql = "SELECT count(*) FROM memberships WHERE team_id = $1 AND user_id <> $2";
    sqlx::query_scalar(sql).bind(team).bind(user).fetch_one(db).await
}

/// A team as platform admins see it.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Overview {
    pub id: TeamId,
    pub name: String,
    pub created_at: OffsetDateTime,
    pub members: i64,
    pub capsules: i64,
}

/// Returns a page of teams, newest first.
pub(crate) async fn list(
    db: &PgPool,
    before: Option<TeamId>,
    limit: i64,
) -> sqlx::Result<Vec<Overview>> {
    let sql = "SELECT t.id, t.name, t.created_at, \
               (SELECT count(*) FROM memberships m WHERE m.team_id = t.id) AS members, \
               (SELECT count(*) FROM capsules c WHERE c.team_id = t.id AND c.status <> 'stopped' \
                AND c.build_id IS NULL) AS capsules FROM teams t WHERE t.deleted_at IS NULL \
               AND ($1::uuid IS NULL OR (t.created_at, t.id) < \
                    (SELECT created_at, id FROM teams WHERE id = $1)) \
               ORDER BY t.created_at DESC, t.id DESC LIMIT $2";
    sqlx::query_as(sql).bind(before).bind(limit).fetch_all(db).await
}

/// Columns of [`Invitation`].
macro_rules! columns {
    () => {
        "id, team_id, email, role, created_at, expires_at"
    };
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Invitation {
    pub id: InvitationId,
    pub team_id: TeamId,
    pub email: String,
    pub role: Role,
    pub created_at: OffsetDateTime,
    pub expires_at: OffsetDateTime,
}

/// Stores an invitation, and replaces an earlier one to the same e-mail.
pub(crate) async fn invite(
    db: impl PgExecutor<'_>,
    invitation: &Invitation,
    by: Maker,
    hash: &[u8],
) -> sqlx::Result<()> {
    let insert = Insert::into("invitations")
        .set("id", invitation.id)
        .set("team_id", invitation.team_id)
        .set("email", &invitation.email)
        .set("role", invitation.role)
        .set("invited_by", by.user)
        .set("made_by_key", by.key)
        .set("token_hash", hash)
        .set("created_at", invitation.created_at)
        .set("expires_at", invitation.expires_at)
        .or_replace(&["team_id", "email"]);
    insert.execute(db).await.map(|_| ())
}

/// Condition of a valid invitation: it has not expired, and its maker may still invite.
const GOOD: &str = "expires_at > now() AND inviter_stands(team_id, invited_by, made_by_key)";

pub(crate) async fn invitations(db: &PgPool, team: TeamId) -> sqlx::Result<Vec<Invitation>> {
    let sql = format!(
        "SELECT {} FROM invitations WHERE team_id = $1 AND {GOOD} \
         ORDER BY created_at DESC, id DESC LIMIT 1000",
        columns!()
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(team).fetch_all(db).await
}

pub(crate) async fn uninvite(
    db: impl PgExecutor<'_>,
    team: TeamId,
    id: InvitationId,
) -> sqlx::Result<Option<Invitation>> {
    let sql =
        concat!("DELETE FROM invitations WHERE team_id = $1 AND id = $2 RETURNING ", columns!());
    sqlx::query_as(sql).bind(team).bind(id).fetch_optional(db).await
}

/// Returns the team of an invitation, valid or not.
pub(crate) async fn team_of_invitation(
    db: impl PgExecutor<'_>,
    hash: &[u8],
) -> sqlx::Result<Option<TeamId>> {
    let sql = "SELECT team_id FROM invitations WHERE token_hash = $1";
    sqlx::query_scalar(sql).bind(hash).fetch_optional(db).await
}

/// Takes the invitation of a token, if it is valid and addressed to this e-mail.
pub(crate) async fn take_invitation(
    db: impl PgExecutor<'_>,
    hash: &[u8],
    email: &str,
) -> sqlx::Result<Option<Invitation>> {
    let sql = format!(
        "DELETE FROM invitations WHERE token_hash = $1 AND email = $2 AND {GOOD} RETURNING {}",
        columns!()
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(hash).bind(email).fetch_optional(db).await
}

/// Reports whether any team has a valid invitation to an e-mail.
pub(crate) async fn is_invited(db: impl PgExecutor<'_>, email: &str) -> sqlx::Result<bool> {
    let sql = format!("SELECT EXISTS (SELECT 1 FROM invitations WHERE email = $1 AND {GOOD})");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(email).fetch_one(db).await
}

/// Returns the short name of a team, which is the namespace of its templates.
pub(crate) async fn slug(db: &PgPool, team: TeamId) -> sqlx::Result<Option<String>> {
    let sql = "SELECT slug FROM teams WHERE id = $1 AND deleted_at IS NULL";
    sqlx::query_scalar(sql).bind(team).fetch_optional(db).await
}
