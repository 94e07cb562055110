//! The machine behind a capsule: one trait, with drivers for Firecracker, for QEMU and for tests.
//!
//! Code above this trait does not know which driver runs. A machine outlives the agent. The
//! capsule's record holds its [`VmmRecord`], by which the next agent finds it again.

pub(crate) mod choose;
#[cfg(any(test, feature = "test-drivers"))]
pub(crate) mod fake;
pub(crate) mod firecracker;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod kvm;
mod metadata;
#[cfg(any(test, feature = "test-drivers"))]
pub(crate) mod null;
pub(crate) mod qemu;
mod qmp;
mod socket;
mod threads;

pub(crate) use threads::Threads;

use crate::network::namespace::Namespace;
use crate::snapshot::layer::Layer;
use crate::snapshot::memory::{Image, Memory};
use crate::sys;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use types::Isolation;
use types::resources::Resources;

/// Name of a driver's own folder in a capsule's folder, kept while the machine runs.
pub(crate) const OWN: &str = "vmm";

/// Reason why a machine could not be made or asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Error {
    pub what: String,
    #[source]
    pub source: Option<io::Error>,
}

impl Error {
    pub(crate) fn new(what: impl Into<String>, source: io::Error) -> Self {
        Self { what: what.into(), source: Some(source) }
    }
}

/// Resources of a new machine. They are open, so that the VMM needs no right to paths.
pub(crate) struct Spec {
    /// Name by which the VMM is found among the processes of the host: the capsule's id.
    pub name: String,
    pub resources: Resources,
    /// The capsule's folder, for sockets and logs.
    pub dir: PathBuf,
    /// Disks of the machine; `None` if the driver boots no images.
    pub disks: Option<Disks>,
    /// Tap of the machine; `None` if the driver needs no network.
    pub tap: Option<OwnedFd>,
    /// Namespace of the tap.
    pub namespace: Option<Namespace>,
    /// Unprivileged user and group of the VMM, which no other capsule's VMM has.
    pub uid: u32,
    /// `cgroup.procs` files for the VMM to enter.
    pub cgroups: Vec<File>,
    pub metadata: Metadata,
    /// Words of the kernel's command line for this machine, after those of every machine. A
    /// restored machine ignores them.
    pub kernel_args: Vec<String>,
}

/// Metadata that a guest reads about itself from the metadata service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub capsule: String,
    pub template: String,
}

impl Metadata {
    /// Returns the metadata as the guest reads it. E2B's agents look for these names.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!({ "instanceID": self.capsule, "envID": self.template })
    }
}

/// A machine that an earlier agent left.
pub(crate) struct Found<'a> {
    pub record: &'a VmmRecord,
    pub name: &'a str,
    pub dir: &'a Path,
    pub uid: u32,
    pub namespace: Option<&'a Namespace>,
    pub metadata: Metadata,
}

/// Saved parts of a machine that is to be restored.
pub(crate) struct Saved {
    /// Memory that the machine maps copy-on-write; nobody can change it.
    pub image: Arc<Image>,
    /// Layers of the machine's own memory, above the image.
    pub above: Arc<Vec<Layer>>,
    /// State of the machine's devices.
    pub state: File,
}

/// A machine's block devices.
pub(crate) struct Disks {
    /// The template's shared image, read-only.
    pub image: File,
    /// The capsule's own disk.
    pub own: File,
    /// Read-only disks after the own disk. Their files have the names of `storage::layer_name` in
    /// the capsule's folder.
    pub read_only: Vec<File>,
    /// Number of placeholder drives after all other drives. It is the number of the saved machine, if
    /// there is one.
    pub placeholders: u8,
}

/// Identity of a machine's process, by which a later agent finds it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct VmmRecord {
    pub pid: i32,
    /// Start of the process, in clock ticks since the boot. With the pid, it identifies one process
    /// until the next boot.
    pub started: u64,
    /// Id of the host's boot in which the process started. After another boot, no process matches.
    pub boot: String,
    /// Port of a fake machine's guest on this host.
    pub port: Option<u16>,
}

impl VmmRecord {
    /// Returns the record of a running process.
    pub(crate) fn of(pid: i32, port: Option<u16>) -> Option<Self> {
        Some(Self { pid, started: sys::start_time(pid)?, boot: sys::boot_id(), port })
    }

    /// Reports whether the process still runs. A running machine must not count as ended. So the
    /// answer is true when the check is not possible, for example without a free descriptor.
    pub(crate) fn is_alive(&self) -> bool {
        self.boot == sys::boot_id()
            && sys::is_there(self.pid, self.started).unwrap_or(true)
            && !sys::is_zombie(self.pid)
    }
}

/// Maker of machines, by one VMM.
pub(crate) trait Driver: Send + Sync {
    /// Returns the name of the driver: `qemu`, `firecracker` or `fake`.
    fn name(&self) -> &'static str;
    /// Returns the accelerator of the machines: `kvm`, `tcg` or `none`.
    fn accelerator(&self) -> &'static str;
    /// Returns the strength of the isolation between machines and this host.
    fn isolation(&self) -> Isolation;
    /// Reports whether machines boot from images, with disks and networks of their own.
    fn boots_images(&self) -> bool;
    /// Reports whether machines map files by their paths.
    fn maps_paths(&self) -> bool {
        false
    }
    /// Returns the most bytes that restoring a memory of `bytes` writes to the host's disk. `above`
    /// is true when the memory has pages above its image.
    fn most_restored(&self, _bytes: u64, _above: bool) -> u64 {
        0
    }
    /// Returns the programs that start machines, without the guest's kernel.
    fn programs(&self) -> Vec<PathBuf> {
        Vec::new()
    }
    /// Returns the VMM's own version, if the fingerprint does not include it.
    fn version(&self) -> String {
        String::new()
    }
    /// Starts a machine. The machine runs on return, but the guest may not answer yet.
    fn boot(&self, spec: Spec) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>>;
    /// Returns VMM, accelerator and processor, which saved machines depend on.
    fn fingerprint(&self) -> String;
    /// Reports whether the driver restores machines that were saved under a fingerprint.
    fn reads(&self, fingerprint: &str) -> bool {
        fingerprint == self.fingerprint()
    }
    /// Makes a machine from saved parts; the machine stands still.
    fn restore(&self, spec: Spec, saved: Saved) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>>;
    /// Finds a machine that an earlier agent started; `None` when it has ended.
    fn adopt(&self, found: Found<'_>) -> Option<Box<dyn Machine>>;
}

/// A machine that was started.
pub(crate) trait Machine: Send + Sync {
    fn record(&self) -> VmmRecord;
    /// Returns the address of the guest's port, if the guest has no namespace.
    fn loopback(&self, _port: u16) -> Option<SocketAddr> {
        None
    }
    /// Waits for the machine's end and returns the reason, for people.
    fn ended(&self) -> BoxFuture<'_, String>;
    /// Returns the VMM's threads that run the guest's processors; `None` for a VMM without such
    /// threads.
    fn vcpus(&self) -> Option<Threads> {
        None
    }
    /// Returns the end of the guest's console output, at most 64 KiB.
    fn console(&self) -> BoxFuture<'_, Vec<u8>>;
    /// Returns the end of the guest's console output, and the count of all bytes until then. The
    /// counts of two results show their overlap.
    fn counted_console(&self) -> BoxFuture<'_, (Vec<u8>, u64)> {
        async {
            let all = self.console().await;
            let count = all.len() as u64;
            (all, count)
        }
        .boxed()
    }
    /// Stops the guest, with all its writes in its disk's file. Fails when the guest has ended.
    fn freeze(&self) -> BoxFuture<'_, Result<(), Error>>;
    /// Makes a stopped guest run; a running guest is success.
    fn thaw(&self) -> BoxFuture<'_, Result<(), Error>>;
    /// Reports whether the VMM has stopped the guest because the host's disk is full. A thaw makes
    /// the guest run again when there is room. A driver that cannot tell returns `false`.
    fn waits_for_room(&self) -> bool {
        false
    }
    /// Reports whether the guest is stopped, for any reason.
    fn is_stopped(&self) -> BoxFuture<'_, Result<bool, Error>> {
        std::future::ready(Ok(false)).boxed()
    }
    /// Returns the most bytes that saving a memory of `bytes` may write.
    fn most_memory(&self, bytes: u64) -> u64 {
        bytes
    }
    /// Writes the devices' state of a frozen machine, which stays frozen, and returns its memory of
    /// `bytes`. Returns `None` for a driver whose machines have no memory to save.
    fn save(&self, state: File, bytes: u64) -> BoxFuture<'_, Result<Option<Memory>, Error>>;
    /// Returns another handle of the machine, after its capsule's folder became `dir`. From then on,
    /// the guest reads `metadata` about itself. The caller drops the earlier handle.
    ///
    /// # Errors
    /// Fails when the metadata cannot be replaced, and for a driver whose machines stay in place.
    fn moved<'a>(
        &'a self,
        _dir: &'a Path,
        _metadata: &'a Metadata,
    ) -> BoxFuture<'a, Result<Arc<dyn Machine>, Error>> {
        let error = Error::new("cannot move the machine", io::ErrorKind::Unsupported.into());
        std::future::ready(Err(error)).boxed()
    }
    /// Ends the machine and waits for its end; an ended machine is success.
    fn kill(&self) -> BoxFuture<'_, Result<(), Error>>;
    /// Returns the last output of the VMM itself, for the log only. The output may name paths of
    /// this host.
    fn log_tail(&self) -> String;
    /// Drops the VMM's log output when there is too much; called repeatedly.
    fn trim_logs(&self);
}

/// Returns the command line of every guest's kernel; see `docs/operations.md` for each word.
fn kernel_words(dns: &[IpAddr]) -> String {
    let dns: Vec<String> = dns.iter().map(IpAddr::to_string).collect();
    format!(
        "quiet loglevel=3 console=ttyS0 random.trust_cpu=on cryptomgr.notests audit=0 \
         8250.nr_uarts=1 init_on_alloc=0 lsm= rcupdate.rcu_expedited=1 wrenn.dns={}",
        dns.join(",")
    )
}

/// Returns a kernel's command line with the words of one machine at its end.
fn with_args(command_line: String, args: &[String]) -> String {
    args.iter().fold(command_line, |line, word| line + " " + word)
}

/// Ends a machine that failed to start. A failure to end it only goes to the log. So the caller
/// returns the error that explains the failed start.
async fn kill_failed(machine: &dyn Machine) {
    if let Err(error) = machine.kill().await {
        tracing::error!(
            %error, source = ?error.source,
            "cannot end a machine that failed to start"
        );
    }
}

/// Replaces the contents of a file of bounded size. The file keeps its blocks, so that a full disk
/// costs it none of its contents.
fn overwrite(file: &File, contents: &[u8]) -> io::Result<()> {
    file.write_all_at(contents, 0)?;
    file.set_len(contents.len() as u64)
}

/// Finds a program on the PATH.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Delay between two looks at the threads of a killed process.
const LOOK: Duration = Duration::from_millis(1);

/// Kills a process by its record, and waits until none of its threads can run any more. The kernel
/// may still free the process's memory, which takes most of the time of an end. [`wait_gone`] waits
/// for that.
pub(crate) async fn halt_record(record: &VmmRecord) -> Result<(), Error> {
    let (pid, started) = (record.pid, record.started);
    if !record.is_alive() {
        return Ok(());
    }
    sys::kill_process(pid, started).map_err(|e| Error::new("cannot end the machine", e))?;
    while sys::start_time(pid) == Some(started) && threads::any_runs(pid) {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Waits until a process that was killed is gone, with its memory and its descriptors.
pub(crate) async fn wait_gone(record: &VmmRecord) -> Result<(), Error> {
    if record.boot != sys::boot_id() {
        return Ok(());
    }
    let gone = sys::wait_end(record.pid, record.started).await;
    gone.map_err(|e| Error::new("cannot wait for the end of the machine", e))
}

/// Kills a process by its record and waits until it is gone.
pub(crate) async fn kill_record(record: &VmmRecord) -> Result<(), Error> {
    let (pid, started) = (record.pid, record.started);
    if !record.is_alive() {
        sys::reap(pid, started);
        return Ok(());
    }
    let done = match sys::kill_process(pid, started) {
        Ok(()) => sys::wait_end(pid, started).await,
        Err(error) => Err(error),
    };
    done.map_err(|e| Error::new("cannot end the machine", e))
}

/// Kills every process that was started as the machine called `name` in the folder `began`, whose
/// path is `dir` today. Processes without a record are included.
pub(crate) async fn kill_named(name: &str, began: &Path, dir: &Path) -> Result<(), Error> {
    for pid in sys::processes_of(name, began, &dir.join(OWN)) {
        if let Some(record) = VmmRecord::of(pid, None) {
            kill_record(&record).await?;
        }
    }
    Ok(())
}

/// Delay before another attempt to wait for a machine's end.
const RETRY: Duration = Duration::from_millis(500);

/// Waits for the end of a process by its record.
pub(crate) async fn wait_record(record: &VmmRecord) {
    let (pid, started) = (record.pid, record.started);
    while record.is_alive() {
        match sys::wait_end(pid, started).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(pid, %error, "cannot wait for the end of a machine"),
        }
        tokio::time::sleep(RETRY).await;
    }
    sys::reap(pid, started);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    #[test]
    fn vmm_that_cannot_be_inspected_counts_as_alive() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let record = VmmRecord::of(i32::try_from(child.id()).unwrap(), None).unwrap();
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
        let alive = record.is_alive();
        let killed = sys::kill_process(record.pid, record.started);
        setrlimit(Resource::Nofile, before).unwrap();
        assert!(alive && killed.is_err());
        sys::kill_process(record.pid, record.started).unwrap();
        child.wait().unwrap();
        assert!(!record.is_alive());
    }

    #[tokio::test]
    async fn vmm_record_of_another_boot_or_start_time_matches_no_process() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let record = VmmRecord::of(i32::try_from(child.id()).unwrap(), None).unwrap();
        assert!(record.is_alive());
        let before = VmmRecord { boot: "another".to_owned(), ..record.clone() };
        let later = VmmRecord { started: record.started + 1, ..record.clone() };
        for other in [before, later] {
            assert!(!other.is_alive());
            kill_record(&other).await.unwrap();
            wait_record(&other).await;
            assert_eq!(child.try_wait().unwrap(), None, "another process was killed");
        }
        halt_record(&record).await.unwrap();
        assert!(!threads::any_runs(record.pid));
        wait_gone(&record).await.unwrap();
        assert_eq!(sys::start_time(record.pid), None, "the process is there after its end");
        // A machine that has ended by itself does not live either, even before it is reaped.
        #[expect(clippy::zombie_processes, reason = "that is what is looked at")]
        let ended = std::process::Command::new("true").spawn().unwrap();
        let record = VmmRecord::of(i32::try_from(ended.id()).unwrap(), None).unwrap();
        while record.is_alive() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert!(sys::is_zombie(record.pid));
        wait_record(&record).await;
        assert_eq!(sys::start_time(record.pid), None, "nobody asked for it");
    }
}
