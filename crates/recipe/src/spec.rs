//! A build as the control plane hands it to a host, and the record of its making. Both travel and are
//! stored as JSON. Neither holds a login.

use crate::cache::Key;
use crate::resolve::Config;
use crate::start::Commands;
use crate::steps::Recipe;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use types::BuildId;
use types::resources::Resources;

/// Default of the time that a build may take, in seconds.
pub const WITHIN_SEC: u32 = 3600;

/// Rule for images that the host has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pull {
    /// The registry is asked for the tag's digest at each build.
    #[default]
    Always,
    /// The registry is asked only if the host has no image of the reference.
    Missing,
}

/// Everything that a host needs to know of a build, except logins and the versions of templates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildSpec {
    /// Stages with their steps. The last stage is the template.
    pub recipe: Recipe,
    /// Start and ready commands, as the caller gave them.
    #[serde(default)]
    pub commands: Commands,
    /// Set if the start command runs after each restore, with that create's environment.
    #[serde(default)]
    pub start_each: bool,
    /// Set if the image's entrypoint is the start command, when the caller gave none.
    #[serde(default)]
    pub start_from_image: bool,
    /// Time within which the template must become ready, in seconds.
    #[serde(default)]
    pub ready_within_sec: Option<u32>,
    /// Variables that are added after the last step.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Default user, in place of the last step's.
    #[serde(default)]
    pub user: Option<String>,
    /// Default working directory, in place of the last step's.
    #[serde(default)]
    pub workdir: Option<String>,
    /// Set if programs of capsules get the variables of E2B's ENV steps too.
    #[serde(default)]
    pub env_at_run: bool,
    /// Set if all steps ignore the cache.
    #[serde(default)]
    pub force: bool,
    /// Rule for images that the host has already.
    #[serde(default)]
    pub pull: Pull,
    /// Size of the builder, and default size of the template's capsules.
    pub resources: Resources,
    /// Time that the build may take, in seconds.
    pub within_sec: u32,
}

/// Record of a version's making.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// Images, in the order in which the recipe names them.
    pub images: Vec<ImageRecord>,
    /// Template that the last stage began from.
    pub base: Option<BaseRecord>,
    /// Steps of the last stage.
    pub steps: Vec<StepRecord>,
    /// Configuration of the version's capsules.
    pub config: Config,
    /// Start and ready commands, with what came from the base.
    pub commands: Commands,
    /// Set if the start command runs after each restore.
    pub start_each: bool,
    /// Processor architecture, such as `amd64`.
    pub architecture: String,
    /// Versions of agent, kernel and envd that built.
    pub built_by: BTreeMap<String, String>,
}

/// An image that a build used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageRecord {
    /// Reference, as the recipe names it.
    pub reference: String,
    /// Digest of the manifest for this architecture.
    pub digest: String,
    /// Digest that the tag stood for: of an index or of the manifest itself.
    pub asked_digest: String,
    /// Digest of the image's configuration.
    pub config_digest: String,
    /// Registry or mirror that sent the image.
    pub from: String,
}

/// A template that a build began from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BaseRecord {
    /// Name, as the recipe has it.
    pub name: String,
    /// Version; absent for a template that the operator put on the host.
    pub version: Option<BuildId>,
}

/// A step of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Step, as the log shows it.
    pub text: String,
    /// Key in the cache.
    pub key: Key,
    /// Hash of the uploaded files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<String>,
    /// Set if the cache had the step.
    pub cached: bool,
}
