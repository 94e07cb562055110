//! Grammar of `wrenn events`.

use clap::Args;

/// Selection of a team's events.
#[derive(Args, Debug)]
pub(crate) struct Events {
    /// Print further events as they happen, until interrupted.
    #[arg(long, short)]
    pub follow: bool,
    /// Id of the capsule or other resource that the events are about.
    #[arg(long, value_name = "ID")]
    pub resource: Option<String>,
    /// Kind of events, such as `capsule.error`. Repeatable.
    #[arg(long = "kind", value_name = "KIND")]
    pub kinds: Vec<String>,
    /// Number of past events.
    #[arg(long, short = 'n', default_value_t = 20)]
    pub count: usize,
}
