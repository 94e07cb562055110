//! What a request to a capsule's port was admitted by, kept while anything of it is under way: its
//! body, its answer, its tunnel. All of it ends when the admission does.

use super::access::{Admitted, Way};
use super::links;
use super::routes::Route;
use super::target::Target;
use crate::app::App;
use crate::audit::By;
use crate::auth::admit::key_caller;
use crate::auth::policy::{Action, Resource};
use crate::auth::revocations::{Basis, Recheck, Subject, broken_off};
use crate::db::keys::Key;
use crate::error::{Error, Result};
use std::sync::Arc;
use time::OffsetDateTime;

/// An admission to a port.
#[derive(Clone)]
pub(super) struct Standing {
    pub app: Arc<App>,
    pub target: Target,
    /// The capsule as it was then.
    pub route: Arc<Route>,
    pub admitted: Admitted,
    /// The owner's key, by its hash, when it was admitted by that.
    pub key: Option<[u8; 32]>,
    pub basis: Basis,
    /// The count of changes from before.
    pub seen: u64,
}

/// What an admission by a key rests on; by something of the capsule's, when there is none.
pub(super) fn basis(target: Target, key: Option<(&Key, [u8; 32])>) -> Basis {
    let this = Some(Subject::Capsule(target.capsule));
    match key {
        Some((key, hash)) => key.basis(hash, this),
        None => Basis { subjects: [this, None, None], until: None },
    }
}

impl Standing {
    /// Ends an exchange when the admission holds no more.
    pub(super) fn until(&self) -> hop::Until {
        let this = self.clone();
        Box::pin(async move {
            let app = Arc::clone(&this.app);
            broken_off(app.revocations.revoked(&this, this.basis, this.seen).await)
        })
    }
}

impl Recheck for Standing {
    async fn check(&self) -> Result<Basis> {
        let Self { app, target, route: before, .. } = self;
        let (route, key) = app.routes.find(&app.db, target.capsule, self.key.as_ref()).await?;
        // Of one that is gone the host ends whatever is open.
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
                let caller = key_caller(app, &key, By::SYSTEM).await?;
                let resource = Resource::Capsule(target.capsule, route.template);
                caller.may(Action::CapsulesExec, resource)?;
                Ok(basis(*target, Some((&key, hash))))
            }
            Admitted::Guest(Way::Public) => same(route.is_public(target.port)),
            Admitted::Guest(Way::TrafficToken) => same(route.traffic_token == before.traffic_token),
            // That a signed link has expired ends no transfer that had begun.
            Admitted::Guest(Way::EnvdToken | Way::Signed) => {
                same(route.envd_token == before.envd_token)
            }
            Admitted::Guest(Way::Cookie(link)) => {
                let now = OffsetDateTime::now_utc().unix_timestamp();
                links::stands(app, *target, &route, &link, now).await
            }
            // It was answered by the platform.
            Admitted::Link(_) => Ok(capsule()),
        }
    }
}
