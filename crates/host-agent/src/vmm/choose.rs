//! Choice of the driver that runs the machines on this host. An installed VMM is not trusted until
//! a guest boots on it. The outcome is remembered as long as nothing that it depends on changes,
//! and until this host boots again.

#[cfg(test)]
mod tests;

#[cfg(any(test, feature = "test-drivers"))]
use super::fake::FakeDriver;
use super::firecracker::Firecracker;
#[cfg(any(test, feature = "test-drivers"))]
use super::null::NullDriver;
use super::qemu::{Accelerator, Qemu};
use super::{Driver, Machine, Metadata, Spec, kvm};
use crate::config::{Config, DriverChoice};
use crate::sys;
use anyhow::Context;
use daemon::Tasks;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::Isolation;
use types::resources::Resources;

/// Time limit for a probe's guest to boot, if another driver is available.
const PROBE: Duration = Duration::from_secs(5);
/// Time limit for a driver that was asked for. A slow host that is itself a guest needs longer.
const PROBE_PINNED: Duration = Duration::from_secs(60);
/// Period of the checks on a probe's guest.
const LOOK: Duration = Duration::from_millis(50);
/// Console output that only a kernel which reached its first process can have written.
const PROBE_WORD: &[u8] = b"envd:";
/// User id of `nobody`, for the probe's machine.
const NOBODY: u32 = 65_534;

/// Result of trying a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// Name of the driver: `firecracker` or `qemu`.
    pub driver: &'static str,
    /// Accelerator of the driver: `kvm` or `tcg`.
    pub accelerator: &'static str,
    /// Reason why the driver cannot be used; `None` when it can.
    pub why_not: Option<String>,
    /// Time of the probe, in RFC 3339; `None` when the probe ran just now.
    pub remembered: Option<String>,
}

/// Remembered outcome for a driver, in a file of its own.
#[derive(serde::Serialize, serde::Deserialize)]
struct Verdict {
    /// Everything that the outcome depends on; see [`Prober::about`].
    about: String,
    /// Time of the probe, in RFC 3339.
    at: String,
    why_not: Option<String>,
}

/// A driver, or the reason why it cannot be used.
type Tried = anyhow::Result<Box<dyn Driver>>;

/// Returns the driver that was asked for, or the first that works.
///
/// # Errors
/// Fails with the reason why the driver that was asked for cannot be used.
pub(crate) async fn choose(
    config: &Config,
    tag: &str,
    tasks: &Tasks,
) -> anyhow::Result<Box<dyn Driver>> {
    let prober = Prober { config, tag, again: false };
    Ok(match &config.driver {
        #[cfg(any(test, feature = "test-drivers"))]
        DriverChoice::Fake { envd } => Box::new(FakeDriver { envd: envd.clone() }),
        #[cfg(any(test, feature = "test-drivers"))]
        DriverChoice::Null { port } => Box::new(NullDriver { port: *port }),
        DriverChoice::Tcg => Box::new(tcg(config)),
        DriverChoice::Firecracker => {
            let driver = Firecracker::find(config, tasks);
            prober.insist(driver.context("WRENN_DRIVER=firecracker")?).await?
        }
        DriverChoice::Kvm => prober.insist(on_kvm(config)).await?,
        DriverChoice::Auto => {
            for (examined, tried) in prober.try_all(tasks).await {
                match tried {
                    Ok(driver) => return Ok(driver),
                    Err(error) => {
                        let Examined { driver, accelerator, remembered, .. } = examined;
                        let why = format!("{error:#}");
                        tracing::info!(
                            driver,
                            accelerator,
                            why,
                            remembered,
                            "did not choose a driver"
                        );
                    }
                }
            }
            Box::new(tcg(config))
        }
    })
}

/// Tries each driver that can be chosen automatically, the best first. With `again`, ignores
/// remembered outcomes.
pub(crate) async fn examine(
    config: &Config,
    tag: &str,
    tasks: &Tasks,
    again: bool,
) -> Vec<Examined> {
    let tried = Prober { config, tag, again }.try_all(tasks).await.into_iter();
    let mut all: Vec<Examined> = tried
        .map(|(examined, tried)| Examined {
            why_not: tried.err().map(|error| format!("{error:#}")),
            ..examined
        })
        .collect();
    let missing = tcg(config).version.is_empty();
    let why_not = missing.then(|| "the PATH has no qemu-system-x86_64".to_owned());
    all.push(Examined { driver: "qemu", accelerator: "tcg", why_not, remembered: None });
    all
}

/// Returns a driver for the removal of capsules, which starts no machine.
pub(crate) fn for_removal(config: &Config) -> Box<dyn Driver> {
    Box::new(Qemu {
        accelerator: Accelerator::Kvm,
        kernel: config.kernel(),
        initramfs: config.initramfs(),
        dns: Vec::new(),
        version: String::new(),
    })
}

fn tcg(config: &Config) -> Qemu {
    Qemu::tcg(config.kernel(), config.initramfs(), config.dns.clone())
}

fn on_kvm(config: &Config) -> Qemu {
    Qemu { accelerator: Accelerator::Kvm, ..tcg(config) }
}

struct Prober<'a> {
    config: &'a Config,
    tag: &'a str,
    /// True to boot a guest even if an outcome is remembered.
    again: bool,
}

impl Prober<'_> {
    /// Tries the drivers that need KVM, the best first, until one works.
    async fn try_all(&self, tasks: &Tasks) -> Vec<(Examined, Tried)> {
        let examined =
            |driver, remembered| Examined { driver, accelerator: "kvm", why_not: None, remembered };
        let mut all = Vec::new();
        let (remembered, firecracker) = match Firecracker::find(self.config, tasks) {
            Ok(driver) => self.remembered(Box::new(driver)).await,
            Err(error) => (None, Err(error)),
        };
        let works = firecracker.is_ok();
        all.push((examined("firecracker", remembered), firecracker));
        if !works {
            let (remembered, qemu) = self.remembered(Box::new(on_kvm(self.config))).await;
            all.push((examined("qemu", remembered), qemu));
        }
        all
    }

    /// Returns the driver that was asked for, if a guest boots on it.
    async fn insist(&self, driver: impl Driver + 'static) -> Tried {
        let name = driver.name();
        needs_kvm(&driver)?;
        self.boot(&driver, PROBE_PINNED)
            .await
            .with_context(|| format!("no guest boots on the requested driver {name}"))?;
        Ok(Box::new(driver))
    }

    /// Tries a driver, or uses its remembered outcome, and remembers a new outcome. Returns the
    /// time of an earlier probe if its outcome was used.
    async fn remembered(&self, driver: Box<dyn Driver>) -> (Option<String>, Tried) {
        match needs_kvm(&*driver) {
            Ok(()) => self.boot_once(driver).await,
            Err(error) => (None, Err(error)),
        }
    }

    async fn boot_once(&self, driver: Box<dyn Driver>) -> (Option<String>, Tried) {
        let file = self.config.dir.join(format!("{}-probe", driver.name()));
        let about = self.about(&*driver);
        let known = std::fs::read(&file).ok();
        let known = known.and_then(|known| serde_json::from_slice::<Verdict>(&known).ok());
        if let Some(known) = known.filter(|known| known.about == about && !self.again) {
            let tried = match known.why_not {
                Some(why) => Err(anyhow::anyhow!(why)),
                None => Ok(driver),
            };
            return (Some(known.at), tried);
        }
        let booted = self.boot(&*driver, PROBE).await;
        let verdict = Verdict {
            about,
            at: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            why_not: booted.as_ref().err().map(|error| format!("{error:#}")),
        };
        let written = write(&file, &verdict);
        (None, written.and(booted).map(|()| driver))
    }

    /// Returns everything that a probe's outcome depends on. The text covers this boot of the host,
    /// the driver with its version and tier, and the programs. It also covers kernel and initramfs,
    /// and the device's permissions.
    fn about(&self, driver: &dyn Driver) -> String {
        let mut files = driver.programs();
        files.extend([self.config.kernel(), self.config.initramfs()]);
        let files: Vec<String> = files.iter().map(|file| identity(file)).collect();
        let device = std::fs::metadata(kvm::DEVICE);
        let device = device.map(|found| (found.mode(), found.uid(), found.gid()));
        format!(
            "boot {}; {}; version {}; tier {}; {}; {:?}",
            sys::boot_id(),
            driver.fingerprint(),
            driver.version(),
            driver.isolation(),
            files.join("; "),
            device.ok()
        )
    }

    /// Boots the guest's kernel without disks, and checks that it starts in time.
    async fn boot(&self, driver: &dyn Driver, limit: Duration) -> anyhow::Result<()> {
        let dir = self.config.dir.join("probe");
        std::fs::create_dir_all(&dir)?;
        let spec = Spec {
            name: name(self.tag),
            resources: Resources { vcpus: 1, memory_mib: 128, disk_mib: 0 },
            dir: dir.clone(),
            disks: None,
            tap: None,
            namespace: None,
            uid: NOBODY,
            cgroups: Vec::new(),
            metadata: Metadata::default(),
            kernel_args: Vec::new(),
        };
        let booted = match driver.boot(spec).await {
            Ok(machine) => {
                let up = gets_up(&*machine, limit).await;
                up.and(machine.kill().await.map_err(Into::into))
            }
            Err(error) => Err(error.into()),
        };
        let _ = std::fs::remove_dir_all(&dir);
        booted
    }
}

/// Returns the name of the machine that an agent's probe boots.
pub(crate) fn name(tag: &str) -> String {
    format!("probe-{tag}")
}

/// Fails if a driver's machines cannot use KVM. Only machines without a jailer open the host's
/// device, since a jailer makes a second one for the machine's user.
fn needs_kvm(driver: &dyn Driver) -> anyhow::Result<()> {
    kvm::check(driver.isolation() != Isolation::Jailed)
}

/// Returns a text that differs for every other file, and for the same file after a change.
fn identity(file: &Path) -> String {
    let found = file.metadata().map(|found| {
        // The change time is of no use, since each link of a jail to the file alters it.
        let changed = format!("{}.{:09}", found.mtime(), found.mtime_nsec());
        format!("{}:{} {} {changed}", found.dev(), found.ino(), found.len())
    });
    format!("{} {}", file.display(), found.unwrap_or_default())
}

/// Replaces a remembered outcome in one step.
fn write(file: &Path, verdict: &Verdict) -> anyhow::Result<()> {
    let staged = file.with_extension("new");
    let written = std::fs::write(&staged, serde_json::to_vec(verdict)?)
        .and_then(|()| std::fs::rename(&staged, file));
    written.context("cannot remember which drivers work")
}

async fn gets_up(machine: &dyn Machine, limit: Duration) -> anyhow::Result<()> {
    let end = tokio::time::Instant::now() + limit;
    loop {
        // The process is checked before its last output is read.
        let alive = machine.record().is_alive();
        let console = machine.console().await;
        if console.windows(PROBE_WORD.len()).any(|word| word == PROBE_WORD) {
            return Ok(());
        }
        let late = tokio::time::Instant::now() > end;
        anyhow::ensure!(!late, "the guest did not boot within {} s", limit.as_secs());
        if !alive {
            let (log, last) = (machine.log_tail(), String::from_utf8_lossy(&console).into_owned());
            anyhow::bail!("the VMM ended before its guest had booted: {log} {}", last.trim());
        }
        tokio::time::sleep(LOOK).await;
    }
}
