//! Arguments of `wrenn capsule ps` and `wrenn capsule shell`.

use clap::Args;

#[derive(Args, Debug)]
pub(crate) struct Ps {
    /// Id or name of the capsule.
    pub capsule: String,
    /// List all processes of the guest, with account, CPU time and memory.
    #[arg(long, short)]
    pub all: bool,
    /// Show each process below its parent.
    #[arg(long, requires = "all")]
    pub tree: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Shell {
    /// Id or name of the capsule.
    pub capsule: String,
    /// User account in the guest.
    #[arg(long, short)]
    pub user: Option<String>,
    /// Attach to an open terminal and show its last output. TERMINAL is a tag or a process id.
    /// Default: the terminal that was opened last.
    #[arg(
        long, value_name = "TERMINAL", num_args = 0..=1, require_equals = true,
        conflicts_with = "user"
    )]
    pub attach: Option<Option<String>>,
}
