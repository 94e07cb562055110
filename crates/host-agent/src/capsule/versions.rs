//! Versions of templates on this host and in the store: copies for other hosts, and removal. The
//! build engine makes versions, and the sweep of uploads sends them.

use super::host::Host;
use super::store::{Stored, failure, link_aside, template_path};
use super::{Error, io_error, template_snapshot};
use crate::version::{self, Version};
use daemon::blocking;
use std::collections::HashSet;
use std::fs;
use std::sync::Arc;
use types::BuildId;

/// Lists the versions of this host that the store is not known to have. A version whose build is not
/// forgotten yet may still fail, so it waits.
pub(super) fn unsent(host: &Host, stored: &Stored) -> Vec<BuildId> {
    let config = &host.context.config;
    let is_building = |id: &BuildId| config.builds().join(id.to_string()).exists();
    let mut all = version::existing(config);
    all.retain(|id| !stored.versions().contains(id) && !is_building(id));
    all
}

/// Sends a version to its owner's part of the store. A version that is there is success.
pub(super) async fn send(host: &Host, stored: &Stored, id: BuildId) -> Result<(), Error> {
    let config = &host.context.config;
    // A removal may have come first.
    let Ok(found) = Version::find(config, id) else { return Ok(()) };
    let path = template_path(&id.to_string());
    if !stored.store.has(&found.team, &path).await.map_err(failure)? {
        let (from, aside) = (version::folder(config, id), stored.dir.join(format!("sent-{id}")));
        let to = aside.clone();
        let set_aside = blocking(move || link_aside(&from, &to)).await;
        set_aside.map_err(io_error("cannot set a version aside for its upload"))?;
        let sent = stored.put(&found.team, &path, &aside).await;
        let _ = fs::remove_dir_all(&aside);
        sent.map_err(failure)?;
        tracing::info!(%id, "uploaded a version to the store");
    }
    if version::folder(config, id).exists() {
        stored.versions().insert(id);
        host.changes.note();
        return Ok(());
    }
    // The version was removed while it was sent.
    stored.store.remove(&found.team, &path).await.map_err(failure)
}

/// Lists the versions of this host that the store has too.
pub(super) fn stored(host: &Host) -> HashSet<BuildId> {
    host.stored.as_ref().map(|stored| stored.versions().clone()).unwrap_or_default()
}

/// Removes a version from this host, and from its owner's part of the store. Capsules and snapshots
/// of the version go on, since they have links to its files. An unknown version is success.
pub(super) async fn remove(host: &Host, team: &str, id: BuildId) -> Result<(), Error> {
    let context = Arc::clone(&host.context);
    let removed = blocking(move || {
        version::remove(&context.config, id)?;
        template_snapshot::forget(&context, id);
        Ok(())
    });
    removed.await.map_err(io_error("cannot remove the version"))?;
    let Some(stored) = &host.stored else { return Ok(()) };
    stored.versions().remove(&id);
    stored.store.remove(team, &template_path(&id.to_string())).await.map_err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capsule::create::VersionRef;
    use crate::capsule::fetch;
    use crate::context::AgentContext;
    use crate::vmm::null::NullDriver;
    use std::path::Path;

    fn host(dir: &Path, store: &Path) -> Host {
        let context = AgentContext::for_tests(dir, Box::new(NullDriver { port: 1 }));
        let opened = store::Store::open(store.to_str().unwrap(), None, std::iter::empty()).unwrap();
        let stored = Stored::new(opened, dir.join("sending")).unwrap();
        Host::new(Arc::new(context), Some(Arc::new(stored)))
    }

    #[tokio::test]
    async fn version_reaches_another_host_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two, kept] = ["one", "two", "store"].map(|name| dir.path().join(name));
        for folder in [&one, &two, &kept] {
            fs::create_dir_all(folder).unwrap();
        }
        let (one, two) = (host(&one, &kept), host(&two, &kept));
        if one.context.room.claim(1).is_err() {
            return;
        }
        let id = BuildId::new();
        let at = version::folder(&one.context.config, id);
        fs::create_dir_all(&at).unwrap();
        let example = version::example(id);
        fs::write(at.join("rootfs.erofs"), "image").unwrap();
        fs::write(version::layer(&at, 1), "layer").unwrap();
        fs::write(at.join(version::FILE), serde_json::to_vec(&example).unwrap()).unwrap();
        let stored_one = one.stored.clone().unwrap();
        let build = one.context.config.builds().join(id.to_string());
        fs::create_dir_all(&build).unwrap();
        assert_eq!(unsent(&one, &stored_one), Vec::new(), "its build may still fail");
        fs::remove_dir(&build).unwrap();
        assert_eq!(unsent(&one, &stored_one), [id]);
        for _ in 0..2 {
            send(&one, &stored_one, id).await.unwrap();
        }
        assert_eq!((unsent(&one, &stored_one), stored(&one)), (Vec::new(), HashSet::from([id])));
        let wanted = |team: &str| VersionRef { id, team: team.to_owned() };
        let missing = fetch::version(&two, &wanted("others")).await;
        assert!(matches!(missing, Err(Error::NoTemplate(_))), "{missing:?}");
        fetch::version(&two, &wanted("owners")).await.unwrap();
        let config = &two.context.config;
        assert_eq!(Version::find(config, id).unwrap(), example);
        let layer = version::layer(&version::folder(config, id), 1);
        assert_eq!(fs::read(layer).unwrap(), b"layer");
        assert_eq!(version::existing(config), [id]);
        for _ in 0..2 {
            remove(&two, "owners", id).await.unwrap();
        }
        assert_eq!(version::existing(config), Vec::new());
        let gone = fetch::version(&two, &wanted("owners")).await;
        assert!(matches!(gone, Err(Error::NoTemplate(_))), "{gone:?}");
    }
}
