//! The gate before every route. It finds the caller, applies the route's rule, counts the request
//! and gives the handler the caller. A route without a rule serves nobody.

use super::admission::{Admission, Credential, Identity};
use super::origin::{Peer, Transport};
use super::revocations::Basis;
use super::rule::{Rule, Rules};
use super::{Anonymous, Caller, Operator, Session, session};
use crate::app::App;
use crate::audit::{Actor, AuditEvent, Principal};
use crate::db::keys::Key;
use crate::error::{Error, Failure, Result};
use crate::limits::{Per, STRANGERS_PER_SEC, TOKEN_MAX};
use crate::load::{Holder, Payer, UnderWay};
use crate::policy::Permissions;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hop::Standing;
use http::request::Parts;
use http::{HeaderMap, header};
use std::num::NonZeroU32;
use std::sync::Arc;
use types::{ClientNetwork, PLATFORM_TEAM, TeamId};
use uuid::Uuid;

/// Header by which a user chooses one of their teams.
pub(crate) const TEAM: &str = "x-wrenn-team";

/// Passes a request to its handler, or answers with the reason of a refusal.
pub(crate) async fn authorize(
    State((app, rules)): State<(Arc<App>, Arc<Rules>)>,
    request: Request,
    next: Next,
) -> Response {
    let Some(pattern) = request.extensions().get::<MatchedPath>().cloned() else {
        return next.run(request).await;
    };
    let (mut parts, body) = request.into_parts();
    let Some(rule) = rules.of(&parts.method, pattern.as_str()) else {
        return Error::MethodNotAllowed.into_response();
    };
    let peer = parts.extensions.get::<Peer>().copied();
    let from = peer.map(|peer| peer.client(&parts.headers));
    let by_tls = peer.is_some_and(|peer| peer.came_by_tls(&parts.headers, &parts.extensions));
    let transport = Transport::of(&app.public, by_tls);
    parts.extensions.insert(transport);
    let mut gate = Gate {
        app: &app,
        by: Actor { principal: Principal::Nobody, from, reason: None },
        team: PLATFORM_TEAM,
        transport,
        verified: None,
        payer: Payer::Network(
            from.map(Into::into),
            from.map_or(Standing::Stranger, |from| app.load.standing(from)),
        ),
        under_way: UnderWay::default(),
        counts: true,
    };
    // The count is taken before the first look-up, so that no change in between is missed.
    let seen = app.revocations.count();
    match gate.authorize(rule, &mut parts).await {
        Ok(()) => {
            let under_way = gate.under_way.clone();
            parts.extensions.insert(gate.payer);
            parts.extensions.insert(under_way.clone());
            if app.audit_access && rule.executes() {
                gate.note("capsule.access", parts.uri.path(), None);
            }
            let admission = gate.verified.map(|(credential, basis)| {
                let team = matches!(rule, Rule::Team(..) | Rule::Poll(..)).then_some(gate.team);
                Admission { app: Arc::clone(&app), credential, rule, team, basis, seen }
            });
            let mut answer = match admission {
                None => next.run(Request::from_parts(parts, body)).await,
                Some(admission) => {
                    parts.extensions.insert(admission.clone());
                    admission.watch(next.run(Request::from_parts(parts, body))).await
                }
            };
            // The code that sends the answer takes the shares out and holds them until its end.
            answer.extensions_mut().insert(under_way);
            // Only the handler knows some refusals. A failed sign-in is noted by its own handler.
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

/// Facts about a caller, as far as the gate has found them.
struct Gate<'a> {
    app: &'a App,
    by: Actor,
    team: TeamId,
    transport: Transport,
    /// Credential that was shown, once it is known to be good.
    verified: Option<(Credential, Basis)>,
    /// Holder of the share that the request's body is taken from.
    payer: Payer,
    /// Shares that the request holds until its answer has ended.
    under_way: UnderWay,
    /// False if the request does not count against the limits per second.
    counts: bool,
}

impl Gate<'_> {
    async fn authorize(&mut self, rule: Rule, parts: &mut Parts) -> Result<()> {
        match rule {
            Rule::Open => {
                if parts.uri.path().starts_with("/v1/auth/") {
                    self.count(self.network(), STRANGERS_PER_SEC)?;
                    // A page of another site must not sign its visitors in to an account of its
                    // choice.
                    let by_page = parts.headers.contains_key(header::ORIGIN);
                    if by_page && !parts.method.is_safe() && !session::same_origin(parts) {
                        return Err(Error::NotOurPage);
                    }
                }
                parts.extensions.insert(Anonymous(self.by));
            }
            // The handler's `HostCaller` checks the host's token.
            Rule::Host => {}
            Rule::User => {
                let Identity::User { user, session, .. } = self.identify(parts).await? else {
                    return Err(Error::UserOnly);
                };
                parts.extensions.insert(Session { user, session, by: self.by });
            }
            Rule::Platform => {
                let identity = self.identify(parts).await?;
                if !identity.operates(self.app, self.by).await? {
                    return Err(Error::Forbidden("platform"));
                }
                parts.extensions.insert(Operator(self.by));
            }
            Rule::Anyone => {
                let caller = match self.in_team(parts).await {
                    // A user may be in no team, and must be able to see that.
                    Err(Error::NoTeam) => {
                        let permissions = Permissions::default();
                        let operator = self.operates().await?;
                        Caller { by: self.by, permissions, operator, ..Caller::of(PLATFORM_TEAM) }
                    }
                    found => found?,
                };
                parts.extensions.insert(caller);
            }
            Rule::Team(action, resource) | Rule::Poll(action, resource) => {
                self.counts = !matches!(rule, Rule::Poll(..));
                let caller = self.in_team(parts).await?;
                caller.may(action, resource)?;
                parts.extensions.insert(caller);
            }
        }
        Ok(())
    }

    /// Finds the caller by the first credential in the order of key, bearer token and cookie.
    /// Counts the request, and takes its share.
    async fn identify(&mut self, parts: &Parts) -> Result<Identity> {
        let headers = &parts.headers;
        // Prometheus sends its credential as a bearer token alone.
        let by_bearer =
            || session::bearer(headers).filter(|word| crate::secret::is_api_key(word.as_bytes()));
        let key = headers.get("x-api-key").map(|key| key.to_str().unwrap_or_default());
        let identity = if let Some(key) = key.or_else(by_bearer) {
            let key = Some(key).filter(|key| !key.is_empty() && key.len() <= TOKEN_MAX);
            let key = key.ok_or(Error::Unauthenticated)?;
            self.find(Credential::Key(crate::secret::hash(key))).await?
        } else {
            self.user(parts).await?
        };
        let (principal, holder, rate) = match &identity {
            Identity::Key(key) => {
                self.team = key.team_id;
                let (who, rate) = (key.counted_as().0, key.limits.limits().requests_per_sec);
                let person = key.created_by.map_or(who, |user| user.0);
                (Principal::Key(key.id), Holder { who, person }, rate)
            }
            // The default limits apply to a user, in whatever team they act.
            Identity::User { user, .. } => {
                let limits = self.app.directory.limits(PLATFORM_TEAM).await?;
                let holder = Holder { who: user.0, person: user.0 };
                (Principal::User(*user), holder, limits.requests_per_sec)
            }
        };
        self.by.principal = principal;
        self.payer = Payer::Caller(holder);
        if let Some(address) = self.by.from {
            self.app.load.vouch(address);
        }
        self.count(holder.who, rate)?;
        self.under_way.hold(self.app.load.caller(holder)?);
        Ok(identity)
    }

    /// Reports whether the caller who was found may act on the whole platform.
    async fn operates(&self) -> Result<bool> {
        let Some((credential, _)) = self.verified else { return Ok(false) };
        Identity::find(self.app, credential, self.by).await?.operates(self.app, self.by).await
    }

    /// Counts a request against a rate.
    fn count(&self, who: Uuid, rate: Option<NonZeroU32>) -> Result<()> {
        let rate = rate.filter(|_| self.counts);
        let passed = self.app.limiter.pass(who, Per::Request, rate);
        passed.map_err(|wait| Error::TooManyRequests("requests", wait))
    }

    /// Returns the id under which a stranger's requests are counted.
    fn network(&self) -> Uuid {
        let network = self.by.from.map(|ip| ClientNetwork::from(ip).to_string());
        let hash = crate::secret::hash(&network.unwrap_or_default());
        Uuid::from_slice(&hash[..16]).unwrap_or_default()
    }

    /// Finds the key or the user that a credential belongs to.
    async fn find(&mut self, credential: Credential) -> Result<Identity> {
        let identity = Identity::find(self.app, credential, self.by).await?;
        self.verified = Some((credential, identity.basis(credential)));
        Ok(identity)
    }

    async fn user(&mut self, parts: &Parts) -> Result<Identity> {
        let headers = &parts.headers;
        let bearer = session::bearer(headers).filter(|token| token.len() <= TOKEN_MAX);
        let (hash, cookie) = match (bearer, session::from_cookie(headers, self.transport)) {
            (Some(token), _) if token.starts_with(session::PREFIX) => {
                (crate::secret::hash(token), None)
            }
            (Some(word), _) => {
                let hash = self.app.user_signer.check(word);
                (hash.ok_or(Error::Unauthenticated)?, None)
            }
            (None, Some(token)) => (crate::secret::hash(token), Some(token)),
            (None, None) => return Err(Error::Unauthenticated),
        };
        let identity = self.find(Credential::Session(hash)).await?;
        // A browser sends a cookie with requests that other sites cause, too.
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
        Ok(identity)
    }

    /// Finds the caller in the request's team, which they must belong to. Counts the request for
    /// the team, too.
    async fn in_team(&mut self, parts: &Parts) -> Result<Caller> {
        let identity = self.identify(parts).await?;
        let caller = identity.caller(self.app, asked_team(parts)?, self.by).await?;
        let team = caller.team;
        self.team = team;
        let limits = self.app.directory.limits(team).await?;
        self.count(team.0, limits.requests_per_sec)?;
        self.under_way.hold(self.app.load.team(team)?);
        Ok(caller)
    }

    fn note(&self, action: &'static str, what: &str, error: Option<&Error>) {
        let code = match error {
            None => "",
            Some(error) if error.is_refusal() => error.code(),
            Some(_) => return,
        };
        let (team, by, refused) = (self.team, self.by, error.is_some());
        let resource = what.chars().take(200).collect();
        self.app.audit_buffer.note(AuditEvent { team, by, action, resource, refused, code });
    }
}

/// Returns a key as a caller. The key may do only actions that its scopes and its maker's current
/// role both allow.
pub(crate) async fn key_caller(app: &App, key: &Key, by: Actor) -> Result<Caller> {
    let (mut permissions, mut operator) = (key.permissions(), key.operator);
    if let Some(creator) = key.created_by {
        let person = app.directory.person(creator).await?;
        let person = person.ok_or(Error::Unauthenticated)?;
        let role = person.role(key.team_id).ok_or(Error::Unauthenticated)?;
        permissions = permissions.and(role.permissions());
        operator = operator && person.admin;
    }
    let by = Actor { principal: Principal::Key(key.id), ..by };
    let (team, confinement, limits) = (key.team_id, key.confinement(), key.limits.limits());
    let (counted_as, maker) = (Some(key.counted_as()), key.created_by);
    Ok(Caller { team, by, permissions, confinement, operator, limits, counted_as, maker })
}

/// Returns the team that a request names, in its path or in a header.
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
