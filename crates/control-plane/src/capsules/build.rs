//! Starts the capsules that work for a build. They are ordinary capsules on the build's host, and
//! count in limits and usage. Nobody but the build's runner sees them.

use super::spec::{BuildWork, CreateOptions, CreateSpec, Origin, Settings, Source, Version};
use super::start::start;
use crate::app::App;
use crate::auth::Caller;
use crate::db::builds::Build;
use crate::db::capsule_names::NewName;
use crate::db::capsules::Capsule;
use crate::error::Result;
use std::collections::BTreeMap;
use std::time::Duration;
use types::{CapsuleId, Egress, HostId, Isolation, LogPolicy, OnTimeout};

/// Time after the build's own end at which the host ends a forgotten capsule.
const SPARE: Duration = Duration::from_secs(600);

/// A capsule to start for a build.
pub(crate) struct BuildCapsule {
    pub id: CapsuleId,
    pub host: HostId,
    /// Name of the template.
    pub template: String,
    /// Lowest isolation tier that the template accepts.
    pub isolation: Isolation,
    /// Time after which the build ends at the latest.
    pub lasts: Duration,
}

/// Starts the capsule that a build's row names. It runs the steps, or the start command of the
/// version once there is one.
pub(crate) async fn start_for_build(
    app: &App,
    build: &Build,
    wanted: BuildCapsule,
) -> Result<Capsule> {
    let BuildCapsule { id, host, template, isolation, lasts } = wanted;
    let template_id = build.template_id;
    let within = build.spec.as_ref().and_then(|spec| spec.ready_within_sec);
    let within = within.map(|seconds| Duration::from_secs(seconds.into()));
    let origin = match build.provenance {
        None => Origin::Build { template_id, isolation, host },
        Some(_) => Origin::Version {
            version: Version {
                id: build.id,
                team: build.team_id,
                ready_within: within.unwrap_or(recipe::start::READY_WITHIN),
            },
            template_id,
            isolation,
            hosts: vec![host],
            stored: false,
        },
    };
    let timeout = u32::try_from((lasts + SPARE).as_secs()).unwrap_or(u32::MAX);
    let settings = Settings {
        idle_sec: None,
        timeout: Some(timeout),
        on_timeout: OnTimeout::Kill,
        auto_resume: false,
        public_ports: Vec::new(),
        public_traffic: false,
        host_header: None,
        egress: Egress::default(),
        metadata: BTreeMap::new(),
        // The build has a log of its own.
        logs: Some(LogPolicy::None),
    };
    let work = BuildWork { build: build.id, id, created_by_key: build.created_by_key };
    let spec = CreateSpec {
        name: NewName::None,
        fork_of: None,
        source: Source { template, size: build.size(), origin },
        settings,
        options: CreateOptions::default(),
        work: Some(work),
        host_tags: Vec::new(),
        envs: BTreeMap::new(),
    };
    start(app, Caller::of(build.team_id), spec).await
}
