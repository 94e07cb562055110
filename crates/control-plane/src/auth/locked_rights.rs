//! Reads a caller's rights again in the transaction of a change. The rights that admitted the
//! request may have ended since. A transaction that takes the right away either waits here or was
//! first.
//!
//! Every transaction takes its locks in this order: the lock of admins, users by their ids, the
//! team, and then the rest. The lock of a team also orders changes to its members and keys.

use super::{Caller, Session};
use crate::audit::{Actor, Principal};
use crate::db;
use crate::db::makers::Maker;
use crate::db::users::User;
use crate::error::{Error, Result};
use crate::policy::{Action, Permissions, Resource};
use sqlx::PgConnection;
use types::PLATFORM_TEAM;

/// A caller whose rights hold until the transaction ends.
pub(crate) struct LockedRights {
    pub maker: Maker,
    pub permissions: Permissions,
    /// Key that the caller uses.
    pub key: Option<db::keys::Row>,
    /// Set for callers who may act on the whole platform.
    pub operator: bool,
}

/// Locks the caller's team, and checks that the caller may still do something there. Later events of
/// the transaction name the caller.
pub(crate) async fn lock_rights(
    tx: &mut PgConnection,
    caller: Caller,
    action: Action,
) -> Result<LockedRights> {
    let maker = db::makers::of(tx, caller.by).await?;
    let person = hold_maker(tx, maker).await?;
    if !db::teams::lock(tx, caller.team, &caller.by).await? {
        return Err(Error::NotFound("team"));
    }
    let key = match caller.key() {
        Some(id) => Some(db::keys::hold(&mut *tx, id).await?.ok_or(Error::Unauthenticated)?),
        None => None,
    };
    let admin = person.as_ref().is_none_or(|person| person.is_admin);
    let operator = admin && key.as_ref().map_or(person.is_some(), |key| key.operator);
    let mut permissions = caller.permissions;
    if caller.team == PLATFORM_TEAM {
        // The platform's team has no members, so the operator's right decides.
        if !operator && caller.by.principal != Principal::System {
            return Err(Error::Forbidden("platform"));
        }
    } else if let Some(person) = &person {
        let gone = if key.is_some() { Error::Unauthenticated } else { Error::NotFound("team") };
        let role = db::teams::role(tx, caller.team, person.id).await?.ok_or(gone)?;
        permissions = role.permissions();
        if let Some(key) = &key {
            permissions = permissions.and(key.permissions());
        }
    }
    Caller { permissions, ..caller }.may(action, Resource::Team)?;
    Ok(LockedRights { maker, permissions, key, operator })
}

/// Holds the user whose rights a change rests on; the user must be active.
async fn hold_maker(tx: &mut PgConnection, maker: Maker) -> Result<Option<User>> {
    let Some(id) = maker.user else { return Ok(None) };
    let user = db::users::hold(tx, id).await?.filter(User::is_active);
    user.map(Some).ok_or(Error::Unauthenticated)
}

/// Takes the lock of admins, and checks that an operator still is one.
pub(crate) async fn lock_operator(tx: &mut PgConnection, by: Actor) -> Result<Maker> {
    db::users::lock_admins(tx).await?;
    let maker = db::makers::of(tx, by).await?;
    hold_maker(tx, maker).await?;
    if let Some(key) = maker.key {
        db::keys::hold(&mut *tx, key).await?.ok_or(Error::Unauthenticated)?;
    }
    match db::makers::operator_stands(tx, maker).await? {
        true => Ok(maker),
        false => Err(Error::Forbidden("platform")),
    }
}

/// Locks a user who has signed in, and checks that they are active and that the session stands.
pub(crate) async fn lock_user(tx: &mut PgConnection, who: Session) -> Result<User> {
    let user = db::users::lock(&mut *tx, who.user).await?.filter(User::is_active);
    let user = user.ok_or(Error::Unauthenticated)?;
    match db::sessions::hold(tx, who.user, who.session).await? {
        true => Ok(user),
        false => Err(Error::Unauthenticated),
    }
}
