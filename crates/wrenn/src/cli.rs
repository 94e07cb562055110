//! The command line: what can be asked, and nothing of how it is done.

mod account;
mod host;

pub(crate) use account::{
    Account, Activate, Audit, CreateKey, Key, Limits, Login, ResetPassword, SignUp, Team, User,
};
pub(crate) use host::{Host, Pki};

use crate::settings::{Agent, ControlPlane, Folder, Log, Plaintext};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Runs untrusted programs, each in a microVM of its own.
#[derive(Parser, Debug)]
#[command(name = "wrenn", version, propagate_version = true)]
pub(crate) struct Cli {
    /// Results as JSON.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(flatten)]
    pub api: Api,
    #[command(subcommand)]
    pub command: Command,
}

/// Which platform the client commands talk to; by default the one on this machine.
#[derive(Args, Debug, Clone)]
pub(crate) struct Api {
    /// URL of the platform.
    #[arg(long, global = true, env = "WRENN_BASE_URL")]
    pub url: Option<String>,
    /// API key; better in the variable, since arguments are seen by every user of a machine.
    #[arg(long, global = true, env = "WRENN_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Id of the team that a user's command is for.
    #[arg(long, global = true, env = "WRENN_TEAM")]
    pub in_team: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Start, list, enter and end capsules.
    #[command(subcommand, visible_alias = "c")]
    Capsule(Capsule),
    /// What capsules start from.
    #[command(subcommand)]
    Template(Template),
    /// Capsules that were kept, and that others start from.
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// The machines that run capsules.
    #[command(subcommand)]
    Host(Host),
    #[command(flatten)]
    Account(Account),
    /// The team that the commands are for: members, limits, usage.
    #[command(subcommand)]
    Team(Team),
    /// The team's API keys.
    #[command(subcommand)]
    Key(Key),
    /// Who did what in the team.
    Audit(Audit),
    /// Users of the platform, for its admins.
    #[command(subcommand)]
    User(User),
    /// Say whether this machine has what it takes, and how to fix what it lacks.
    Doctor(Doctor),
    /// Run everything in one process: database, host agent, control plane.
    Up(Box<Up>),
    /// Stop the platform that `wrenn up` started; capsules run on.
    Stop(Folder),
    /// Stop the platform and remove it: capsules, networks, files, keys.
    Clean(Clean),
    /// Print the path of the file by which the commands on this machine find the platform.
    ClientFile,
    /// Run a control plane alone.
    ControlPlane(Box<ControlPlaneRole>),
    /// Run a host agent alone.
    Agent(AgentRole),
    /// The authority that vouches for hosts and control planes.
    #[command(subcommand)]
    Pki(Pki),
    /// Make what guests boot from.
    #[command(subcommand)]
    Image(Image),
}

#[derive(Subcommand, Debug)]
pub(crate) enum Capsule {
    /// Start a capsule and print its id.
    Create(Create),
    /// List the capsules that are not gone.
    #[command(visible_alias = "ls")]
    List,
    /// Show one capsule.
    Get { capsule: String },
    /// Run a command in a capsule; its output and exit code are passed on.
    Exec(Exec),
    /// Open an interactive shell in a capsule.
    Shell(Shell),
    /// Keep capsules with their memory and end their machines.
    Pause(Pause),
    /// Bring paused capsules back.
    Resume(Resume),
    /// Start capsules that begin as a running or paused one is, and print their ids.
    Fork(Fork),
    /// Keep a capsule as it is, for others to start from; it goes on.
    Snapshot(TakeSnapshot),
    /// Set how long a capsule may run.
    Timeout(Timeout),
    /// Replace the rules for what a capsule may reach outside; without any, all of it but private
    /// ranges.
    Network(Network),
    /// Copy a file or a folder with its modes and times; one side is CAPSULE:PATH, `-` is standard
    /// input or output.
    Cp(Cp),
    /// End capsules and remove all they had.
    #[command(visible_alias = "rm")]
    Kill {
        #[arg(required = true)]
        capsules: Vec<String>,
    },
    /// Print what a capsule's guest wrote to its console.
    Logs { capsule: String },
    /// List the processes that were started in a capsule.
    Ps { capsule: String },
    /// List the servers that listen in a running capsule, with their URLs.
    Ports { capsule: String },
    /// Print the URL of a capsule's port; with --expires, one that lets any browser in.
    Url(Url),
    /// Let anyone reach a port of a capsule by its URL.
    Publish {
        capsule: String,
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Let only those in who are admitted, as before `publish`.
    Unpublish {
        capsule: String,
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Open a port on this machine that leads to one of a capsule, until interrupted.
    Forward(Forward),
    /// Replace the traffic token of a capsule and print the new one; the old one ends at once.
    RotateToken { capsule: String },
    /// End every preview link of a capsule at once.
    RotateLinks { capsule: String },
}

#[derive(Args, Debug)]
pub(crate) struct Create {
    /// Name of a template or a snapshot.
    #[arg(default_value = "base")]
    pub template: String,
    /// Virtual processors, 1 to 32.
    #[arg(long)]
    pub vcpus: Option<u32>,
    /// Memory in MiB, 128 to 65,536.
    #[arg(long = "memory")]
    pub memory_mb: Option<u32>,
    /// Disk in MiB, 64 to 102,400.
    #[arg(long = "disk")]
    pub disk_mb: Option<u32>,
    /// How long it may run, as `90s`, `30m` or `2h`.
    #[arg(long)]
    pub timeout: Option<humantime::Duration>,
    /// What is done then: `pause`, `pause_disk`, which keeps no memory, or `kill`.
    #[arg(long, value_parser = ["pause", "pause_disk", "kill"])]
    pub on_timeout: Option<String>,
    /// How long it may be idle until it is paused.
    #[arg(long)]
    pub idle: Option<humantime::Duration>,
    /// Resume it when something is asked of it while it is paused.
    #[arg(long)]
    pub auto_resume: bool,
    /// A port that anyone may reach by its URL; repeatable.
    #[arg(long, value_name = "PORT")]
    pub public: Vec<u16>,
    /// Let anyone reach all of its ports by their URLs.
    #[arg(long)]
    pub public_traffic: bool,
    /// The name that its programs are asked by, as `localhost:${PORT}`; the public one by default.
    #[arg(long, value_name = "NAME")]
    pub host_header: Option<String>,
    #[command(flatten)]
    pub network: Rules,
    /// A tag that its host must bear; may be given again.
    #[arg(long = "host-tag", value_name = "TAG")]
    pub host_tags: Vec<String>,
    /// NAME=VALUE for every process in it; repeatable.
    #[arg(long = "env", short, value_parser = pair)]
    pub envs: Vec<(String, String)>,
    /// NAME=VALUE kept with it; repeatable.
    #[arg(long, value_parser = pair)]
    pub metadata: Vec<(String, String)>,
}

/// What a capsule may reach outside: what is allowed goes before what is denied.
#[derive(Args, Debug)]
pub(crate) struct Rules {
    /// Deny all that is not allowed.
    #[arg(long)]
    pub no_internet: bool,
    /// An address, a range or a name, as 1.1.1.1, 10.0.0.0/8, example.com or *.example.com, that it
    /// may reach; repeatable.
    #[arg(long = "allow", value_name = "RULE")]
    pub allow: Vec<String>,
    /// One that it may not reach; repeatable.
    #[arg(long = "deny", value_name = "RULE")]
    pub deny: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Network {
    pub capsule: String,
    #[command(flatten)]
    pub rules: Rules,
}

#[derive(Args, Debug)]
pub(crate) struct Pause {
    #[arg(required = true)]
    pub capsules: Vec<String>,
    /// Keep only the disk; they boot when they are resumed.
    #[arg(long)]
    pub disk_only: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Resume {
    #[arg(required = true)]
    pub capsules: Vec<String>,
    /// How long each may run.
    #[arg(long)]
    pub timeout: Option<humantime::Duration>,
    /// Leave memory that was kept aside and boot on the disk.
    #[arg(long)]
    pub boot: bool,
    /// Number of an earlier snapshot of the capsule, where the last is damaged.
    #[arg(long)]
    pub snapshot: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct Fork {
    pub capsule: String,
    /// How many, at most 100.
    #[arg(long, short = 'n', default_value_t = 1)]
    pub count: u32,
    /// How long each may run.
    #[arg(long)]
    pub timeout: Option<humantime::Duration>,
}

#[derive(Args, Debug)]
pub(crate) struct TakeSnapshot {
    pub capsule: String,
    /// Name for it; made when left out.
    #[arg(long)]
    pub name: Option<String>,
    /// Have an earlier one of this name give way.
    #[arg(long, requires = "name")]
    pub overwrite: bool,
    /// Keep only the disk; those that start from it boot.
    #[arg(long)]
    pub disk_only: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Timeout {
    pub capsule: String,
    /// From now, as `90s`, `30m` or `2h`; without it, never.
    pub after: Option<humantime::Duration>,
    /// What is done then: `pause`, `pause_disk` or `kill`.
    #[arg(long, value_parser = ["pause", "pause_disk", "kill"])]
    pub on_timeout: Option<String>,
    /// How long it may be idle until it is paused; `0s` for ever.
    #[arg(long)]
    pub idle: Option<humantime::Duration>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Snapshot {
    /// List them.
    #[command(visible_alias = "ls")]
    List,
    /// Remove snapshots; capsules that began from them go on.
    #[command(visible_alias = "rm")]
    Delete {
        #[arg(required = true)]
        snapshots: Vec<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Exec {
    pub capsule: String,
    /// NAME=VALUE for the command; repeatable.
    #[arg(long = "env", short, value_parser = pair)]
    pub envs: Vec<(String, String)>,
    /// Folder to run it in.
    #[arg(long, short = 'w')]
    pub cwd: Option<String>,
    /// Account of the guest.
    #[arg(long, short)]
    pub user: Option<String>,
    /// Seconds until the command is killed; none by default.
    #[arg(long)]
    pub timeout: Option<u32>,
    /// Give it a terminal.
    #[arg(long, short)]
    pub tty: bool,
    /// Do not pass standard input on, which is done when it is no terminal.
    #[arg(long, short = 'n')]
    pub no_stdin: bool,
    /// The command and its arguments; `--` before it keeps its flags its own.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Cp {
    /// Source. A folder that ends with `/.` stands for its contents.
    pub from: String,
    /// Target. A folder that is there gets the source into it.
    pub to: String,
    /// Copy a folder with all below it; links stay links.
    #[arg(long, short)]
    pub recursive: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Url {
    pub capsule: String,
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// How long the link lets a browser in, as `30m`, `1h` or `2days`; at most 30 days.
    #[arg(long)]
    pub expires: Option<humantime::Duration>,
}

#[derive(Args, Debug)]
pub(crate) struct Forward {
    pub capsule: String,
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Port of this machine, the same by default; 0 is any that is free.
    pub local: Option<u16>,
    /// Address of this machine.
    #[arg(long, default_value = "127.0.0.1")]
    pub bind: std::net::IpAddr,
}

#[derive(Args, Debug)]
pub(crate) struct Shell {
    pub capsule: String,
    /// Account of the guest.
    #[arg(long, short)]
    pub user: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Template {
    /// List them.
    #[command(visible_alias = "ls")]
    List,
    /// Have a template's capsules begin only on hosts of a tier of isolation, or a better one.
    Require {
        template: String,
        /// `none`, `tcg`, `kvm` or `jailed`.
        tier: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Boot a guest on each driver again, and ignore remembered results.
    #[arg(long)]
    pub probe: bool,
    #[command(flatten)]
    pub folder: Folder,
    #[command(flatten)]
    pub agent: Agent,
}

#[derive(Args, Debug)]
pub(crate) struct Up {
    #[command(flatten)]
    pub folder: Folder,
    #[command(flatten)]
    pub agent: Agent,
    #[command(flatten)]
    pub control_plane: ControlPlane,
    #[command(flatten)]
    pub plaintext: Plaintext,
    #[command(flatten)]
    pub log: Log,
    #[command(flatten)]
    pub envd: Envd,
}

#[derive(Args, Debug)]
pub(crate) struct Clean {
    #[command(flatten)]
    pub folder: Folder,
    #[command(flatten)]
    pub agent: Agent,
}

#[derive(Args, Debug)]
pub(crate) struct ControlPlaneRole {
    #[command(flatten)]
    pub control_plane: ControlPlane,
    #[command(flatten)]
    pub plaintext: Plaintext,
    #[command(flatten)]
    pub log: Log,
}

#[derive(Args, Debug)]
pub(crate) struct AgentRole {
    #[command(flatten)]
    pub folder: Folder,
    #[command(flatten)]
    pub agent: Agent,
    /// Become a host of a platform, with a token of `wrenn host add`. Later starts go by what was
    /// given then.
    #[arg(long, value_name = "TOKEN", env = "WRENN_REGISTER_TOKEN", hide_env_values = true)]
    pub register: Option<String>,
    /// Where control planes reach this host, as 10.0.0.7:8001; by default where it listens.
    #[arg(long, value_name = "IP:PORT", env = "WRENN_HOST_ADDRESS", requires = "register")]
    pub address: Option<String>,
    /// URL of the platform's API, to register at.
    #[arg(long, value_name = "URL", env = "WRENN_CP_URL", default_value = "http://127.0.0.1:8000")]
    pub control_plane: String,
    #[command(flatten)]
    pub plaintext: Plaintext,
    #[command(flatten)]
    pub log: Log,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Image {
    /// Make the guest's kernel, its initramfs and the template `base`, if out of date.
    Build(Build),
}

#[derive(Args, Debug)]
pub(crate) struct Build {
    #[command(flatten)]
    pub folder: Folder,
    #[command(flatten)]
    pub envd: Envd,
    /// Make them anew from the distribution's newest packages.
    #[arg(long)]
    pub refresh: bool,
}

/// Where the guest's agent is.
#[derive(Args, Debug)]
pub(crate) struct Envd {
    /// The static `envd`; by default the one beside this program.
    #[arg(long, env = "WRENN_ENVD")]
    envd: Option<PathBuf>,
}

impl Envd {
    /// The one that was named, else the one beside this program, if there is one.
    pub(crate) fn find(self) -> Option<PathBuf> {
        let beside = || Some(std::env::current_exe().ok()?.with_file_name("envd"));
        self.envd.or_else(|| beside().filter(|path| path.exists()))
    }
}

/// What kind of terminal we run on, for programs in a capsule.
pub(crate) fn terminal_type() -> Option<String> {
    std::env::var("TERM").ok().filter(|term| !term.is_empty() && term != "dumb")
}

fn pair(text: &str) -> Result<(String, String), String> {
    let split = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = split.ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_commands_flags_are_its_own() {
        let cli =
            Cli::try_parse_from(["wrenn", "c", "exec", "cl-x", "ls", "-la", "--json"]).unwrap();
        let Command::Capsule(Capsule::Exec(exec)) = cli.command else { panic!("not exec") };
        assert_eq!(exec.command, ["ls", "-la", "--json"]);
        assert!(!cli.json);
    }
}
