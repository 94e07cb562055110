//! Users: sign-up, sign-in, sessions and passwords. No answer tells whether an e-mail has an
//! account; only a mail to that address does.

pub(crate) mod accounts;
pub(crate) mod admin;
pub(crate) mod mail;
pub(crate) mod oauth;
pub(crate) mod provider;
pub(crate) mod throttle;

use crate::app::App;
use crate::audit::{Actor, AuditEvent, Entry};
use crate::auth::locked_rights::lock_user;
use crate::auth::session::{BROWSER, PROGRAM};
use crate::auth::{Session, password, session};
use crate::db::listen::Change;
use crate::db::makers::Maker;
use crate::db::sessions::{SessionKind, SessionRow};
use crate::db::users::{NewToken, Purpose, User};
use crate::error::{Error, Result};
use crate::fields::{check_email, check_title};
use crate::secret::{hash, random_hex};
use crate::{db, teams};
use accounts::SignUp;
use serde_json::json;
use sqlx::PgConnection;
use std::time::Duration;
use time::OffsetDateTime;
use types::{PLATFORM_TEAM, SessionId, TeamId, UserId, UserState, hex};

/// Lifetimes of mailed tokens, for activations and for resets.
const ACTIVATION: Duration = Duration::from_secs(24 * 3600);
const RESET: Duration = Duration::from_secs(30 * 60);
/// Stored length of a client's description of itself, in characters.
const AGENT_MAX: usize = 200;

/// Origin of a sign-in.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub by: Actor,
    /// Client's description of itself.
    pub agent: String,
    /// Set if the client is a program, which keeps the token itself.
    pub program: bool,
}

/// A successful sign-in.
pub(crate) struct Entered {
    pub user: User,
    pub token: String,
    pub expires_at: OffsetDateTime,
}

/// Notes a user's action in the platform team's audit log.
async fn note(
    tx: &mut PgConnection,
    by: Actor,
    action: &'static str,
    user: UserId,
    what: serde_json::Value,
) -> Result<()> {
    let entry = Entry::new(PLATFORM_TEAM, by, action, user).with(what);
    Ok(db::audit::write(tx, &entry).await?)
}

/// Starts a sign-up. A mail tells how it goes on.
pub(crate) async fn sign_up(app: &App, by: Actor, wanted: api::SignUp) -> Result<()> {
    if app.accounts.sign_up == SignUp::Off {
        return Err(Error::SignUpOff);
    }
    let email = check_email(&wanted.email)?;
    let name = check_title("name", &wanted.name)?;
    password::check("password", &wanted.password, &[&email, &name])?;
    app.mailer.check()?;
    throttle::sign_up_mail(app, by, &email).await?;
    let _place = app.load.password(by.from).await?;
    // The password is hashed before the look-up of the account, so the time does not tell whether
    // one exists.
    let hashed = password::hash(&wanted.password).await?;
    let app = app.clone();
    app.tasks.clone().spawn(async move {
        if let Err(error) = enter(&app, by, &email, &name, &hashed).await {
            tracing::warn!(%error, "cannot complete a sign-up");
        }
    });
    Ok(())
}

/// Stores a sign-up, and sends its mail. A sign-up changes no existing account. Its password and
/// name wait with the mailed token, and become the account's when the token is used.
async fn enter(app: &App, by: Actor, email: &str, name: &str, hashed: &str) -> Result<()> {
    let mut tx = app.db.begin().await?;
    let mut known = db::users::lock_by_email(&mut *tx, email).await?;
    let active = known.as_ref().is_some_and(User::is_active);
    if !active && !welcome(app, &mut tx, email).await? {
        return Ok(());
    }
    if known.is_none()
        && let Some((user, new)) = db::users::insert(&mut tx, email, name).await?
    {
        if new {
            note(&mut tx, by, "user.sign_up", user.id, json!({ "email": email })).await?;
        }
        known = Some(user);
    }
    let Some(user) = known else { return Ok(()) };
    let text = match user.state {
        UserState::Active => mail::there_already(),
        UserState::Inactive => {
            let sign_up = Some((hashed, name));
            let token = give_token(&mut tx, &user, Purpose::Activate, Maker::default(), sign_up);
            mail::activation(&token.await?)
        }
        UserState::Disabled | UserState::Deleted => return Ok(()),
    };
    tx.commit().await?;
    app.mailer.send(email, text).await
}

/// Reports whether an account may be made for an e-mail now.
async fn welcome(app: &App, tx: &mut PgConnection, email: &str) -> Result<bool> {
    let mode = app.accounts.sign_up;
    Ok(mode == SignUp::Open
        || db::users::is_invited(&mut *tx, email).await?
        || mode == SignUp::Invited && db::teams::is_invited(&mut *tx, email).await?)
}

/// Makes a token to be sent by mail.
async fn give_token(
    tx: &mut PgConnection,
    user: &User,
    purpose: Purpose,
    maker: Maker,
    sign_up: Option<(&str, &str)>,
) -> Result<String> {
    let token = random_hex(16);
    let life = if purpose == Purpose::Activate { ACTIVATION } else { RESET };
    let (user, seconds) = (user.id, life.as_secs_f64());
    let hash = hash(&token);
    let new = NewToken { user, purpose, hash: &hash, seconds, maker, sign_up };
    db::users::insert_token(tx, &new).await?;
    Ok(token)
}

/// Activates an account for the reader of its mail. The reader must know the password of the
/// sign-up. If there is none, the reader sets the first password.
pub(crate) async fn activate(app: &App, origin: Origin, wanted: api::Activate) -> Result<Entered> {
    let hashed = hash(wanted.token.trim());
    let invalid = || Error::InvalidToken("the activation token");
    let mailed = db::users::peek_token(&app.db, Purpose::Activate, &hashed).await?;
    let mailed = mailed.ok_or_else(invalid)?;
    let user = db::users::find(&app.db, mailed.user_id).await?.ok_or_else(invalid)?;
    let given = wanted.password.ok_or_else(|| Error::invalid("password", "is missing"))?;
    let name = wanted.name.map(|name| check_title("name", &name)).transpose()?;
    let name = name.or(mailed.name).unwrap_or_else(|| user.name.clone());
    let password = match mailed.password_hash.or_else(|| user.password_hash.clone()) {
        Some(known) => {
            // Only the reader of the mail knows this token, so nobody else can use up the attempts.
            let attempts = format!("activation {}", hex::encode(&hashed));
            let _lock = throttle::lock_subject(app, origin.by, &attempts).await?;
            if !password::verify(&given, Some(&known)).await? {
                return Err(refused(app, origin.by, &attempts, Some(user.id)).await?);
            }
            known
        }
        None => {
            password::check("password", &given, &[&user.email, &name])?;
            password::hash(&given).await?
        }
    };
    let by = origin.by.user(user.id);
    let mut tx = app.db.begin().await?;
    db::users::lock_admins(&mut tx).await?;
    let user = db::users::lock(&mut *tx, user.id).await?.ok_or_else(invalid)?;
    if db::users::use_token(&mut *tx, Purpose::Activate, &hashed).await?.is_none() {
        return Err(invalid());
    }
    db::users::set_name(&mut *tx, user.id, &name).await?;
    db::users::set_password(&mut *tx, user.id, &password).await?;
    settle(&mut tx, user.id, &name, by).await?;
    let user = db::users::find(&mut *tx, user.id).await?.ok_or_else(invalid)?;
    let entered = open(&mut tx, &user, &origin).await?.ok_or_else(invalid)?;
    tx.commit().await?;
    Ok(entered)
}

/// Makes a user active and gives them a team. The platform's first user gets the teams that nobody
/// owns. The caller holds the lock of admins, and the user's.
async fn settle(tx: &mut PgConnection, id: UserId, name: &str, by: Actor) -> Result<()> {
    let admin = db::users::activate(&mut *tx, id).await?;
    // A user who was disabled, or has become active meanwhile, is not activated by this.
    let admin = admin.ok_or(Error::InvalidToken("the activation token"))?;
    // No other sign-up with this e-mail may be used from now on.
    db::users::remove_tokens(&mut *tx, id).await?;
    let what = json!({ "admin": admin });
    note(&mut *tx, by, "user.activate", id, what).await?;
    teams::found(&mut *tx, &format!("{name}'s team"), id, by).await?;
    if admin {
        db::teams::adopt(&mut *tx, id).await?;
    }
    Ok(())
}

/// Opens a session for an active user. Returns `None` when the user's status or password has
/// changed since the check. A change that comes later waits for this transaction, and then ends the
/// session.
async fn open(tx: &mut PgConnection, seen: &User, origin: &Origin) -> Result<Option<Entered>> {
    let user = db::users::hold(&mut *tx, seen.id).await?;
    let same = |now: &User| now.is_active() && now.password_hash == seen.password_hash;
    let Some(user) = user.filter(same) else { return Ok(None) };
    let token = session::new_token();
    let (kind, life) = match origin.program {
        true => (SessionKind::Program, PROGRAM),
        false => (SessionKind::Browser, BROWSER),
    };
    let now = OffsetDateTime::now_utc();
    let session = SessionRow {
        id: SessionId::new(),
        user_id: user.id,
        kind,
        address: origin.by.from.map(|ip| ip.to_string()).unwrap_or_default(),
        agent: origin.agent.chars().take(AGENT_MAX).collect(),
        created_at: now,
        expires_at: now + life,
        last_used_at: now,
    };
    db::sessions::insert(&mut *tx, &session, &hash(&token)).await?;
    let by = origin.by.user(user.id);
    note(tx, by, "user.login", user.id, json!({ "kind": kind })).await?;
    Ok(Some(Entered { user, token, expires_at: session.expires_at }))
}

/// Signs a user in by e-mail and password.
pub(crate) async fn log_in(app: &App, origin: Origin, wanted: api::LogIn) -> Result<Entered> {
    let email = check_email(&wanted.email).map_err(|_| Error::WrongCredentials)?;
    let _place = app.load.password(origin.by.from).await?;
    let _lock = throttle::lock_subject(app, origin.by, &email).await?;
    let user = db::users::by_email(&app.db, &email).await?;
    let known = user.as_ref().and_then(|user| user.password_hash.as_deref());
    let right = password::verify(&wanted.password, known).await?;
    let id = user.as_ref().map(|user| user.id);
    let Some(user) = user.filter(|user| right && user.is_active()) else {
        return Err(refused(app, origin.by, &email, id).await?);
    };
    let mut tx = app.db.begin().await?;
    let Some(entered) = open(&mut tx, &user, &origin).await? else {
        drop(tx);
        return Err(refused(app, origin.by, &email, id).await?);
    };
    tx.commit().await?;
    throttle::forgive(app, &email).await?;
    Ok(entered)
}

/// Counts and notes a failed attempt. The subject is an account's e-mail or another text.
async fn refused(app: &App, by: Actor, subject: &str, id: Option<UserId>) -> Result<Error> {
    throttle::failed(app, by, subject).await?;
    app.audit_buffer.note(AuditEvent {
        team: PLATFORM_TEAM,
        by,
        action: "user.login",
        resource: id.map_or_else(|| "unknown".to_owned(), |id| id.to_string()),
        refused: true,
        code: "wrong_credentials",
    });
    Ok(Error::WrongCredentials)
}

/// Ends the caller's session.
pub(crate) async fn log_out(app: &App, who: Session) -> Result<()> {
    end_session(app, who, who.session, "user.logout").await.map(|_| ())
}

/// Ends one of the user's sessions.
pub(crate) async fn end_session(
    app: &App,
    who: Session,
    id: SessionId,
    action: &'static str,
) -> Result<bool> {
    let mut tx = app.db.begin().await?;
    let ended = db::sessions::remove(&mut *tx, who.user, id).await?;
    if ended.is_some() {
        note(&mut tx, who.by, action, who.user, json!({ "session": id.to_string() })).await?;
    }
    tx.commit().await?;
    let was = ended.is_some();
    forget(app, ended);
    Ok(was)
}

/// Applies the end of sessions on this replica at once, by their tokens' hashes.
fn forget(app: &App, hashes: impl IntoIterator<Item = Vec<u8>>) {
    for hash in hashes.into_iter().filter_map(|hash| hash.try_into().ok()) {
        app.changed(&Change::Session(hash));
    }
}

/// Ends the user's sessions, except the caller's.
pub(crate) async fn end_others(app: &App, who: Session) -> Result<()> {
    let mut tx = app.db.begin().await?;
    let ended = db::sessions::remove_all(&mut *tx, who.user, Some(who.session)).await?;
    let what = json!({ "sessions": ended.len() });
    note(&mut tx, who.by, "user.logout_others", who.user, what).await?;
    tx.commit().await?;
    forget(app, ended);
    Ok(())
}

/// Mails a token for a new password, if there is an account.
pub(crate) async fn ask_reset(app: &App, by: Actor, email: &str) -> Result<()> {
    let email = check_email(email)?;
    app.mailer.check()?;
    // If not, the mailbox has a recent code that is still valid.
    if !throttle::reset_mail(app, by, &email).await? {
        return Ok(());
    }
    let app = app.clone();
    app.tasks.clone().spawn(async move {
        let mailed = async {
            let mut tx = app.db.begin().await?;
            let user = db::users::lock_by_email(&mut *tx, &email).await?;
            let Some(user) = user.filter(User::is_active) else { return Ok(()) };
            let none = Maker::default();
            let token = give_token(&mut tx, &user, Purpose::Reset, none, None).await?;
            note(&mut tx, by, "user.ask_reset", user.id, json!({})).await?;
            tx.commit().await?;
            app.mailer.send(&email, mail::reset(&token)).await
        };
        if let Err(error) = mailed.await {
            let error: Error = error;
            tracing::warn!(%error, "cannot complete a password reset");
        }
    });
    Ok(())
}

/// Sets a new password for a mailed token. Ends every session and every other token.
pub(crate) async fn reset(app: &App, by: Actor, wanted: api::ConfirmPassword) -> Result<()> {
    let hashed = hash(wanted.token.trim());
    let invalid = || Error::InvalidToken("the reset token");
    let mailed = db::users::peek_token(&app.db, Purpose::Reset, &hashed).await?;
    let id = mailed.ok_or_else(invalid)?.user_id;
    let user = db::users::find(&app.db, id).await?.filter(User::is_active).ok_or_else(invalid)?;
    password::check("new_password", &wanted.new_password, &[&user.email, &user.name])?;
    let new = password::hash(&wanted.new_password).await?;
    let mut tx = app.db.begin().await?;
    let user = db::users::lock(&mut *tx, id).await?.filter(User::is_active).ok_or_else(invalid)?;
    if db::users::use_token(&mut *tx, Purpose::Reset, &hashed).await?.is_none() {
        return Err(invalid());
    }
    let ended = renew_password(&mut tx, id, &new, None).await?;
    note(&mut tx, by.user(id), "user.reset_password", id, json!({})).await?;
    tx.commit().await?;
    forget(app, ended);
    throttle::forgive_reset(app, &user.email).await?;
    throttle::forgive(app, &user.email).await
}

/// Sets a new password of a user whom the caller has locked. Ends the user's sessions except one,
/// and every mailed token. Returns the hashes of the sessions' tokens.
async fn renew_password(
    tx: &mut PgConnection,
    id: UserId,
    hash: &str,
    but: Option<SessionId>,
) -> Result<Vec<Vec<u8>>> {
    db::users::set_password(&mut *tx, id, hash).await?;
    db::users::remove_tokens(&mut *tx, id).await?;
    Ok(db::sessions::remove_all(&mut *tx, id, but).await?)
}

/// Sets a new password for a user who knows the old one, and ends the other sessions.
pub(crate) async fn change_password(
    app: &App,
    who: Session,
    wanted: api::ChangePassword,
) -> Result<()> {
    let user = me(app, who).await?;
    // Attempts are counted per user, so that a stranger's failures to sign in never delay the
    // owner.
    let attempts = format!("change by {}", who.user);
    if user.password_hash.is_some() {
        let _lock = throttle::lock_subject(app, who.by, &attempts).await?;
        let given = wanted.current_password.unwrap_or_default();
        if !password::verify(&given, user.password_hash.as_deref()).await? {
            return Err(refused(app, who.by, &attempts, Some(user.id)).await?);
        }
    }
    password::check("new_password", &wanted.new_password, &[&user.email, &user.name])?;
    let new = password::hash(&wanted.new_password).await?;
    let mut tx = app.db.begin().await?;
    // A reset of the password meanwhile has ended this session too.
    if lock_user(&mut tx, who).await?.password_hash != user.password_hash {
        return Err(Error::WrongCredentials);
    }
    let ended = renew_password(&mut tx, who.user, &new, Some(who.session)).await?;
    note(&mut tx, who.by, "user.change_password", who.user, json!({})).await?;
    tx.commit().await?;
    forget(app, ended);
    throttle::forgive_reset(app, &user.email).await?;
    throttle::forgive(app, &attempts).await
}

/// Returns the calling user.
pub(crate) async fn me(app: &App, who: Session) -> Result<User> {
    let found = db::users::find(&app.db, who.user).await?;
    found.ok_or(Error::Unauthenticated)
}

/// Returns the team in which a user's requests act by default.
pub(crate) async fn default_team(app: &App, id: UserId) -> Result<Option<TeamId>> {
    let person = app.directory.person(id).await?;
    Ok(person.and_then(|person| person.default_team))
}

/// Returns the providers by whose accounts the calling user can sign in.
pub(crate) async fn providers(app: &App, who: Session) -> Result<Vec<String>> {
    Ok(db::users::identities(&app.db, who.user).await?)
}

/// Returns the sessions of the calling user, newest first.
pub(crate) async fn sessions(app: &App, who: Session) -> Result<Vec<SessionRow>> {
    Ok(db::sessions::list(&app.db, who.user).await?)
}

pub(crate) async fn change(app: &App, who: Session, wanted: api::ChangeMe) -> Result<()> {
    let name = wanted.name.map(|name| check_title("name", &name)).transpose()?;
    let team = wanted.default_team.map(|id| id.parse().map_err(|_| Error::NotFound("team")));
    let team = team.transpose()?;
    let mut tx = app.db.begin().await?;
    lock_user(&mut tx, who).await?;
    if let Some(name) = &name {
        db::users::set_name(&mut *tx, who.user, name).await?;
        note(&mut tx, who.by, "user.rename", who.user, json!({ "name": name })).await?;
    }
    if let Some(team) = team {
        db::teams::role(&mut tx, team, who.user).await?.ok_or(Error::NotFound("team"))?;
        db::teams::set_default(&mut tx, team, who.user).await?;
        let what = json!({ "team": team.to_string() });
        note(&mut tx, who.by, "user.set_default_team", who.user, what).await?;
    }
    tx.commit().await?;
    app.changed(&Change::User(who.user));
    Ok(())
}
