//! Creates capsules: checks the request, finds its template or snapshot, and starts the capsule.
//! `start` has the rest, which forks share.

use super::detached::detached;
use super::ports::{check_exposed, too_many_public};
use super::spec::{CreateOptions, CreateSpec, Origin, Settings, Source};
use super::start::{STAGES, start};
use super::{idempotency, named, network, timeouts};
use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::Capsule;
use crate::db::snapshots::Snapshot;
use crate::db::templates::Template;
use crate::db::versions::Version;
use crate::error::{Error, Result};
use crate::limits::{METADATA_MAX, PUBLIC_PORTS_MAX};
use crate::policy::{Action, Resource};
use crate::templates::{self, Startable};
use recipe::names::Reference;
use std::collections::{BTreeMap, BTreeSet};
use types::resources::{MAX_TIMEOUT_SEC, Resources, in_range};
use types::{Egress, Isolation, LogPolicy, names};

/// Placeholder for the port in a capsule's `Host` header.
pub(crate) const HOST_PORT: &str = "${PORT}";

/// Creates a capsule. Returns it when its guest answers.
pub(crate) async fn create(
    app: &App,
    caller: Caller,
    wanted: api::CreateCapsule,
    options: CreateOptions,
) -> Result<Capsule> {
    let name = wanted.template.clone().unwrap_or_else(|| "base".to_owned());
    let reference = templates::read_name("template", &name)?;
    let (ports, egress) = check(&wanted)?;
    let new_name = named::read(wanted.name.clone())?;
    let on_timeout = timeouts::read_on_timeout(wanted.on_timeout.as_deref())?;
    let logs = wanted.logs.as_deref().map(str::parse::<LogPolicy>).transpose()?;
    if let Some(key) = &options.idempotency_key
        && let Some(capsule) = idempotency::find_previous(app, caller, key).await?
    {
        return Ok(capsule);
    }
    let finding = Box::pin(find_source(app, caller, &reference, &wanted));
    let source = daemon::stage(STAGES, "found", finding).await?;
    let settings = Settings {
        idle_sec: wanted.idle_timeout.filter(|idle| *idle > 0),
        timeout: wanted.lifetime,
        on_timeout: on_timeout.unwrap_or_default(),
        auto_resume: wanted.auto_resume,
        public_ports: ports.into_iter().map(i32::from).collect(),
        public_traffic: wanted.public_traffic,
        host_header: wanted.host_header,
        egress,
        metadata: wanted.metadata,
        logs,
    };
    let (host_tags, envs) = (wanted.host_tags, wanted.envs);
    let (name, fork_of) = (new_name, None);
    let spec = CreateSpec { name, fork_of, source, settings, options, work: None, host_tags, envs };
    let at = app.clone();
    Box::pin(detached(app, async move { start(&at, caller, spec).await })).await
}

/// Checks a request's settings. Returns the public ports and the outbound rules.
fn check(wanted: &api::CreateCapsule) -> Result<(BTreeSet<u16>, Egress)> {
    names::check_envs("envs", &wanted.envs)?;
    check_metadata(&wanted.metadata)?;
    let ports = wanted.public_ports.iter().copied().collect::<BTreeSet<u16>>();
    ports.iter().try_for_each(|port| check_exposed("public_ports", *port))?;
    if ports.len() > PUBLIC_PORTS_MAX {
        return Err(Error::invalid("public_ports", too_many_public()));
    }
    let idle_sec = wanted.idle_timeout.unwrap_or(0);
    in_range("idle_timeout", idle_sec, 0, MAX_TIMEOUT_SEC)?;
    timeouts::check_timeout(wanted.lifetime)?;
    let host_header = wanted.host_header.as_deref();
    host_header.map_or(Ok(()), check_host_header)?;
    Ok((ports, network::read(&wanted.network)?))
}

/// Checks the size of metadata.
pub(super) fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<()> {
    let bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    match bytes > METADATA_MAX {
        true => Err(Error::invalid("metadata", "must be at most 16 KiB in total")),
        false => Ok(()),
    }
}

/// Resolves a name to a template and its version or, failing that, to a snapshot.
async fn find_source(
    app: &App,
    caller: Caller,
    reference: &Reference,
    wanted: &api::CreateCapsule,
) -> Result<Source> {
    match templates::find_startable(app, caller.team, reference).await {
        Ok(Startable { template, version: None }) => of_template(caller, template, wanted),
        Ok(Startable { template, version: Some(version) }) => {
            caller.may(Action::CapsulesAdmin, Resource::Template(template.id))?;
            of_version(app, caller, template, version, wanted).await
        }
        Err(Error::NotFound(what)) => {
            let Some(name) = templates::snapshot_name(reference) else {
                return Err(Error::NotFound(what));
            };
            let found = db::snapshots::find(&app.db, caller.team, name, name.parse().ok()).await?;
            let found = found.filter(|_| caller.may(Action::CapsulesAdmin, Resource::Team).is_ok());
            of_snapshot(found.ok_or(Error::NotFound(what))?, wanted)
        }
        Err(error) => Err(error),
    }
}

/// Makes the source of a capsule from an operator's template, which has default sizes.
fn of_template(caller: Caller, template: Template, wanted: &api::CreateCapsule) -> Result<Source> {
    caller.may(Action::CapsulesAdmin, Resource::Template(template.id))?;
    let (vcpus, memory_mib) = (template.vcpus, template.memory_mib);
    let size = sized(wanted, Resources { vcpus, memory_mib, disk_mib: template.disk_mib })?;
    let origin = Origin::Template { id: template.id, isolation: template.isolation };
    Ok(Source { template: template.name, size, origin })
}

/// Returns the requested sizes. Sizes that the request leaves out are the origin's.
fn sized(wanted: &api::CreateCapsule, default: Resources) -> Result<Resources> {
    let size = Resources {
        vcpus: wanted.vcpus.unwrap_or(default.vcpus),
        memory_mib: wanted.memory_mib.unwrap_or(default.memory_mib),
        disk_mib: wanted.disk_mib.unwrap_or(default.disk_mib),
    };
    size.check()?;
    Ok(size)
}

/// Makes the source of a capsule from a version, which has default sizes. A version that is a
/// snapshot has fixed sizes.
async fn of_version(
    app: &App,
    caller: Caller,
    template: Template,
    version: Version,
    wanted: &api::CreateCapsule,
) -> Result<Source> {
    let Some(snapshot) = version.snapshot_id else {
        let size = sized(wanted, version.size())?;
        let origin = Origin::Version {
            template_id: template.id,
            isolation: template.isolation,
            version: super::spec::Version {
                id: version.id,
                team: version.team_id,
                ready_within: version.ready_within(),
            },
            hosts: version.hosts,
            stored: version.stored,
        };
        return Ok(Source { template: template.name, size, origin });
    };
    if version.team_id != caller.team {
        // The snapshot has the memory of its team.
        let why = "has the memory of a capsule, so only its own team can start it";
        return Err(Error::invalid("template", why));
    }
    let found = db::snapshots::find_version(&app.db, caller.team, snapshot).await?;
    let mut source = of_snapshot(found.ok_or(Error::NotFound("template"))?, wanted)?;
    source.template = template.name;
    let Origin::Snapshot { template_id, version: of, isolation, .. } = &mut source.origin else {
        return Ok(source);
    };
    (*template_id, *of, *isolation) = (Some(template.id), Some(version.id), template.isolation);
    Ok(source)
}

/// Makes the source of a capsule from a snapshot, whose sizes are fixed.
fn of_snapshot(snapshot: Snapshot, wanted: &api::CreateCapsule) -> Result<Source> {
    let size = Resources {
        vcpus: snapshot.vcpus,
        memory_mib: snapshot.memory_mib,
        disk_mib: snapshot.disk_mib,
    };
    for (field, asked, is) in [
        ("vcpus", wanted.vcpus, size.vcpus),
        ("memory_mib", wanted.memory_mib, size.memory_mib),
        ("disk_mib", wanted.disk_mib, size.disk_mib),
    ] {
        if asked.is_some_and(|asked| asked != is) {
            return Err(Error::invalid(field, format!("must be {is}, the size in the snapshot")));
        }
    }
    let origin = Origin::Snapshot {
        id: snapshot.id,
        template_id: None,
        version: snapshot.version_id,
        isolation: Isolation::None,
        host: snapshot.host_id,
        stored: snapshot.stored,
    };
    Ok(Source { template: snapshot.template, size, origin })
}

/// Checks the value of the `Host` header that programs in the capsule get.
fn check_host_header(name: &str) -> Result<()> {
    let filled = name.replace(HOST_PORT, "80");
    match filled.parse::<http::uri::Authority>() {
        Ok(host) if !filled.contains('@') && !host.host().is_empty() && name.len() <= 300 => Ok(()),
        _ => Err(Error::invalid("host_header", "must be a host name, optionally with a port")),
    }
}
