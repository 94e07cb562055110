//! The host agent: runs capsules on one machine for a control plane.
//!
//! The agent serves `wrenn.host.v1.Host` for the life of capsules, and `/proxy/…` for requests to
//! their guests. Machines outlive the agent, which finds and adopts them when it starts. The
//! control plane alone decides on permissions.

mod build;
mod builders;
mod capsule;
mod cgroup;
mod config;
mod context;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod guest;
pub mod images;
mod log;
pub mod membership;
mod network;
mod placeholder;
mod proxy;
mod room;
mod rpc;
mod snapshot;
mod standing;
mod stats;
mod storage;
mod sys;
mod version;
mod vmm;

pub use config::{Config, DriverChoice, FirecrackerChoice, LogLimits, StoreConfig};
pub use images::settings::Registries;
pub use room::{is_full, make_room};
pub use vmm::choose::Examined;

use anyhow::Context;
use builders::Builders;
use capsule::manager::Manager;
use capsule::store::Stored;
use cgroup::Cgroups;
use context::AgentContext;
use daemon::trace::{TRACEPARENT, Trace, TraceParent};
use daemon::{Metrics, Tasks};
use images::{ImageStore, Program};
use log::Logs;
use membership::About;
use network::Networks;
use network::plan::Plan;
use protocol::host::HostExt;
use room::Room;
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};
use snapshot::images::Images;
use stats::Stats;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use store::Store;
use tower::ServiceExt;
use types::hex;
use vmm::choose::{self, choose};

/// Path prefix of the platform's calls.
const RPC: &str = "/wrenn.host.v1.Host/";
/// Period at which container images that nobody uses are removed.
const UNUSED: Duration = Duration::from_secs(3600);
/// Period at which the host's firewall rules are applied again.
const RULES: Duration = Duration::from_secs(30);

/// Server of an agent's requests.
pub struct Agent {
    manager: Manager,
    rpc: axum::Router,
    context: Arc<AgentContext>,
    tasks: Tasks,
    _lock: File,
}

impl Agent {
    /// Returns the source of this host's reports to the platform.
    #[must_use]
    pub fn about(&self) -> About {
        About(Arc::clone(&self.context))
    }
}

impl About {
    /// Reports to the platform about this machine. Returns true if the platform took the report.
    pub async fn is_member(&self) -> bool {
        self.0.standing.confirm().await
    }

    pub(crate) fn specs(&self) -> api::HostSpecs {
        self.0.specs()
    }

    pub(crate) fn load(&self) -> api::HostLoad {
        let info = rustix::system::sysinfo();
        let (_, free) = storage::capacity(&self.0.config.dir);
        // The kernel counts load in 65536ths.
        let load = info.loads[0] * 100 / 65536;
        api::HostLoad {
            cpu_load_percent: u32::try_from(load).unwrap_or(u32::MAX),
            free_memory_mib: sys::available_memory_mib(),
            free_disk_mib: free >> 20,
        }
    }
}

impl hop::Handler for Agent {
    async fn handle(
        self: &Arc<Self>,
        request: http::Request<hop::Body>,
        _peer: SocketAddr,
    ) -> http::Response<hop::Body> {
        match trace_of(&request) {
            None => self.answer(request).await,
            Some(trace) => Box::pin(trace.scope(self.answer(request))).await,
        }
    }
}

impl Agent {
    async fn answer(&self, request: http::Request<hop::Body>) -> http::Response<hop::Body> {
        if request.uri().path().starts_with(proxy::PREFIX) {
            return proxy::forward(&self.manager, &self.tasks, request).await;
        }
        if request.uri().path().starts_with(proxy::TCP) {
            return proxy::connect(&self.manager, &self.tasks, request).await;
        }
        let Ok(answer) = self.rpc.clone().oneshot(request.map(axum::body::Body::new)).await;
        answer.map(hop::Body::boxed)
    }
}

/// Returns the trace of a request that belongs to one. The span has the name of the call.
fn trace_of(request: &http::Request<hop::Body>) -> Option<Trace> {
    let given = request.headers().get(TRACEPARENT)?.to_str().ok()?;
    let given = TraceParent::parse(given)?;
    let path = request.uri().path();
    let name = match path.strip_prefix(RPC) {
        Some(call) => call,
        None if path.starts_with(proxy::PREFIX) => "proxy",
        None => "request",
    };
    Some(Trace::begin(name, Some(given)))
}

/// Starts the agent and returns the server of its requests.
///
/// # Errors
/// Fails with the thing that is missing on this machine, and the fix.
pub async fn start(config: Config, tasks: &Tasks) -> anyhow::Result<Agent> {
    std::fs::create_dir_all(&config.dir)
        .with_context(|| format!("cannot create WRENN_DIR {}", config.dir.display()))?;
    let lock = lock(&config.dir).await?;
    let tag = tag(&config.dir);
    // Removes the probe machine of an agent that died during its probe.
    let probe = config.dir.join("probe");
    vmm::kill_named(&choose::name(&tag), &probe, &probe).await?;
    let driver = choose(&config, &tag, tasks).await?;
    let (mut networks, mut cgroups) = (None, None);
    if driver.boots_images() {
        anyhow::ensure!(rustix::process::getuid().is_root(), "run the host agent as root");
        let plan = Plan::new(&tag, &config.network, &config.dns)?;
        let made = Networks::new(plan, config.ready_networks).await?;
        spawn_rule_refresh(&made, tasks);
        networks = Some(made);
        cgroups = Some(Arc::new(Cgroups::new(&tag)));
    }
    let mut registries = config.registries.clone();
    if driver.accelerator() == "tcg" {
        registries.emulated();
    }
    let container_images = ImageStore::new(&config.dir, registries, Program::default());
    container_images.open()?;
    spawn_image_removal(&container_images, tasks);
    let memory_mib = match config.memory_mib {
        0 => total_memory_mib() * 4 / 5,
        given => given,
    };
    tracing::info!(driver = driver.name(), accelerator = driver.accelerator(), memory_mib, "ready");
    let memory = driver.maps_paths().then(|| config.memory());
    let stored = open_store(&config).await?;
    let context = Arc::new(AgentContext {
        driver,
        networks,
        cgroups,
        memory_mib,
        images: Images::new(memory).context("cannot create the folder of memory images")?,
        container_images,
        room: Room::new(&config.dir, config.driver.boots_images()),
        logs: Logs::new(config.logs(), config.log_limits),
        snapshot_sizes: Mutex::default(),
        builders: Builders::default(),
        standing: Arc::default(),
        config,
        tasks: tasks.clone(),
    });
    // The recorder comes first, since gauges that are set earlier would be lost.
    let figures = Metrics::install();
    let manager = Manager::new(Arc::clone(&context), stored)
        .await
        .context("cannot find the capsules of an earlier agent")?;
    let builds = build::host::open(&context, &manager)
        .context("cannot find the builds of an earlier agent")?;
    let stats = Stats::start(&manager, &context).context("cannot open the folder of stats")?;
    let service = Arc::new(rpc::Service {
        manager: manager.clone(),
        context: Arc::clone(&context),
        builds: builds.clone(),
        stats,
    });
    let service = service.register(connectrpc::Router::new()).into_axum_service();
    let rpc = axum::Router::new()
        .route("/metrics", axum::routing::get(async move || figures.render()))
        .merge(rpc::files::routes(builds))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .fallback_service(service);
    Ok(Agent { manager, rpc, context, tasks: tasks.clone(), _lock: lock })
}

/// Opens the platform's store, if one is configured. A store that does not answer now does not stop
/// the agent from starting.
async fn open_store(config: &Config) -> anyhow::Result<Option<Arc<Stored>>> {
    let Some(StoreConfig { url, key }) = &config.store else { return Ok(None) };
    let opened =
        Store::open(url, *key, std::env::vars()).context("cannot open the store (WRENN_STORE)")?;
    match opened.probe().await {
        Ok(()) => tracing::info!("the store answers"),
        Err(error) => tracing::error!(error = format!("{error:#}"), "the store does not answer"),
    }
    let stored = Stored::new(opened, config.dir.join("sending"));
    Ok(Some(Arc::new(stored.context("cannot create the folder for uploads")?)))
}

/// Time limit for the kernel to end an agent that was killed, and period of the checks.
const DYING: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);

/// Takes the lock of the agent's folder. The kernel frees the lock however the process ends.
async fn lock(dir: &Path) -> anyhow::Result<File> {
    let file = File::create(dir.join("agent.lock")).context("cannot open the agent's lock file")?;
    let begun = Instant::now();
    while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let dir = dir.display();
        anyhow::ensure!(begun.elapsed() < DYING, "a host agent is already running in {dir}");
        tokio::time::sleep(LOOK).await;
    }
    Ok(file)
}

fn spawn_rule_refresh(networks: &Arc<Networks>, tasks: &Tasks) {
    let networks = Arc::clone(networks);
    tasks.every(RULES, move || {
        let networks = Arc::clone(&networks);
        async move {
            if let Err(error) = networks.prepare_host().await {
                tracing::error!(%error, "cannot apply the host's firewall rules");
            }
        }
    });
}

fn spawn_image_removal(images: &ImageStore, tasks: &Tasks) {
    let images = images.clone();
    tasks.every(UNUSED, move || {
        let images = images.clone();
        async move {
            let removed = daemon::blocking(move || Ok(images.remove_unused())).await;
            match removed.map_err(anyhow::Error::from).and_then(|done| Ok(done?)) {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "removed container images that nobody uses"),
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "cannot remove container images");
                }
            }
        }
    });
}

/// Ends every capsule in the agent's folder, and removes everything else that the agent made on
/// this machine. The folder itself stays. No agent may be running in it.
///
/// # Errors
/// Fails with the part that cannot be removed.
pub async fn clean(config: Config) -> anyhow::Result<()> {
    let (tag, probe) = (tag(&config.dir), config.dir.join("probe"));
    vmm::kill_named(&choose::name(&tag), &probe, &probe).await?;
    let (mut networks, mut cgroups) = (None, None);
    if config.driver.boots_images() {
        networks = Some(Networks::for_removal(Plan::new(&tag, &config.network, &config.dns)?));
        cgroups = Some(Arc::new(Cgroups::new(&tag)));
    }
    let driver = choose::for_removal(&config);
    let tasks = Tasks::default();
    let context = AgentContext {
        container_images: ImageStore::new(&config.dir, Registries::default(), Program::default()),
        room: Room::new(&config.dir, false),
        logs: Logs::new(config.logs(), config.log_limits),
        snapshot_sizes: Mutex::default(),
        builders: Builders::default(),
        config,
        driver,
        networks,
        cgroups,
        memory_mib: 0,
        images: Images::default(),
        standing: Arc::default(),
        tasks,
    };
    for id in capsule::files::existing(&context) {
        capsule::teardown::remove(&context, id)
            .await
            .with_context(|| format!("cannot end {id}"))?;
    }
    if let Some(networks) = &context.networks {
        networks.remove_orphans().await.context("cannot remove the networks")?;
        networks.restore_host().context("cannot remove the firewall rules")?;
    }
    if let Some(cgroups) = &context.cgroups {
        cgroups.remove_all();
    }
    Ok(())
}

/// Tries each driver on this machine, and gives the reason if it does not work. With `again`,
/// ignores remembered results.
///
/// # Errors
/// Fails when the agent's folder cannot be made.
pub async fn examine(config: &Config, again: bool) -> anyhow::Result<Vec<Examined>> {
    std::fs::create_dir_all(&config.dir)
        .with_context(|| format!("cannot create WRENN_DIR {}", config.dir.display()))?;
    Ok(choose::examine(config, &tag(&config.dir), &Tasks::default(), again).await)
}

/// Returns a short tag from the agent's folder. Names that contain it differ between the agents on
/// one machine.
fn tag(dir: &Path) -> String {
    let path = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    hex::encode(&digest[..2])
}

fn total_memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    u64::from(info.mem_unit) * info.totalram / (1 << 20)
}
