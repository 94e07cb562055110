//! The resources that all capsules of this agent share: settings, driver, networks, room.

use crate::builders::Builders;
use crate::cgroup::Cgroups;
use crate::config::Config;
use crate::images::ImageStore;
use crate::log::Logs;
use crate::network::Networks;
use crate::room::Room;
use crate::snapshot::images::Images;
use crate::standing::Standing;
use crate::storage;
use crate::vmm::Driver;
use daemon::Tasks;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use types::SnapshotId;

/// Default limit of the capsules' virtual CPUs together, for each core.
const VCPUS_PER_CORE: u64 = 64;
/// Default limit of the capsules' disks together, as a multiple of the machine's disk. Disks are
/// sparse, and most stay nearly empty.
const DISKS_PER_DISK: u64 = 8;

/// Resources that all capsules of this agent share.
pub(crate) struct AgentContext {
    pub config: Config,
    pub driver: Box<dyn Driver>,
    /// Networks of the capsules; `None` if the driver needs none.
    pub networks: Option<Arc<Networks>>,
    pub cgroups: Option<Arc<Cgroups>>,
    pub memory_mib: u64,
    pub images: Images,
    /// Container images that templates are made of.
    pub container_images: ImageStore,
    pub room: Room,
    pub logs: Logs,
    /// Bytes on disk that only this snapshot holds, for each snapshot, as of the last count.
    pub snapshot_sizes: Mutex<HashMap<SnapshotId, u64>>,
    /// Parts that builds hand to their capsules.
    pub builders: Builders,
    pub standing: Arc<Standing>,
    pub tasks: Tasks,
}

impl AgentContext {
    /// Returns the properties and limits of this machine, for the control plane.
    pub(crate) fn specs(&self) -> api::HostSpecs {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let (disk, _) = storage::capacity(&self.config.dir);
        let or = |given: u64, default: u64| if given == 0 { default } else { given };
        api::HostSpecs {
            arch: std::env::consts::ARCH.to_owned(),
            cpu_cores: u32::try_from(cores).unwrap_or(u32::MAX),
            vcpus: or(self.config.vcpus, cores * VCPUS_PER_CORE),
            memory_mib: self.memory_mib,
            disk_mib: or(self.config.disk_mib, (disk >> 20) * DISKS_PER_DISK),
            driver: self.driver.name().to_owned(),
            accelerator: self.driver.accelerator().to_owned(),
            isolation: self.driver.isolation().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            templates: self.templates_by_name(),
            store: self.config.store.is_some(),
        }
    }

    /// Lists the templates whose names a request may use.
    fn templates_by_name(&self) -> Vec<String> {
        let mut names = self.templates();
        names.retain(|name| types::names::check_name("template", name).is_ok());
        names
    }

    /// Lists the templates that are files on this host.
    pub(crate) fn templates_here(&self) -> Vec<String> {
        if self.driver.boots_images() { storage::templates(&self.config) } else { Vec::new() }
    }

    /// Returns the context of an agent without machines, in an empty folder.
    #[cfg(test)]
    pub(crate) fn for_tests(dir: &std::path::Path, driver: Box<dyn Driver>) -> Self {
        let config = Config {
            dir: dir.to_owned(),
            network: String::new(),
            ready_networks: 0,
            dns: Vec::new(),
            driver: crate::config::DriverChoice::Null { port: 1 },
            firecracker: crate::config::FirecrackerChoice::default(),
            memory_mib: 0,
            ready_memory_percent: 0,
            vcpus: 0,
            disk_mib: 0,
            store: None,
            registries: crate::images::settings::Registries::default(),
            connections: 1,
            log_limits: crate::config::LogLimits::default(),
        };
        let program = crate::images::Program::default();
        Self {
            room: Room::new(&config.dir, false),
            logs: Logs::new(config.logs(), config.log_limits),
            container_images: ImageStore::new(dir, config.registries.clone(), program),
            snapshot_sizes: Mutex::default(),
            builders: Builders::default(),
            config,
            driver,
            networks: None,
            cgroups: None,
            memory_mib: 1024,
            images: Images::default(),
            standing: Arc::default(),
            tasks: Tasks::default(),
        }
    }

    pub(crate) fn templates(&self) -> Vec<String> {
        if self.driver.boots_images() {
            return storage::templates(&self.config);
        }
        vec!["base".to_owned()]
    }
}
