//! Debian's buildah, the rival of imports and of builds. Each storage of images has its own folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// An installed buildah.
pub(crate) struct Buildah {
    /// Driver of all storages.
    driver: &'static str,
}

/// A storage of images, which is removed with this value.
pub(crate) struct Storage {
    dir: PathBuf,
    driver: &'static str,
}

impl Buildah {
    /// Finds buildah. Chooses the driver `overlay`, or `vfs` where overlay does not work. Prints a
    /// note when buildah is absent, or when its driver is `vfs`.
    pub(crate) fn find() -> Option<Self> {
        let version = Command::new("buildah").arg("--version").output().ok();
        if !version.is_some_and(|out| out.status.success()) {
            println!("note: buildah is absent, so rows of it are missing");
            return None;
        }
        // Every command sets up its storage's driver.
        let overlay = Self { driver: "overlay" };
        let parent = tempfile::Builder::new().prefix("wrenn-buildah-").tempdir_in("/var/tmp");
        let parent = parent.unwrap();
        let storage = overlay.storage(parent.path(), "probe");
        if storage.command().args(["images", "--quiet"]).output().unwrap().status.success() {
            return Some(overlay);
        }
        println!("note: buildah's overlay driver does not work here, so it copies files by vfs");
        Some(Self { driver: "vfs" })
    }

    /// Makes an empty storage in a folder.
    pub(crate) fn storage(&self, parent: &Path, name: &str) -> Storage {
        let dir = parent.join(name);
        fs::create_dir(&dir).unwrap();
        Storage { dir, driver: self.driver }
    }
}

impl Storage {
    /// Returns a command of buildah that works in this storage.
    fn command(&self) -> Command {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(self.dir.join("root"));
        command.arg("--runroot").arg(self.dir.join("run"));
        command.args(["--storage-driver", self.driver]).stdin(Stdio::null());
        command
    }

    /// Pulls an image by plain HTTP.
    pub(crate) fn pull(&self, reference: &str) -> Duration {
        timed(self.command().args(["pull", "--quiet", "--tls-verify=false", reference]))
    }

    /// Builds the Dockerfile in a folder, in a chroot.
    pub(crate) fn build(&self, dir: &Path, cached: bool) -> Duration {
        let mut command = self.command();
        command.args(["bud", "--quiet", "--isolation", "chroot", "--layers"]);
        if !cached {
            command.arg("--no-cache");
        }
        timed(command.arg(dir))
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // The overlay driver may leave its folder mounted onto itself.
        let mounted = self.dir.join("root").join(self.driver);
        let _ = Command::new("umount").arg(mounted).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Times a command that must succeed.
fn timed(command: &mut Command) -> Duration {
    let since = Instant::now();
    let out = command.output().unwrap();
    let took = since.elapsed();
    assert!(out.status.success(), "buildah: {}", String::from_utf8_lossy(&out.stderr));
    took
}
