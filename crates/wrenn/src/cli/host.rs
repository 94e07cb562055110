//! Hosts on the command line.

use clap::{Args, Subcommand};

#[derive(Subcommand, Debug)]
pub(crate) enum Host {
    /// Add a host and print the token that it registers with, which is good for an hour.
    Add(Add),
    /// Print a token by which a host that is known registers anew, as after its disk was lost.
    Token { host: String },
    /// List them.
    #[command(visible_alias = "ls")]
    List,
    /// Show one host.
    Show { host: String },
    /// Let a host take no more capsules, and pause those that run there.
    Drain(Drain),
    /// Replace the words by which capsules ask for a host; none takes them all away.
    Tag { host: String, tags: Vec<String> },
    /// Delete a host that has nothing.
    #[command(visible_alias = "rm")]
    Delete(Delete),
}

#[derive(Args, Debug)]
pub(crate) struct Add {
    /// By default its id.
    #[arg(long)]
    pub name: Option<String>,
    /// A word by which capsules ask for it; may be given again.
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// The team whose own it is to be, by its id.
    #[arg(long)]
    pub team: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Drain {
    pub host: String,
    /// Let it take capsules again.
    #[arg(long)]
    pub undo: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Delete {
    pub host: String,
    /// Also when it has capsules or snapshots, which are lost with it.
    #[arg(long)]
    pub force: bool,
    /// Do not ask before something is lost.
    #[arg(long)]
    pub yes: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Pki {
    /// Make an authority, which vouches for hosts and control planes, unless there is one.
    Init(super::Folder),
    /// Have the authority in the platform's folder vouch for a domain and all names right below it,
    /// for the listener of HTTPS; who trusts the authority's certificate trusts it.
    Wildcard(Wildcard),
}

#[derive(Args, Debug)]
pub(crate) struct Wildcard {
    /// As sandbox.example.com.
    pub domain: String,
    #[command(flatten)]
    pub folder: super::Folder,
}
