//! The grounds on which a request to a capsule's port was admitted. They are kept while its body,
//! answer or tunnel is under way. All of these end when the admission does.

use super::access::{Admitted, GuestAccess};
use super::links;
use super::routes::Route;
use super::target::Target;
use crate::app::App;
use crate::audit::Actor;
use crate::auth::authorize::key_caller;
use crate::auth::revocations::{Basis, Recheck, Subject, broken_off};
use crate::db::keys::Key;
use crate::error::{Error, Result};
use crate::policy::{Action, Resource};
use std::sync::Arc;
use time::OffsetDateTime;

/// An admission to a port.
#[derive(Clone)]
pub(super) struct PortAdmission {
    pub app: Arc<App>,
    pub target: Target,
    /// The capsule at the time of admission.
    pub route: Arc<Route>,
    pub admitted: Admitted,
    /// Hash of the owner's key, when that admitted the request.
    pub key: Option<[u8; 32]>,
    pub basis: Basis,
    /// Count of changes from before the first look-up.
    pub seen: u64,
}

/// Returns the basis of an admission by a key or, without one, by something of the capsule's.
pub(super) fn basis(target: Target, key: Option<(&Key, [u8; 32])>) -> Basis {
    let this = Some(Subject::Capsule(target.capsule));
    match key {
        Some((key, hash)) => key.basis(hash, this),
        None => Basis { subjects: [this, None, None], until: None },
    }
}

impl PortAdmission {
    /// Ends an exchange when the admission no longer holds.
    pub(super) fn until(&self) -> hop::Until {
        let this = self.clone();
        Box::pin(async move {
            let app = Arc::clone(&this.app);
            broken_off(app.revocations.revoked(&this, this.basis, this.seen).await)
        })
    }
}

impl Recheck for PortAdmission {
    async fn check(&self) -> Result<Basis> {
        let Self { app, target, route: before, .. } = self;
        let (route, key) = app.routes.find(target.capsule, self.key.as_ref(), None).await?;
        // When a capsule is gone, its host ends every open exchange.
        let Some(route) = route else { return Ok(self.basis) };
        if route.team != before.team {
            return Err(Error::NotFound("capsule"));
        }
        let capsule = || basis(*target, None);
        let same = |stands: bool| stands.then(capsule).ok_or(Error::PrivatePort);
        match self.admitted {
            Admitted::Owner => {
                let (Some(key), Some(hash)) = (key, self.key) else {
                    return Err(Error::Unauthenticated);
                };
                let caller = key_caller(app, &key, Actor::SYSTEM).await?;
                let resource = Resource::Capsule(target.capsule, route.template);
                caller.may(Action::CapsulesExec, resource)?;
                Ok(basis(*target, Some((&key, hash))))
            }
            Admitted::Guest(GuestAccess::Public) => same(route.is_public(target.port)),
            Admitted::Guest(GuestAccess::TrafficToken) => {
                same(route.traffic_token == before.traffic_token)
            }
            // An expired signed link ends no transfer that had begun.
            Admitted::Guest(GuestAccess::EnvdToken | GuestAccess::Signed) => {
                same(route.envd_token == before.envd_token)
            }
            Admitted::Guest(GuestAccess::Cookie(link)) => {
                let now = OffsetDateTime::now_utc().unix_timestamp();
                links::stands(app, *target, &route, &link, now).await
            }
            // The platform itself answered this request, so nothing is open.
            Admitted::Link(_) => Ok(capsule()),
        }
    }
}
