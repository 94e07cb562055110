//! What envd knows of its capsule: token, defaults and environment as `/init` gave them,
//! and the processes and watchers that live in it. One value, passed explicitly.

use crate::cgroup::Cgroups;
use crate::filesystem::watch::Watchers;
use crate::http::Budget;
use crate::init::Held;
use crate::init::identity::Ids;
use crate::jobs::Jobs;
use crate::metadata::Metadata;
use crate::ports::Ports;
use crate::process::registry::Registry;
use crate::sys::spawner::Spawner;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{PoisonError, RwLock};

/// Everything that the handlers share.
pub(crate) struct Guest {
    /// Whether this is a capsule, not an ordinary machine: clock and host name may be set.
    pub in_guest: bool,
    /// The capsule's own disk, below the overlay.
    pub disk: Option<OwnedFd>,
    /// The ids of the machine and its boot.
    pub ids: Option<Ids>,
    /// The null device, held since a user may put something else in its place.
    pub null: Option<OwnedFd>,
    pub spawner: Spawner,
    pub processes: Registry,
    pub watchers: Watchers,
    pub cgroups: Cgroups,
    pub jobs: Jobs,
    pub budget: Budget,
    pub ports: Ports,
    pub metadata: Metadata,
    settings: RwLock<Settings>,
}

/// What `/init` may set.
#[derive(Clone)]
pub(crate) struct Settings {
    /// What callers must present; nobody is asked before one is set.
    pub token: Option<String>,
    pub default_user: String,
    pub default_workdir: Option<String>,
    /// Given to every process.
    pub envs: BTreeMap<String, String>,
}

impl Guest {
    /// Begins with the files of a guest, if this is one, and the port at which envd serves.
    pub(crate) fn new(held: Option<Held>, port: u16) -> Self {
        let in_guest = held.is_some();
        let (disk, ids) = held.map(|held| (held.disk, held.ids)).unzip();
        let settings = Settings {
            token: None,
            default_user: "root".to_owned(),
            default_workdir: None,
            envs: BTreeMap::new(),
        };
        Self {
            in_guest,
            disk,
            ids,
            null: std::fs::File::open("/dev/null").ok().map(OwnedFd::from),
            spawner: Spawner::new(),
            processes: Registry::default(),
            watchers: Watchers::default(),
            cgroups: Cgroups::open(in_guest),
            jobs: Jobs::default(),
            budget: Budget::default(),
            ports: Ports::new(port),
            metadata: Metadata::default(),
            settings: RwLock::new(settings),
        }
    }

    /// A copy of the settings as they are.
    pub(crate) fn settings(&self) -> Settings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the settings in one step.
    pub(crate) fn change<T>(&self, with: impl FnOnce(&mut Settings) -> T) -> T {
        with(&mut self.settings.write().unwrap_or_else(PoisonError::into_inner))
    }
}
