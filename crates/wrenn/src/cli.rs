//! The grammar of the command line. The code that runs a command lives in `commands`, `platform`
//! and `images`.

mod account;
mod capsule;
mod code;
mod event;
mod host;
mod logs;
mod process;
mod stats;
mod template;

pub(crate) use account::{
    Account, Activate, Audit, CreateKey, Key, Limits, Login, ResetPassword, SignUp, Team, User,
};
pub(crate) use capsule::{
    Capsule, Cp, Create, Exec, Fork, Forward, ListCapsules, Network, Pause, Resume, Rules,
    SetCapsule, Snapshot, TakeSnapshot, Timeout, Url,
};
pub(crate) use code::{Code, Pictures, pictures};
pub(crate) use event::Events;
pub(crate) use host::{Host, Pki};
pub(crate) use logs::Logs;
pub(crate) use process::{Ps, Shell};
pub(crate) use stats::{Metrics, Top};
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
    /// Show the running capsules that use most CPU or memory. On a terminal, the table is refreshed
    /// until interrupted.
    Top(Top),
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
    /// Show the last events of the team, such as state changes of capsules. With -f, follow new
    /// ones.
    Events(Events),
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
    fn attach_takes_a_terminal_only_after_an_equals_sign() {
        let attach = |words: &[&str]| {
            let words = [&["wrenn", "c", "shell"][..], words].concat();
            let command = Cli::try_parse_from(words).ok()?.command;
            let Command::Capsule(Capsule::Shell(shell)) = command else { panic!("not shell") };
            Some((shell.capsule, shell.attach))
        };
        let one = |attach: Option<Option<&str>>| {
            Some(("cl-x".to_owned(), attach.map(|tag| tag.map(str::to_owned))))
        };
        assert_eq!(attach(&["cl-x"]), one(None));
        assert_eq!(attach(&["--attach", "cl-x"]), one(Some(None)));
        assert_eq!(attach(&["cl-x", "--attach=pty-1"]), one(Some(Some("pty-1"))));
        assert_eq!(attach(&["cl-x", "--attach", "-u", "root"]), None);
        assert!(Cli::try_parse_from(["wrenn", "c", "ps", "cl-x", "--tree"]).is_err());
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
