//! Grammar of `wrenn capsule …` and `wrenn snapshot …`.

use super::{Logs, Metrics, Ps, Shell, pair};
use clap::{ArgGroup, Args, Subcommand};

#[derive(Subcommand, Debug)]
pub(crate) enum Capsule {
    /// Start a capsule and print its id.
    Create(Create),
    /// List capsules. Without filters, list all that have not ended.
    #[command(visible_alias = "ls")]
    List(ListCapsules),
    /// Show one capsule, also after its end.
    Get {
        /// Id or name of the capsule.
        capsule: String,
    },
    /// Give a capsule another name.
    Rename {
        /// Id or name of the capsule.
        capsule: String,
        /// New name.
        name: String,
    },
    /// Change a capsule's name, metadata, automatic resume, log or idle timeout.
    Set(SetCapsule),
    /// Run a command in a capsule. Its output and exit code become those of this command.
    Exec(Exec),
    /// Open an interactive shell in a capsule, or attach to an open one.
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
        /// Ids or names of the capsules.
        #[arg(required = true)]
        capsules: Vec<String>,
    },
    /// Print the log of a capsule: its console, its state changes and its background processes. A
    /// capsule that ended keeps its log for some days.
    Logs(Logs),
    /// Show CPU, memory, disk and network of a capsule over time, also after its end. Without a
    /// capsule, show all running ones.
    Metrics(Metrics),
    /// List the processes that clients started in a capsule, or all of its guest.
    Ps(Ps),
    /// List the listening servers in a running capsule, with their URLs.
    Ports {
        /// Id or name of the capsule.
        capsule: String,
    },
    /// Print the URL of a capsule's port. With --expires, print a link that admits any browser.
    Url(Url),
    /// Let anyone reach a port of a capsule by its URL.
    Publish {
        /// Id or name of the capsule.
        capsule: String,
        /// Port in the capsule.
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Undo `publish`: let only authorized callers reach a port of a capsule.
    Unpublish {
        /// Id or name of the capsule.
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
        /// Id or name of the capsule.
        capsule: String,
    },
    /// Invalidate all preview links of a capsule at once.
    RotateLinks {
        /// Id or name of the capsule.
        capsule: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Create {
    /// Name of a template or a snapshot. A template may be NAME, NAME:TAG or NAME@BUILD; NAME
    /// means the tag `default`.
    #[arg(default_value = "base", value_name = "NAME[:TAG]")]
    pub template: String,
    /// Name of the capsule: lower-case letters, digits and `-`. Commands take it in place of the
    /// id.
    #[arg(long)]
    pub name: Option<String>,
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
    /// Output that the log keeps: `none`, `background` or `all`. Default: the team's setting.
    #[arg(long, value_parser = ["none", "background", "all"])]
    pub logs: Option<String>,
    /// NAME=VALUE in the environment of every process in the capsule. NAME alone takes the value from
    /// this command's environment. Repeatable.
    #[arg(long = "env", short, value_parser = super::template::variable, value_name = "NAME[=VALUE]")]
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
    /// Id or name of the capsule.
    pub capsule: String,
    #[command(flatten)]
    pub rules: Rules,
}

#[derive(Args, Debug)]
pub(crate) struct Pause {
    /// Ids or names of the capsules.
    #[arg(required = true)]
    pub capsules: Vec<String>,
    /// Save only the disk, not the memory. The capsules boot when they are resumed.
    #[arg(long)]
    pub disk_only: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Resume {
    /// Ids or names of the capsules.
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
    /// Id or name of the capsule.
    pub capsule: String,
    /// Number of copies, at most 100.
    #[arg(long, short = 'n', default_value_t = 1)]
    pub count: u32,
    /// Name of a single copy. Default: the capsule's name with a number.
    #[arg(long)]
    pub name: Option<String>,
    /// Lifetime of each copy, such as `90s`, `30m` or `2h`. Unlimited by default.
    #[arg(long, alias = "timeout")]
    pub lifetime: Option<humantime::Duration>,
}

#[derive(Args, Debug)]
pub(crate) struct TakeSnapshot {
    /// Id or name of the capsule.
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
    /// Id or name of the capsule.
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
    /// Id or name of the capsule.
    pub capsule: String,
    /// NAME=VALUE in the command's environment. NAME alone takes the value from this command's own
    /// environment. Repeatable.
    #[arg(long = "env", short, value_parser = super::template::variable, value_name = "NAME[=VALUE]")]
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
    /// Id or name of the capsule.
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
    /// Id or name of the capsule.
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

/// Filters and order of `wrenn capsule list`. A listed capsule meets all filters.
#[derive(Args, Debug, Default)]
pub(crate) struct ListCapsules {
    /// Only capsules in this state, such as `running`. Repeatable, also with commas.
    #[arg(long, value_delimiter = ',')]
    pub status: Vec<String>,
    /// Only capsules of the template with this name or id.
    #[arg(long)]
    pub template: Option<String>,
    /// Only capsules that started from the snapshot with this id.
    #[arg(long)]
    pub snapshot: Option<String>,
    /// Only capsules on the host with this id, for operators of the platform.
    #[arg(long)]
    pub host: Option<String>,
    /// Only capsules that the user or key with this id created.
    #[arg(long, value_name = "ID")]
    pub created_by: Option<String>,
    /// Only capsules with this pair in their metadata. Repeatable.
    #[arg(long, value_parser = pair, value_name = "NAME=VALUE")]
    pub metadata: Vec<(String, String)>,
    /// Only capsules whose name begins with PREFIX. With `cl-` at the beginning, PREFIX selects
    /// ids.
    #[arg(long, short = 'q', value_name = "PREFIX")]
    pub name: Option<String>,
    /// List the capsules that ended in the last 30 days, in place of living ones.
    #[arg(long)]
    pub ended: bool,
    /// Order: `created_at`, `state_since` or `name`. A `-` before it reverses the order. Default:
    /// `-created_at`.
    #[arg(long, allow_hyphen_values = true, value_name = "ORDER")]
    pub sort: Option<String>,
}

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("change").required(true).multiple(true)
    .args(["name", "no_name", "metadata", "auto_resume", "logs", "idle_timeout"])))]
pub(crate) struct SetCapsule {
    /// Id or name of the capsule.
    pub capsule: String,
    /// New name of the capsule.
    #[arg(long)]
    pub name: Option<String>,
    /// Remove the name of the capsule.
    #[arg(long, conflicts_with = "name")]
    pub no_name: bool,
    /// NAME=VALUE to store with the capsule, in place of all present pairs. Repeatable.
    #[arg(long, value_parser = pair, value_name = "NAME=VALUE")]
    pub metadata: Vec<(String, String)>,
    /// Set to `true` if a request for the paused capsule resumes it.
    #[arg(long, value_name = "true|false")]
    pub auto_resume: Option<bool>,
    /// Output that the log keeps: `none`, `background` or `all`.
    #[arg(long)]
    pub logs: Option<String>,
    /// Idle time until the capsule is paused; `0s` means never.
    #[arg(long, alias = "idle")]
    pub idle_timeout: Option<humantime::Duration>,
}

#[cfg(test)]
mod tests {
    use crate::cli::{Capsule, Cli, Command};
    use clap::Parser;

    fn capsule(words: &[&str]) -> Result<Capsule, clap::Error> {
        let cli = Cli::try_parse_from([&["wrenn", "capsule"][..], words].concat())?;
        let Command::Capsule(capsule) = cli.command else { panic!("not capsule") };
        Ok(capsule)
    }

    #[test]
    fn filters_of_a_list_are_parsed() {
        let words = ["ls", "--status", "paused,error", "--sort", "-name", "--metadata", "a=b"];
        let Capsule::List(list) = capsule(&words).unwrap() else { panic!("not list") };
        assert_eq!(list.status, ["paused", "error"]);
        assert_eq!(list.sort.as_deref(), Some("-name"));
        assert_eq!(list.metadata, [("a".to_owned(), "b".to_owned())]);
        let Capsule::List(list) = capsule(&["ls", "-q", "we", "--ended"]).unwrap() else {
            panic!("not list")
        };
        assert_eq!((list.name.as_deref(), list.ended), (Some("we"), true));
    }

    #[test]
    fn change_without_a_setting_is_refused() {
        assert!(capsule(&["set", "web"]).is_err());
        assert!(capsule(&["set", "web", "--name", "x", "--no-name"]).is_err());
        assert!(capsule(&["set", "web", "--auto-resume", "true", "--no-name"]).is_ok());
        assert!(capsule(&["set", "web", "--logs", "none"]).is_ok());
    }
}
