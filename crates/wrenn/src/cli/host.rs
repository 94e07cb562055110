//! Grammar of the commands for hosts and for the platform's authority.

use clap::{Args, Subcommand};

#[derive(Subcommand, Debug)]
pub(crate) enum Host {
    /// Add a host and print its registration token, which is valid for an hour.
    Add(Add),
    /// Print a new registration token for a known host, for example after its disk was lost.
    Token {
        /// Name or id of the host.
        host: String,
    },
    /// List hosts.
    #[command(visible_alias = "ls")]
    List,
    /// Show one host.
    Show {
        /// Name or id of the host.
        host: String,
    },
    /// Stop placing capsules on a host, and pause its running capsules.
    Drain(Drain),
    /// Replace the tags by which capsules select a host. Without tags, all tags are removed.
    Tag {
        /// Name or id of the host.
        host: String,
        /// New tags of the host.
        tags: Vec<String>,
    },
    /// Delete a host. Without --force, it must have no capsules or snapshots that exist nowhere
    /// else.
    #[command(visible_alias = "rm")]
    Delete(Delete),
}

#[derive(Args, Debug)]
pub(crate) struct Add {
    /// Name of the host. Default: its id.
    #[arg(long)]
    pub name: Option<String>,
    /// Tag by which capsules select the host. Repeatable.
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Id of the team that the host is reserved for. Default: all teams.
    #[arg(long)]
    pub team: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Drain {
    /// Name or id of the host.
    pub host: String,
    /// Place capsules on the host again.
    #[arg(long)]
    pub undo: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Delete {
    /// Name or id of the host.
    pub host: String,
    /// Delete the host even if capsules or snapshots exist only there. Such data is lost.
    #[arg(long)]
    pub force: bool,
    /// Do not ask for confirmation.
    #[arg(long)]
    pub yes: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Pki {
    /// Create the authority that signs certificates of hosts and control planes, unless one exists.
    Init(super::Folder),
    /// Issue an HTTPS certificate for a domain and the names directly below it. Clients must trust
    /// the authority in the platform's folder, which signs the certificate.
    Wildcard(Wildcard),
}

#[derive(Args, Debug)]
pub(crate) struct Wildcard {
    /// Domain, such as sandbox.example.com.
    pub domain: String,
    #[command(flatten)]
    pub folder: super::Folder,
}
