//! What a host agent is told once, at its start.

use crate::snapshot::System;
use crate::vmm::firecracker::Choice as FirecrackerChoice;
use std::path::PathBuf;

/// Settings of a host agent.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything the agent keeps: `capsules/`, `images/`.
    pub dir: PathBuf,
    /// Addresses of the capsules' links to the host, at least a /24.
    pub network: String,
    /// Name servers of the guests.
    pub dns: Vec<std::net::IpAddr>,
    /// Which driver runs the machines.
    pub driver: DriverChoice,
    /// Which Firecracker, where that is the driver.
    pub firecracker: FirecrackerChoice,
    /// Memory that capsules may have together, in MiB; 0 means four fifths of the machine's.
    pub memory_mib: u64,
    /// Virtual CPUs that capsules may have together; 0 means 64 for each core.
    pub vcpus: u64,
    /// Disk that capsules may have together, in MiB; 0 means eight times the machine's.
    pub disk_mib: u64,
    /// Where what is kept goes too, for other hosts to have.
    pub store: Option<StoreConfig>,
    /// Requests and connections under way to one capsule at once.
    pub connections: u32,
}

/// A store that the platform's hosts share.
#[derive(Clone)]
pub struct StoreConfig {
    /// A folder, or a URL as `s3://bucket/prefix`.
    pub url: String,
    /// What each team's key is derived from; none to keep things as they are.
    pub key: Option<[u8; 32]>,
}

impl std::fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}

/// Which driver runs the machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverChoice {
    /// Firecracker where it is and a probe guest boots on it, else QEMU on KVM where one boots
    /// on that, else software emulation.
    Auto,
    /// Firecracker, which needs KVM.
    Firecracker,
    /// QEMU on KVM.
    Kvm,
    /// QEMU with software emulation.
    Tcg,
    /// No machine at all: this `envd` on the host. For tests of everything above.
    Fake { envd: PathBuf },
    /// Nothing at all: whatever answers at this port is every capsule's guest. For measuring.
    Hollow { port: u16 },
}

impl DriverChoice {
    /// Whether machines boot from images, with disks and networks; only the fake's do not.
    #[must_use]
    pub fn boots_images(&self) -> bool {
        !matches!(self, Self::Fake { .. } | Self::Hollow { .. })
    }
}

impl Config {
    /// Where each capsule has a folder.
    #[must_use]
    pub fn capsules(&self) -> PathBuf {
        self.dir.join("capsules")
    }

    /// Where snapshots are that belong to no capsule, by their ids.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.dir.join("snapshots")
    }

    /// Where the templates' booted machines are.
    #[must_use]
    pub fn golden(&self) -> PathBuf {
        self.dir.join("golden")
    }

    /// Where memory is that machines map by its path.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    /// The guest's kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("images/boot/vmlinux")
    }

    /// What a machine that is booted now has in its memory.
    pub(crate) fn system(&self) -> System {
        let images = self.dir.join("images/boot");
        let images = images.canonicalize().unwrap_or(images);
        let kernel = images.file_name().unwrap_or_default().to_string_lossy().into_owned();
        System { kernel, envd: protocol::ENVD_VERSION.to_owned() }
    }

    /// The initramfs with envd.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("images/boot/initramfs")
    }

    /// Where templates are: `NAME/rootfs.ext4`.
    #[must_use]
    pub fn templates(&self) -> PathBuf {
        self.dir.join("images/templates")
    }
}
