//! Sign-in elsewhere: GitHub, or any provider of OpenID Connect, by the code flow with PKCE. The
//! state is good once, and bound to the browser by a cookie. When a provider is added, the state is
//! also bound to the session that asked for it. A sign-in never takes over an account of the same
//! e-mail. The account's owner adds the provider after signing in.

use super::provider::{GITHUB, Provider, ProviderIdentity, carried};
use super::{Entered, Origin, note, open};
use crate::app::App;
use crate::audit::Actor;
use crate::auth::Session;
use crate::auth::locked_rights::lock_user;
use crate::db;
use crate::db::sessions::SignIn;
use crate::db::users::User;
use crate::error::{Error, Result};
use crate::fields::{check_email, check_title};
use crate::secret::{hash, random_hex};
use anyhow::Context;
use oauth2::{AuthorizationCode, CsrfToken, PkceCodeChallenge, PkceCodeVerifier, Scope};
use serde_json::json;
use sqlx::PgConnection;
use std::time::Duration;
use types::{SessionId, UserState};

/// Longest time of a sign-in at the provider.
const PATIENCE: Duration = Duration::from_secs(600);
/// Message for a provider that is added by another browser, or after a sign-out.
const OTHER_SESSION: &str = "only the session that asked to add the provider can add it";

fn provider<'a>(app: &'a App, name: &str) -> Result<&'a Provider> {
    let found = app.accounts.providers.iter().find(|provider| provider.name == name);
    found.ok_or(Error::NotFound("provider"))
}

fn failed(error: &anyhow::Error) -> Error {
    tracing::warn!(error = format!("{error:#}"), "sign-in with a provider failed");
    Error::SignInFailed("the provider's sign-in failed; see the control plane's log".to_owned())
}

/// Begins a sign-in, or has a session's user add the provider. Returns the address for the browser
/// to visit, and the state for its cookie.
pub(crate) async fn begin(
    app: &App,
    name: &str,
    adds: Option<Session>,
) -> Result<(String, String)> {
    let provider = provider(app, name)?;
    let at = provider.endpoints(&app.http).await.map_err(|e| failed(&e))?;
    let client = provider.client(&at, redirect(app, name)).map_err(|e| failed(&e))?;
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let (state, nonce) = (random_hex(32), random_hex(16));
    let scopes: &[&str] = match name {
        GITHUB => &["read:user", "user:email"],
        _ => &["openid", "email", "profile"],
    };
    let (url, _) = client
        .authorize_url(|| CsrfToken::new(state.clone()))
        .add_scopes(scopes.iter().map(|scope| Scope::new((*scope).to_owned())))
        .set_pkce_challenge(challenge)
        .add_extra_param("nonce", nonce.clone())
        .url();
    let sign_in = SignIn {
        provider: name.to_owned(),
        verifier: verifier.secret().clone(),
        nonce,
        user_id: adds.map(|who| who.user),
        session_id: adds.map(|who| who.session),
    };
    let begun = db::sessions::begin(&app.db, &hash(&state), &sign_in, PATIENCE.as_secs_f64()).await;
    begun.map_err(|error| match error.as_database_error() {
        // The session has ended meanwhile, so its row is gone.
        Some(error) if error.is_foreign_key_violation() => Error::Unauthenticated,
        _ => error.into(),
    })?;
    Ok((url.to_string(), state))
}

fn redirect(app: &App, name: &str) -> String {
    format!("{}/v1/auth/oauth/{name}/callback", app.accounts.url)
}

/// Completes a sign-in, when the browser returns with a code and the state in its cookie. `shown`
/// is the session of its other cookie. A provider is added only in the session that asked for it.
pub(crate) async fn end(
    app: &App,
    origin: Origin,
    name: &str,
    (state, code): (&str, String),
    shown: Option<SessionId>,
) -> Result<Entered> {
    let provider = provider(app, name)?;
    let sign_in = db::sessions::take(&app.db, &hash(state)).await?;
    let sign_in = sign_in.filter(|sign_in| sign_in.provider == name);
    let sign_in = sign_in.ok_or(Error::InvalidToken("the sign-in's state"))?;
    let adds = match (sign_in.user_id, sign_in.session_id) {
        (None, _) => None,
        (Some(user), Some(session)) if shown == Some(session) => {
            Some(Session { user, session, by: origin.by.user(user) })
        }
        (Some(_), _) => return Err(Error::SignInFailed(OTHER_SESSION.to_owned())),
    };
    let asked = async {
        let at = provider.endpoints(&app.http).await?;
        let client = provider.client(&at, redirect(app, name))?;
        let http = app.http.clone();
        let tokens = client
            .exchange_code(AuthorizationCode::new(code))
            .set_pkce_verifier(PkceCodeVerifier::new(sign_in.verifier))
            .request_async(&|request| carried(http.clone(), request))
            .await
            .context("cannot exchange the code for tokens")?;
        provider.identity(&app.http, &at, &tokens, &sign_in.nonce).await
    };
    let identity = asked.await.map_err(|e| failed(&e))?;
    enter(app, origin, name, identity, adds).await
}

fn refusal(why: &str) -> Error {
    Error::SignInFailed(why.to_owned())
}

/// Signs in the account of an identity: the account that has it, the one that adds it, or a new
/// one.
async fn enter(
    app: &App,
    origin: Origin,
    name: &str,
    identity: ProviderIdentity,
    adds: Option<Session>,
) -> Result<Entered> {
    let mut tx = app.db.begin().await?;
    // The user who adds a provider is locked first, as in every transaction.
    let adder = match adds {
        Some(who) => Some(lock_user(&mut tx, who).await?),
        None => None,
    };
    let known = db::users::by_identity(&mut *tx, name, &identity.subject).await?;
    let user = match (known, adder) {
        (Some(user), Some(adder)) if user.id != adder.id => {
            return Err(refusal("the provider's account belongs to another user"));
        }
        (Some(user), _) => user,
        (None, Some(adder)) => {
            let id = adder.id;
            if !db::users::add_identity(&mut *tx, id, name, &identity.subject).await? {
                return Err(refusal("you already have an account of this provider"));
            }
            let by = origin.by.user(id);
            note(&mut tx, by, "user.add_provider", id, json!({ "provider": name })).await?;
            adder
        }
        (None, None) => come(app, &mut tx, origin.by, name, &identity).await?,
    };
    let entered = open(&mut tx, &user, &origin).await?;
    let entered = entered.ok_or_else(|| refusal("the account is not active"))?;
    tx.commit().await?;
    Ok(entered)
}

/// Makes the account of a first-time user, or activates an account that waits for its owner. The
/// provider's verification of the e-mail counts as much as a mailed code.
async fn come(
    app: &App,
    tx: &mut PgConnection,
    by: Actor,
    name: &str,
    identity: &ProviderIdentity,
) -> Result<User> {
    let email = identity.email.as_deref().map(check_email).transpose()?;
    let email = email.ok_or_else(|| refusal("the provider confirms no e-mail address of yours"))?;
    db::users::lock_admins(&mut *tx).await?;
    let known = db::users::lock_by_email(&mut *tx, &email).await?;
    if known.as_ref().is_some_and(|user| user.state != UserState::Inactive) {
        return Err(refusal(
            "an account with this e-mail exists; sign in to it and add the provider",
        ));
    }
    if !super::welcome(app, tx, &email).await? {
        return Err(refusal("this platform accepts new users only by invitation"));
    }
    let name_there = check_title("name", &identity.name);
    let called = name_there.unwrap_or_else(|_| email.clone());
    let user = match known {
        Some(user) => user,
        None => {
            let entered = db::users::insert(&mut *tx, &email, &called).await?;
            let entered = entered.filter(|(user, _)| user.state == UserState::Inactive);
            entered.ok_or_else(|| refusal("an account with this e-mail exists; try again"))?.0
        }
    };
    let id = user.id;
    if !db::users::add_identity(&mut *tx, id, name, &identity.subject).await? {
        return Err(refusal("the provider's account belongs to another user"));
    }
    // The earlier sign-up with this e-mail may have been a stranger's.
    db::users::set_name(&mut *tx, id, &called).await?;
    super::settle(tx, id, &called, by.user(id)).await?;
    db::users::find(&mut *tx, id).await?.ok_or(Error::Unauthenticated)
}

/// Removes a provider from an account that has another way to sign in.
pub(crate) async fn remove(app: &App, who: Session, name: &str) -> Result<()> {
    let mut tx = app.db.begin().await?;
    let user = lock_user(&mut tx, who).await?;
    let known = db::users::identities(&mut *tx, who.user).await?;
    if user.password_hash.is_none() && known.len() < 2 {
        let message = "the provider is the account's only sign-in method; set a password first";
        return Err(Error::Conflict(message.to_owned()));
    }
    if !db::users::remove_identity(&mut *tx, who.user, name).await? {
        return Err(Error::NotFound("provider"));
    }
    note(&mut tx, who.by, "user.remove_provider", who.user, json!({ "provider": name })).await?;
    tx.commit().await?;
    Ok(())
}
