//! A platform for one test: `wrenn up` in a folder of its own, killed and started at will, and
//! cleaned up with nothing left when the test ends.

use crate::balancer::Balancer;
use crate::client::Client;
use crate::guard::{Leftovers, held_in_removed_namespaces};
use crate::replica::Replica;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Has every platform be two control planes behind a balancer.
const REPLICAS: &str = "WRENN_TEST_REPLICAS";
/// Long enough for a machine that is emulated itself.
const START: Duration = Duration::from_secs(240);
/// Time for which a look at the agent's open descriptors may be repeated.
const HELD: Duration = Duration::from_secs(5);

/// What runs the guests of the whole suite: `firecracker`, which is then that of the other.
const GUESTS: &str = "WRENN_TEST_GUESTS";
const FIRECRACKER: &str = "WRENN_TEST_FIRECRACKER";

/// What runs the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// None: envd on this machine.
    Fake,
    /// Real guests: under software emulation, which every machine has, or by Firecracker.
    Guests,
}

/// The Firecracker that runs the guests; none when software emulation does.
#[must_use]
pub fn firecracker() -> Option<PathBuf> {
    if !std::env::var(GUESTS).is_ok_and(|guests| guests == "firecracker") {
        return None;
    }
    Some(std::env::var(FIRECRACKER).expect("WRENN_TEST_FIRECRACKER names it").into())
}

/// Has a process of the product's run guests by the driver that the suite goes by.
pub fn set_guests(command: &mut Command) {
    command.env("WRENN_ENVD", binary("envd"));
    match firecracker() {
        None => command.env("WRENN_DRIVER", "tcg"),
        Some(path) => {
            command.env("WRENN_FIRECRACKER", path).env("WRENN_FIRECRACKER_ANY_VERSION", "1");
            command.env("WRENN_DRIVER", "firecracker")
        }
    };
}

/// A platform that runs.
pub struct Platform {
    dir: TempDir,
    driver: Driver,
    vars: Vec<(String, String)>,
    process: Option<Child>,
    url: String,
    key: String,
    cleaned: bool,
    /// Where the whole suite goes through two control planes.
    second: Option<(Replica, Balancer)>,
}

/// Where a binary of this workspace is: named by the variable, or in the build folder.
///
/// # Panics
/// When it was not built.
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

/// Waits for a line that a process writes to a file, and returns what follows `begin` in it.
///
/// # Panics
/// When the process ends, or the line does not come.
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

/// Makes the files of each folder in `from` known in a folder of the same name in `to`, unless
/// there is one; all of it or nothing. Where links cannot be made, nothing is shared.
fn link_trees(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let files: Vec<_> =
            std::fs::read_dir(entry.path()).into_iter().flatten().flatten().collect();
        if name.contains('.') || to.join(&name).exists() || files.is_empty() {
            continue;
        }
        let staged = to.join(format!("{name}.{}", std::process::id()));
        std::fs::create_dir_all(&staged).unwrap();
        let linked =
            files.iter().all(|f| std::fs::hard_link(f.path(), staged.join(f.file_name())).is_ok());
        if !linked || std::fs::rename(&staged, to.join(&name)).is_err() {
            let _ = std::fs::remove_dir_all(&staged);
        }
    }
}

impl Platform {
    /// Starts one with these further settings.
    pub async fn start(driver: Driver, vars: &[(&str, &str)]) -> Self {
        Self::start_in(driver, &std::env::temp_dir(), vars).await
    }

    /// Starts one whose folder is below this one.
    pub async fn start_in(driver: Driver, parent: &Path, vars: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("wrenn-test-").tempdir_in(parent).unwrap();
        let vars = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let (url, key) = (String::new(), String::new());
        let (process, cleaned, second) = (None, false, None);
        let mut this = Self { dir, driver, vars, process, url, key, cleaned, second };
        if driver == Driver::Guests {
            this.share_images();
        }
        this.resume().await;
        this
    }

    /// Images are made once, for all tests.
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
        std::os::unix::fs::symlink(store.join("images"), self.dir().join("images")).unwrap();
        link_trees(&store.join("golden"), &self.dir().join("golden"));
    }

    /// The templates' booted machines are made once too, as long as they fit: whoever has made one
    /// leaves it for those who come later.
    fn leave_golden(&self) {
        let store = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-images");
        link_trees(&self.dir().join("golden"), &store.join("golden"));
    }

    /// Sets a variable of its next start, or takes it away.
    pub fn set_var(&mut self, name: &str, value: Option<&str>) {
        self.vars.retain(|(known, _)| known != name);
        self.vars.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    /// Waits until its process has ended by itself.
    ///
    /// # Panics
    /// When it does not.
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

    /// The log of its process, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        let log = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Returns the command that starts it, with its output kept. Ports are free ones, unless the
    /// platform's variables name others.
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

    /// Returns the command that removes it.
    #[must_use]
    pub fn clean_command(&self) -> Command {
        let mut command = self.wrenn();
        self.set(command.arg("clean"));
        command.stdin(Stdio::null());
        command
    }

    /// What the platform says on its standard output.
    fn said(&self) -> PathBuf {
        self.dir.path().join("said")
    }

    /// Names the driver and the range of addresses, which is the test worker's own.
    fn set(&self, command: &mut Command) {
        let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").unwrap_or_else(|_| "200".to_owned());
        command.env("WRENN_NETWORK", format!("10.199.{slot}.0/24"));
        match self.driver {
            Driver::Fake => {
                command.env("WRENN_DRIVER", format!("fake:{}", binary("envd").display()));
            }
            Driver::Guests => set_guests(command),
        }
        self.set_vars(command);
    }

    /// What every process of the platform's is told.
    pub(crate) fn set_vars(&self, command: &mut Command) {
        command.env("WRENN_MAIL_OUTBOX", self.outbox());
        command.envs(self.vars.iter().map(|(k, v)| (k, v)));
    }

    /// Folder that mails are written to.
    #[must_use]
    pub fn outbox(&self) -> PathBuf {
        self.dir.path().join("outbox")
    }

    /// Starts it, again if it ran before, and waits until it serves.
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

    /// Puts a second control plane beside the first, and a balancer before both.
    fn join_second(&mut self, mut file: serde_json::Value) {
        let replica = Replica::start(self);
        let balancer = Balancer::start(&[&self.url, &replica.url]);
        self.url.clone_from(&balancer.url);
        file["url"] = self.url.clone().into();
        std::fs::write(self.dir.path().join("client.json"), file.to_string()).unwrap();
        self.second = Some((replica, balancer));
    }

    /// Ends its process at once, as `kill -9` does.
    pub fn kill(&mut self) {
        self.second = None;
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// The process id of the platform.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Child::id)
    }

    /// A client with the first key.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client_with(&self.key)
    }

    /// A client with another key.
    #[must_use]
    pub fn client_with(&self, key: &str) -> Client {
        Client::new(&self.url, key)
    }

    /// The address of the API.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The platform's own authority.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn authority(&self) -> pki::Authority {
        let read = |name: &str| std::fs::read_to_string(self.dir().join("pki").join(name)).unwrap();
        pki::Authority::load(&read("ca.crt"), &read("ca.key")).unwrap()
    }

    /// Names the platform's authority to a role that is run beside it.
    pub fn name_authority(&self, command: &mut Command) {
        command.env("WRENN_CA_CERT", self.dir().join("pki/ca.crt"));
        command.env("WRENN_CA_KEY", self.dir().join("pki/ca.key"));
    }

    /// The address of the host agent.
    ///
    /// # Panics
    /// When the log does not tell it.
    #[must_use]
    pub fn agent_address(&self) -> String {
        let log = self.log();
        let told =
            log.lines().rev().find_map(|line| line.split_once("agent=")?.1.split(' ').next());
        told.expect("the log tells the agent's address").to_owned()
    }

    /// A client of the host agent, as a control plane is one.
    #[must_use]
    pub fn agent_client(&self) -> Client {
        Client::of_agent(&self.agent_address(), &self.authority())
    }

    /// A client of a host agent at an address.
    #[must_use]
    pub fn client_of_agent(&self, address: &str) -> Client {
        Client::of_agent(address, &self.authority())
    }

    /// The database's URL, for looking behind the API.
    #[must_use]
    pub fn database_url(&self) -> String {
        let socket = self.dir().join("postgres/run").display().to_string().replace('/', "%2F");
        format!("postgres://wrenn@{socket}/wrenn")
    }

    /// The process id of the private PostgreSQL, as it wrote it down last.
    ///
    /// # Panics
    /// When it wrote none.
    #[must_use]
    pub fn postgres_pid(&self) -> i32 {
        let file = self.dir().join("postgres/data/postmaster.pid");
        std::fs::read_to_string(file).unwrap().lines().next().unwrap().parse().unwrap()
    }

    /// Makes another database in the platform's PostgreSQL, and returns its URL.
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

    /// Starts a host agent alone, in a folder of its own, over the fake driver; with its address.
    /// One that belongs to no platform yet registers with the control plane of `operator`.
    pub async fn agent(&self, operator: &Client, dir: &Path, listen: &str) -> (Child, String) {
        let log = dir.join("agent.log");
        let mut command = self.wrenn();
        command.args(["agent", "--agent-listen", listen]).env("WRENN_DIR", dir);
        if !dir.join("host-credentials.json").exists() {
            let invited = operator.post("/v1/hosts", &serde_json::json!({})).await.expect(201);
            command.env("WRENN_REGISTER_TOKEN", invited["registration_token"].as_str().unwrap());
            command.args(["--control-plane", operator.base()]);
        }
        command.envs(self.vars.iter().map(|(k, v)| (k, v)));
        command.env("WRENN_DRIVER", format!("fake:{}", binary("envd").display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let mut process = command.spawn().unwrap();
        let address = told(&log, "the host agent serves address=", &mut process);
        (process, address.trim_matches('"').to_owned())
    }

    /// The command line, with this platform as its own.
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

    /// Looks for what belongs to this platform on the machine.
    #[must_use]
    pub fn leftovers(&self) -> Leftovers {
        Leftovers::of(&self.dir())
    }

    /// Ends the test: everything is removed, and nothing may be left.
    ///
    /// # Panics
    /// When something is.
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

    /// Checks that the agent has nothing open in namespaces of capsules that are gone. A socket
    /// that opens just now is in no table yet, so the check looks more than once.
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

    /// Stops it in order.
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
