//! Firecracker, the driver for production. Machines need KVM, and each has a jail of its own.
//!
//! Every machine opens its files by the same names, in a root of its own. Its tap is in a namespace
//! of its own. So a snapshot of one machine fits any other.

mod api;
mod changes;
mod elf;
mod figures;
mod files;
mod jail;
mod machine;
mod output;
mod paging;
#[cfg(test)]
mod rounds;
#[cfg(test)]
mod tests;
mod version;

use super::{Driver, Error, Found, Machine, Saved, Spec, on_path};
use crate::config::Config;
use crate::network::plan::{GUEST_MAC, METADATA, TAP};
use crate::placeholder;
use crate::snapshot::base::Base;
use crate::snapshot::is_damage;
use crate::snapshot::layer::Layer;
use crate::snapshot::memory::{self, Image};
use crate::{storage, sys};
use anyhow::Context;
use api::{Api, PROMPT};
use changes::Changes;
use daemon::{Tasks, blocking};
use files::{INITRAMFS, KERNEL, MEMORY, STATE};
use futures::FutureExt;
use futures::future::BoxFuture;
use jail::{Jail, Programs, Start};
use machine::{FirecrackerMachine, Outputs};
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use types::Isolation;
use version::{FLOOR, TRACKS, Version};

const PROGRAM: &str = "firecracker";
const JAILER: &str = "jailer";
/// Bytes a second that a guest may send, and may receive. A new machine may pass as many bytes
/// again, once, in each direction.
const NETWORK_RATE: u64 = 200 << 20;
/// Least value of the limit on the size of a machine's files, in MiB.
const FILE_LIMIT_MIN_MIB: u64 = 64;

/// The driver, with the files from which every machine boots.
pub(crate) struct Firecracker {
    programs: Programs,
    version: Version,
    /// Version of the snapshots that this Firecracker writes.
    snapshot_version: Version,
    kernel: PathBuf,
    initramfs: PathBuf,
    dns: Vec<IpAddr>,
    api: Arc<Api>,
    tasks: Tasks,
    /// Outcome of the first machine that was filled while it ran.
    filled: paging::Outcome,
}

impl Firecracker {
    /// Finds the programs and checks them.
    ///
    /// # Errors
    /// Fails when a program is missing or too old, and says what to do.
    pub(crate) fn find(config: &Config, tasks: &Tasks) -> anyhow::Result<Self> {
        let choice = &config.firecracker;
        let firecracker = match &choice.firecracker {
            Some(given) => given.clone(),
            None => on_path(PROGRAM).context(
                "the PATH has no `firecracker`; install it (docs/operations.md) or set \
                 WRENN_FIRECRACKER",
            )?,
        };
        let there = |path: PathBuf, what: &str| {
            path.canonicalize().with_context(|| format!("{what} is missing at {}", path.display()))
        };
        let firecracker = there(firecracker, "Firecracker")?;
        changes::check(&config.dir).context("cannot use the file system of WRENN_DIR")?;
        let (version, snapshot_version) = version::ask(&firecracker)?;
        anyhow::ensure!(
            version >= FLOOR || choice.any_version,
            "Firecracker {version} has known escapes and faulty snapshots; install {FLOOR} or \
             newer (docs/operations.md)"
        );
        let beside = firecracker.with_file_name(JAILER);
        let jailer = match &choice.jailer {
            _ if choice.unjailed => None,
            Some(given) => Some(given.clone()),
            None if beside.exists() => Some(beside),
            None => Some(on_path(JAILER).context(
                "the `jailer` is not beside Firecracker or on the PATH; install it, or set \
                 WRENN_JAILER=none (docs/security.md)",
            )?),
        };
        let jailer = jailer.map(|jailer| there(jailer, "jailer")).transpose()?;
        if jailer.is_some() {
            elf::check_static(&firecracker)?;
        }
        Ok(Self {
            programs: Programs { firecracker, jailer },
            version,
            snapshot_version,
            kernel: config.kernel(),
            initramfs: config.initramfs(),
            dns: config.dns.clone(),
            api: Arc::new(Api::new(tasks.clone())),
            tasks: tasks.clone(),
            filled: paging::Outcome::default(),
        })
    }

    /// Starts the process, which is not configured yet. A saved machine is told with true if its
    /// memory is filled while it runs.
    async fn start(
        &self,
        spec: Spec,
        saved: Option<(&Saved, bool)>,
    ) -> io::Result<FirecrackerMachine> {
        let jail = Jail::of(&self.programs, &spec.dir, &spec.name, spec.uid);
        let source = self.source(saved)?;
        let has_network = spec.tap.is_some();
        let (programs, at, tasks) = (self.programs.clone(), jail.clone(), self.tasks.clone());
        let work = move || {
            at.make()?;
            source.place(&at, u64::from(spec.resources.memory_mib) << 20)?;
            give_devices(&at, &spec)?;
            // Firecracker opens the tap by its name.
            drop::<Option<OwnedFd>>(spec.tap);
            let outputs = Outputs::make(&at, &tasks)?;
            let mib = spec.resources.memory_mib.max(spec.resources.disk_mib);
            let with = Start {
                namespace: spec.namespace.map(|namespace| namespace.try_clone()).transpose()?,
                cgroups: spec.cgroups,
                file_max: u64::from(mib).max(FILE_LIMIT_MIN_MIB) << 20,
            };
            let record = at.start(&programs, with, &outputs.console)?;
            Ok((record, outputs))
        };
        let (record, outputs) = blocking(work).await?;
        let (api, outputs) = (Arc::clone(&self.api), Some(Arc::new(outputs)));
        Ok(FirecrackerMachine { api, record, jail, outputs, has_network })
    }

    /// Returns the files from which a machine begins: those of a saved machine, if one is given.
    fn source(&self, saved: Option<(&Saved, bool)>) -> io::Result<Source> {
        Ok(match saved {
            None => Source::Boot { kernel: self.kernel.clone(), initramfs: self.initramfs.clone() },
            Some((saved, paged)) => Source::Saved {
                image: Arc::clone(&saved.image),
                above: Arc::clone(&saved.above),
                state: saved.state.try_clone()?,
                paged,
            },
        })
    }

    /// Reports whether a machine with layers above its image is filled while it runs. Any other
    /// machine maps one file.
    fn fills(&self) -> bool {
        !self.filled.is_failure() && paging::is_possible(self.programs.jailer.is_some())
    }

    /// Waits until Firecracker takes requests.
    async fn wait_for_api(&self, machine: &FirecrackerMachine) -> io::Result<()> {
        let limit = Instant::now() + PROMPT;
        loop {
            match self.api.get(&machine.jail.root, "/").await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > limit || !machine.record.is_alive() => {
                    return Err(error);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    async fn run(&self, spec: Spec) -> io::Result<FirecrackerMachine> {
        let line = super::with_args(self.command_line(), &spec.kernel_args);
        let config = config(&spec, &line);
        let machine = self.start(spec, None).await?;
        let configured = async {
            self.wait_for_api(&machine).await?;
            for (path, body) in config {
                self.api.put(&machine.jail.root, &path, body).await?;
            }
            Ok(())
        };
        let configured = configured.await;
        or_kill(machine, configured).await
    }

    async fn load(&self, spec: Spec, saved: Saved) -> io::Result<FirecrackerMachine> {
        // A machine without a network has no metadata service.
        let metadata = spec.tap.is_some().then(|| spec.metadata.json());
        let bytes = u64::from(spec.resources.memory_mib) << 20;
        // The answer may change until the load, so it is taken once.
        let paged = !saved.above.is_empty() && self.fills();
        let machine = self.start(spec, Some((&saved, paged))).await?;
        let loaded = async {
            self.wait_for_api(&machine).await?;
            self.load_state(&machine, paged.then_some(saved.above), bytes).await?;
            if let Some(metadata) = metadata {
                self.api.put(&machine.jail.root, "/mmds", metadata).await?;
            }
            machine.jail.remove(STATE)
        };
        let loaded = loaded.await;
        or_kill(machine, loaded).await
    }

    /// Loads memory and state of a saved machine. `above` has the layers of a machine that is
    /// filled while it runs. They are checked meanwhile.
    async fn load_state(
        &self,
        machine: &FirecrackerMachine,
        above: Option<Arc<Vec<Layer>>>,
        bytes: u64,
    ) -> io::Result<()> {
        let (kind, path) =
            if above.is_some() { ("Uffd", paging::SOCKET) } else { ("File", MEMORY) };
        let tracks =
            if self.version >= TRACKS { "track_dirty_pages" } else { "enable_diff_snapshots" };
        let body = json!({
            "snapshot_path": STATE,
            "mem_backend": { "backend_type": kind, "backend_path": path },
            tracks: true,
            "resume_vm": false,
        });
        let root = &machine.jail.root;
        let loading = Box::pin(self.api.put(root, "/snapshot/load", body));
        let Some(above) = above else { return loading.await };
        let listener = paging::listen(&machine.jail)?;
        let of = (&machine.jail, &machine.record, bytes);
        let served = paging::serve(listener, of, (&self.tasks, &self.filled), loading);
        let checked = blocking(move || above.iter().try_for_each(Layer::check));
        // Both end, since damage explains a failed load.
        let (checked, served) = tokio::join!(checked, served);
        checked?;
        if served.is_err() {
            self.filled.note(&served);
        }
        served?;
        machine.jail.remove(paging::SOCKET)
    }

    /// Returns the command line of the guest's kernel; see `docs/operations.md` for each word.
    fn command_line(&self) -> String {
        format!("panic=-1 reboot=k {}", super::kernel_words(&self.dns))
    }
}

/// Files from which a machine begins.
enum Source {
    Boot {
        kernel: PathBuf,
        initramfs: PathBuf,
    },
    /// `paged` is true for a machine whose memory is filled while it runs.
    Saved {
        image: Arc<Image>,
        above: Arc<Vec<Layer>>,
        state: File,
        paged: bool,
    },
}

impl Source {
    /// Puts the files into a machine's root. `bytes` is the size of its memory.
    fn place(self, jail: &Jail, bytes: u64) -> io::Result<()> {
        match self {
            Self::Boot { kernel, initramfs } => {
                jail.link(&kernel, KERNEL)?;
                jail.link(&initramfs, INITRAMFS)
            }
            Self::Saved { image, above, mut state, paged } => {
                let changes = Changes(jail.own.clone());
                make_base(&changes, &image, &above, (paged, bytes))?;
                if !paged {
                    jail.link(&changes.base(), MEMORY)?;
                }
                io::copy(&mut state, &mut File::create_new(jail.root.join(STATE))?).map(|_| ())
            }
        }
    }
}

/// Gives a machine its disks and its tap.
fn give_devices(jail: &Jail, spec: &Spec) -> io::Result<()> {
    if let Some(disks) = &spec.disks {
        jail.link(&spec.dir.join(storage::OWN_IMAGE), storage::OWN_IMAGE)?;
        jail.link(&spec.dir.join(storage::DISK), storage::DISK)?;
        jail.chown(&jail.root.join(storage::DISK))?;
        for number in 1..=disks.read_only.len() {
            let name = storage::layer_name(number);
            jail.link(&spec.dir.join(&name), &name)?;
        }
        for placeholder in placeholder::first(disks.placeholders) {
            placeholder.create(&jail.root)?;
            jail.chown(&jail.root.join(placeholder.name))?;
        }
    }
    spec.tap.as_ref().map_or(Ok(()), |tap| sys::give_tap(tap, jail.uid))
}

/// Returns the most bytes that restoring a memory of `bytes` writes. The image is one file of that
/// size. A `copied` memory is another one, which may share no blocks with it.
fn most_restored(bytes: u64, copied: bool) -> u64 {
    bytes.saturating_mul(if copied { 2 } else { 1 })
}

/// Links the memory that a machine begins with into its own folder. A machine with layers above its
/// image that is not `paged` gets one file with both, which it maps.
fn make_base(
    changes: &Changes,
    image: &Image,
    above: &[Layer],
    (paged, bytes): (bool, u64),
) -> io::Result<()> {
    let missing = || io::Error::other("the memory image has no path");
    let path = image.path.as_ref().ok_or_else(missing)?;
    if above.is_empty() {
        return Base::link(path, above, &changes.0);
    }
    if paged {
        Base::link(path, above, &changes.0)?;
        return changes.rest();
    }
    let own = storage::copy_sparse(&image.file, &changes.base())?;
    memory::install(above, &own, 0, bytes)
}

/// Returns a machine whose requests succeeded. Any other machine is ended, with its last words in
/// the log. The error of a process that has ended holds its exit status and its last words.
async fn or_kill(
    machine: FirecrackerMachine,
    done: io::Result<()>,
) -> io::Result<FirecrackerMachine> {
    let Err(mut error) = done else { return Ok(machine) };
    if let Some(end) = machine.end()
        && !is_damage(&error)
    {
        error = io::Error::new(error.kind(), format!("{end} ({error})"));
    }
    tracing::warn!(log_tail = machine.log_tail(), "Firecracker failed to start or load a machine");
    super::kill_failed(&machine).await;
    Err(error)
}

/// Returns the requests that configure a machine before it boots, in order.
fn config(spec: &Spec, command_line: &str) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    let mut put = |path: &str, body: Value| all.push((path.to_owned(), body));
    let machine = json!({
        "vcpu_count": spec.resources.vcpus,
        "mem_size_mib": spec.resources.memory_mib,
        "track_dirty_pages": true,
    });
    put("/machine-config", machine);
    let source = json!({
        "kernel_image_path": KERNEL,
        "initrd_path": INITRAMFS,
        "boot_args": command_line,
    });
    put("/boot-source", source);
    if let Some(disks) = &spec.disks {
        let own = [("image", storage::OWN_IMAGE, true), ("disk", storage::DISK, false)];
        let own = own.map(|(id, name, read_only)| (id.to_owned(), name.to_owned(), read_only));
        // Letters, digits and `_` are all that a drive's id may have.
        let layers = (1..=disks.read_only.len())
            .map(|number| (format!("layer_{number}"), storage::layer_name(number), true));
        let placeholders = placeholder::first(disks.placeholders).map(|placeholder| {
            (placeholder.name.to_owned(), placeholder.name.to_owned(), placeholder.read_only)
        });
        for (id, name, read_only) in own.into_iter().chain(layers).chain(placeholders) {
            let drive = json!({
                "drive_id": id,
                "path_on_host": name,
                "is_root_device": false,
                "is_read_only": read_only,
            });
            put(&format!("/drives/{id}"), drive);
        }
    }
    if spec.tap.is_some() {
        let bucket = json!({
            "size": NETWORK_RATE,
            "one_time_burst": NETWORK_RATE,
            "refill_time": 1000,
        });
        let limiter = json!({ "bandwidth": bucket });
        let interface = json!({
            "iface_id": "eth0",
            "guest_mac": GUEST_MAC.map(|b| format!("{b:02x}")).join(":"),
            "host_dev_name": TAP,
            "rx_rate_limiter": limiter,
            "tx_rate_limiter": limiter,
        });
        put("/network-interfaces/eth0", interface);
        let service = json!({
            "version": "V2",
            "network_interfaces": ["eth0"],
            "ipv4_address": METADATA,
        });
        put("/mmds/config", service);
        put("/mmds", spec.metadata.json());
    }
    put("/entropy", json!({}));
    put("/actions", json!({ "action_type": "InstanceStart" }));
    all
}

impl Driver for Firecracker {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn accelerator(&self) -> &'static str {
        "kvm"
    }

    fn isolation(&self) -> Isolation {
        if self.programs.jailer.is_some() { Isolation::Jailed } else { Isolation::Kvm }
    }

    fn boots_images(&self) -> bool {
        true
    }

    fn maps_paths(&self) -> bool {
        true
    }

    fn most_restored(&self, bytes: u64, above: bool) -> u64 {
        most_restored(bytes, above && !self.fills())
    }

    fn programs(&self) -> Vec<PathBuf> {
        let Programs { firecracker, jailer } = &self.programs;
        [Some(firecracker), jailer.as_ref()].into_iter().flatten().cloned().collect()
    }

    fn boot(&self, spec: Spec) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        async move {
            let machine =
                self.run(spec).await.map_err(|e| Error::new("cannot start Firecracker", e))?;
            Ok(Box::new(machine) as Box<dyn Machine>)
        }
        .boxed()
    }

    fn version(&self) -> String {
        self.version.to_string()
    }

    fn fingerprint(&self) -> String {
        version::fingerprint(self.snapshot_version, &sys::cpu_model())
    }

    /// Accepts each version of snapshots that this Firecracker reads, from the same model of
    /// processor.
    fn reads(&self, fingerprint: &str) -> bool {
        version::reads(self.snapshot_version, &sys::cpu_model(), fingerprint)
    }

    fn restore(&self, spec: Spec, saved: Saved) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        async move {
            let machine = self.load(spec, saved).await;
            let machine = machine.map_err(|e| Error::new("cannot load the saved machine", e))?;
            Ok(Box::new(machine) as Box<dyn Machine>)
        }
        .boxed()
    }

    fn adopt(&self, found: Found<'_>) -> Option<Box<dyn Machine>> {
        if !found.record.is_alive() {
            return None;
        }
        let jail = Jail::found(found.dir, found.name, found.uid).unwrap_or_else(|_| {
            // The machine exists, but cannot be asked for anything.
            Jail::of(&self.programs, found.dir, found.name, found.uid)
        });
        paging::go_on(&jail, found.record, &self.tasks);
        let (api, record) = (Arc::clone(&self.api), found.record.clone());
        let mut machine = FirecrackerMachine::found(api, record, jail, &self.tasks);
        machine.has_network = found.namespace.is_some();
        Some(Box::new(machine))
    }
}

/// Feeds bytes as Firecracker's output to its readers: an API answer, a line of metrics, a version.
#[cfg(feature = "fuzzing")]
pub fn fuzz(data: &[u8]) {
    for status in [http::StatusCode::OK, http::StatusCode::BAD_REQUEST] {
        let _ = api::read("GET /", status, data);
    }
    let text = String::from_utf8_lossy(data);
    text.lines().for_each(figures::count);
    let _ = version::read(&text);
}
