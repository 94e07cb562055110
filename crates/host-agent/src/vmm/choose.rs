//! Which driver runs the machines here. What is there is not trusted: a guest is booted, and
//! whether it got up is remembered until this machine boots again.

use super::firecracker::Firecracker;
use super::qemu::{Accelerator, Qemu};
use super::{Driver, Machine, Metadata, Spec, fake::Fake, hollow::Hollow};
use crate::{Config, DriverChoice, sys};
use anyhow::Context;
use daemon::Tasks;
use std::path::Path;
use std::time::Duration;
use types::resources::Resources;

/// How long a guest may take to show that a driver works, where another stands ready.
const PROBE: Duration = Duration::from_secs(5);
/// And where that one was asked for, as on a slow host that is itself a guest.
const PROBE_PINNED: Duration = Duration::from_secs(60);
/// Between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(50);
/// What only a kernel that got to its first process can have written.
const PROBE_WORD: &[u8] = b"envd:";
/// Nobody, by whom the probe's machine is run.
const NOBODY: u32 = 65_534;
const KVM: &str = "/dev/kvm";

/// What was found out about a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// `firecracker` or `qemu`.
    pub driver: &'static str,
    /// `kvm` or `tcg`.
    pub accelerator: &'static str,
    /// Why it cannot be used; none when it can.
    pub why_not: Option<String>,
}

/// A driver, or why it is none.
type Tried = anyhow::Result<Box<dyn Driver>>;

/// The driver that was chosen, or the first that works.
///
/// # Errors
/// Why the one that was asked for cannot be used.
pub(crate) async fn choose(
    config: &Config,
    tag: &str,
    tasks: &Tasks,
) -> anyhow::Result<Box<dyn Driver>> {
    let prober = Prober { config, tag };
    Ok(match &config.driver {
        DriverChoice::Fake { envd } => Box::new(Fake { envd: envd.clone() }),
        DriverChoice::Hollow { port } => Box::new(Hollow { port: *port }),
        DriverChoice::Tcg => Box::new(tcg(config)),
        DriverChoice::Firecracker => {
            let driver = Firecracker::find(config, tasks);
            prober.insist(driver.context("WRENN_DRIVER=firecracker")?).await?
        }
        DriverChoice::Kvm => prober.insist(kvm(config)).await?,
        DriverChoice::Auto => {
            for (examined, tried) in prober.try_all(tasks).await {
                match tried {
                    Ok(driver) => return Ok(driver),
                    Err(error) => {
                        let (driver, why) = (examined.driver, format!("{error:#}"));
                        tracing::info!(driver, accelerator = examined.accelerator, why, "not used");
                    }
                }
            }
            Box::new(tcg(config))
        }
    })
}

/// Tries each driver of a kind that needs none to be asked for, the best first.
pub(crate) async fn examine(config: &Config, tag: &str, tasks: &Tasks) -> Vec<Examined> {
    let tried = Prober { config, tag }.try_all(tasks).await.into_iter();
    let mut all: Vec<Examined> = tried
        .map(|(examined, tried)| Examined {
            why_not: tried.err().map(|error| format!("{error:#}")),
            ..examined
        })
        .collect();
    let missing = tcg(config).version.is_empty();
    let why_not = missing.then(|| "there is no qemu-system-x86_64 on the PATH".to_owned());
    all.push(Examined { driver: "qemu", accelerator: "tcg", why_not });
    all
}

fn tcg(config: &Config) -> Qemu {
    Qemu::tcg(config.kernel(), config.initramfs(), config.dns.clone())
}

fn kvm(config: &Config) -> Qemu {
    Qemu { accelerator: Accelerator::Kvm, ..tcg(config) }
}

struct Prober<'a> {
    config: &'a Config,
    tag: &'a str,
}

impl Prober<'_> {
    /// Those that need KVM, the best first; what comes after one that works is not tried.
    async fn try_all(&self, tasks: &Tasks) -> Vec<(Examined, Tried)> {
        let examined = |driver| Examined { driver, accelerator: "kvm", why_not: None };
        let mut all = Vec::new();
        let found = Firecracker::find(self.config, tasks);
        let firecracker = match found {
            Ok(driver) => self.remembered(Box::new(driver)).await,
            Err(error) => Err(error),
        };
        let works = firecracker.is_ok();
        all.push((examined("firecracker"), firecracker));
        if !works {
            all.push((examined("qemu"), self.remembered(Box::new(kvm(self.config))).await));
        }
        all
    }

    /// One that was asked for, if a guest boots on it.
    async fn insist(&self, driver: impl Driver + 'static) -> Tried {
        let name = driver.name();
        needs_kvm()?;
        self.boot(&driver, PROBE_PINNED)
            .await
            .with_context(|| format!("{name} was asked for, but no guest boots on it"))?;
        Ok(Box::new(driver))
    }

    /// Tries one once per boot of this machine, and remembers.
    async fn remembered(&self, driver: Box<dyn Driver>) -> Tried {
        needs_kvm()?;
        let kept = self.config.dir.join(format!("{}-probe", driver.name()));
        let about = format!("{} {}", sys::boot_id(), driver.fingerprint());
        let (works, fails) = (format!("works {about}"), format!("fails {about}"));
        let known = std::fs::read_to_string(&kept).unwrap_or_default();
        if known == works {
            return Ok(driver);
        }
        anyhow::ensure!(known != fails, "a guest did not get up on it since this machine booted");
        let booted = self.boot(&*driver, PROBE).await;
        std::fs::write(&kept, if booted.is_ok() { works } else { fails })?;
        booted.map(|()| driver)
    }

    /// Boots the guest's kernel without disks, to see whether it gets up in time.
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
        };
        let booted = match driver.boot(spec).await {
            Ok(machine) => {
                let up = gets_up(&*machine, limit).await;
                machine.kill().await?;
                up
            }
            Err(error) => Err(error.into()),
        };
        let _ = std::fs::remove_dir_all(&dir);
        booted
    }
}

/// What the probe's machine of an agent is called.
pub(crate) fn name(tag: &str) -> String {
    format!("probe-{tag}")
}

fn needs_kvm() -> anyhow::Result<()> {
    anyhow::ensure!(Path::new(KVM).exists(), "there is no {KVM}");
    Ok(())
}

async fn gets_up(machine: &dyn Machine, limit: Duration) -> anyhow::Result<()> {
    let end = tokio::time::Instant::now() + limit;
    loop {
        // Before its last words are read.
        let lives = machine.record().lives();
        let console = machine.console().await;
        if console.windows(PROBE_WORD.len()).any(|word| word == PROBE_WORD) {
            return Ok(());
        }
        let late = tokio::time::Instant::now() > end;
        anyhow::ensure!(!late, "a guest did not get up on it within {} s", limit.as_secs());
        if !lives {
            let (said, last) = (machine.said(), String::from_utf8_lossy(&console).into_owned());
            anyhow::bail!("the VMM ended before a guest was up: {said} {}", last.trim());
        }
        tokio::time::sleep(LOOK).await;
    }
}
