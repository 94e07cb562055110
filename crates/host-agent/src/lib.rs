//! The host agent: runs capsules on one machine for a control plane.
//!
//! Serves `wrenn.host.v1.Host` for their life and `/proxy/…` for what goes on inside them.
//! Machines outlive it: it finds and adopts them when it starts. It never decides who may do
//! what; that is the control plane's.

mod capsule;
mod cgroup;
mod config;
mod guest;
mod network;
mod proxy;
mod rpc;
mod snapshot;
mod storage;
mod sys;
mod vmm;

pub use config::{Config, DriverChoice};

use anyhow::Context;
use capsule::golden::Goldens;
use capsule::manager::Manager;
use cgroup::Cgroups;
use daemon::{Metrics, Tasks};
use network::Networks;
use network::plan::Plan;
use protocol::host::HostExt;
use sha2::{Digest, Sha256};
use snapshot::images::Images;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;
use vmm::Driver;
use vmm::fake::Fake;
use vmm::qemu::{Accelerator, Qemu};

/// How long a guest may take to show that KVM works, where emulation stands ready.
const PROBE: Duration = Duration::from_secs(5);
/// And where KVM was asked for, as on a slow host that is itself a guest.
const PROBE_PINNED: Duration = Duration::from_secs(60);

/// Between two applications of the host's firewall rules.
const RULES: Duration = Duration::from_secs(30);

/// What every capsule of this agent is made with.
pub(crate) struct Parts {
    pub config: Config,
    pub driver: Box<dyn Driver>,
    /// None where the driver needs none.
    pub networks: Option<Arc<Networks>>,
    pub cgroups: Option<Arc<Cgroups>>,
    pub memory_mib: u64,
    pub images: Images,
    pub goldens: Goldens,
    pub tasks: Tasks,
}

impl Parts {
    fn templates(&self) -> Vec<String> {
        if self.driver.boots_images() {
            return storage::templates(&self.config);
        }
        vec!["base".to_owned()]
    }
}

/// Serves an agent's requests.
pub struct Agent {
    manager: Manager,
    rpc: axum::Router,
    tasks: Tasks,
}

impl hop::Handler for Agent {
    async fn handle(
        self: &Arc<Self>,
        request: http::Request<hyper::body::Incoming>,
        _peer: SocketAddr,
    ) -> http::Response<hop::Body> {
        if request.uri().path().starts_with(proxy::PREFIX) {
            let request = request.map(hop::Body::from);
            return proxy::forward(&self.manager, &self.tasks, request).await;
        }
        if request.uri().path().starts_with(proxy::TCP) {
            return proxy::connect(&self.manager, &self.tasks, request.map(hop::Body::from)).await;
        }
        let Ok(answer) = self.rpc.clone().oneshot(request.map(axum::body::Body::new)).await;
        answer.map(hop::Body::boxed)
    }
}

/// Starts the agent and returns what serves its requests.
///
/// # Errors
/// What is missing on this machine, with the fix.
pub async fn start(config: Config, tasks: &Tasks) -> anyhow::Result<Agent> {
    std::fs::create_dir_all(&config.dir)
        .with_context(|| format!("making WRENN_DIR {}", config.dir.display()))?;
    let tag = tag(&config.dir);
    // One of an agent that died while it waited for it.
    vmm::kill_named(&probe_name(&tag)).await?;
    let driver = choose_driver(&config, &tag).await?;
    let (mut networks, mut cgroups) = (None, None);
    if driver.boots_images() {
        anyhow::ensure!(rustix::process::getuid().is_root(), "run the host agent as root");
        let plan = Plan::new(&tag, &config.network, &config.dns)?;
        let made = Networks::new(plan).await?;
        keep_rules(&made, tasks);
        networks = Some(made);
        cgroups = Some(Arc::new(Cgroups::new(&tag)));
    }
    let memory_mib = match config.memory_mib {
        0 => total_memory_mib() * 4 / 5,
        given => given,
    };
    tracing::info!(driver = driver.name(), accelerator = driver.accelerator(), memory_mib, "ready");
    let parts = Arc::new(Parts {
        config,
        driver,
        networks,
        cgroups,
        memory_mib,
        images: Images::default(),
        goldens: Goldens::default(),
        tasks: tasks.clone(),
    });
    let manager = Manager::new(Arc::clone(&parts)).await.context("finding earlier capsules")?;
    let service = Arc::new(rpc::Service { manager: manager.clone(), parts });
    let service = service.register(connectrpc::Router::new()).into_axum_service();
    let figures = Metrics::install();
    let rpc = axum::Router::new()
        .route("/metrics", axum::routing::get(async move || figures.render()))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .fallback_service(service);
    Ok(Agent { manager, rpc, tasks: tasks.clone() })
}

fn keep_rules(networks: &Arc<Networks>, tasks: &Tasks) {
    let networks = Arc::clone(networks);
    tasks.every(RULES, move || {
        let networks = Arc::clone(&networks);
        async move {
            if let Err(error) = networks.prepare_host().await {
                tracing::error!(%error, "the host's firewall rules could not be applied");
            }
        }
    });
}

/// Ends every capsule in the agent's folder and removes what the agent made on this machine
/// besides the folder. No agent may be running in it.
///
/// # Errors
/// What cannot be removed.
pub async fn clean(config: Config) -> anyhow::Result<()> {
    let tag = tag(&config.dir);
    vmm::kill_named(&probe_name(&tag)).await?;
    let (mut networks, mut cgroups) = (None, None);
    if config.driver.boots_images() {
        networks = Some(Networks::for_removal(Plan::new(&tag, &config.network, &config.dns)?));
        cgroups = Some(Arc::new(Cgroups::new(&tag)));
    }
    let driver = Box::new(Fake { envd: PathBuf::new() });
    let tasks = Tasks::default();
    let (images, goldens) = (Images::default(), Goldens::default());
    let parts = Parts { config, driver, networks, cgroups, memory_mib: 0, images, goldens, tasks };
    for id in capsule::boot::existing(&parts) {
        capsule::boot::unmake(&parts, id).await.with_context(|| format!("ending {id}"))?;
    }
    if let Some(networks) = &parts.networks {
        networks.remove_strangers().await.context("removing networks")?;
        networks.restore_host().context("removing the firewall's rules")?;
    }
    if let Some(cgroups) = &parts.cgroups {
        cgroups.remove_all();
    }
    Ok(())
}

/// Tells the names of one agent from another's on the same machine, by its folder.
fn tag(dir: &Path) -> String {
    let path = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    digest.iter().take(2).map(|byte| format!("{byte:02x}")).collect()
}

async fn choose_driver(config: &Config, tag: &str) -> anyhow::Result<Box<dyn Driver>> {
    let tcg = || Qemu::tcg(config.kernel(), config.initramfs(), config.dns.clone());
    let kvm = || Qemu { accelerator: Accelerator::Kvm, ..tcg() };
    Ok(match &config.driver {
        DriverChoice::Fake { envd } => Box::new(Fake { envd: envd.clone() }),
        DriverChoice::Tcg => Box::new(tcg()),
        DriverChoice::Kvm => {
            let probed = boot_probe(config, tag, &kvm(), PROBE_PINNED).await;
            probed.context("WRENN_DRIVER=kvm, but no guest boots on it")?;
            Box::new(kvm())
        }
        DriverChoice::Auto if !Path::new("/dev/kvm").exists() => Box::new(tcg()),
        DriverChoice::Auto => match probe(config, tag, &kvm()).await {
            Ok(()) => Box::new(kvm()),
            Err(error) => {
                tracing::info!(error = format!("{error:#}"), "KVM boots no guest here");
                Box::new(tcg())
            }
        },
    })
}

/// Probes KVM once per boot of this machine, and remembers.
async fn probe(config: &Config, tag: &str, driver: &Qemu) -> anyhow::Result<()> {
    let boot = sys::boot_id();
    let (kept, works) = (config.dir.join("kvm-probe"), format!("works {boot}"));
    let fails = format!("fails {boot}");
    let known = std::fs::read_to_string(&kept).unwrap_or_default();
    if known == works {
        return Ok(());
    }
    anyhow::ensure!(known != fails, "a probe guest did not get up since this machine booted");
    let probed = boot_probe(config, tag, driver, PROBE).await;
    std::fs::write(&kept, if probed.is_ok() { works } else { fails })?;
    probed
}

async fn boot_probe(
    config: &Config,
    tag: &str,
    driver: &Qemu,
    limit: Duration,
) -> anyhow::Result<()> {
    let dir = config.dir.join("probe");
    std::fs::create_dir_all(&dir)?;
    let probed = driver.probe(&probe_name(tag), &dir, limit).await;
    let _ = std::fs::remove_dir_all(&dir);
    Ok(probed?)
}

fn probe_name(tag: &str) -> String {
    format!("probe-{tag}")
}

fn total_memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    u64::from(info.mem_unit) * info.totalram / (1 << 20)
}
