//! Containers in the comparison: Debian's `runc`, which Docker uses too, and gVisor's `runsc`.

use super::bundle::{Bundle, run};
use super::job::{Runtime, Sandbox};
use crate::guests;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A runtime of containers by the OCI's specification.
pub(super) struct Containers {
    program: &'static str,
    /// Arguments before the command.
    options: Vec<String>,
    name: String,
    isolation: String,
    need_mib: u64,
    /// Folder with the unpacked root.
    root: PathBuf,
    /// Folder of states and bundles, in memory. No overlay may lie on an overlay's upper layer.
    dir: TempDir,
}

/// A container that waits for programs.
struct Container<'a> {
    of: &'a Containers,
    id: String,
    bundle: Bundle,
}

impl Containers {
    /// Finds Debian's `runc`.
    pub(super) fn runc(root: &TempDir) -> Result<Self, String> {
        let isolation = "namespaces; the machine's own kernel, without a seccomp profile";
        Self::find("runc", "runc", &[], isolation, 32, root.path())
    }

    /// Finds gVisor's `runsc`, which uses KVM where guests do.
    pub(super) fn runsc(root: &TempDir) -> Result<Self, String> {
        let platform = if guests::driver() == "tcg" { "ptrace" } else { "kvm" };
        let options = [format!("--platform={platform}"), "--network=none".to_owned()];
        let name = format!("gVisor's runsc ({platform})");
        let isolation = "a kernel in user space, in front of the machine's own";
        Self::find("runsc", &name, &options, isolation, 128, root.path())
    }

    fn find(
        program: &'static str,
        name: &str,
        options: &[String],
        isolation: &str,
        need_mib: u64,
        root: &Path,
    ) -> Result<Self, String> {
        run(Command::new(program).arg("--version"))
            .map_err(|_| format!("{program}: not installed; Debian 12 has a package of it"))?;
        let dir = tempfile::Builder::new().prefix("wrenn-compare-").tempdir_in("/dev/shm");
        let dir = dir.map_err(|error| format!("{program}: {error}"))?;
        let mut all = vec![format!("--root={}", dir.path().join("state").display())];
        all.extend_from_slice(options);
        Ok(Self {
            program,
            options: all,
            name: name.to_owned(),
            isolation: isolation.to_owned(),
            need_mib,
            root: root.to_owned(),
            dir,
        })
    }

    /// Returns a command of the runtime.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command.args(&self.options).args(args).stdin(Stdio::null());
        command
    }

    /// Starts the container of a bundle. Its first process keeps the streams open, so they are no
    /// pipes.
    fn create(&self, bundle: &Bundle, id: &str) -> Result<(), String> {
        let log = bundle.dir.join("log");
        let dir = bundle.dir.display().to_string();
        let mut command = self.command(&["run", "--bundle", &dir, "--detach", id]);
        let file = File::create(&log).map_err(|error| error.to_string())?;
        let ended = command.stdout(Stdio::null()).stderr(file).status();
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(_) => {
                let log = fs::read_to_string(log).unwrap_or_default();
                Err(format!("{}: {log:.500}", self.program))
            }
            Err(error) => Err(format!("{}: {error}", self.program)),
        }
    }
}

impl Runtime for Containers {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn isolation(&self) -> String {
        self.isolation.clone()
    }

    fn need_mib(&self) -> u64 {
        self.need_mib
    }

    fn start(&self, number: usize) -> Result<Box<dyn Sandbox + '_>, String> {
        let id = format!("wrenn-compare-{number}");
        let bundle = Bundle::make(self.dir.path().join(&id), &self.root, &id)?;
        if let Err(error) = self.create(&bundle, &id) {
            let _ = run(&mut self.command(&["delete", "--force", &id]));
            let _ = bundle.remove();
            return Err(error);
        }
        Ok(Box::new(Container { of: self, id, bundle }))
    }

    fn end(self: Box<Self>) {}
}

impl Sandbox for Container<'_> {
    fn run(&self, command: &[&str]) -> Result<String, String> {
        let args: Vec<&str> = ["exec", &self.id].iter().chain(command).copied().collect();
        run(&mut self.of.command(&args))
    }

    fn stop(self: Box<Self>) -> Result<(), String> {
        run(&mut self.of.command(&["delete", "--force", &self.id]))?;
        self.bundle.remove()
    }
}
