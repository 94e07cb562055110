//! Authentication and authorization of callers: keys, users by session or token, and hosts by their
//! own token. The gate admits or refuses every request before its handler runs. Handlers take the
//! caller that the gate found.

pub(crate) mod admission;
pub(crate) mod authorize;
pub(crate) mod directory;
pub(crate) mod keys;
pub(crate) mod locked_rights;
pub(crate) mod origin;
pub(crate) mod password;
pub(crate) mod revocations;
pub(crate) mod rule;
pub(crate) mod session;
pub(crate) mod token;

use crate::app::App;
use crate::audit::{Actor, Principal};
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use crate::hosts::Enrolled;
use crate::limits::Limits;
use crate::load::{Holder, Payer};
use crate::policy::{self, Action, Confinement, Denied, Permissions, Resource};
use axum::extract::FromRequestParts;
use http::request::Parts;
use origin::Transport;
use std::sync::Arc;
use types::{ApiKeyId, SessionId, TeamId, UserId};
use uuid::Uuid;

/// An authenticated caller, in a team.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub team: TeamId,
    pub by: Actor,
    pub permissions: Permissions,
    /// Capsule and template that the caller is confined to; neither for most callers.
    pub confinement: Confinement,
    /// Set if the caller may act on the whole platform.
    pub operator: bool,
    /// Limits of the key itself, beside its team's.
    pub limits: Limits,
    /// Key under which this key's requests and creates are counted: itself, or the limited key that
    /// it comes from.
    pub counted_as: Option<ApiKeyId>,
    /// The user who made the key.
    pub maker: Option<UserId>,
}

impl Caller {
    /// Returns the platform itself as a caller, for work on a team's behalf.
    pub(crate) fn of(team: TeamId) -> Self {
        Self {
            team,
            by: Actor::SYSTEM,
            permissions: Permissions::ALL,
            confinement: Confinement::default(),
            operator: false,
            limits: Limits::NONE,
            counted_as: None,
            maker: None,
        }
    }

    /// Returns the holder of the caller's shares.
    pub(crate) fn holder(&self) -> Holder {
        let who = self.counted_as.map_or_else(|| self.id(), |key| key.0);
        let person = self.maker.or_else(|| self.user());
        Holder { who, person: person.map_or(who, |user| user.0) }
    }

    /// Checks that the caller may do an action to a resource.
    pub(crate) fn may(&self, action: Action, resource: Resource) -> Result<()> {
        policy::decide(self.permissions, self.confinement, action, resource).map_err(|denied| {
            match denied {
                Denied::Forbidden(action) => Error::Forbidden(action.as_str()),
                Denied::Hidden => Error::NotFound(match resource {
                    Resource::Template(_) => "template",
                    Resource::Team | Resource::Capsule(..) | Resource::Capsules => "capsule",
                }),
            }
        })
    }

    /// Reports whether the caller may see a capsule of their team.
    pub(crate) fn sees(&self, capsule: &Capsule) -> bool {
        let resource = Resource::Capsule(capsule.id, capsule.template_id);
        policy::decide(Permissions::ALL, self.confinement, Action::CapsulesRead, resource).is_ok()
    }

    /// Reports whether the caller may run commands in a capsule. Its tokens allow that, so only
    /// such callers see them.
    pub(crate) fn executes(&self, capsule: &Capsule) -> bool {
        let resource = Resource::Capsule(capsule.id, capsule.template_id);
        self.may(Action::CapsulesExec, resource).is_ok()
    }

    /// Returns the id of the key or the user; nil for the platform itself.
    pub(crate) fn id(&self) -> Uuid {
        match self.by.principal {
            Principal::Key(id) => id.0,
            Principal::User(id) => id.0,
            Principal::Host(id) => id.0,
            Principal::System | Principal::Nobody => Uuid::nil(),
        }
    }

    /// Returns the caller's key, if they call with one.
    pub(crate) fn key(&self) -> Option<ApiKeyId> {
        match self.by.principal {
            Principal::Key(id) => Some(id),
            Principal::User(_) | Principal::Host(_) | Principal::System | Principal::Nobody => None,
        }
    }

    /// Returns the user, if the caller is one.
    pub(crate) fn user(&self) -> Option<UserId> {
        match self.by.principal {
            Principal::User(id) => Some(id),
            Principal::Key(_) | Principal::Host(_) | Principal::System | Principal::Nobody => None,
        }
    }
}

/// An authenticated caller who may act on the whole platform.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operator(pub Actor);

/// Session of a user who has signed in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Session {
    pub user: UserId,
    pub session: SessionId,
    pub by: Actor,
}

/// Origin of a request that needs no caller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Anonymous(pub Actor);

/// A host that has presented a valid token. Handlers check in the database that its enrolment still
/// stands.
pub(crate) struct HostCaller(pub Enrolled);

/// Returns the caller that the gate found.
fn found<T: Clone + Send + Sync + 'static>(parts: &Parts) -> Result<T> {
    let found = parts.extensions.get::<T>().cloned();
    found.ok_or_else(|| {
        Error::Internal(anyhow::anyhow!("the route's rule does not admit this kind of caller"))
    })
}

macro_rules! admitted {
    ($($who:ty),*) => {$(
        impl FromRequestParts<Arc<App>> for $who {
            type Rejection = Error;

            async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self> {
                found(parts)
            }
        }
    )*};
}
admitted!(Caller, Operator, Session, Anonymous, Transport);

impl FromRequestParts<Arc<App>> for HostCaller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self> {
        let enrolled = session::bearer(&parts.headers).and_then(|token| app.signer.check(token));
        if let (Some(_), Some(peer)) = (&enrolled, parts.extensions.get::<origin::Peer>()) {
            app.load.vouch(peer.client(&parts.headers));
        }
        if let Some(enrolled) = &enrolled {
            // The body is read next, and its memory counts against the host's own share.
            parts.extensions.insert(Payer::Host(enrolled.host.0));
        }
        enrolled.map(Self).ok_or_else(|| Error::InvalidToken("the host token"))
    }
}
