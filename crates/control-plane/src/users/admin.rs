//! Management of users by the platform's admins, and the erasure of a user. Once the platform has
//! had an admin who can sign in, it always has one.

use super::{give_token, mail, note};
use crate::app::App;
use crate::audit::Actor;
use crate::auth::locked_rights::{lock_operator, lock_user};
use crate::auth::{Operator, Session};
use crate::db::listen::Change;
use crate::db::users::{Purpose, User};
use crate::error::{Error, Result};
use crate::fields::{check_email, check_title};
use crate::{db, teams};
use serde_json::json;
use sqlx::PgConnection;
use types::{UserId, UserState};

/// Returns a page of all users, newest first.
pub(crate) async fn list(
    app: &App,
    _: Operator,
    before: Option<UserId>,
    limit: i64,
) -> Result<Vec<User>> {
    Ok(db::users::list(&app.db, before, limit).await?)
}

/// Invites somebody to the platform, also when sign-up is closed. A repeated invitation to an
/// inactive user sends another mail.
pub(crate) async fn invite(app: &App, by: Actor, wanted: api::InviteUser) -> Result<User> {
    let email = check_email(&wanted.email)?;
    let name = wanted.name.map(|name| check_title("name", &name)).transpose()?;
    let name = name.unwrap_or_else(|| email.split('@').next().unwrap_or("").to_owned());
    app.mailer.check()?;
    let mut tx = app.db.begin().await?;
    let maker = lock_operator(&mut tx, by).await?;
    let entered = db::users::insert(&mut tx, &email, &name).await?;
    let (user, new) = entered.ok_or(Error::NotFound("user"))?;
    if new {
        note(&mut tx, by, "user.invite", user.id, json!({ "email": email })).await?;
    }
    if user.state != UserState::Inactive {
        return Err(Error::Conflict("a user with this e-mail exists".to_owned()));
    }
    let token = give_token(&mut tx, &user, Purpose::Activate, maker, None).await?;
    tx.commit().await?;
    app.mailer.send(&email, mail::activation(&token)).await?;
    Ok(user)
}

/// Checks that a user is not the last admin. The caller holds the lock of admins, and the user's.
async fn not_last(tx: &mut PgConnection, user: &User) -> Result<()> {
    let is_one = user.is_admin && user.is_active();
    if is_one && db::users::other_admins(tx, user.id).await? == 0 {
        return Err(Error::LastAdmin(user.id));
    }
    Ok(())
}

/// Grants or revokes a user's admin right, and disables or enables the account.
pub(crate) async fn change(
    app: &App,
    by: Actor,
    id: UserId,
    wanted: api::ChangeUser,
) -> Result<User> {
    let mut tx = app.db.begin().await?;
    lock_operator(&mut tx, by).await?;
    let mut user = db::users::lock(&mut *tx, id).await?.ok_or(Error::NotFound("user"))?;
    if let Some(admin) = wanted.admin {
        if !admin {
            not_last(&mut tx, &user).await?;
        } else if !user.is_active() {
            return Err(Error::Conflict("the user is not active".to_owned()));
        }
        db::users::set_admin(&mut *tx, id, admin).await?;
        user.is_admin = admin;
        note(&mut tx, by, "user.set_admin", id, json!({ "admin": admin })).await?;
    }
    match wanted.status.as_deref() {
        None => {}
        Some("disabled") => {
            not_last(&mut tx, &user).await?;
            db::users::set_state(&mut *tx, id, UserState::Disabled).await?;
            // Keys, invitations and tokens for others follow the user's status when they are used.
            db::sessions::remove_all(&mut *tx, id, None).await?;
            db::users::remove_tokens(&mut *tx, id).await?;
            let ended = db::makers::disable_channels(&mut tx, None, id).await?;
            let what = json!({ "channels_disabled": ended });
            note(&mut tx, by, "user.disable", id, what).await?;
        }
        Some("active") if user.state == UserState::Inactive => {
            let message = "the user has not activated the account";
            return Err(Error::Conflict(message.to_owned()));
        }
        Some("active") => {
            db::users::set_state(&mut *tx, id, UserState::Active).await?;
            note(&mut tx, by, "user.enable", id, json!({})).await?;
        }
        Some(_) => return Err(Error::invalid("status", "must be `active` or `disabled`")),
    }
    let user = db::users::find(&mut *tx, id).await?.ok_or(Error::NotFound("user"))?;
    tx.commit().await?;
    app.changed(&Change::User(id));
    Ok(user)
}

/// Actor of an erasure.
pub(crate) enum Eraser {
    Themselves(Session),
    Operator(Actor),
}

/// Erases a user. Their teams must be empty and have no other members, and are deleted. Their keys
/// and sessions end, and the audit log no longer names them.
pub(crate) async fn erase(app: &App, by: Eraser, id: UserId) -> Result<()> {
    let mut tx = app.db.begin().await?;
    db::users::lock_admins(&mut tx).await?;
    let (by, user) = match by {
        Eraser::Themselves(who) => (who.by, lock_user(&mut tx, who).await?),
        Eraser::Operator(by) => {
            lock_operator(&mut tx, by).await?;
            let user = db::users::lock(&mut *tx, id).await?;
            (by, user.ok_or(Error::NotFound("user"))?)
        }
    };
    not_last(&mut tx, &user).await?;
    db::actor::act_as(&mut tx, &by).await?;
    // The lock keeps others from making the user an owner of another team meanwhile.
    for team in db::teams::owned(&mut tx, id).await? {
        db::teams::lock(&mut tx, team, &by).await?;
        if db::teams::others(&mut tx, team, id).await? > 0 {
            return Err(Error::OwnsTeam(team));
        }
        teams::end(&mut tx, team, by).await?;
    }
    db::keys::revoke_of(&mut *tx, None, Some(id)).await?;
    db::makers::end_of_user(&mut tx, None, id).await?;
    note(&mut tx, by, "user.erase", id, json!({})).await?;
    db::audit::anonymise(&mut *tx, &id.to_string(), &user.email).await?;
    db::capsule_names::anonymise(&mut *tx, &id.to_string()).await?;
    db::users::remove(&mut *tx, id).await?;
    // The end of the user's memberships is an event, too.
    db::events::anonymise(&mut tx, id).await?;
    tx.commit().await?;
    app.changed(&Change::User(id));
    Ok(())
}

/// Converts a row to the API's form.
pub(crate) fn to_api(user: User) -> api::User {
    api::User {
        id: user.id.to_string(),
        email: user.email,
        name: user.name,
        admin: user.is_admin,
        status: user.state.to_string(),
        created_at: user.created_at,
    }
}
