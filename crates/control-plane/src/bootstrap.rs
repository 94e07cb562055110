//! First steps of a platform: the operator's first key, and the host on the platform's own machine.

use crate::app::App;
use crate::audit::{Actor, Entry};
use crate::error::Error;
use crate::hosts::enrol::{invite, invite_again};
use crate::secret::{hash, new_api_key};
use crate::{db, keys};
use sqlx::PgConnection;
use std::time::Duration;
use types::{HostId, PLATFORM_TEAM, TeamId};

/// Name of the host that `wrenn up` runs beside its control plane.
const LOCAL: &str = "local";
/// Time between two checks for an online host, and the number of checks: at least 30 s in all.
const ONLINE: Duration = Duration::from_millis(50);
const ONLINE_TRIES: u32 = 600;

impl App {
    /// Waits until a host can take capsules.
    ///
    /// # Errors
    /// When no host comes online in time, or the database cannot be used.
    pub async fn wait_online(&self) -> anyhow::Result<()> {
        for _ in 0..ONLINE_TRIES {
            if self.fleet.all().iter().any(|host| host.online) {
                return Ok(());
            }
            tokio::time::sleep(ONLINE).await;
            self.fleet.read().await?;
        }
        anyhow::bail!("the host agent did not join the platform; see the log")
    }

    /// Returns a registration token for the host on the platform's own machine. A host that was
    /// registered before, with the id `before`, registers again under that id.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn invite_local(&self, before: Option<&str>) -> anyhow::Result<String> {
        let before = match before.and_then(|id| id.parse::<HostId>().ok()) {
            Some(id) => db::hosts::find(&self.db, id).await?.map(|host| host.id),
            None => db::hosts::not_enrolled(&self.db, LOCAL).await?,
        };
        if let Some(id) = before {
            return Ok(invite_again(self, id, Actor::SYSTEM).await?.registration_token);
        }
        let named = api::NewHost { name: Some(LOCAL.to_owned()), ..Default::default() };
        let invited = match invite(self, named, Actor::SYSTEM).await {
            // Another machine that shares the database has this name.
            Err(Error::Conflict(_)) => invite(self, api::NewHost::default(), Actor::SYSTEM).await?,
            invited => invited?,
        };
        Ok(invited.registration_token)
    }

    /// Reports whether the database has a host with this certificate, named by its fingerprint, at
    /// this address.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn has_enrolled(
        &self,
        host: &str,
        cert: &str,
        address: &str,
    ) -> anyhow::Result<bool> {
        let Ok(id) = host.parse::<HostId>() else { return Ok(false) };
        let found = db::hosts::find(&self.db, id).await?;
        Ok(found.is_some_and(|host| {
            let certs = [&host.cert_fingerprint, &host.cert_previous];
            host.address == address && certs.iter().any(|known| known.as_deref() == Some(cert))
        }))
    }

    /// Makes the first team and its operator's key. Returns the key, or `None` if the database
    /// already has one.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn bootstrap(&self) -> anyhow::Result<Option<String>> {
        let mut tx = self.db.begin().await?;
        // The lock lets only one of several starting replicas make the platform's first key.
        db::users::lock_admins(&mut tx).await?;
        if db::keys::any(&mut *tx).await? {
            return Ok(None);
        }
        let team = TeamId::new();
        db::teams::insert(&mut *tx, team, "Default").await?;
        let key = operators_key(&mut tx, team, "first").await?;
        tx.commit().await?;
        Ok(Some(key))
    }

    /// Reports whether a key is valid.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn accepts(&self, key: &str) -> anyhow::Result<bool> {
        Ok(self.key_cache.find(&hash(key), None).await?.is_some())
    }

    /// Makes an operator's key for the first team that is not the platform's.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn add_key(&self, name: &str) -> anyhow::Result<String> {
        let team = db::teams::first(&self.db).await?.unwrap_or(PLATFORM_TEAM);
        let mut tx = self.db.begin().await?;
        let key = operators_key(&mut tx, team, name).await?;
        tx.commit().await?;
        Ok(key)
    }
}

/// Makes an operator's key that has no maker, neither a user nor another key.
async fn operators_key(tx: &mut PgConnection, team: TeamId, name: &str) -> sqlx::Result<String> {
    let key = new_api_key();
    let row = db::keys::Row { operator: true, ..keys::row(team, name, &key) };
    db::keys::insert(&mut *tx, &row, &key, &db::limits::Row::default()).await?;
    let id = row.id;
    let entry = Entry::new(team, Actor::SYSTEM, "api_key.create", id);
    let what = serde_json::json!({ "name": name, "operator": true });
    db::audit::write(&mut *tx, &entry.with(what)).await?;
    Ok(key)
}
