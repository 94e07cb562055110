//! Grammar of the commands for users, teams, keys and the audit log.

use clap::{Args, Subcommand};

/// Commands for the caller's own account.
#[derive(Subcommand, Debug)]
pub(crate) enum Account {
    /// Sign in as a user. Later commands on this machine act for this user.
    Login(Login),
    /// Sign out.
    Logout,
    /// Sign up for an account. A mail explains the next step.
    Signup(SignUp),
    /// Activate an account with the mailed code, and sign in.
    Activate(Activate),
    /// Request a mailed code for a new password or, with the code, set the password.
    ResetPassword(ResetPassword),
    /// Show the user or key that commands on this machine use, and its teams.
    Whoami,
}

#[derive(Args, Debug)]
pub(crate) struct Login {
    /// E-mail address of the account. Prompted for when left out.
    pub email: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct SignUp {
    /// E-mail address of the new account.
    pub email: String,
    /// Name of the user, for other people to see.
    #[arg(long)]
    pub name: String,
}

#[derive(Args, Debug)]
pub(crate) struct Activate {
    /// New name, in place of the account's current one.
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ResetPassword {
    /// E-mail address of the account to mail a code to. When left out, the code is prompted for.
    pub email: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Team {
    /// List your teams.
    #[command(visible_alias = "ls")]
    List,
    /// Create a team and print its id.
    Create {
        /// Name of the new team.
        name: String,
    },
    /// Choose the team for later commands on this machine, by id or name.
    Use {
        /// Id or name of the team.
        team: String,
    },
    /// Rename the team.
    Rename {
        /// New name of the team.
        name: String,
    },
    /// Require a minimum isolation tier of the hosts on which the team's capsules start.
    Require {
        /// `none`, `tcg`, `kvm` or `jailed`, from weakest to strongest.
        tier: String,
    },
    /// Set the output that the logs of the team's new capsules keep.
    Logs {
        /// `none`, `background` (console, state changes, start commands and background processes)
        /// or `all` (foreground commands too).
        #[arg(value_parser = ["none", "background", "all"])]
        keep: String,
    },
    /// List the team's members.
    Members,
    /// Invite a person to the team by mail, and print the invitation's id.
    Invite(Invite),
    /// List the invitations that nobody has accepted yet.
    Invitations,
    /// Withdraw an invitation.
    Uninvite {
        /// Id of the invitation.
        invitation: String,
    },
    /// Join a team with the code from an invitation.
    Accept {
        /// Code from the mailed invitation.
        token: String,
    },
    /// Change a member's role: `admin`, `member` or `viewer`.
    Role {
        /// Id or e-mail address of the member.
        member: String,
        /// New role: `admin`, `member` or `viewer`.
        role: String,
    },
    /// Remove a member. The team's keys that the member created stop working.
    Remove {
        /// Id or e-mail address of the member.
        member: String,
    },
    /// Leave the team.
    Leave,
    /// Make another member the team's owner.
    Transfer {
        /// Id or e-mail address of the member.
        member: String,
    },
    /// Delete the team. It must have no capsules, snapshots or hosts.
    Delete {
        /// Name of the team, as a confirmation.
        name: String,
    },
    /// Show the team's limits and their current use. With --of, show or set any team's limits, as
    /// an admin of the platform.
    Limits(Limits),
    /// Show the team's usage by day.
    Usage {
        /// First day, such as 2026-11-01.
        #[arg(long)]
        from: Option<String>,
        /// Last day, such as 2026-11-30.
        #[arg(long)]
        to: Option<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Invite {
    /// E-mail address of the person.
    pub email: String,
    /// Role in the team.
    #[arg(long, default_value = "member", value_parser = ["admin", "member", "viewer"])]
    pub role: String,
}

#[derive(Args, Debug)]
pub(crate) struct Limits {
    /// Id of the team to show or limit, as an admin of the platform. `default` means the limits of
    /// all teams without limits of their own.
    #[arg(long)]
    pub of: Option<String>,
    /// Maximum number of capsules. For this and every other limit, 0 means unlimited; a limit that
    /// is left out takes the default.
    #[arg(long, requires = "of")]
    pub capsules: Option<u32>,
    /// Maximum number of virtual CPUs of the capsules together.
    #[arg(long, requires = "of")]
    pub vcpus: Option<u32>,
    /// Maximum memory of the capsules together, in MiB.
    #[arg(long, requires = "of")]
    pub memory: Option<u64>,
    /// Maximum number of snapshots.
    #[arg(long, requires = "of")]
    pub snapshots: Option<u32>,
    /// Maximum storage of snapshots and paused capsules, in MiB.
    #[arg(long, requires = "of")]
    pub storage: Option<u64>,
    /// Maximum number of templates.
    #[arg(long, requires = "of")]
    pub templates: Option<u32>,
    /// Maximum number of builds of templates at once.
    #[arg(long, requires = "of")]
    pub builds: Option<u32>,
    /// Maximum storage of templates, in MiB.
    #[arg(long, requires = "of")]
    pub template_storage: Option<u64>,
    /// Maximum number of creates per second.
    #[arg(long, requires = "of")]
    pub creates_per_sec: Option<u32>,
    /// Maximum number of requests per second.
    #[arg(long, requires = "of")]
    pub requests_per_sec: Option<u32>,
    /// Remove the team's own limits, so that the default applies.
    #[arg(long, requires = "of")]
    pub reset: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Key {
    /// Create a key and print it. The key is shown only once.
    Create(CreateKey),
    /// List the team's keys.
    #[command(visible_alias = "ls")]
    List,
    /// Revoke keys.
    #[command(visible_alias = "rm")]
    Revoke {
        /// Ids of the keys.
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct CreateKey {
    /// Name of the key.
    pub name: String,
    /// Permission of the key: `capsules:read`, `capsules:exec`, `capsules:admin`, `team:read` or
    /// `team:admin`. Repeatable. Default: `capsules:admin` and `team:read`; for an operator's key,
    /// all permissions. No key exceeds the rights of its maker.
    #[arg(long = "scope")]
    pub scopes: Vec<String>,
    /// Restrict the key to one template and the capsules that started from it.
    #[arg(long)]
    pub template: Option<String>,
    /// Restrict the key to one capsule.
    #[arg(long)]
    pub capsule: Option<String>,
    /// Time until the key expires, such as `12h` or `90days`. Unlimited by default.
    #[arg(long)]
    pub expires: Option<humantime::Duration>,
    /// Format of the key: `e2b`, which E2B's SDKs accept too, or `wrn`.
    #[arg(long, default_value = "e2b", value_parser = ["e2b", "wrn"])]
    pub form: String,
    /// Allow operations on the whole platform. Only admins can grant this.
    #[arg(long)]
    pub operator: bool,
    /// Maximum number of running and paused capsules that the key created.
    #[arg(long)]
    pub capsules: Option<u32>,
}

#[derive(Args, Debug)]
pub(crate) struct Audit {
    /// Number of entries to show, newest first.
    #[arg(long, short = 'n', default_value_t = 50)]
    pub count: usize,
    /// Show only entries of this actor: the id of a user, a key or a host.
    #[arg(long)]
    pub actor: Option<String>,
    /// Show only entries about this resource, by its id.
    #[arg(long)]
    pub resource: Option<String>,
    /// Show only entries of this action, such as `capsule.pause`.
    #[arg(long)]
    pub action: Option<String>,
    /// Show only refused actions.
    #[arg(long)]
    pub refused: bool,
    /// Show only entries from this time on, such as 2026-11-26T12:00:00Z.
    #[arg(long)]
    pub from: Option<String>,
    /// Show only entries before this time.
    #[arg(long)]
    pub to: Option<String>,
    /// Show the log of the whole platform, as an admin.
    #[arg(long)]
    pub all: bool,
    /// Print all matching entries as JSON lines.
    #[arg(long, conflicts_with_all = ["all", "count"])]
    pub export: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum User {
    /// List users.
    #[command(visible_alias = "ls")]
    List,
    /// Invite a person to the platform by mail, and print the new user's id.
    Invite {
        /// E-mail address of the person.
        email: String,
        /// Name of the user, for other people to see.
        #[arg(long)]
        name: Option<String>,
    },
    /// Make a user an admin of the platform.
    Promote {
        /// Id or e-mail address of the user.
        user: String,
    },
    /// Take the admin role from a user.
    Demote {
        /// Id or e-mail address of the user.
        user: String,
    },
    /// Disable a user: sessions end, and keys stop working.
    Disable {
        /// Id or e-mail address of the user.
        user: String,
    },
    /// Enable a disabled user again.
    Enable {
        /// Id or e-mail address of the user.
        user: String,
    },
    /// Erase a user permanently. The audit log no longer identifies the user.
    Erase {
        /// Id or e-mail address of the user.
        user: String,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
    /// List all teams.
    Teams,
}
