//! The grammar of the command line. The code that runs a command lives in `commands`, `platform`
//! and `images`.

mod account;
mod code;
mod host;
mod template;

pub(crate) use account::{
    Account, Activate, Audit, CreateKey, Key, Limits, Login, ResetPassword, SignUp, Team, User,
};
pub(crate) use code::{Code, Pictures, pictures};
pub(crate) use host::{Host, Pki};
pub(crate) use template::{
    BuildFrom, BuildLogs, BuildTemplate, Registry, RegistryLogin, Template, Versions,
};

use crate::settings::{Agent, ControlPlane, Folder, Log, Plaintext, Registries};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Runs untrusted programs, each in a microVM of its own.
#[derive(Parser, Debug)]
#[command(name = "wrenn", version, propagate_version = true)]
pub(crate) struct Cli {
    /// Print results as JSON.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(flatten)]
    pub api: Api,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that name the platform and the caller. By default, client commands use the platform on
/// this machine.
#[derive(Args, Debug, Clone)]
pub(crate) struct Api {
    /// URL of the platform.
    #[arg(long, global = true, env = "WRENN_BASE_URL")]
    pub url: Option<String>,
    /// API key. Prefer the environment variable: every user of a machine can see arguments.
    #[arg(long, global = true, env = "WRENN_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Id of the team that a signed-in user's command is for.
    #[arg(long, global = true, env = "WRENN_TEAM")]
    pub in_team: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Create, list, use and end capsules.
    #[command(subcommand, visible_alias = "c")]
    Capsule(Capsule),
    /// Run code in a capsule's code interpreter, which keeps variables between runs. Results are
    /// text and pictures. Without code on a terminal, open a REPL.
    Code(Code),
    /// Build, list, tag and delete templates, which capsules start from.
    #[command(subcommand, visible_alias = "t")]
    Template(Template),
    /// Store logins to registries, from which builds pull images.
    #[command(subcommand)]
    Registry(Registry),
    /// List and delete snapshots, which other capsules can start from.
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Add, list, drain and delete hosts, the machines that run capsules.
    #[command(subcommand)]
    Host(Host),
    #[command(flatten)]
    Account(Account),
    /// Manage teams: members, invitations, limits, usage.
    #[command(subcommand)]
    Team(Team),
    /// Create, list and revoke the team's API keys.
    #[command(subcommand)]
    Key(Key),
    /// Show the audit log of the team: each action and its actor.
    Audit(Audit),
    /// Manage the platform's users, as an admin.
    #[command(subcommand)]
    User(User),
    /// Check this machine's requirements for the platform, and print a fix for each failed check.
    Doctor(Doctor),
    /// Run everything in one process: database, host agent, control plane.
    Up(Box<Up>),
    /// Stop the platform that `wrenn up` started. Capsules keep running.
    Stop(Folder),
    /// Stop the platform and remove all of its capsules, networks, files and keys.
    Clean(Clean),
    /// Print the path of the file with the platform's URL and key for client commands.
    ClientFile,
    /// Run only a control plane.
    ControlPlane(Box<ControlPlaneRole>),
    /// Run only a host agent.
    Agent(AgentRole),
    /// Create the authority that signs certificates of hosts and control planes, and certificates
    /// for HTTPS.
    #[command(subcommand)]
    Pki(Pki),
    /// Build the files that guests boot from.
    #[command(subcommand)]
    Image(Image),
}

#[derive(Subcommand, Debug)]
pub(crate) enum Capsule {
    /// Start a capsule and print its id.
    Create(Create),
    /// List all capsules that have not ended.
    #[command(visible_alias = "ls")]
    List,
    /// Show one capsule.
    Get {
        /// Id of the capsule.
        capsule: String,
    },
    /// Run a command in a capsule. Its output and exit code become those of this command.
    Exec(Exec),
    /// Open an interactive shell in a capsule.
    Shell(Shell),
    /// Pause capsules: save memory and disk, and stop their machines.
    Pause(Pause),
    /// Resume paused capsules.
    Resume(Resume),
    /// Start copies of a running or paused capsule, and print their ids.
    Fork(Fork),
    /// Take a snapshot of a capsule, from which other capsules can start. The capsule runs on.
    Snapshot(TakeSnapshot),
    /// Set or remove the time at which a capsule is paused or ended.
    Timeout(Timeout),
    /// Replace a capsule's rules for outgoing connections. Without any rule, everything but private
    /// ranges is allowed.
    Network(Network),
    /// Copy a file or folder into or out of a capsule, with modes and times. Write one side as
    /// CAPSULE:PATH; `-` means standard input or output.
    Cp(Cp),
    /// End capsules and remove all of their data.
    #[command(visible_alias = "rm")]
    Kill {
        /// Ids of the capsules.
        #[arg(required = true)]
        capsules: Vec<String>,
    },
    /// Print the console output of a capsule's guest.
    Logs {
        /// Id of the capsule.
        capsule: String,
    },
    /// List the processes that clients started in a capsule.
    Ps {
        /// Id of the capsule.
        capsule: String,
    },
    /// List the listening servers in a running capsule, with their URLs.
    Ports {
        /// Id of the capsule.
        capsule: String,
    },
    /// Print the URL of a capsule's port. With --expires, print a link that admits any browser.
    Url(Url),
    /// Let anyone reach a port of a capsule by its URL.
    Publish {
        /// Id of the capsule.
        capsule: String,
        /// Port in the capsule.
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Undo `publish`: let only authorized callers reach a port of a capsule.
    Unpublish {
        /// Id of the capsule.
        capsule: String,
        /// Port in the capsule.
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Forward a port of this machine to a port of a capsule, until interrupted.
    Forward(Forward),
    /// Replace a capsule's traffic token and print the new one. The old token stops working at
    /// once.
    RotateToken {
        /// Id of the capsule.
        capsule: String,
    },
    /// Invalidate all preview links of a capsule at once.
    RotateLinks {
        /// Id of the capsule.
        capsule: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Create {
    /// Name of a template or a snapshot. A template may be NAME, NAME:TAG or NAME@BUILD; NAME
    /// means the tag `default`.
    #[arg(default_value = "base", value_name = "NAME[:TAG]")]
    pub template: String,
    /// Number of virtual CPUs, 1 to 32.
    #[arg(long)]
    pub vcpus: Option<u32>,
    /// Memory in MiB, 128 to 65,536.
    #[arg(long = "memory")]
    pub memory_mib: Option<u32>,
    /// Disk in MiB, 64 to 102,400.
    #[arg(long = "disk")]
    pub disk_mib: Option<u32>,
    /// Lifetime, such as `90s`, `30m` or `2h`, at most 30 days. Unlimited by default.
    #[arg(long, alias = "timeout")]
    pub lifetime: Option<humantime::Duration>,
    /// Action at the end of the lifetime: `pause` (default), `pause_disk`, which does not save
    /// memory, or `kill`.
    #[arg(long, value_parser = ["pause", "pause_disk", "kill"])]
    pub on_timeout: Option<String>,
    /// Idle time until the capsule is paused, at most 30 days. Unlimited by default.
    #[arg(long, alias = "idle")]
    pub idle_timeout: Option<humantime::Duration>,
    /// Resume the paused capsule when a request for it arrives.
    #[arg(long)]
    pub auto_resume: bool,
    /// Port that anyone may reach by its URL. Repeatable.
    #[arg(long, value_name = "PORT")]
    pub public: Vec<u16>,
    /// Let anyone reach all ports of the capsule by their URLs, except those of envd and the code
    /// interpreter.
    #[arg(long)]
    pub public_traffic: bool,
    /// Host header that programs in the capsule receive, such as `localhost:${PORT}`. Default: the
    /// public host name.
    #[arg(long, value_name = "NAME")]
    pub host_header: Option<String>,
    #[command(flatten)]
    pub network: Rules,
    /// Tag that the capsule's host must have. Repeatable.
    #[arg(long = "host-tag", value_name = "TAG")]
    pub host_tags: Vec<String>,
    /// NAME=VALUE in the environment of every process in the capsule. NAME alone takes the value from
    /// this command's environment. Repeatable.
    #[arg(long = "env", short, value_parser = template::variable, value_name = "NAME[=VALUE]")]
    pub envs: Vec<(String, String)>,
    /// NAME=VALUE to store with the capsule. The platform does not interpret it. Repeatable.
    #[arg(long, value_parser = pair)]
    pub metadata: Vec<(String, String)>,
}

/// Rules for a capsule's outgoing connections. Allowing rules take precedence over denying ones.
#[derive(Args, Debug)]
pub(crate) struct Rules {
    /// Deny everything that no --allow rule permits.
    #[arg(long)]
    pub no_internet: bool,
    /// Address, range or name that the capsule may reach, such as 1.1.1.1, 10.0.0.0/8, example.com
    /// or *.example.com. Takes precedence over --deny. Repeatable.
    #[arg(long = "allow", value_name = "RULE")]
    pub allow: Vec<String>,
    /// Address, range or name that the capsule must not reach. Repeatable.
    #[arg(long = "deny", value_name = "RULE")]
    pub deny: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Network {
    /// Id of the capsule.
    pub capsule: String,
    #[command(flatten)]
    pub rules: Rules,
}

#[derive(Args, Debug)]
pub(crate) struct Pause {
    /// Ids of the capsules.
    #[arg(required = true)]
    pub capsules: Vec<String>,
    /// Save only the disk, not the memory. The capsules boot when they are resumed.
    #[arg(long)]
    pub disk_only: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Resume {
    /// Ids of the capsules.
    #[arg(required = true)]
    pub capsules: Vec<String>,
    /// Lifetime of each capsule from its resume, such as `90s` or `30m`. Unlimited by default.
    #[arg(long, alias = "timeout")]
    pub lifetime: Option<humantime::Duration>,
    /// Ignore the saved memory and boot from the saved disk.
    #[arg(long)]
    pub boot: bool,
    /// Number of an earlier snapshot of the capsule. Use it when the latest snapshot is damaged.
    #[arg(long)]
    pub snapshot: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct Fork {
    /// Id of the capsule.
    pub capsule: String,
    /// Number of copies, at most 100.
    #[arg(long, short = 'n', default_value_t = 1)]
    pub count: u32,
    /// Lifetime of each copy, such as `90s`, `30m` or `2h`. Unlimited by default.
    #[arg(long, alias = "timeout")]
    pub lifetime: Option<humantime::Duration>,
}

#[derive(Args, Debug)]
pub(crate) struct TakeSnapshot {
    /// Id of the capsule.
    pub capsule: String,
    /// Name of the snapshot. Default: a name derived from its id.
    #[arg(long)]
    pub name: Option<String>,
    /// Replace an earlier snapshot with this name once the new snapshot is complete.
    #[arg(long, requires = "name")]
    pub overwrite: bool,
    /// Save only the disk, not the memory. Capsules that start from the snapshot boot.
    #[arg(long)]
    pub disk_only: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Timeout {
    /// Id of the capsule.
    pub capsule: String,
    /// Remaining lifetime from now, such as `90s`, `30m` or `2h`. Unlimited when left out.
    pub after: Option<humantime::Duration>,
    /// Action at the end of the lifetime: `pause`, `pause_disk` or `kill`. Unchanged by default.
    #[arg(long, value_parser = ["pause", "pause_disk", "kill"])]
    pub on_timeout: Option<String>,
    /// Idle time until the capsule is paused; `0s` means never. Unchanged by default.
    #[arg(long, alias = "idle")]
    pub idle_timeout: Option<humantime::Duration>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Snapshot {
    /// List snapshots.
    #[command(visible_alias = "ls")]
    List,
    /// Remove snapshots. Capsules that started from them keep running.
    #[command(visible_alias = "rm")]
    Delete {
        /// Names or ids of the snapshots.
        #[arg(required = true)]
        snapshots: Vec<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Exec {
    /// Id of the capsule.
    pub capsule: String,
    /// NAME=VALUE in the command's environment. NAME alone takes the value from this command's own
    /// environment. Repeatable.
    #[arg(long = "env", short, value_parser = template::variable, value_name = "NAME[=VALUE]")]
    pub envs: Vec<(String, String)>,
    /// Working folder of the command.
    #[arg(long, short = 'w')]
    pub cwd: Option<String>,
    /// User account in the guest.
    #[arg(long, short)]
    pub user: Option<String>,
    /// Seconds until the command is killed. Unlimited by default.
    #[arg(long)]
    pub timeout: Option<u32>,
    /// Run the command on a terminal.
    #[arg(long, short)]
    pub tty: bool,
    /// Do not pass standard input to the command. By default, all input but a terminal's is passed.
    #[arg(long, short = 'n')]
    pub no_stdin: bool,
    /// Command and its arguments. Flags after the command belong to it; a `--` before the command
    /// makes this explicit.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Cp {
    /// Source. A folder that ends with `/.` means its contents.
    pub from: String,
    /// Target. If the target is an existing folder, the source is copied into it.
    pub to: String,
    /// Copy a folder with everything in it. Links are copied as links.
    #[arg(long, short)]
    pub recursive: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Url {
    /// Id of the capsule.
    pub capsule: String,
    /// Port in the capsule.
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Lifetime of the link, such as `30m`, `1h` or `2days`, at most 30 days.
    #[arg(long)]
    pub expires: Option<humantime::Duration>,
}

#[derive(Args, Debug)]
pub(crate) struct Forward {
    /// Id of the capsule.
    pub capsule: String,
    /// Port in the capsule.
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Port on this machine; 0 means any free port. Default: the same number.
    pub local: Option<u16>,
    /// Address on this machine to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub bind: std::net::IpAddr,
}

#[derive(Args, Debug)]
pub(crate) struct Shell {
    /// Id of the capsule.
    pub capsule: String,
    /// User account in the guest.
    #[arg(long, short)]
    pub user: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Boot a guest on each driver again instead of using remembered results.
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
    /// Register this machine as a host, with the token from `wrenn host add`. Later starts use the
    /// credentials from this registration.
    #[arg(long, value_name = "TOKEN", env = "WRENN_REGISTER_TOKEN", hide_env_values = true)]
    pub register: Option<String>,
    /// Address where control planes reach this host, such as 10.0.0.7:8001. Default: the address
    /// that the agent listens on.
    #[arg(long, value_name = "IP:PORT", env = "WRENN_HOST_ADDRESS", requires = "register")]
    pub address: Option<String>,
    /// URL of the platform's API for the registration.
    #[arg(long, value_name = "URL", env = "WRENN_CP_URL", default_value = "http://127.0.0.1:8000")]
    pub control_plane: String,
    #[command(flatten)]
    pub plaintext: Plaintext,
    #[command(flatten)]
    pub log: Log,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Image {
    /// Build the guest kernel, the initramfs and the template `base`, if they are out of date.
    Build(Build),
    /// Get a container image from a registry or an archive, and make it a template of this host.
    Import(Import),
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    /// Name of the template. An earlier template of this name is replaced.
    pub name: String,
    /// Reference such as `ubuntu:24.04` or `ghcr.io/team/app@sha256:…`, or `oci-archive:FILE` for an
    /// OCI layout or the output of `docker save`.
    pub image: String,
    #[command(flatten)]
    pub folder: Folder,
    #[command(flatten)]
    pub registries: Registries,
}

#[derive(Args, Debug)]
pub(crate) struct Build {
    #[command(flatten)]
    pub folder: Folder,
    #[command(flatten)]
    pub envd: Envd,
    /// Rebuild all files from the distribution's newest packages.
    #[arg(long)]
    pub refresh: bool,
}

/// Location of the guest's agent.
#[derive(Args, Debug)]
pub(crate) struct Envd {
    /// Path of the static `envd` binary. Default: the `envd` beside this program.
    #[arg(long, env = "WRENN_ENVD")]
    envd: Option<PathBuf>,
}

impl Envd {
    /// Returns the given path or, if none was given, that of an `envd` beside this program.
    pub(crate) fn find(self) -> Option<PathBuf> {
        let beside = || Some(std::env::current_exe().ok()?.with_file_name("envd"));
        self.envd.or_else(|| beside().filter(|path| path.exists()))
    }
}

/// Returns the type of our terminal, for programs in a capsule. `None` when it is unset, empty or
/// `dumb`.
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
    fn command_line_definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn former_flags_are_accepted_and_hidden() {
        let former = ["wrenn", "c", "create", "--timeout", "1h", "--idle", "5m"];
        let cli = Cli::try_parse_from(former).unwrap();
        let Command::Capsule(Capsule::Create(create)) = cli.command else { panic!("not create") };
        let seconds = |time: Option<humantime::Duration>| time.map(|time| time.as_secs());
        assert_eq!(seconds(create.lifetime), Some(3600));
        assert_eq!(seconds(create.idle_timeout), Some(300));
        let help = Cli::try_parse_from(["wrenn", "c", "create", "--help"]).unwrap_err().to_string();
        assert!(help.contains("--idle-timeout") && help.contains("--lifetime"), "{help}");
        assert!(!help.contains("--idle ") && !help.contains("--timeout"), "{help}");
    }

    #[test]
    fn context_of_code_excludes_its_language() {
        let parse = |words: &[&str]| Cli::try_parse_from([&["wrenn", "code"][..], words].concat());
        let cli = parse(&["cl-x", "a.py", "--timeout", "500ms", "-e", "A=b"]).unwrap();
        let Command::Code(code) = cli.command else { panic!("not code") };
        assert_eq!((code.words.len(), code.template.as_str()), (2, "code-interpreter"));
        assert!(parse(&["--context", "x", "--language", "bash"]).is_err());
        assert!(parse(&["--attach", "x", "-c", "1"]).is_err());
        assert!(parse(&["a", "b", "c"]).is_err());
    }

    #[test]
    fn flags_after_the_executed_command_are_passed_through() {
        let cli =
            Cli::try_parse_from(["wrenn", "c", "exec", "cl-x", "ls", "-la", "--json"]).unwrap();
        let Command::Capsule(Capsule::Exec(exec)) = cli.command else { panic!("not exec") };
        assert_eq!(exec.command, ["ls", "-la", "--json"]);
        assert!(!cli.json);
    }
}
