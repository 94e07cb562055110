//! Platform for one test: `wrenn up` in a folder of its own. The test kills and starts it at will.
//! At the test's end it is removed, and nothing may be left.

use crate::balancer::Balancer;
use crate::client::Client;
use crate::cluster::share_cluster;
use crate::guard::{Leftovers, held_in_removed_namespaces};
use crate::pools::set_no_pools;
use crate::replica::Replica;
use crate::trees::{copy_images, link_trees};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Variable that makes every platform two control planes behind a balancer.
const REPLICAS: &str = "WRENN_TEST_REPLICAS";
/// Time limit for a start, long enough for a machine that is itself emulated.
const START: Duration = Duration::from_secs(240);
/// Time limit for repeated looks at the agent's open descriptors.
const HELD: Duration = Duration::from_secs(5);

/// Variable that chooses the driver of real guests in the whole suite. The value `firecracker`
/// selects the Firecracker that `WRENN_TEST_FIRECRACKER` names.
const GUESTS: &str = "WRENN_TEST_GUESTS";
const FIRECRACKER: &str = "WRENN_TEST_FIRECRACKER";

/// Driver of a test's machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// No machine: envd runs on this machine.
    Fake,
    /// Real guests under software emulation, which every machine has, or by Firecracker.
    Guests,
}

/// Returns the path of the Firecracker that runs the guests, or `None` under software emulation.
#[must_use]
pub fn firecracker() -> Option<PathBuf> {
    if !std::env::var(GUESTS).is_ok_and(|guests| guests == "firecracker") {
        return None;
    }
    Some(std::env::var(FIRECRACKER).expect("WRENN_TEST_FIRECRACKER names it").into())
}

/// Sets the suite's driver for real guests in a command of the product. Nothing is kept ready for
/// creates, unless the command gets such settings later.
pub fn set_guests(command: &mut Command) {
    set_no_pools(command);
    command.env("WRENN_ENVD", binary("envd"));
    match firecracker() {
        None => command.env("WRENN_DRIVER", "tcg"),
        Some(path) => {
            command.env("WRENN_FIRECRACKER", path).env("WRENN_FIRECRACKER_ANY_VERSION", "1");
            command.env("WRENN_DRIVER", "firecracker")
        }
    };
}

/// Platform of a test.
pub struct Platform {
    dir: TempDir,
    driver: Driver,
    vars: Vec<(String, String)>,
    process: Option<Child>,
    url: String,
    key: String,
    cleaned: bool,
    /// Second control plane and balancer, when the suite runs with two control planes.
    second: Option<(Replica, Balancer)>,
}

/// Returns the path of a binary of this workspace: the one that a variable names, or the one in the
/// build folder.
///
/// # Panics
/// When the binary was not built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let built = match name {
        "envd" => root.join("target/guest/x86_64-unknown-linux-gnu/guest/envd"),
        name => root.join("target/debug").join(name),
    };
    let path = std::env::var(format!("{}_BIN", name.to_uppercase())).map_or(built, PathBuf::from);
    assert!(path.exists(), "{} is missing: run ./test, which builds it", path.display());
    path.canonicalize().unwrap()
}

/// Waits for a line that starts with `begin` in a process's output file. Returns the rest of the
/// line.
///
/// # Panics
/// When the process ends, or the line does not come in time.
pub fn told(file: &Path, begin: &str, process: &mut Child) -> String {
    let limit = Instant::now() + START;
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if let Some(rest) = text.lines().find_map(|line| Some(line.split_once(begin)?.1)) {
            return rest.to_owned();
        }
        let ended = process.try_wait().unwrap();
        assert!(ended.is_none(), "it ended before it said `{begin}`: {text}");
        assert!(Instant::now() < limit, "it did not say `{begin}`: {text}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns a folder for platforms without guests: in memory, if there is room. Each platform makes and
/// removes a thousand files of a database, which takes a disk longer than the test itself.
#[must_use]
pub fn memory_or_disk() -> PathBuf {
    const ROOM: u64 = 4 << 30;
    let memory = PathBuf::from("/dev/shm");
    match rustix::fs::statvfs(&memory) {
        Ok(found) if found.f_bavail * found.f_frsize > ROOM => memory,
        _ => std::env::temp_dir(),
    }
}

impl Platform {
    /// Starts a platform with further variables.
    pub async fn start(driver: Driver, vars: &[(&str, &str)]) -> Self {
        let parent = match driver {
            Driver::Guests => std::env::temp_dir(),
            Driver::Fake => memory_or_disk(),
        };
        Self::start_in(driver, &parent, vars).await
    }

    /// Starts a platform with further variables, in a new folder below `parent`.
    pub async fn start_in(driver: Driver, parent: &Path, vars: &[(&str, &str)]) -> Self {
        let mut this = Self::prepare(driver, parent, vars);
        share_cluster(&this.dir(), &this.vars);
        this.resume().await;
        this
    }

    /// Starts a platform that makes its own PostgreSQL cluster, as on a user's machine.
    pub async fn start_with_new_cluster(driver: Driver, vars: &[(&str, &str)]) -> Self {
        let mut this = Self::prepare(driver, &std::env::temp_dir(), vars);
        this.resume().await;
        this
    }

    /// Makes the folder of a platform that does not run yet.
    fn prepare(driver: Driver, parent: &Path, vars: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("wrenn-test-").tempdir_in(parent).unwrap();
        let vars = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let (url, key) = (String::new(), String::new());
        let (process, cleaned, second) = (None, false, None);
        let this = Self { dir, driver, vars, process, url, key, cleaned, second };
        if driver == Driver::Guests {
            this.share_images();
        }
        this
    }

    /// Builds the images once for all tests, and links them into the platform's folder.
    fn share_images(&self) {
        let store = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-images");
        std::fs::create_dir_all(&store).unwrap();
        let store = store.canonicalize().unwrap();
        let built = Command::new(binary("wrenn"))
            .args(["image", "build"])
            .arg("--envd")
            .arg(binary("envd"))
            .env("WRENN_DIR", &store)
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        std::fs::create_dir_all(self.dir()).unwrap();
        match self.builds_templates() {
            true => copy_images(&store.join("images"), &self.dir().join("images")),
            false => {
                let images = self.dir().join("images");
                std::os::unix::fs::symlink(store.join("images"), images).unwrap();
            }
        }
        link_trees(&store.join("golden"), &self.dir().join("golden"));
    }

    /// Reports whether the platform pulls images. Its images and machines are then its own.
    fn builds_templates(&self) -> bool {
        self.vars.iter().any(|(name, _)| name == "WRENN_REGISTRIES")
    }

    /// Leaves the templates' booted machines for later tests, which use them as long as they fit.
    fn leave_golden(&self) {
        if self.builds_templates() {
            return;
        }
        let store = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-images");
        link_trees(&self.dir().join("golden"), &store.join("golden"));
    }

    /// Sets a variable for the platform's next start, or removes it.
    pub fn set_var(&mut self, name: &str, value: Option<&str>) {
        self.vars.retain(|(known, _)| known != name);
        self.vars.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    /// Waits until the platform's process has ended by itself.
    ///
    /// # Panics
    /// When the process does not end in time.
    pub fn wait_dead(&mut self) {
        let limit = Instant::now() + START;
        let mut process = self.process.take().unwrap();
        while process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < limit, "the platform lives on: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Folder of everything the platform keeps.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("w")
    }

    /// Returns the log of the platform's process, over all starts.
    #[must_use]
    pub fn log(&self) -> String {
        let log = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Returns the command that starts the platform, with its output kept in files. Ports are free
    /// ones, unless the platform's variables name others.
    #[must_use]
    pub fn up_command(&self) -> Command {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log"));
        let mut command = self.wrenn();
        command.arg("up").env("WRENN_AGENT_LISTEN_ADDR", "127.0.0.1:0");
        command.env("WRENN_CP_LISTEN_ADDR", "127.0.0.1:0");
        self.set(&mut command);
        command.stdin(Stdio::null()).stdout(File::create(self.said()).unwrap());
        command.stderr(log.unwrap());
        command
    }

    /// Returns the command that removes the platform.
    #[must_use]
    pub fn clean_command(&self) -> Command {
        let mut command = self.wrenn();
        self.set(command.arg("clean"));
        command.stdin(Stdio::null());
        command
    }

    /// Path of the file with the platform's standard output.
    pub(crate) fn said(&self) -> PathBuf {
        self.dir.path().join("said")
    }

    /// Sets the driver and the address range, which belongs to the test worker.
    fn set(&self, command: &mut Command) {
        let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").unwrap_or_else(|_| "200".to_owned());
        command.env("WRENN_NETWORK", format!("10.199.{slot}.0/24"));
        match self.driver {
            Driver::Fake => {
                set_no_pools(command);
                command.env("WRENN_DRIVER", format!("fake:{}", binary("envd").display()));
            }
            Driver::Guests => set_guests(command),
        }
        self.set_vars(command);
    }

    /// Sets the variables that every process of the platform needs.
    pub(crate) fn set_vars(&self, command: &mut Command) {
        command.env("WRENN_MAIL_OUTBOX", self.outbox());
        command.envs(self.vars.iter().map(|(k, v)| (k, v)));
    }

    /// Folder that mails are written to.
    #[must_use]
    pub fn outbox(&self) -> PathBuf {
        self.dir.path().join("outbox")
    }

    /// Starts the platform, again if it ran before, and waits until it serves.
    pub async fn resume(&mut self) {
        self.process = Some(self.up_command().spawn().unwrap());
        let said = self.said();
        let process = self.process.as_mut().unwrap();
        self.url = told(&said, "Wrenn serves ", process);
        let file = std::fs::read(self.dir.path().join("client.json")).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
        self.key = file["api_key"].as_str().unwrap().to_owned();
        if std::env::var_os(REPLICAS).is_some() {
            self.join_second(file);
        }
    }

    /// Starts a second control plane beside the first, and a balancer in front of both.
    fn join_second(&mut self, mut file: serde_json::Value) {
        let replica = Replica::start(self);
        let balancer = Balancer::start(&[&self.url, &replica.url]);
        self.url.clone_from(&balancer.url);
        file["url"] = self.url.clone().into();
        std::fs::write(self.dir.path().join("client.json"), file.to_string()).unwrap();
        self.second = Some((replica, balancer));
    }

    /// Kills the platform's process, as `kill -9` does.
    pub fn kill(&mut self) {
        self.second = None;
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Returns the process id of the platform.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Child::id)
    }

    /// Returns a client with the first key.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client_with(&self.key)
    }

    /// Returns the first key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns a client with another key.
    #[must_use]
    pub fn client_with(&self, key: &str) -> Client {
        Client::new(&self.url, key)
    }

    /// Returns the URL of the API.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the platform's own authority.
    ///
    /// # Panics
    /// When the platform has none.
    #[must_use]
    pub fn authority(&self) -> pki::Authority {
        let read = |name: &str| std::fs::read_to_string(self.dir().join("pki").join(name)).unwrap();
        pki::Authority::load(&read("ca.crt"), &read("ca.key")).unwrap()
    }

    /// Names the platform's authority to another role that runs beside the platform.
    pub fn name_authority(&self, command: &mut Command) {
        command.env("WRENN_CA_CERT", self.dir().join("pki/ca.crt"));
        command.env("WRENN_CA_KEY", self.dir().join("pki/ca.key"));
    }

    /// Returns the address of the host agent.
    ///
    /// # Panics
    /// When the log does not contain it.
    #[must_use]
    pub fn agent_address(&self) -> String {
        let log = self.log();
        let told =
            log.lines().rev().find_map(|line| line.split_once("agent=")?.1.split(' ').next());
        told.expect("the log tells the agent's address").to_owned()
    }

    /// Returns a client of the host agent that acts as a control plane.
    #[must_use]
    pub fn agent_client(&self) -> Client {
        Client::of_agent(&self.agent_address(), &self.authority())
    }

    /// Returns a client of the host agent at an address.
    #[must_use]
    pub fn client_of_agent(&self, address: &str) -> Client {
        Client::of_agent(address, &self.authority())
    }

    /// Returns the database's URL, for checks behind the API.
    #[must_use]
    pub fn database_url(&self) -> String {
        let socket = self.dir().join("postgres/run").display().to_string().replace('/', "%2F");
        format!("postgres://wrenn@{socket}/wrenn")
    }

    /// Returns the process id of the private PostgreSQL, from its own file.
    ///
    /// # Panics
    /// When the file names no process.
    #[must_use]
    pub fn postgres_pid(&self) -> i32 {
        let file = self.dir().join("postgres/data/postmaster.pid");
        std::fs::read_to_string(file).unwrap().lines().next().unwrap().parse().unwrap()
    }

    /// Creates another database in the platform's PostgreSQL and returns its URL.
    pub async fn separate_database(&self) -> String {
        let socket = self.dir().join("postgres/run");
        let made = Command::new("psql")
            .args(["-U", "wrenn", "-d", "wrenn", "-c", "CREATE DATABASE separate", "-h"])
            .arg(&socket)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        self.database_url().replace("/wrenn", "/separate").replace("//separate@", "//wrenn@")
    }

    /// Starts a separate host agent in a folder of its own, with the fake driver. Returns the
    /// process and its address. An agent that belongs to no platform yet registers with the control
    /// plane of `operator`.
    pub async fn agent(&self, operator: &Client, dir: &Path, listen: &str) -> (Child, String) {
        let log = dir.join("agent.log");
        let mut command = self.wrenn();
        command.args(["agent", "--agent-listen", listen]).env("WRENN_DIR", dir);
        if !dir.join("host-credentials.json").exists() {
            let invited = operator.post("/v1/hosts", &serde_json::json!({})).await.expect(201);
            command.env("WRENN_REGISTER_TOKEN", invited["registration_token"].as_str().unwrap());
            command.args(["--control-plane", operator.base()]);
        }
        set_no_pools(&mut command);
        command.envs(self.vars.iter().map(|(k, v)| (k, v)));
        command.env("WRENN_DRIVER", format!("fake:{}", binary("envd").display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let mut process = command.spawn().unwrap();
        let address = told(&log, "the host agent serves address=", &mut process);
        (process, address.trim_matches('"').to_owned())
    }

    /// Returns the `wrenn` command, set up to use this platform.
    #[must_use]
    pub fn wrenn(&self) -> Command {
        let mut command = Command::new(binary("wrenn"));
        command.env("WRENN_DIR", self.dir());
        command.env("WRENN_CLIENT_FILE", self.dir.path().join("client.json"));
        command
    }

    /// Runs a client command to its end.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Output {
        self.wrenn().args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Finds everything that belongs to this platform on the machine.
    #[must_use]
    pub fn leftovers(&self) -> Leftovers {
        Leftovers::of(&self.dir())
    }

    /// Looks at the platform until a condition holds, and returns the last look. A removal answers
    /// before everything of the capsule is gone.
    ///
    /// # Panics
    /// When the condition does not hold in time. The message quotes `what`.
    pub async fn left_until(&self, what: &str, holds: impl Fn(&Leftovers) -> bool) -> Leftovers {
        Leftovers::until(&self.dir(), what, holds).await
    }

    /// Ends the test: removes the platform and checks that nothing is left.
    ///
    /// # Panics
    /// When something is left.
    pub fn finish(mut self) {
        if self.driver == Driver::Guests {
            self.leave_golden();
            self.check_held();
        }
        self.clean().unwrap();
        let left = self.leftovers();
        assert!(left.is_empty(), "left behind: {left:?}");
        assert!(!self.dir().exists(), "the folder is left");
    }

    /// Checks that the agent has nothing open in namespaces of removed capsules. A socket that has
    /// just opened is in no table yet, so the check may look several times.
    fn check_held(&self) {
        let limit = Instant::now() + HELD;
        let mut held = held_in_removed_namespaces(self.pid());
        while !held.is_empty() && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(50));
            held = held_in_removed_namespaces(self.pid());
        }
        assert!(held.is_empty(), "the agent has open in namespaces that are gone: {held:?}");
    }

    fn clean(&mut self) -> Result<(), String> {
        self.cleaned = true;
        if self.process.is_some() {
            self.stop();
        }
        let cleaned = self.clean_command().output().unwrap();
        let said = String::from_utf8_lossy(&cleaned.stderr);
        if cleaned.status.success() { Ok(()) } else { Err(format!("wrenn clean: {said}")) }
    }

    /// Stops the platform in order.
    pub fn stop(&mut self) {
        self.second = None;
        if let Some(mut process) = self.process.take() {
            let stopped = self.run(&["stop"]);
            let said = String::from_utf8_lossy(&stopped.stderr);
            assert!(stopped.status.success(), "wrenn stop: {said}");
            assert!(process.wait().unwrap().success(), "{}", self.log());
        }
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the platform's log\n{}", self.log());
            self.kill();
        }
        if !self.cleaned
            && let Err(error) = self.clean()
        {
            eprintln!("--- {error}");
        }
    }
}
