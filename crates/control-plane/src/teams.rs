//! Teams, their members, and the members' roles. A change locks the team's row, so concurrent
//! changes come one after the other. It then reads its caller's rights again.
//!
//! A member who leaves, or is removed, leaves capsules and snapshots to the team. The keys and
//! invitations that they made for the team end, and channels that they set are disabled. A team can
//! be deleted only when it has no capsules, snapshots or hosts. Its keys, invitations and channels
//! end with it, and its entries stay in the audit log.

use crate::app::App;
use crate::audit::{Actor, Entry};
use crate::auth::locked_rights::{LockedRights, lock_operator, lock_rights, lock_user};
use crate::auth::{Caller, Operator, Session};
use crate::db;
use crate::db::listen::Change;
use crate::db::makers::Ended;
use crate::db::teams::{Invitation, Member, Overview};
use crate::error::{Error, Result};
use crate::fields::{check_email, check_title};
use crate::policy::{Action, Role};
use crate::secret::{hash, random_hex};
use crate::users::{mail, throttle};
use serde_json::json;
use sqlx::PgConnection;
use std::num::{NonZeroU32, NonZeroU64};
use time::{Duration, OffsetDateTime};
use types::{InvitationId, Isolation, LogPolicy, PLATFORM_TEAM, TeamId, UserId};

/// Lifetime of an invitation.
const INVITATION: Duration = Duration::days(7);

fn check_team_name(name: &str) -> Result<String> {
    let name = check_title("name", name)?;
    if name.eq_ignore_ascii_case("platform") {
        return Err(Error::Conflict("the name `platform` is reserved".to_owned()));
    }
    Ok(name)
}

/// Checks that a team is not the platform's own. Nobody joins, renames or deletes that team.
pub(crate) fn check_not_platforms(caller: Caller) -> Result<()> {
    if caller.team == PLATFORM_TEAM {
        return Err(Error::Conflict(
            "the platform's own team cannot have members or keys".to_owned(),
        ));
    }
    Ok(())
}

/// Parses a role that can be given to a member. Only a transfer makes an owner.
fn check_role(role: &str) -> Result<Role> {
    let role = role.parse::<Role>().ok().filter(|role| *role != Role::Owner);
    role.ok_or_else(|| Error::invalid("role", "must be `admin`, `member` or `viewer`"))
}

/// Creates a team that its maker owns.
pub(crate) async fn create(app: &App, who: Session, name: &str) -> Result<api::Team> {
    let name = check_team_name(name)?;
    let mut tx = app.db.begin().await?;
    lock_user(&mut tx, who).await?;
    let id = found(&mut tx, &name, who.user, who.by).await?;
    tx.commit().await?;
    app.changed(&Change::User(who.user));
    get(app, who.user, id).await
}

/// Creates a team with its owner, whom the caller has locked.
pub(crate) async fn found(
    tx: &mut PgConnection,
    name: &str,
    owner: UserId,
    by: Actor,
) -> Result<TeamId> {
    let id = TeamId::new();
    db::actor::act_as(tx, &by).await?;
    db::teams::insert(&mut *tx, id, name).await?;
    db::teams::join(&mut *tx, id, owner, Role::Owner).await?;
    let entry = Entry::new(id, by, "team.create", id).with(json!({ "name": name }));
    db::audit::write(tx, &entry).await?;
    Ok(id)
}

/// Returns a team as a member sees it.
pub(crate) async fn get(app: &App, user: UserId, id: TeamId) -> Result<api::Team> {
    let teams = db::teams::of_user(&app.db, user).await?;
    let team = teams.into_iter().find(|team| team.id == id);
    team.map(to_api).ok_or(Error::NotFound("team"))
}

/// Returns the caller's teams; for a key, its own team.
pub(crate) async fn list(app: &App, caller: Caller) -> Result<Vec<api::Team>> {
    match caller.user() {
        Some(user) => {
            Ok(db::teams::of_user(&app.db, user).await?.into_iter().map(to_api).collect())
        }
        None => Ok(vec![of_key(app, caller).await?]),
    }
}

/// Returns a page of all teams, newest first.
pub(crate) async fn list_all(
    app: &App,
    _: Operator,
    before: Option<TeamId>,
    limit: i64,
) -> Result<Vec<Overview>> {
    Ok(db::teams::list(&app.db, before, limit).await?)
}

/// Returns the caller's team.
pub(crate) async fn show(app: &App, caller: Caller) -> Result<api::Team> {
    match caller.user() {
        Some(user) => get(app, user, caller.team).await,
        None => of_key(app, caller).await,
    }
}

async fn of_key(app: &App, caller: Caller) -> Result<api::Team> {
    let team = db::teams::find(&app.db, caller.team).await?.ok_or(Error::NotFound("team"))?;
    Ok(api::Team {
        id: team.id.to_string(),
        name: team.name,
        role: "key".to_owned(),
        default: true,
        isolation: team.isolation.to_string(),
        logs: team.logs.to_string(),
        created_at: team.created_at,
    })
}

fn to_api(team: db::teams::Joined) -> api::Team {
    api::Team {
        id: team.id.to_string(),
        name: team.name,
        role: team.role.to_string(),
        default: team.is_default,
        isolation: team.isolation.to_string(),
        logs: team.logs.to_string(),
        created_at: team.created_at,
    }
}

/// Locks the caller's team, which must be a team of people, and checks the caller's right.
async fn lock(tx: &mut PgConnection, caller: Caller, action: Action) -> Result<LockedRights> {
    check_not_platforms(caller)?;
    lock_rights(tx, caller, action).await
}

async fn note(
    tx: &mut PgConnection,
    caller: Caller,
    action: &'static str,
    resource: impl ToString,
    what: serde_json::Value,
) -> Result<()> {
    let entry = Entry::new(caller.team, caller.by, action, resource).with(what);
    Ok(db::audit::write(tx, &entry).await?)
}

pub(crate) async fn change(
    app: &App,
    caller: Caller,
    wanted: api::ChangeTeam,
) -> Result<api::Team> {
    let name = wanted.name.as_deref().map(check_team_name).transpose()?;
    let isolation = wanted.isolation.as_deref().map(str::parse::<Isolation>).transpose()?;
    let logs = wanted.logs.as_deref().map(str::parse::<LogPolicy>).transpose()?;
    let mut tx = app.db.begin().await?;
    lock(&mut tx, caller, Action::TeamAdmin).await?;
    if let Some(name) = name {
        db::teams::set_name(&mut *tx, caller.team, &name).await?;
        note(&mut tx, caller, "team.rename", caller.team, json!({ "name": name })).await?;
    }
    if let Some(isolation) = isolation {
        db::teams::set_isolation(&mut *tx, caller.team, isolation).await?;
        let with = json!({ "isolation": isolation });
        note(&mut tx, caller, "team.set_isolation", caller.team, with).await?;
    }
    if let Some(logs) = logs {
        db::teams::set_logs(&mut *tx, caller.team, logs).await?;
        note(&mut tx, caller, "team.set_logs", caller.team, json!({ "logs": logs })).await?;
    }
    tx.commit().await?;
    app.changed(&Change::Team(caller.team));
    show(app, caller).await
}

/// Deletes a team that has no capsules, snapshots or hosts.
pub(crate) async fn delete(app: &App, caller: Caller) -> Result<()> {
    let mut tx = app.db.begin().await?;
    lock(&mut tx, caller, Action::TeamOwn).await?;
    end(&mut tx, caller.team, caller.by).await?;
    tx.commit().await?;
    // The members are not announced one by one. All caches are dropped instead.
    app.changed(&Change::All);
    Ok(())
}

/// Deletes a team in a transaction that holds its lock.
pub(crate) async fn end(tx: &mut PgConnection, team: TeamId, by: Actor) -> Result<()> {
    let (capsules, snapshots, hosts) = db::teams::has(tx, team).await?;
    if capsules + snapshots + hosts > 0 {
        return Err(Error::TeamNotEmpty { team, capsules, snapshots, hosts });
    }
    db::teams::end(tx, team).await?;
    db::audit::write(tx, &Entry::new(team, by, "team.delete", team)).await?;
    Ok(())
}

/// Returns the members of the caller's team, the earliest first.
pub(crate) async fn members(app: &App, caller: Caller) -> Result<Vec<Member>> {
    Ok(db::teams::members(&app.db, caller.team).await?)
}

/// Returns a member's role, if the caller may change it. An admin changes members and viewers, and
/// an owner also admins. Nobody changes an owner.
async fn rank(tx: &mut PgConnection, caller: Caller, user: UserId) -> Result<Role> {
    let role = db::teams::role(tx, caller.team, user).await?;
    let role = role.ok_or(Error::NotFound("member"))?;
    let own = match caller.user() {
        Some(own) => db::teams::role(tx, caller.team, own).await?.unwrap_or(Role::Viewer),
        // A key with the scope counts as an admin, and an operator's key as an owner.
        None if caller.operator => Role::Owner,
        None => Role::Admin,
    };
    if role == Role::Owner || role == Role::Admin && own != Role::Owner {
        return Err(Error::Forbidden("team:own"));
    }
    Ok(role)
}

pub(crate) async fn set_role(app: &App, caller: Caller, user: UserId, role: &str) -> Result<()> {
    let role = check_role(role)?;
    let mut tx = app.db.begin().await?;
    lock(&mut tx, caller, Action::TeamAdmin).await?;
    rank(&mut tx, caller, user).await?;
    db::teams::set_role(&mut *tx, caller.team, user, role).await?;
    let ended = match role.permissions().allow(Action::TeamAdmin) {
        true => Ended::default(),
        // Keys follow their maker's role at each request. Every other way to let others in ends
        // here.
        false => db::makers::end_of_user(&mut tx, Some(caller.team), user).await?,
    };
    let what = json!({ "user": user.to_string(), "role": role, "ended": ended });
    note(&mut tx, caller, "member.set_role", user, what).await?;
    tx.commit().await?;
    app.changed(&Change::User(user));
    Ok(())
}

pub(crate) async fn remove_member(app: &App, caller: Caller, user: UserId) -> Result<()> {
    let mut tx = app.db.begin().await?;
    lock(&mut tx, caller, Action::TeamAdmin).await?;
    rank(&mut tx, caller, user).await?;
    part(&mut tx, caller, user, "member.remove").await?;
    tx.commit().await?;
    app.changed(&Change::User(user));
    Ok(())
}

pub(crate) async fn leave(app: &App, caller: Caller) -> Result<()> {
    let user = caller.user().ok_or(Error::UserOnly)?;
    let mut tx = app.db.begin().await?;
    lock(&mut tx, caller, Action::TeamRead).await?;
    if db::teams::role(&mut tx, caller.team, user).await? == Some(Role::Owner) {
        let message = "the owner cannot leave the team; transfer or delete it";
        return Err(Error::Conflict(message.to_owned()));
    }
    part(&mut tx, caller, user, "member.leave").await?;
    tx.commit().await?;
    app.changed(&Change::User(user));
    Ok(())
}

/// Ends a membership, with the keys, invitations and channels that the member made for the team.
async fn part(
    tx: &mut PgConnection,
    caller: Caller,
    user: UserId,
    action: &'static str,
) -> Result<()> {
    db::teams::part(&mut *tx, caller.team, user).await?;
    let keys_revoked = db::keys::revoke_of(&mut *tx, Some(caller.team), Some(user)).await?;
    let ended = db::makers::end_of_user(&mut *tx, Some(caller.team), user).await?;
    let what = json!({ "user": user.to_string(), "ended": Ended { keys_revoked, ..ended } });
    note(tx, caller, action, user, what).await
}

/// Makes another member the owner. The former owner becomes an admin.
pub(crate) async fn transfer(app: &App, caller: Caller, to: UserId) -> Result<()> {
    let from = caller.user().ok_or(Error::UserOnly)?;
    let mut tx = app.db.begin().await?;
    // Both users are locked before the team, in a fixed order. An erasure of either user then
    // waits, or is seen.
    for user in [from.min(to), from.max(to)] {
        let there = db::users::hold(&mut *tx, user).await?.is_some_and(|user| user.is_active());
        if !there {
            return Err(Error::NotFound("member"));
        }
    }
    lock(&mut tx, caller, Action::TeamOwn).await?;
    if db::teams::role(&mut tx, caller.team, to).await?.is_none() {
        return Err(Error::NotFound("member"));
    }
    db::teams::set_role(&mut *tx, caller.team, from, Role::Admin).await?;
    db::teams::set_role(&mut *tx, caller.team, to, Role::Owner).await?;
    let what = json!({ "user": to.to_string() });
    note(&mut tx, caller, "team.transfer", caller.team, what).await?;
    tx.commit().await?;
    app.changed(&Change::User(from));
    app.changed(&Change::User(to));
    Ok(())
}

/// Returns the invitations to the caller's team that nobody has accepted, newest first.
pub(crate) async fn invitations(app: &App, caller: Caller) -> Result<Vec<Invitation>> {
    Ok(db::teams::invitations(&app.db, caller.team).await?)
}

/// Invites somebody by mail. The answer does not tell whether they have an account.
pub(crate) async fn invite(
    app: &App,
    caller: Caller,
    wanted: api::InviteMember,
) -> Result<api::Invitation> {
    let email = check_email(&wanted.email)?;
    let role = check_role(&wanted.role)?;
    check_not_platforms(caller)?;
    app.mailer.check()?;
    throttle::invitation(app, caller.team, caller.by, &email).await?;
    let token = random_hex(16);
    let now = OffsetDateTime::now_utc();
    let invitation = Invitation {
        id: InvitationId::new(),
        team_id: caller.team,
        email,
        role,
        created_at: now,
        expires_at: now + INVITATION,
    };
    let mut tx = app.db.begin().await?;
    let maker = lock(&mut tx, caller, Action::TeamAdmin).await?.maker;
    let team = db::teams::find(&mut *tx, caller.team).await?.ok_or(Error::NotFound("team"))?;
    db::teams::invite(&mut *tx, &invitation, maker, &hash(&token)).await?;
    let what = json!({ "email": invitation.email, "role": role });
    note(&mut tx, caller, "invitation.create", invitation.id, what).await?;
    tx.commit().await?;
    app.mailer.send(&invitation.email, mail::invitation(&team.name, &token)).await?;
    Ok(invitation_shown(invitation))
}

pub(crate) async fn uninvite(app: &App, caller: Caller, id: InvitationId) -> Result<()> {
    let mut tx = app.db.begin().await?;
    lock(&mut tx, caller, Action::TeamAdmin).await?;
    let gone = db::teams::uninvite(&mut *tx, caller.team, id).await?;
    let gone = gone.ok_or(Error::NotFound("invitation"))?;
    note(&mut tx, caller, "invitation.delete", id, json!({ "email": gone.email })).await?;
    tx.commit().await?;
    Ok(())
}

/// Accepts an invitation. The invitation must be for the user's own e-mail, and its maker must
/// still be allowed to invite.
pub(crate) async fn accept(app: &App, who: Session, token: &str) -> Result<api::Team> {
    let (hashed, invalid) = (hash(token.trim()), || Error::InvalidToken("the invitation"));
    let mut tx = app.db.begin().await?;
    let user = lock_user(&mut tx, who).await?;
    let team = db::teams::team_of_invitation(&mut *tx, &hashed).await?.ok_or_else(invalid)?;
    if !db::teams::lock(&mut tx, team, &who.by).await? {
        return Err(invalid());
    }
    // The invitation is taken after the lock. A removal of its maker was therefore first, or finds
    // a member.
    let taken = db::teams::take_invitation(&mut *tx, &hashed, &user.email).await?;
    let taken = taken.ok_or_else(invalid)?;
    let role = taken.role;
    if db::teams::join(&mut *tx, team, who.user, role).await? {
        let what = json!({ "user": who.user.to_string(), "role": role });
        let entry = Entry::new(team, who.by, "member.join", who.user).with(what);
        db::audit::write(&mut *tx, &entry).await?;
    }
    tx.commit().await?;
    app.changed(&Change::User(who.user));
    get(app, who.user, team).await
}

pub(crate) fn invitation_shown(invitation: Invitation) -> api::Invitation {
    api::Invitation {
        id: invitation.id.to_string(),
        email: invitation.email,
        role: invitation.role.to_string(),
        created_at: invitation.created_at,
        expires_at: invitation.expires_at,
    }
}

/// Converts effective limits to the API's form.
pub(crate) fn limits_shown(limits: crate::limits::Limits) -> api::Limits {
    api::Limits {
        capsules: Some(limits.capsules.map_or(0, NonZeroU32::get)),
        vcpus: Some(limits.vcpus.map_or(0, NonZeroU32::get)),
        memory_mib: Some(limits.memory_mib.map_or(0, NonZeroU64::get)),
        creates_per_sec: Some(limits.creates_per_sec.map_or(0, NonZeroU32::get)),
        requests_per_sec: Some(limits.requests_per_sec.map_or(0, NonZeroU32::get)),
        snapshots: Some(limits.snapshots.map_or(0, NonZeroU32::get)),
        storage_mib: Some(limits.storage_mib.map_or(0, NonZeroU64::get)),
        templates: Some(limits.templates.map_or(0, NonZeroU32::get)),
        builds: Some(limits.builds.map_or(0, NonZeroU32::get)),
        template_mib: Some(limits.template_mib.map_or(0, NonZeroU64::get)),
    }
}

/// Returns the limits and the holdings of a team.
pub(crate) async fn limits(app: &App, team: TeamId) -> Result<api::TeamLimits> {
    let limits = db::limits::of(&app.db, team).await?.limits();
    let held = db::limits::held(&app.db, team).await?;
    let stored = db::limits::stored(&app.db, team).await?;
    let templates = db::templates::bytes(&app.db, team).await?;
    Ok(api::TeamLimits {
        limits: limits_shown(limits),
        capsules: held.capsules,
        vcpus: held.vcpus,
        memory_mib: held.memory_mib,
        snapshots: stored.snapshots,
        storage_mib: (stored.storage_bytes + (1 << 20) - 1) >> 20,
        templates: db::templates::count(&app.db, team).await?,
        builds: db::builds::under_way(&app.db, team, 0).await?,
        template_mib: templates.div_ceil(1 << 20).cast_signed(),
    })
}

/// Returns the limits and the holdings of any team.
pub(crate) async fn limits_of_any(app: &App, _: Operator, team: TeamId) -> Result<api::TeamLimits> {
    if !db::teams::exists(&app.db, team).await? {
        return Err(Error::NotFound("team"));
    }
    limits(app, team).await
}

/// Checks requested limits.
pub(crate) fn check_limits(wanted: &api::Limits) -> Result<db::limits::Row> {
    let int = |field: &str, n: Option<u32>| match n {
        Some(n) if i32::try_from(n).is_err() => {
            Err(Error::invalid(field, "must be at most 2,147,483,647"))
        }
        n => Ok(n),
    };
    let long = |field: &str, n: Option<u64>| {
        // The number must fit the database's integer even in bytes.
        match n {
            Some(n) if n >= 1 << 43 => Err(Error::invalid(field, "must be below 2^43")),
            n => Ok(n),
        }
    };
    Ok(db::limits::Row {
        capsules: int("capsules", wanted.capsules)?,
        vcpus: int("vcpus", wanted.vcpus)?,
        memory_mib: long("memory_mib", wanted.memory_mib)?,
        snapshots: int("snapshots", wanted.snapshots)?,
        storage_mib: long("storage_mib", wanted.storage_mib)?,
        templates: int("templates", wanted.templates)?,
        builds: int("builds", wanted.builds)?,
        template_mib: long("template_mib", wanted.template_mib)?,
        creates_per_sec: int("creates_per_sec", wanted.creates_per_sec)?,
        requests_per_sec: int("requests_per_sec", wanted.requests_per_sec)?,
        isolation: None,
        logs: None,
    })
}

/// Replaces a team's limits. The platform team's limits are the default for teams that have none.
pub(crate) async fn set_limits(
    app: &App,
    team: TeamId,
    wanted: api::Limits,
    by: Actor,
) -> Result<api::TeamLimits> {
    let row = check_limits(&wanted)?;
    let mut tx = app.db.begin().await?;
    lock_operator(&mut tx, by).await?;
    if !db::teams::lock(&mut tx, team, &by).await? {
        return Err(Error::NotFound("team"));
    }
    db::limits::set(&mut *tx, team, &row).await?;
    let entry = Entry::new(team, by, "team.set_limits", team).with(json!(wanted));
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    app.changed(&Change::Team(team));
    limits(app, team).await
}
