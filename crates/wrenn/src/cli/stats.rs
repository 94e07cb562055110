//! Arguments of `wrenn capsule metrics` and `wrenn top`.

use clap::Args;

/// Arguments of `wrenn capsule metrics`.
#[derive(Args, Debug)]
pub(crate) struct Metrics {
    /// Id or name of a capsule, or the id of one that ended. Without it, show the latest metrics of
    /// all running capsules.
    pub capsule: Option<String>,
    /// Length of the period that is shown, such as `10m`, `1h` or `7days`.
    #[arg(long, default_value = "1h", value_name = "TIME")]
    pub since: humantime::Duration,
    /// Follow a capsule: print each new sample until interrupted.
    #[arg(long, short, requires = "capsule")]
    pub follow: bool,
}

/// Arguments of `wrenn top`.
#[derive(Args, Debug)]
pub(crate) struct Top {
    /// Order of the capsules.
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "memory"])]
    pub sort: String,
    /// Print the table once. The default without a terminal.
    #[arg(long)]
    pub once: bool,
}
