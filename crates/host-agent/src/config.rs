//! Settings of a host agent, which are read once at its start.

use crate::images::settings::Registries;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Settings of a host agent.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of all files of the agent: `capsules/`, `images/`, and others.
    pub dir: PathBuf,
    /// Addresses of the capsules' links to the host, at least a /24.
    pub network: String,
    /// Most networks that are made ahead of creates; 0 means none.
    pub ready_networks: u32,
    /// Name servers of the guests.
    pub dns: Vec<std::net::IpAddr>,
    /// Driver that runs the machines.
    pub driver: DriverChoice,
    /// Source of Firecracker, when Firecracker is the driver.
    pub firecracker: FirecrackerChoice,
    /// Memory that capsules may have together, in MiB; 0 means four fifths of the machine's.
    pub memory_mib: u64,
    /// Share of the capsules' memory for ready capsules, in percent; 0 means none.
    pub ready_memory_percent: u8,
    /// Virtual CPUs that capsules may have together; 0 means 64 for each core.
    pub vcpus: u64,
    /// Disk that capsules may have together, in MiB; 0 means eight times the machine's.
    pub disk_mib: u64,
    /// Object store to which snapshots and templates are copied, for other hosts to use.
    pub store: Option<StoreConfig>,
    /// Settings of the registries of container images.
    pub registries: Registries,
    /// Limit of requests and connections under way to one capsule at once.
    pub connections: u32,
    /// Limits of the capsules' logs.
    pub log_limits: LogLimits,
}

/// Limits of the capsules' logs on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Days for which lines are kept after their time; 0 means that there are no logs.
    pub days: u32,
    /// Most MiB of one capsule's log on the disk.
    pub capsule_mib: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { days: 7, capsule_mib: 64 }
    }
}

impl LogLimits {
    /// Returns the most bytes of one capsule's log.
    pub(crate) fn capsule_bytes(self) -> u64 {
        u64::from(self.capsule_mib) << 20
    }

    /// Returns the time for which lines are kept.
    pub(crate) fn kept(self) -> Duration {
        Duration::from_secs(u64::from(self.days) * 24 * 3600)
    }
}

/// A store that the platform's hosts share.
#[derive(Clone)]
pub struct StoreConfig {
    /// Folder, or URL such as `s3://bucket/prefix`.
    pub url: String,
    /// Key from which each team's key is derived; `None` stores data unencrypted.
    pub key: Option<[u8; 32]>,
}

impl std::fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}

/// Choice of the programs that the agent runs, when Firecracker is the driver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FirecrackerChoice {
    /// Path of Firecracker; `None` is the program on the PATH.
    pub firecracker: Option<PathBuf>,
    /// Path of the jailer; `None` is the jailer beside Firecracker, or else on the PATH.
    pub jailer: Option<PathBuf>,
    /// True to run Firecracker without the jailer.
    pub unjailed: bool,
    /// True to use Firecracker even if its version is too old.
    pub any_version: bool,
}

/// Choice of the driver that runs the machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverChoice {
    /// The best driver that works: Firecracker, else QEMU on KVM, else software emulation. A probe
    /// guest must boot on the first two.
    Auto,
    /// Firecracker, which needs KVM.
    Firecracker,
    /// QEMU on KVM.
    Kvm,
    /// QEMU with software emulation.
    Tcg,
    /// No machine: runs this `envd` on the host. For tests of everything above the driver.
    #[cfg(any(test, feature = "test-drivers"))]
    Fake { envd: PathBuf },
    /// No machine and no process: the server at this port is every capsule's guest. For benchmarks.
    #[cfg(any(test, feature = "test-drivers"))]
    Null { port: u16 },
}

impl DriverChoice {
    /// Reports whether machines boot from images, with disks and networks.
    #[must_use]
    pub fn boots_images(&self) -> bool {
        match self {
            Self::Auto | Self::Firecracker | Self::Kvm | Self::Tcg => true,
            #[cfg(any(test, feature = "test-drivers"))]
            Self::Fake { .. } | Self::Null { .. } => false,
        }
    }
}

impl FromStr for DriverChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "firecracker" => Ok(Self::Firecracker),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            other => match other.strip_prefix("fake:") {
                Some(envd) => fake(envd),
                None => Err("must be auto, firecracker, kvm or tcg".to_owned()),
            },
        }
    }
}

#[cfg(any(test, feature = "test-drivers"))]
fn fake(envd: &str) -> Result<DriverChoice, String> {
    Ok(DriverChoice::Fake { envd: envd.into() })
}

#[cfg(not(any(test, feature = "test-drivers")))]
fn fake(_envd: &str) -> Result<DriverChoice, String> {
    Err("the `fake` driver is for tests, and this build lacks it; build with `--features \
         test-drivers`"
        .to_owned())
}

impl Config {
    /// Returns the folder of the capsules' folders.
    #[must_use]
    pub fn capsules(&self) -> PathBuf {
        self.dir.join("capsules")
    }

    /// Returns the folder of the snapshots that belong to no capsule, by their ids.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.dir.join("snapshots")
    }

    /// Returns the folder of the template snapshots.
    #[must_use]
    pub fn golden(&self) -> PathBuf {
        self.dir.join("golden")
    }

    /// Returns the folder of the logs, by team and capsule.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Returns the folder of the builds' folders.
    #[must_use]
    pub fn builds(&self) -> PathBuf {
        self.dir.join("builds")
    }

    /// Returns the folder of the memory files that machines map by their paths.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    /// Returns the path of the guest's kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("images/boot/vmlinux")
    }

    /// Returns the versions of kernel and envd in a machine that boots now.
    pub(crate) fn system(&self) -> System {
        let images = self.dir.join("images/boot");
        let images = images.canonicalize().unwrap_or(images);
        let kernel = images.file_name().unwrap_or_default().to_string_lossy().into_owned();
        System { kernel, envd: protocol::ENVD_VERSION.to_owned() }
    }

    /// Returns the path of the initramfs with envd.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("images/boot/initramfs")
    }

    /// Returns the folder of the templates, each as `NAME/rootfs.erofs` or `NAME/rootfs.ext4`.
    #[must_use]
    pub fn templates(&self) -> PathBuf {
        self.dir.join("images/templates")
    }
}

/// Versions of the software in a guest's memory, which may differ from the software of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct System {
    /// Name of the folder that kernel and initramfs came from, which identifies their build.
    pub kernel: String,
    /// Version of envd.
    pub envd: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_choice_is_read_from_its_name() {
        let read = |text: &str| text.parse::<DriverChoice>();
        assert_eq!(read("auto"), Ok(DriverChoice::Auto));
        assert_eq!(read("tcg"), Ok(DriverChoice::Tcg));
        assert_eq!(read("fake:/bin/envd"), Ok(DriverChoice::Fake { envd: "/bin/envd".into() }));
        for wrong in ["", "qemu", "fake", "null:80"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
