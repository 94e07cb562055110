//! The grounds on which a request to the API was admitted, kept while its answer is under way. The
//! check can be repeated, and open exchanges end when it fails.

use super::revocations::{Basis, Recheck, Subject, broken_off};
use super::rule::Rule;
use super::{Caller, authorize, policy};
use crate::app::App;
use crate::audit::Actor;
use crate::db::keys::Key;
use crate::db::users::Person;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::policy::{Confinement, KeyScope, Permissions};
use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http_body::Body as _;
use std::future::Future;
use std::sync::Arc;
use time::OffsetDateTime;
use types::{PLATFORM_TEAM, SessionId, TeamId, UserId};

/// Largest answer of a known length that may end by itself, in bytes.
const SHORT: u64 = 64 * 1024;

/// A credential, by its hash.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Credential {
    Key([u8; 32]),
    /// A session, by the hash of its own token or of the token that a signed token stands for.
    Session([u8; 32]),
}

/// The key or the user that a credential belongs to.
pub(super) enum Identity {
    Key(Arc<Key>),
    User { user: UserId, session: SessionId, person: Arc<Person>, until: OffsetDateTime },
}

impl Identity {
    /// Finds the owner of a credential that is good.
    pub(super) async fn find(app: &App, credential: Credential, by: Actor) -> Result<Self> {
        match credential {
            Credential::Key(hash) => {
                let key = app.key_cache.find(&hash, by.from).await?;
                Ok(Self::Key(key.ok_or(Error::Unauthenticated)?))
            }
            Credential::Session(hash) => {
                let found = app.directory.session(&hash, by.from).await?;
                let found = found.ok_or(Error::Unauthenticated)?;
                let (user, session) = (found.user_id, found.id);
                let person = app.directory.person(user).await?;
                let person = person.ok_or(Error::Unauthenticated)?;
                Ok(Self::User { user, session, person, until: found.expires_at })
            }
        }
    }

    /// Returns the subjects and the end that an admission by this credential rests on.
    pub(super) fn basis(&self, credential: Credential) -> Basis {
        let (Credential::Key(hash) | Credential::Session(hash)) = credential;
        match self {
            Self::Key(key) => key.basis(hash, None),
            Self::User { user, until, .. } => {
                let subjects = [Some(Subject::Session(hash)), Some(Subject::User(*user)), None];
                Basis { subjects, until: Some(*until) }
            }
        }
    }

    /// Reports whether the caller may act on the whole platform.
    pub(super) async fn operates(&self, app: &App, by: Actor) -> Result<bool> {
        Ok(match self {
            Self::Key(key) => authorize::key_caller(app, key, by).await?.operator,
            Self::User { person, .. } => person.admin,
        })
    }

    /// Returns the caller in the team `asked`, which they must belong to, or in their default team.
    pub(super) async fn caller(
        &self,
        app: &App,
        asked: Option<TeamId>,
        by: Actor,
    ) -> Result<Caller> {
        let caller = match self {
            Self::Key(key) => authorize::key_caller(app, key, by).await?,
            Self::User { person, .. } => member(person, asked, by)?,
        };
        let caller = match asked == Some(PLATFORM_TEAM) && caller.operator {
            true => of_platform(caller.by),
            false => caller,
        };
        match asked.is_some_and(|asked| asked != caller.team) {
            true => Err(Error::NotFound("team")),
            false => Ok(caller),
        }
    }
}

impl Key {
    /// Returns the basis of an admission by this key, with a third subject.
    pub(crate) fn basis(&self, hash: [u8; 32], third: Option<Subject>) -> Basis {
        let creator = self.created_by.map(Subject::User);
        Basis { subjects: [Some(Subject::Key(hash)), creator, third], until: self.expires_at }
    }
}

/// Returns a user as a caller in a team, or in their default team. An admin of the platform may
/// name the platform's team.
fn member(person: &Person, asked: Option<TeamId>, by: Actor) -> Result<Caller> {
    let team = asked.or(person.default_team).ok_or(Error::NoTeam)?;
    let permissions = match person.role(team) {
        Some(role) => role.permissions(),
        None if person.admin && team == PLATFORM_TEAM => Permissions::default(),
        None => return Err(Error::NotFound("team")),
    };
    let (confinement, limits) = (Confinement::default(), Limits::NONE);
    let operator = person.admin;
    Ok(Caller {
        team,
        by,
        permissions,
        confinement,
        operator,
        limits,
        counted_as: None,
        maker: None,
    })
}

/// Returns an operator as a caller in the platform's own team, for its events, channels and audit
/// log. The platform's team has no capsules.
fn of_platform(by: Actor) -> Caller {
    let permissions = policy::scoped([KeyScope::CapsulesRead, KeyScope::TeamAdmin]);
    Caller { by, permissions, operator: true, ..Caller::of(PLATFORM_TEAM) }
}

/// An admission by a credential.
#[derive(Clone)]
pub(crate) struct Admission {
    pub(super) app: Arc<App>,
    pub(super) credential: Credential,
    pub(super) rule: Rule,
    /// Team that the caller acts in, where the rule takes one.
    pub(super) team: Option<TeamId>,
    pub(super) basis: Basis,
    /// Count of changes from before the first look-up.
    pub(super) seen: u64,
}

impl Recheck for Admission {
    async fn check(&self) -> Result<Basis> {
        let (app, by) = (&self.app, Actor::SYSTEM);
        let identity = Identity::find(app, self.credential, by).await?;
        match self.rule {
            Rule::Platform if !identity.operates(app, by).await? => {
                return Err(Error::Forbidden("platform"));
            }
            Rule::Team(action, resource) | Rule::Poll(action, resource) => {
                identity.caller(app, self.team, by).await?.may(action, resource)?;
            }
            Rule::Platform | Rule::Open | Rule::Host | Rule::User | Rule::Anyone => {}
        }
        Ok(identity.basis(self.credential))
    }
}

impl Admission {
    /// Completes when the admission no longer holds.
    pub(crate) async fn revoked(self) -> Error {
        let app = Arc::clone(&self.app);
        app.revocations.revoked(&self, self.basis, self.seen).await
    }

    /// Breaks an exchange off when the admission no longer holds.
    pub(crate) fn until(self) -> hop::Until {
        Box::pin(async { broken_off(self.revoked().await) })
    }

    /// Runs a handler. A handler that works in a capsule ends when the admission does, as it would
    /// if its client left. A long or streamed answer of any handler ends with it, too.
    pub(super) async fn watch(self, handler: impl Future<Output = Response>) -> Response {
        let answer = match self.rule.executes() {
            false => handler.await,
            true => {
                let mut revoked = Box::pin(self.clone().revoked());
                tokio::select! {
                    biased;
                    answer = handler => answer,
                    error = &mut revoked => return error.into_response(),
                }
            }
        };
        if answer.body().size_hint().exact().is_some_and(|bytes| bytes <= SHORT) {
            return answer;
        }
        let kind = answer.headers().get(CONTENT_TYPE);
        let events = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let until: hop::Until = match events {
            true => Box::pin(async { Ok(last_event(&self.revoked().await)) }),
            false => self.until(),
        };
        answer.map(|body| axum::body::Body::new(hop::Body::boxed(body).until(until)))
    }
}

/// Makes the last event of a stream of events. A client that connects again is refused.
fn last_event(error: &Error) -> Bytes {
    let (code, message) = (error.code(), error.to_string());
    let data = serde_json::json!({ "error": { "code": code, "message": message } });
    format!("event: {code}\ndata: {data}\n\n").into()
}

impl FromRequestParts<Arc<App>> for Admission {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self> {
        super::found(parts)
    }
}
