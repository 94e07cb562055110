//! The gate before every route: finds who calls, lets them pass or not by the route's rule, counts
//! their requests, and gives the handler what it found. A route without a rule serves nobody.

use super::origin::{Peer, Transport};
use super::policy::{self, Action, Grants, Only, Resource};
use super::{Caller, Operator, SignedIn, Stranger, session};
use crate::app::App;
use crate::audit::{Actor, By, Noted};
use crate::db::keys::Key;
use crate::db::users::Person;
use crate::error::{Error, Failure, Result};
use crate::http::rules::{self, Rule};
use crate::limits::{Limits, Per, STRANGERS_PER_SEC, TOKEN_MAX};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, header};
use std::sync::Arc;
use types::{ClientNetwork, PLATFORM_TEAM, SessionId, TeamId, UserId};
use uuid::Uuid;

/// Header by which a user says in which of their teams something is done.
const TEAM: &str = "x-wrenn-team";

/// Who has shown who they are.
enum Identity {
    Key(Arc<Key>),
    User { user: UserId, session: SessionId, person: Arc<Person> },
}

/// Lets a request pass to its handler, or answers why not.
pub(crate) async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(pattern) = request.extensions().get::<MatchedPath>().cloned() else {
        return next.run(request).await;
    };
    let (mut parts, body) = request.into_parts();
    let Some(rule) = rules::of(&parts.method, pattern.as_str()) else {
        return Error::MethodNotAllowed.into_response();
    };
    let peer = parts.extensions.get::<Peer>().copied();
    let from = peer.map(|peer| peer.client(&parts.headers));
    let by_tls = peer.is_some_and(|peer| peer.came_by_tls(&parts.headers, &parts.extensions));
    let transport = Transport::of(&app.public, by_tls);
    parts.extensions.insert(transport);
    let by = By { actor: Actor::Nobody, from };
    let mut gate = Gate { app: &app, by, team: PLATFORM_TEAM, transport };
    match gate.admit(rule, &mut parts).await {
        Ok(()) => {
            if app.audit_access && rule == Rule::Team(Action::CapsulesExec) {
                gate.note("capsule.access", parts.uri.path(), None);
            }
            let answer = next.run(Request::from_parts(parts, body)).await;
            // What the handler alone could know; a sign-in notes its own.
            if let Some(Failure(error)) = answer.extensions().get::<Failure>()
                && !matches!(**error, Error::WrongCredentials)
            {
                gate.note("auth.refused", pattern.as_str(), Some(error));
            }
            answer
        }
        Err(error) => {
            gate.note("auth.refused", pattern.as_str(), Some(&error));
            error.into_response()
        }
    }
}

/// What is known of a caller so far.
struct Gate<'a> {
    app: &'a App,
    by: By,
    team: TeamId,
    transport: Transport,
}

impl Gate<'_> {
    async fn admit(&mut self, rule: Rule, parts: &mut Parts) -> Result<()> {
        match rule {
            Rule::Open => {
                // What hosts ask goes by their tokens, and the rest costs nothing.
                if parts.uri.path().starts_with("/v1/auth/") {
                    self.count(self.network(), STRANGERS_PER_SEC)?;
                    // Another site's page is not to sign its visitors in, as whomever it likes.
                    let by_page = parts.headers.contains_key(header::ORIGIN);
                    if by_page && !parts.method.is_safe() && !session::same_origin(parts) {
                        return Err(Error::NotOurPage);
                    }
                }
                parts.extensions.insert(Stranger(self.by));
            }
            // Its token is looked at where it is used.
            Rule::Host => {}
            Rule::User => {
                let Identity::User { user, session, .. } = self.identify(parts).await? else {
                    return Err(Error::UserOnly);
                };
                parts.extensions.insert(SignedIn { user, session, by: self.by });
            }
            Rule::Platform => {
                let operator = match self.identify(parts).await? {
                    Identity::Key(key) => key_caller(self.app, &key, self.by).await?.operator,
                    Identity::User { person, .. } => person.admin,
                };
                if !operator {
                    return Err(Error::Forbidden("platform"));
                }
                parts.extensions.insert(Operator(self.by));
            }
            Rule::Anyone => {
                let caller = match self.in_team(parts).await {
                    // One may be in none, and see that.
                    Err(Error::NoTeam) => {
                        let grants = Grants::default();
                        Caller { by: self.by, grants, ..Caller::of(PLATFORM_TEAM) }
                    }
                    found => found?,
                };
                parts.extensions.insert(caller);
            }
            Rule::Team(action) => {
                let caller = self.in_team(parts).await?;
                let whole = rules::is_of_capsules(parts.uri.path());
                caller.may(action, if whole { Resource::Capsules } else { Resource::Team })?;
                parts.extensions.insert(caller);
            }
        }
        Ok(())
    }

    /// Finds who calls, by the first that they present.
    async fn identify(&mut self, parts: &Parts) -> Result<Identity> {
        let headers = &parts.headers;
        let identity = if let Some(key) = headers.get("x-api-key") {
            let key = key.to_str().ok().filter(|key| key.len() <= TOKEN_MAX);
            let key = match key {
                Some(key) => self.app.routes.key(&self.app.db, &super::hash(key)).await?,
                None => None,
            };
            Identity::Key(key.ok_or(Error::Unauthenticated)?)
        } else {
            self.user(parts).await?
        };
        let (actor, who, rate) = match &identity {
            Identity::Key(key) => {
                self.team = key.team();
                let rate = key.limits.limits().requests_per_sec;
                (Actor::Key(key.id()), key.counted_as().0, rate)
            }
            // In whatever team: what any may.
            Identity::User { user, .. } => {
                let limits = self.app.directory.limits(&self.app.db, PLATFORM_TEAM).await?;
                (Actor::User(*user), user.0, limits.requests_per_sec)
            }
        };
        self.by.actor = actor;
        self.count(who, rate)?;
        Ok(identity)
    }

    /// Counts a request.
    fn count(&self, who: Uuid, rate: u32) -> Result<()> {
        let passed = self.app.limiter.pass(who, Per::Request, rate);
        passed.map_err(|wait| Error::TooManyRequests("requests", wait))
    }

    /// What requests of a stranger are counted by.
    fn network(&self) -> Uuid {
        let network = self.by.from.map(|ip| ClientNetwork::from(ip).to_string());
        let hash = super::hash(&network.unwrap_or_default());
        Uuid::from_slice(&hash[..16]).unwrap_or_default()
    }

    async fn user(&self, parts: &Parts) -> Result<Identity> {
        let headers = &parts.headers;
        let bearer = session::bearer(headers).filter(|token| token.len() <= TOKEN_MAX);
        let (hash, cookie) = match (bearer, session::from_cookie(headers, self.transport)) {
            (Some(token), _) if token.starts_with(session::PREFIX) => (super::hash(token), None),
            (Some(word), _) => {
                let hash = self.app.user_signer.check(word);
                (hash.ok_or(Error::Unauthenticated)?, None)
            }
            (None, Some(token)) => (super::hash(token), Some(token)),
            (None, None) => return Err(Error::Unauthenticated),
        };
        let found = self.app.directory.session(&self.app.db, &hash).await?;
        let found = found.ok_or(Error::Unauthenticated)?;
        // A browser sends a cookie with what other sites make it ask, too.
        if let Some(token) = cookie {
            let ours = match (parts.method.is_safe(), headers.contains_key(header::UPGRADE)) {
                (false, _) => session::shows_csrf(headers, token),
                (true, true) => session::same_origin(parts),
                (true, false) => true,
            };
            if !ours {
                return Err(Error::NotOurPage);
            }
        }
        let (user, session) = (UserId(found.user_id), SessionId(found.id));
        let person = self.app.directory.person(&self.app.db, user).await?;
        let person = person.ok_or(Error::Unauthenticated)?;
        Ok(Identity::User { user, session, person })
    }

    /// The caller in the team that the request is for, which they must be of.
    async fn in_team(&mut self, parts: &Parts) -> Result<Caller> {
        let identity = self.identify(parts).await?;
        let asked = asked_team(parts)?;
        let caller = match &identity {
            Identity::Key(key) => key_caller(self.app, key, self.by).await?,
            Identity::User { person, .. } => self.member(person, asked)?,
        };
        let caller = match asked == Some(PLATFORM_TEAM) && caller.operator {
            true => of_platform(caller.by),
            false => caller,
        };
        let team = caller.team;
        if asked.is_some_and(|asked| asked != team) {
            return Err(Error::NotFound("team"));
        }
        self.team = team;
        let limits = self.app.directory.limits(&self.app.db, team).await?;
        self.count(team.0, limits.requests_per_sec)?;
        Ok(caller)
    }

    /// A user in a team, theirs by default; an admin of the platform may name its own.
    fn member(&self, person: &Person, asked: Option<TeamId>) -> Result<Caller> {
        let team = asked.or(person.default_team).ok_or(Error::NoTeam)?;
        let grants = match person.role(team) {
            Some(role) => role.grants(),
            None if person.admin && team == PLATFORM_TEAM => Grants::default(),
            None => return Err(Error::NotFound("team")),
        };
        let (by, only, limits) = (self.by, Only::default(), Limits::NONE);
        let operator = person.admin;
        Ok(Caller { team, by, grants, only, operator, limits, counted_as: None })
    }

    fn note(&self, action: &'static str, what: &str, error: Option<&Error>) {
        let code = match error {
            None => "",
            Some(error) if error.is_refusal() => error.code(),
            Some(_) => return,
        };
        let (team, by, refused) = (self.team, self.by, error.is_some());
        let resource = what.chars().take(200).collect();
        self.app.notes.note(Noted { team, by, action, resource, refused, code });
    }
}

/// What a key may do: what its scopes say, and no more than who made it may now.
pub(crate) async fn key_caller(app: &App, key: &Key, by: By) -> Result<Caller> {
    let (mut grants, mut operator) = (key.grants(), key.operator);
    if let Some(creator) = key.creator() {
        let person = app.directory.person(&app.db, creator).await?;
        let person = person.ok_or(Error::Unauthenticated)?;
        let role = person.role(key.team()).ok_or(Error::Unauthenticated)?;
        grants = grants.and(role.grants());
        operator = operator && person.admin;
    }
    let by = By { actor: Actor::Key(key.id()), ..by };
    let (team, only, limits) = (key.team(), key.only(), key.limits.limits());
    Ok(Caller { team, by, grants, only, operator, limits, counted_as: Some(key.counted_as()) })
}

/// An operator in the platform's own team: its events, its channels, its log. It has no capsules.
fn of_platform(by: By) -> Caller {
    let grants = policy::scoped(["capsules:read", "team:admin"]);
    Caller { by, grants, operator: true, ..Caller::of(PLATFORM_TEAM) }
}

/// The team that a request names: in its path, or in a header.
fn asked_team(parts: &Parts) -> Result<Option<TeamId>> {
    if let Some(rest) = parts.uri.path().strip_prefix("/v1/teams/") {
        let id = rest.split('/').next().unwrap_or("");
        return id.parse().map(Some).map_err(|_| Error::NotFound("team"));
    }
    let headers: &HeaderMap = &parts.headers;
    let Some(named) = headers.get(TEAM) else { return Ok(None) };
    let id = named.to_str().ok().and_then(|id| id.parse().ok());
    id.map(Some).ok_or(Error::NotFound("team"))
}
