//! Users, teams, keys and the audit log on the command line.

use clap::{Args, Subcommand};

/// Who one is to the platform.
#[derive(Subcommand, Debug)]
pub(crate) enum Account {
    /// Sign in as a user; the commands on this machine are theirs from then on.
    Login(Login),
    /// Sign out.
    Logout,
    /// Ask for an account; how it goes on is mailed.
    Signup(SignUp),
    /// Activate an account with the mailed code, and sign in.
    Activate(Activate),
    /// Have a code mailed to set a new password, and set it.
    ResetPassword(ResetPassword),
    /// Say who the commands on this machine are for.
    Whoami,
}

#[derive(Args, Debug)]
pub(crate) struct Login {
    /// E-mail of the account; asked for when left out.
    pub email: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct SignUp {
    pub email: String,
    #[arg(long)]
    pub name: String,
}

#[derive(Args, Debug)]
pub(crate) struct Activate {
    /// What to be called, in place of what the account has.
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ResetPassword {
    /// Have a code mailed to this account; without it, the code is asked for.
    pub email: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Team {
    /// List the teams that you are in.
    #[command(visible_alias = "ls")]
    List,
    /// Make a team and print its id.
    Create { name: String },
    /// Have the commands on this machine be for a team, by its id or name.
    Use { team: String },
    /// Rename the team.
    Rename { name: String },
    /// Have the team's capsules begin only on hosts of a tier of isolation, or a better one.
    Require {
        /// `none`, `tcg`, `kvm` or `jailed`.
        tier: String,
    },
    /// List the team's members.
    Members,
    /// Invite somebody by mail.
    Invite(Invite),
    /// List who is invited and has not come yet.
    Invitations,
    /// Take an invitation back.
    Uninvite { invitation: String },
    /// Join a team with the code of an invitation.
    Accept { token: String },
    /// Change what a member is: `admin`, `member` or `viewer`.
    Role { member: String, role: String },
    /// Remove a member; the keys that they made for the team end.
    Remove { member: String },
    /// Leave the team.
    Leave,
    /// Make another member the owner.
    Transfer { member: String },
    /// Delete the team, which must have no capsules, snapshots and hosts.
    Delete {
        /// Its name, to be sure.
        name: String,
    },
    /// Show what the team may have, and has; as an admin, set it.
    Limits(Limits),
    /// Show what the team used, by day.
    Usage {
        /// First day, as 2026-11-01.
        #[arg(long)]
        from: Option<String>,
        /// Last day.
        #[arg(long)]
        to: Option<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Invite {
    pub email: String,
    #[arg(long, default_value = "member", value_parser = ["admin", "member", "viewer"])]
    pub role: String,
}

#[derive(Args, Debug)]
pub(crate) struct Limits {
    /// As an admin of the platform: of this team, by its id; `default` is of all that have none
    /// set.
    #[arg(long)]
    pub of: Option<String>,
    /// 0 is no limit, here and below; what is left out is the default.
    #[arg(long, requires = "of")]
    pub capsules: Option<u32>,
    #[arg(long, requires = "of")]
    pub vcpus: Option<u32>,
    /// In MiB.
    #[arg(long, requires = "of")]
    pub memory: Option<u64>,
    #[arg(long, requires = "of")]
    pub snapshots: Option<u32>,
    /// Storage of snapshots and paused capsules, in MiB.
    #[arg(long, requires = "of")]
    pub storage: Option<u64>,
    #[arg(long, requires = "of")]
    pub creates_per_sec: Option<u32>,
    #[arg(long, requires = "of")]
    pub requests_per_sec: Option<u32>,
    /// Set nothing of its own.
    #[arg(long, requires = "of")]
    pub reset: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Key {
    /// Make a key and print it, this once.
    Create(CreateKey),
    /// List them.
    #[command(visible_alias = "ls")]
    List,
    /// Revoke keys, by their ids.
    #[command(visible_alias = "rm")]
    Revoke {
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct CreateKey {
    pub name: String,
    /// What it may: `capsules:read`, `capsules:exec`, `capsules:admin`, `team:read`, `team:admin`;
    /// repeatable. All with capsules, when left out.
    #[arg(long = "scope")]
    pub scopes: Vec<String>,
    /// The one template that it may start capsules from.
    #[arg(long)]
    pub template: Option<String>,
    /// The one capsule that it sees.
    #[arg(long)]
    pub capsule: Option<String>,
    /// How long it is good, as `12h` or `90days`; for ever when left out.
    #[arg(long)]
    pub expires: Option<humantime::Duration>,
    /// `e2b`, or `wrn`.
    #[arg(long, default_value = "e2b", value_parser = ["e2b", "wrn"])]
    pub form: String,
    /// As an admin: let it do what concerns the whole platform.
    #[arg(long)]
    pub operator: bool,
    /// Most capsules that are made with it and not gone.
    #[arg(long)]
    pub capsules: Option<u32>,
}

#[derive(Args, Debug)]
pub(crate) struct Audit {
    /// How many, newest first.
    #[arg(long, short = 'n', default_value_t = 50)]
    pub count: usize,
    /// By whom: the id of a user, a key or a host.
    #[arg(long)]
    pub actor: Option<String>,
    /// To what: an id.
    #[arg(long)]
    pub resource: Option<String>,
    /// What, as `capsule.pause`.
    #[arg(long)]
    pub action: Option<String>,
    /// Only what was refused.
    #[arg(long)]
    pub refused: bool,
    /// Not before this time, as 2026-11-26T12:00:00Z.
    #[arg(long)]
    pub from: Option<String>,
    /// Before this time.
    #[arg(long)]
    pub to: Option<String>,
    /// As an admin: of the whole platform.
    #[arg(long)]
    pub all: bool,
    /// All of it, as JSON lines.
    #[arg(long, conflicts_with_all = ["all", "count"])]
    pub export: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum User {
    /// List them.
    #[command(visible_alias = "ls")]
    List,
    /// Invite somebody by mail.
    Invite {
        email: String,
        #[arg(long)]
        name: Option<String>,
    },
    /// Make users admins of the platform.
    Promote { user: String },
    /// Take that back.
    Demote { user: String },
    /// Let a user in no more: sessions end, keys are of no use.
    Disable { user: String },
    /// Let a user in again.
    Enable { user: String },
    /// Erase a user for good; the audit log forgets who they were.
    Erase {
        user: String,
        /// Do not ask before.
        #[arg(long)]
        yes: bool,
    },
    /// List the teams.
    Teams,
}
