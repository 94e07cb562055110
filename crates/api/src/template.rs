//! Templates, their builds, tags and files, and logins to registries.
//!
//! Routes, as the command line calls them. Ids of builds begin with `bld-`.
//!
//! | route | body → answer |
//! |---|---|
//! | `HEAD /v1/builds/files/{hash}` | → 200 if the team's files are there, else 404 |
//! | `PUT /v1/builds/files/{hash}` | tar, plain or compressed by gzip, chunked → [`BuildFiles`] |
//! | `POST /v1/builds` | [`CreateBuild`] → 201, [`Build`] |
//! | `GET /v1/builds?template=NAME&limit=N&before=ID` | → [`BuildPage`], newest first |
//! | `GET /v1/builds/{id}` | → [`Build`] |
//! | `POST /v1/builds/{id}/cancel` | → [`Build`]; no error if the build has ended |
//! | `GET /v1/builds/{id}/logs?from=N&limit=N` | → [`BuildLog`] |
//! | `GET /v1/builds/{id}/logs?follow=true` | → server-sent events, see below |
//! | `GET /v1/templates`, `GET /v1/templates/{name}` | → [`TemplateList`], [`Template`] |
//! | `PATCH`, `DELETE /v1/templates/{name}` | [`ChangeTemplate`] → [`Template`]; → 204 |
//! | `GET /v1/templates/{name}/versions?limit=N&before=ID` | → [`BuildPage`] of ready builds |
//! | `GET`, `POST /v1/templates/{name}/tags` | → [`TemplateTags`]; [`AssignTags`] → [`TemplateTags`] |
//! | `DELETE /v1/templates/{name}/tags/{tag}` | → 204 |
//! | `GET /v1/registries` | → [`RegistryLogins`] |
//! | `PUT`, `DELETE /v1/registries/{host}` | [`PutRegistryLogin`] → [`RegistryLogin`]; → 204 |
//!
//! The followed log begins at the first line, or after the `seq` in the header `Last-Event-ID`.
//! Each line is an event without a name: `id: SEQ`, `data: ` and the JSON of a [`BuildLine`]. After
//! the last line comes `event: end` with the JSON of the [`Build`], and the stream ends. A stream
//! that ends without that event was cut. The client then connects again. A comment such as
//! `: wait` comes at least every 15 seconds.
//!
//! Steps are told by the texts of lines: `[builder 2/6] RUN make [HASH]` begins a step, and
//! `CACHED [builder 2/6] RUN make [HASH]` is a step that the cache had. Output is
//! `[builder 2/6] [stdout]: TEXT` or `[stderr]`, or `[start] [stdout]: TEXT`. Other stages of a
//! Dockerfile have their name, or `stage-N` with N from 0, in place of `builder`. A stage that is
//! itself named `builder` is told as `stage-N`, too.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// An origin of capsules.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(remote = "Self")]
pub struct Template {
    pub id: String,
    pub name: String,
    /// Number of virtual CPUs.
    pub vcpus: i32,
    /// Memory in MiB.
    pub memory_mib: i32,
    /// Disk size in MiB.
    pub disk_mib: i32,
    /// Lowest isolation tier on which the template's capsules start.
    pub isolation: String,
    /// True if every team may use the template.
    pub shared: bool,
    /// True if every team finds the template by its name alone, without its team's name.
    #[serde(default)]
    pub common: bool,
    /// True if the template belongs to the caller's team.
    #[serde(default)]
    pub own: bool,
    /// Version that the tag `default` stands for. Absent for a template of the operator's, and
    /// before the first build is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Tags with a ready build. Empty for templates of other teams.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Bytes of all versions on one host's disk. 0 for templates of other teams.
    #[serde(default)]
    pub bytes: u64,
    /// Capsules that were created from the template. 0 for templates of other teams.
    #[serde(default)]
    pub spawn_count: u64,
    /// Time of the last create of a capsule.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    pub last_spawned_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Time of the last build or change.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    pub updated_at: Option<OffsetDateTime>,
}

/// Request body of `PATCH /v1/templates/{name}`. An absent field stays as it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeTemplate {
    /// Lowest isolation tier for new capsules: `none`, `tcg`, `kvm` or `jailed`. Hosts of a higher
    /// tier qualify too. Only operators may set it, and only for shared templates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// True if every team may create capsules from the template. Other teams see its name and sizes,
    /// and neither logs nor recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<bool>,
    /// True if every team finds the template by its name alone, after its own templates and the
    /// platform's. The template becomes public too. Only operators may set it, and only they may
    /// build or change a common template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common: Option<bool>,
}

/// Answer to `GET /v1/templates`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TemplateList {
    pub items: Vec<Template>,
}

/// Request body of `POST /v1/builds`. Exactly one of `from`, `dockerfile` and `recipe` is given.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CreateBuild {
    /// Name of the template, as `NAME` or `NAME:TAG`. The template is made if it is new.
    pub name: String,
    /// Further tags. Without any tag, the build gets the tag `default`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Origin of the template's files, for `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<BuildSource>,
    /// Steps over `from`. Each is an object with one action, such as `{"run": {"command": "make"}}`,
    /// `{"copy": {"sources": ["a"], "dest": "/x/", "files": HASH}}`, `{"workdir": "/x"}`,
    /// `{"user": "app"}` or `{"env": {"A": "b"}}`.
    #[schema(value_type = Vec<Object>)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<serde_json::Value>,
    /// Text of a Dockerfile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// Stage of the Dockerfile to build. The default is the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Values of the Dockerfile's ARG instructions.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// Hash of an uploaded archive that holds every file which COPY steps without files of their own
    /// name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Stages with all their steps, as the command line makes them of a Dockerfile.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<serde_json::Value>,
    /// Command that runs when the template's machine is saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// Command that succeeds once the machine may be saved. The default is `sleep 20` with a start
    /// command, and none without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// True to run the start command after each restore, with the environment of that create.
    pub start_each: bool,
    /// True to take the image's entrypoint as the start command.
    pub start_from_image: bool,
    /// Seconds within which the template must become ready, 1 to 3600. The default is 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_within_sec: Option<u32>,
    /// Variables of the template's programs, beside those of the steps.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Default user, in place of the last USER step's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Default working directory, in place of the last WORKDIR step's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Default number of virtual CPUs of the template's capsules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Default memory of the template's capsules, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Default size of the capsules' own disks, in MiB. The build's disk has this size too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u32>,
    /// True if every team may use a new template.
    pub public: bool,
    /// True to run all steps anew.
    pub force: bool,
    /// `always` asks the registry for the tag's image at each build. `missing` asks only if the host
    /// has no image of that name. The default is `always`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull: Option<String>,
    /// Login to the registry of `from`, for this build alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login: Option<PutRegistryLogin>,
}

/// Origin of a template's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BuildSource {
    /// Reference of a container image, such as `python:3.12`.
    Image(String),
    /// Hash of an uploaded archive of an image, in the form of `docker save` or an OCI layout.
    Archive(String),
    /// A template, as `NAME`, `NAME:TAG` or `NAME@BUILD`.
    Template(String),
    /// A running or paused capsule of the team.
    Capsule {
        id: String,
        /// True to save the memory too. Sizes are then fixed, and there can be no steps.
        #[serde(default)]
        memory: bool,
    },
}

/// A build of a template. A ready build is a version of the template.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Build {
    pub id: String,
    /// Name of the template.
    pub template: String,
    /// Tags that the build was given and that were not deleted since.
    pub tags: Vec<String>,
    /// `waiting`, `building`, `ready` or `error`.
    pub status: String,
    /// Work that a building build does: `queued`, `image`, `steps`, `layer` or `start`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Number of the step that ended last, 0 before the first.
    pub step: u32,
    /// Number of steps.
    pub steps: u32,
    /// Reason of the status `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<BuildError>,
    /// Images that the build used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<BuildImage>,
    pub vcpus: u32,
    pub memory_mib: u32,
    pub disk_mib: u32,
    /// Bytes on one host's disk, without files of other versions.
    pub bytes: u64,
    /// Steps, configuration and sources of a ready build. Values of variables whose names look like
    /// secrets are masked. Only in answers about a single build.
    #[schema(value_type = Option<Object>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<serde_json::Value>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    pub started_at: Option<OffsetDateTime>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    pub ended_at: Option<OffsetDateTime>,
}

/// Reason why a build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildError {
    pub message: String,
    /// `base` for the image or template, the number of a step, or `finalize` for start and ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Last lines of the failed command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output: Vec<String>,
}

/// An image that a build used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildImage {
    /// Reference, as the build named it.
    pub reference: String,
    /// Digest of the manifest that the reference stood for.
    pub digest: String,
}

/// A page of builds.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BuildPage {
    pub items: Vec<Build>,
    /// Value of `before` for the next page. Absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A line of a build's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildLine {
    /// Place in the log, from 1, without gaps.
    pub seq: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// Number of the step; absent for lines of no step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// Text, as the build wrote it. It may hold control characters.
    pub text: String,
}

/// Lines of a build's log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BuildLog {
    pub items: Vec<BuildLine>,
    /// Value of `from` for the lines after these.
    pub next: u64,
    /// Status of the build, read before the lines. A build that has ended writes no more lines.
    pub status: String,
}

/// Answer to `HEAD` and `PUT /v1/builds/files/{hash}`: uploaded files of COPY steps.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BuildFiles {
    pub hash: String,
    pub bytes: u64,
}

/// A tag of a template.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TemplateTag {
    pub tag: String,
    /// Build of the newest assignment.
    pub build: String,
    #[serde(with = "time::serde::rfc3339")]
    pub assigned_at: OffsetDateTime,
}

/// Answer to `GET /v1/templates/{name}/tags`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TemplateTags {
    pub items: Vec<TemplateTag>,
}

/// Request body of `POST /v1/templates/{name}/tags`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssignTags {
    /// A tag or the id of a ready build.
    pub version: String,
    /// Tags that the version gets.
    pub tags: Vec<String>,
}

/// Request body of `PUT /v1/registries/{host}`: a login, which no answer ever shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PutRegistryLogin {
    /// User name with a password or an access token.
    Basic { username: String, password: String },
    /// Keys of Amazon's registry.
    Aws { access_key_id: String, secret_access_key: String, region: String },
    /// Key file of a service account of Google's registries, as a JSON text.
    Gcp { service_account_json: String },
}

impl std::fmt::Debug for PutRegistryLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "basic",
            Self::Aws { .. } => "aws",
            Self::Gcp { .. } => "gcp",
        })
    }
}

/// A login that the team has stored, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RegistryLogin {
    /// Host of the registry, with its port if that is not the default.
    pub registry: String,
    /// `basic`, `aws` or `gcp`.
    pub kind: String,
    /// User name, access key or account.
    pub username: String,
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// Answer to `GET /v1/registries`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RegistryLogins {
    pub items: Vec<RegistryLogin>,
}
