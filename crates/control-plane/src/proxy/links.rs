//! Checks preview links, and the cookies that they were exchanged for. A link must be of the
//! capsule's present generation of links. Its maker must still be allowed to reach the port.

use super::preview::{Link, Maker};
use super::routes::Route;
use super::target::Target;
use crate::app::App;
use crate::audit::Actor;
use crate::auth::Caller;
use crate::auth::authorize::key_caller;
use crate::auth::revocations::{Basis, Subject};
use crate::error::{Error, Result};
use crate::policy::{Action, Resource};

/// Result of checking a link.
#[derive(Debug)]
pub(crate) enum Checked {
    /// The link is good; the basis is that of its maker's right.
    Good(Link, Basis),
    Expired,
    Revoked,
    /// The token is not ours, or for another capsule or port.
    Bad,
}

/// Links that a request presents.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// Link in the query.
    pub query: Option<Checked>,
    /// First good link in a cookie.
    pub cookie: Option<(Link, Basis)>,
}

impl Links {
    /// Checks the links of a request for an existing capsule: the token in its query and those in
    /// its cookies. Looks nothing up for a request without links.
    pub(crate) async fn find(
        app: &App,
        (query, cookies): (Option<&str>, Vec<&str>),
        target: Target,
        route: Option<&Route>,
        now: i64,
    ) -> Result<Self> {
        let (Some(route), false) = (route, query.is_none() && cookies.is_empty()) else {
            return Ok(Self::default());
        };
        let mut links = Self::default();
        if let Some(token) = query {
            links.query = Some(check(app, target, route, token, now).await?);
        }
        for token in cookies {
            if let Checked::Good(link, basis) = check(app, target, route, token, now).await? {
                links.cookie = Some((link, basis));
                break;
            }
        }
        Ok(links)
    }

    #[cfg(test)]
    pub(crate) fn of(query: Option<Checked>, cookie: Option<(Link, Basis)>) -> Self {
        Self { query, cookie }
    }
}

/// Checks a token. Only a token that the platform signed causes look-ups.
async fn check(app: &App, target: Target, route: &Route, token: &str, now: i64) -> Result<Checked> {
    let Some(link) = Link::read(&app.link_secret, target, token) else { return Ok(Checked::Bad) };
    match stands(app, target, route, &link, now).await {
        Ok(basis) => Ok(Checked::Good(link, basis)),
        Err(Error::LinkExpired) => Ok(Checked::Expired),
        Err(error) if error.status().is_client_error() => Ok(Checked::Revoked),
        Err(error) => Err(error),
    }
}

/// Checks a link that the platform signed, and returns the basis of its maker's right.
///
/// # Errors
/// When the link no longer admits, with the reason.
pub(super) async fn stands(
    app: &App,
    target: Target,
    route: &Route,
    link: &Link,
    now: i64,
) -> Result<Basis> {
    if link.until <= now {
        return Err(Error::LinkExpired);
    }
    if link.generation != route.link_generation {
        return Err(Error::LinkRevoked);
    }
    let this = Some(Subject::Capsule(target.capsule));
    let (caller, mut basis) = match link.maker {
        Maker::User(id) => {
            let person = app.directory.person(id).await?;
            let role = person.and_then(|person| person.role(route.team));
            let permissions = role.ok_or(Error::LinkRevoked)?.permissions();
            let subjects = [Some(Subject::User(id)), None, this];
            (Caller { permissions, ..Caller::of(route.team) }, Basis { subjects, until: None })
        }
        Maker::Key(id) => {
            let hash = app.key_cache.hash(id).await?.ok_or(Error::LinkRevoked)?;
            let key = app.key_cache.find(&hash, None).await?.ok_or(Error::LinkRevoked)?;
            (key_caller(app, &key, Actor::SYSTEM).await?, key.basis(hash, this))
        }
    };
    if caller.team != route.team {
        return Err(Error::LinkRevoked);
    }
    caller.may(Action::CapsulesExec, Resource::Capsule(target.capsule, route.template))?;
    let until = time::OffsetDateTime::from_unix_timestamp(link.until).ok();
    basis.until = [basis.until, until].into_iter().flatten().min();
    Ok(basis)
}
