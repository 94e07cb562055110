//! State that envd's handlers share: the token, defaults and environment from `/init`, and the
//! capsule's processes and watchers. It is a single value that is passed explicitly.

use crate::budget::Budget;
use crate::build::Build;
use crate::cgroup::Cgroups;
use crate::code_server::CodeServer;
use crate::filesystem::watch::Watchers;
use crate::identity::Ids;
use crate::jobs::Jobs;
use crate::lock::{read_lock, write_lock};
use crate::metadata::Metadata;
use crate::ports::Ports;
use crate::process::registry::Registry;
use crate::sys::spawner::Spawner;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, RwLock};

/// The guest's own files. They are opened before the first program runs, so that no program can put
/// something else in their places.
pub(crate) struct Held {
    /// The capsule's own disk, below the overlay.
    pub disk: OwnedFd,
    /// The ids of the machine and its boot. A builder's neutral root shows none.
    pub ids: Option<Ids>,
    /// The root of a build's step. `None` in a capsule.
    pub build: Option<Build>,
}

/// State that all handlers share.
pub(crate) struct Guest {
    /// Set in a capsule, and not on an ordinary machine. Clock and host name may be set only there.
    pub in_guest: bool,
    /// The capsule's own disk, below the overlay.
    pub disk: Option<OwnedFd>,
    /// The ids of the machine and its boot.
    pub ids: Option<Ids>,
    /// The null device. It is held open, since a user may put something else in its place.
    pub null: Option<OwnedFd>,
    pub spawner: Spawner,
    pub processes: Registry,
    pub watchers: Watchers,
    pub cgroups: Cgroups,
    pub jobs: Jobs,
    pub budget: Budget,
    pub ports: Ports,
    pub metadata: Arc<Metadata>,
    /// The way to the code interpreter.
    pub code: CodeServer,
    /// The root of a build's step. `None` in a capsule and on an ordinary machine.
    pub build: Option<Arc<Build>>,
    /// Folder with the helpers for start and ready commands, once it is made.
    pub helpers: tokio::sync::Mutex<Option<String>>,
    settings: RwLock<Settings>,
}

/// Settings that `/init` may change.
#[derive(Clone)]
pub(crate) struct Settings {
    /// Token that callers must present. Before it is set, callers need none.
    pub token: Option<String>,
    pub default_user: String,
    pub default_workdir: Option<String>,
    /// Search path of programs in the template, if the template sets one.
    pub template_path: Option<String>,
    /// Environment of every process.
    pub envs: BTreeMap<String, String>,
}

impl Guest {
    /// Makes the state from the guest's own files, which an ordinary machine lacks, and envd's
    /// port.
    pub(crate) fn new(held: Option<Held>, port: u16) -> Self {
        let in_guest = held.is_some();
        let (disk, ids, build) = match held {
            Some(Held { disk, ids, build }) => (Some(disk), ids, build.map(Arc::new)),
            None => (None, None, None),
        };
        let settings = Settings {
            token: None,
            default_user: "root".to_owned(),
            default_workdir: None,
            template_path: None,
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
            metadata: Arc::default(),
            code: CodeServer::default(),
            build,
            helpers: tokio::sync::Mutex::default(),
            settings: RwLock::new(settings),
        }
    }

    /// Returns a copy of the current settings.
    pub(crate) fn settings(&self) -> Settings {
        read_lock(&self.settings).clone()
    }

    /// Changes the settings in one step.
    pub(crate) fn change<T>(&self, with: impl FnOnce(&mut Settings) -> T) -> T {
        with(&mut write_lock(&self.settings))
    }
}
