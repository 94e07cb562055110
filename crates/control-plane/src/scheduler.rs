//! Chooses the host for a capsule. Pure: the inputs are the known hosts and the request.
//!
//! A host fits when it is open, and is shared or the team's own. It must have the requested tags
//! and isolation tier, and room. It must also have the template, version or snapshot, or be able to
//! fetch it. The host that would be the least full afterwards wins. Having to fetch counts as a
//! quarter of a host.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use types::{HostId, Isolation, TeamId};

/// Cost of fetching the origin, as a share of a host.
const FETCH: f64 = 0.25;

/// Amounts of virtual CPUs, memory and disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResourceAmounts {
    pub vcpus: u64,
    pub memory_mib: u64,
    pub disk_mib: u64,
}

impl ResourceAmounts {
    fn fields(self) -> [u64; 3] {
        [self.vcpus, self.memory_mib, self.disk_mib]
    }

    /// Adds another amount to this one.
    pub(crate) fn add(&mut self, other: Self) {
        self.vcpus = self.vcpus.saturating_add(other.vcpus);
        self.memory_mib = self.memory_mib.saturating_add(other.memory_mib);
        self.disk_mib = self.disk_mib.saturating_add(other.disk_mib);
    }
}

/// Facts about a host that placement uses.
#[derive(Debug, Clone)]
pub struct HostView {
    pub id: HostId,
    /// Set if the host takes capsules.
    pub open: bool,
    /// Team that owns the host; `None` for a shared host.
    pub team: Option<TeamId>,
    pub tags: Vec<String>,
    pub isolation: Isolation,
    pub templates: Vec<String>,
    /// Set if the host can fetch templates, versions and snapshots from the store.
    pub store: bool,
    /// Total amount that the host's capsules may have.
    pub room: ResourceAmounts,
    /// Amount that the host's capsules have.
    pub used: ResourceAmounts,
}

/// State that a machine starts from, as far as it binds the machine to hosts.
#[derive(Debug, Clone, Copy)]
pub enum Holders<'a> {
    /// A template of the operator's, by its name. The hosts report such templates. Any host with the
    /// store can fetch one, since each host uploads its own.
    Template(&'a str),
    /// A version or a snapshot, on these hosts.
    Hosts {
        ids: &'a [HostId],
        /// Set if any host with the store can fetch it.
        stored: bool,
    },
    /// Nothing that a host must have. On other hosts than these, the start costs as much as a fetch.
    Anywhere { near: &'a [HostId] },
}

/// A request for a host.
#[derive(Debug, Clone)]
pub struct PlacementRequest<'a> {
    pub team: TeamId,
    pub size: ResourceAmounts,
    pub origin: Holders<'a>,
    pub tags: &'a [String],
    /// Lowest isolation tier that the capsule accepts.
    pub isolation: Isolation,
    /// Hosts to leave out, since they refused or did not answer.
    pub excluded: &'a [HostId],
}

/// Reason that no host fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoFit {
    #[error("no host accepts capsules")]
    None,
    #[error("no host has the requested tags")]
    Tags,
    #[error("no host that accepts capsules has the isolation tier `{0}` or a stronger one")]
    Isolation(Isolation),
    #[error("no host that accepts capsules has the template or snapshot")]
    Origin,
    #[error("no host has room for {0} vCPUs, {1} MiB of memory and {2} MiB of disk")]
    Full(u64, u64, u64),
}

/// Picks a host. `salt` breaks ties, so that concurrent requests do not all pick the same host.
pub fn pick(
    hosts: &[HostView],
    request: &PlacementRequest<'_>,
    salt: u64,
) -> Result<HostId, NoFit> {
    // A team with hosts of its own uses only those.
    let own = hosts.iter().any(|host| host.team == Some(request.team));
    let mut why = NoFit::None;
    let mut best: Option<(f64, u64, HostId)> = None;
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    for host in hosts {
        let admitted = if own { host.team == Some(request.team) } else { host.team.is_none() };
        if !host.open || !admitted || request.excluded.contains(&host.id) {
            continue;
        }
        let share = match score(host, request) {
            Ok(share) => share,
            Err(reason) => {
                why = further(why, reason);
                continue;
            }
        };
        if best.is_some_and(|(least, ..)| share > least) {
            continue;
        }
        let lot = hasher.hash_one((salt, host.id.0));
        let better = best.is_none_or(|(least, known, _)| share < least || lot < known);
        if better {
            best = Some((share, lot, host.id));
        }
    }
    best.map(|(_, _, id)| id).ok_or(why)
}

/// Returns the share of a host that would be in use, or the reason that it does not fit.
fn score(host: &HostView, request: &PlacementRequest<'_>) -> Result<f64, NoFit> {
    if !request.tags.iter().all(|tag| host.tags.contains(tag)) {
        return Err(NoFit::Tags);
    }
    if host.isolation < request.isolation {
        return Err(NoFit::Isolation(request.isolation));
    }
    let (holds, fetches) = match request.origin {
        Holders::Template(name) => (host.templates.iter().any(|own| own == name), host.store),
        Holders::Hosts { ids, stored } => (ids.contains(&host.id), stored && host.store),
        Holders::Anywhere { near } => (near.is_empty() || near.contains(&host.id), true),
    };
    if !holds && !fetches {
        return Err(NoFit::Origin);
    }
    let mut used = host.used;
    used.add(request.size);
    let mut share = 0_f64;
    for (used, room) in used.fields().into_iter().zip(host.room.fields()) {
        if used > room {
            let ResourceAmounts { vcpus, memory_mib, disk_mib } = request.size;
            return Err(NoFit::Full(vcpus, memory_mib, disk_mib));
        }
        #[expect(clippy::cast_precision_loss, reason = "a share needs no precision")]
        let part = used as f64 / room.max(1) as f64;
        share = share.max(part);
    }
    Ok(if holds { share } else { share + FETCH })
}

/// Returns the reason of the host that passed more of the checks.
fn further(one: NoFit, other: NoFit) -> NoFit {
    let rank = |why: NoFit| match why {
        NoFit::None => 0,
        NoFit::Tags => 1,
        NoFit::Isolation(_) => 2,
        NoFit::Origin => 3,
        NoFit::Full(..) => 4,
    };
    if rank(other) > rank(one) { other } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(n: u128, used: u64) -> HostView {
        HostView {
            id: HostId(uuid::Uuid::from_u128(n)),
            open: true,
            team: None,
            tags: Vec::new(),
            isolation: Isolation::Tcg,
            templates: vec!["base".to_owned()],
            store: true,
            room: ResourceAmounts { vcpus: 32, memory_mib: 4096, disk_mib: 100_000 },
            used: ResourceAmounts { vcpus: 0, memory_mib: used, disk_mib: 0 },
        }
    }

    fn request<'a>() -> PlacementRequest<'a> {
        let size = ResourceAmounts { vcpus: 1, memory_mib: 512, disk_mib: 1024 };
        PlacementRequest {
            team: TeamId::new(),
            size,
            origin: Holders::Template("base"),
            tags: &[],
            isolation: Isolation::None,
            excluded: &[],
        }
    }

    #[test]
    fn host_of_weaker_isolation_tier_is_not_picked() {
        let mut hosts = vec![host(1, 0), host(2, 3000)];
        hosts[1].isolation = Isolation::Kvm;
        let wants = |isolation| PlacementRequest { isolation, ..request() };
        assert_eq!(pick(&hosts, &wants(Isolation::Tcg), 7), Ok(hosts[0].id));
        assert_eq!(pick(&hosts, &wants(Isolation::Kvm), 7), Ok(hosts[1].id));
        let jailed = pick(&hosts, &wants(Isolation::Jailed), 7);
        assert_eq!(jailed, Err(NoFit::Isolation(Isolation::Jailed)));
    }

    #[test]
    fn least_loaded_host_that_holds_the_template_is_picked() {
        let mut hosts = vec![host(1, 2000), host(2, 1000), host(3, 3000)];
        hosts.iter_mut().for_each(|host| host.store = false);
        assert_eq!(pick(&hosts, &request(), 7), Ok(hosts[1].id));
        hosts[1].templates.clear();
        assert_eq!(pick(&hosts, &request(), 7), Ok(hosts[0].id));
        hosts[0].templates.clear();
        hosts[2].templates.clear();
        assert_eq!(pick(&hosts, &request(), 7), Err(NoFit::Origin));
        hosts.iter_mut().for_each(|host| host.store = true);
        assert_eq!(pick(&hosts, &request(), 7), Ok(hosts[1].id));
    }

    #[test]
    fn version_starts_where_it_is_held_and_elsewhere_only_from_the_store() {
        let mut hosts = vec![host(1, 1000), host(2, 0)];
        let held = [hosts[0].id];
        let wants = |stored| {
            let origin = Holders::Hosts { ids: &held, stored };
            PlacementRequest { origin, ..request() }
        };
        assert_eq!(pick(&hosts, &wants(false), 7), Ok(hosts[0].id));
        hosts[0].open = false;
        assert_eq!(pick(&hosts, &wants(false), 7), Err(NoFit::Origin));
        assert_eq!(pick(&hosts, &wants(true), 7), Ok(hosts[1].id));
        hosts[1].store = false;
        assert_eq!(pick(&hosts, &wants(true), 7), Err(NoFit::Origin));
    }

    #[test]
    fn work_without_origin_goes_near_and_otherwise_anywhere() {
        let mut hosts = vec![host(1, 800), host(2, 0)];
        hosts.iter_mut().for_each(|host| host.store = false);
        let near = [hosts[0].id];
        let wants = |near| PlacementRequest { origin: Holders::Anywhere { near }, ..request() };
        assert_eq!(pick(&hosts, &wants(&near[..]), 7), Ok(hosts[0].id));
        assert_eq!(pick(&hosts, &wants(&[]), 7), Ok(hosts[1].id));
        hosts[0].open = false;
        assert_eq!(pick(&hosts, &wants(&near[..]), 7), Ok(hosts[1].id));
    }

    #[test]
    fn small_host_is_used_to_its_last_mebibyte() {
        let mut small = host(1, 0);
        small.room = ResourceAmounts { vcpus: 1, memory_mib: 512, disk_mib: 1024 };
        assert_eq!(pick(&[small.clone()], &request(), 0), Ok(small.id));
        small.used.memory_mib = 1;
        assert_eq!(pick(&[small], &request(), 0), Err(NoFit::Full(1, 512, 1024)));
    }

    #[test]
    fn concurrent_picks_spread_over_equal_hosts() {
        let hosts: Vec<HostView> = (0..50).map(|n| host(n, 0)).collect();
        let picked: std::collections::HashSet<_> =
            (0..50).map(|salt| pick(&hosts, &request(), salt).unwrap()).collect();
        assert!(picked.len() > 20, "{}", picked.len());
    }

    fn any_hosts() -> impl Strategy<Value = Vec<HostView>> {
        let one = (any::<bool>(), 0_u128..3, 0_u8..4, any::<bool>(), 0_u64..40, 0_u64..5000);
        proptest::collection::vec(one, 0..20).prop_map(|all| {
            let mut hosts = Vec::new();
            for (n, (open, team, tag, holds, vcpus, memory_mib)) in (1_u128..).zip(all) {
                let mut host = host(n, memory_mib);
                host.open = open;
                host.team = (team > 0).then(|| TeamId(uuid::Uuid::from_u128(team)));
                host.tags = vec![format!("tag{tag}")];
                if !holds {
                    host.templates.clear();
                }
                host.used.vcpus = vcpus;
                hosts.push(host);
            }
            hosts
        })
    }

    proptest! {
        #[test]
        fn picked_host_fits_and_no_fitting_host_is_less_loaded(
            hosts in any_hosts(), team in 0_u128..3, tag in 0_u8..5, fetches: bool, salt: u64,
        ) {
            let tags: Vec<String> = (tag < 4).then(|| format!("tag{tag}")).into_iter().collect();
            let team = TeamId(uuid::Uuid::from_u128(team));
            let holders: Vec<HostId> =
                hosts.iter().filter(|h| !h.templates.is_empty()).map(|h| h.id).collect();
            let origin = Holders::Hosts { ids: &holders, stored: fetches };
            let request = PlacementRequest { team, origin, tags: &tags, ..request() };
            let own = hosts.iter().any(|h| h.team == Some(team));
            let fits = |h: &&HostView| {
                h.open
                    && h.team == own.then_some(team)
                    && tags.iter().all(|t| h.tags.contains(t))
                    && (fetches || !h.templates.is_empty())
                    && h.used.vcpus < h.room.vcpus
                    && h.used.memory_mib + 512 <= h.room.memory_mib
            };
            match pick(&hosts, &request, salt) {
                Err(_) => prop_assert!(hosts.iter().find(fits).is_none()),
                Ok(id) => {
                    let picked = hosts.iter().find(|h| h.id == id).unwrap();
                    prop_assert!(fits(&picked));
                    let share = score(picked, &request).unwrap();
                    let mut shares = hosts.iter().filter(fits).map(|h| score(h, &request).unwrap());
                    prop_assert!(shares.all(|other| other >= share));
                }
            }
        }
    }
}
