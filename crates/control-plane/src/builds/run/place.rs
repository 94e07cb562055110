//! Chooses the host of a build. The template's last host is preferred, since it has the cache.
//! Uploaded files, base versions and capsules bind a build to the hosts that have them.

use super::decide::End;
use crate::app::App;
use crate::db;
use crate::db::build_runs::Around;
use crate::db::builds::Build;
use crate::error::{Error, Result};
use crate::scheduler::{Holders, PlacementRequest, ResourceAmounts};
use recipe::steps::ARCHIVE;
use recipe::{BuildSpec, Source, Stage};
use std::collections::BTreeSet;
use types::{CapsuleId, CapsuleState, HostId};

/// Hosts that a build may run on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Any,
    Only(Vec<HostId>),
}

impl Hosts {
    /// Keeps only hosts that are in `others` too.
    fn within(self, others: &[HostId]) -> Self {
        match self {
            Self::Any => Self::Only(others.to_vec()),
            Self::Only(hosts) => {
                Self::Only(hosts.into_iter().filter(|host| others.contains(host)).collect())
            }
        }
    }
}

/// Chooses a host that is not in `refused`. `Err` has the reason to end the build.
///
/// # Errors
/// [`Error::NoCapacity`] when no host has room now.
pub(super) async fn choose(
    app: &App,
    build: &Build,
    around: &Around,
    refused: &[HostId],
) -> Result<std::result::Result<HostId, End>> {
    let Some(spec) = &build.spec else { return Err(Error::NotFound("build")) };
    let mut hosts = Hosts::Any;
    let files = files(spec);
    if !files.is_empty() {
        let having = db::build_runs::hosts_with_files(&app.db, build.team_id, &files).await?;
        if having.is_empty() {
            let why = "the uploaded files are no longer on any host; upload them again";
            return Ok(Err(End::because(why)));
        }
        hosts = hosts.within(&having);
    }
    for id in capsules(spec) {
        match host_of(app, build, &id).await? {
            Ok(host) => hosts = hosts.within(&[host]),
            Err(end) => return Ok(Err(end)),
        }
    }
    let mut operators = None;
    for (name, base) in &build.bases.0 {
        let Some(version) = base.version else {
            operators = Some(base.template.as_str());
            continue;
        };
        let Some(version) = db::versions::find(&app.db, version).await? else {
            return Ok(Err(End::because(format!("the version of template `{name}` was deleted"))));
        };
        if !version.stored {
            hosts = hosts.within(&version.hosts);
        }
    }
    if hosts == Hosts::Only(Vec::new()) {
        let why = "no host has all uploaded files, templates and capsules that the build needs";
        return Ok(Err(End::because(why)));
    }
    let origins = origins(&hosts, around.last_host.as_ref(), operators);
    let isolation = app.directory.limits(build.team_id).await?.isolation;
    let mut failed = Error::NoCapacity("no host accepts builds".to_owned());
    for origin in origins {
        let request = PlacementRequest {
            team: build.team_id,
            size: size(build),
            origin,
            tags: &[],
            isolation: isolation.max(around.isolation),
            excluded: refused,
        };
        match app.fleet.place(&request).await {
            Ok(host) => return Ok(Ok(host)),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Returns the host of a capsule whose files the build begins from. The host copies them once no
/// other work on the capsule is under way. `Err` has the reason to end the build.
async fn host_of(app: &App, build: &Build, id: &str) -> Result<std::result::Result<HostId, End>> {
    let found = match id.parse::<CapsuleId>() {
        Ok(id) => db::capsules::find(&app.db, build.team_id, id).await?,
        Err(_) => None,
    };
    let Some(capsule) = found else {
        return Ok(Err(End::because(format!("the capsule {id} was deleted"))));
    };
    let stands = matches!(
        capsule.state,
        CapsuleState::Running
            | CapsuleState::Pausing
            | CapsuleState::Paused
            | CapsuleState::Resuming
    );
    if !stands {
        let why = format!("the capsule is {}; it must run or be paused", capsule.state);
        return Ok(Err(End::because(why)));
    }
    let nowhere = || End::because("the capsule is on no host; resume it and build again");
    Ok(capsule.host_id.ok_or_else(nowhere))
}

/// Returns the requirements to try, best first.
fn origins<'a>(
    hosts: &'a Hosts,
    last: Option<&'a HostId>,
    operators: Option<&'a str>,
) -> Vec<Holders<'a>> {
    let fits = |host: &&HostId| match hosts {
        Hosts::Any => true,
        Hosts::Only(hosts) => hosts.contains(host),
    };
    let last = last
        .filter(fits)
        .map(|last| Holders::Hosts { ids: std::slice::from_ref(last), stored: false });
    let all = match (hosts, operators) {
        (Hosts::Only(ids), _) => Holders::Hosts { ids, stored: false },
        (Hosts::Any, Some(name)) => Holders::Template(name),
        (Hosts::Any, None) => Holders::Anywhere { near: &[] },
    };
    last.into_iter().chain([all]).collect()
}

fn size(build: &Build) -> ResourceAmounts {
    ResourceAmounts {
        vcpus: build.vcpus.into(),
        memory_mib: build.memory_mib.into(),
        disk_mib: build.disk_mib.into(),
    }
}

/// Returns the hashes of all uploaded archives that a build needs.
fn files(spec: &BuildSpec) -> Vec<String> {
    let steps = spec.recipe.stages.iter().flat_map(|stage| &stage.steps);
    let hashes = steps.filter_map(|step| step.action.as_copy()?.files.clone());
    let sources = spec.recipe.stages.iter().flat_map(Stage::sources);
    let archives = sources.filter_map(|source| match source {
        Source::Image(image) => image.strip_prefix(ARCHIVE).map(str::to_owned),
        Source::Template(_) | Source::Capsule(_) | Source::Stage(_) | Source::Scratch => None,
    });
    hashes.chain(archives).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Returns the ids of all capsules whose files a build needs.
fn capsules(spec: &BuildSpec) -> BTreeSet<String> {
    let sources = spec.recipe.stages.iter().flat_map(Stage::sources);
    let ids = sources.filter_map(|source| match source {
        Source::Capsule(id) => Some(id.clone()),
        Source::Image(_) | Source::Template(_) | Source::Stage(_) | Source::Scratch => None,
    });
    ids.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_needs_hosts_that_have_everything() {
        let (a, b, c) = (HostId::new(), HostId::new(), HostId::new());
        let both = Hosts::Any.within(&[a, b]).within(&[b, c]);
        assert_eq!(both, Hosts::Only(vec![b]));
        assert_eq!(both.within(&[a]), Hosts::Only(Vec::new()));
    }

    #[test]
    fn last_host_is_tried_first_if_it_has_the_files() {
        let (a, b) = (HostId::new(), HostId::new());
        let names = |hosts: &Hosts, last: Option<&HostId>, operators| {
            origins(hosts, last, operators)
                .into_iter()
                .map(|origin| match origin {
                    Holders::Template(name) => name.to_owned(),
                    Holders::Hosts { ids, .. } => format!("{ids:?}"),
                    Holders::Anywhere { .. } => "any".to_owned(),
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&Hosts::Any, Some(&a), None), [format!("[{a}]"), "any".to_owned()]);
        assert_eq!(names(&Hosts::Any, None, Some("base")), ["base"]);
        let only = Hosts::Only(vec![b]);
        assert_eq!(names(&only, Some(&a), Some("base")), [format!("[{b}]")]);
    }
}
