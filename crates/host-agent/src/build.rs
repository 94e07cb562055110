//! Builds of templates on this host, from the control plane's request to a version.
//!
//! ```text
//!  begin ─▶ prepare: pull, resolve, look up ─▶ Prepared ─┬─▶ nothing to run ─────────▶ version
//!                                                        └─▶ run, in a builder capsule ─▶ layer ─▶ version
//! ```
//! All steps of a build run in one capsule. Each step writes to a folder of its own on that capsule's
//! disk. The finished disk is a *layer*: the cache names its folders, and versions link to it.
//!
//! - `engine` has the table of builds; `run` drives the steps; `finish` installs layers and versions.
//! - `prepare` gathers bases; `schedule` decides, without I/O, on the steps that run.
//! - `guest` and `host` are the way to this host's guests and images; `start` hears a version's start.
//! - `events` is the file that outlives the agent; `log` bounds it; `output` makes lines.
//! - `cache` and `layer` know finished disks; `files` has uploaded archives; `versions` lists versions.
//! - `parts` has the traits by which this folder reaches images and guests; `stub` stands in for both
//!   under drivers without machines.

pub(crate) mod cache;
pub(crate) mod engine;
pub(crate) mod events;
pub(crate) mod files;
mod finish;
mod folders;
mod guest;
pub(crate) mod host;
mod layer;
mod log;
mod output;
pub(crate) mod parts;
mod pins;
mod prepare;
mod run;
mod schedule;
mod start;
#[cfg(any(test, feature = "test-drivers"))]
pub(crate) mod stub;
mod upkeep;
pub(crate) mod versions;

/// Step name of a failure before the first step.
const BASE: &str = "base";
/// Step name of a failure after the last step.
const FINALIZE: &str = "finalize";

/// End of a build without a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// `base`, the number of a step, or `finalize`.
    pub step: String,
    pub message: String,
    /// Last lines of the failed command.
    pub output: Vec<String>,
}

impl Failure {
    fn base(message: impl Into<String>) -> Self {
        Self { step: BASE.to_owned(), message: message.into(), output: Vec::new() }
    }

    fn finalize(message: impl Into<String>) -> Self {
        Self { step: FINALIZE.to_owned(), message: message.into(), output: Vec::new() }
    }

    /// Returns the failure of a step. Steps of earlier stages and steps that the recipe does not
    /// hold belong to the base.
    fn step(number: usize, is_last_stage: bool, message: impl Into<String>) -> Self {
        match (number, is_last_stage) {
            (0, _) | (_, false) => Self::base(message),
            (number, true) => Self { step: number.to_string(), ..Self::base(message) },
        }
    }
}

#[cfg(test)]
mod tests;
