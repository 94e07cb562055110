//! Chooses the host for a capsule. Pure: the inputs are the known hosts and the request.
//!
//! A host fits when it is open, and is shared or the team's own. It must have the requested tags
//! and isolation tier, and room. It must also have the template or snapshot, or be able to fetch
//! it. The host that would be the least full afterwards wins. Having to fetch counts as a quarter
//! of a host.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use types::{HostId, Isolation, TeamId};

/// Cost of fetching the template or snapshot, as a share of a host.
const FETCH: f64 = 0.25;

/// Amounts of virtual CPUs, memory and disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    pub vcpus: u64,
    pub memory_mib: u64,
    pub disk_mib: u64,
}

impl Size {
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
pub struct Machine {
    pub id: HostId,
    /// Set if the host takes capsules.
    pub open: bool,
    /// Team that owns the host; `None` for a shared host.
    pub team: Option<TeamId>,
    pub tags: Vec<String>,
    pub isolation: Isolation,
    pub templates: Vec<String>,
    /// Set if the host can fetch templates and snapshots from the store.
    pub store: bool,
    /// Total amount that the host's capsules may have.
    pub room: Size,
    /// Amount that the host's capsules have.
    pub used: Size,
}

/// A request for a host.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
    pub team: TeamId,
    pub size: Size,
    pub template: &'a str,
    /// Host that has the snapshot to start from; `None` for a template.
    pub near: Option<HostId>,
    /// Set if a host with the store can fetch the template or snapshot.
    pub fetches: bool,
    pub tags: &'a [String],
    /// Lowest isolation tier that the capsule accepts.
    pub isolation: Isolation,
    /// Hosts to leave out, since they refused or did not answer.
    pub without: &'a [HostId],
}

/// Reason that no host fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoFit {
    #[error("no host takes capsules")]
    None,
    #[error("no host has these tags")]
    Tags,
    #[error("no host that takes capsules has the isolation tier `{0}`, or a better one")]
    Isolation(Isolation),
    #[error("no host that takes capsules has what it begins from")]
    Origin,
    #[error("no host has room for {0} vCPUs, {1} MiB of memory and {2} MiB of disk")]
    Full(u64, u64, u64),
}

/// Picks a host. `salt` breaks ties, so that concurrent requests do not all pick the same host.
pub fn pick(machines: &[Machine], ask: &Ask<'_>, salt: u64) -> Result<HostId, NoFit> {
    // A team with hosts of its own uses only those.
    let own = machines.iter().any(|machine| machine.team == Some(ask.team));
    let mut why = NoFit::None;
    let mut best: Option<(f64, u64, HostId)> = None;
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    for machine in machines {
        let admitted = if own { machine.team == Some(ask.team) } else { machine.team.is_none() };
        if !machine.open || !admitted || ask.without.contains(&machine.id) {
            continue;
        }
        let share = match weigh(machine, ask) {
            Ok(share) => share,
            Err(reason) => {
                why = further(why, reason);
                continue;
            }
        };
        if best.is_some_and(|(least, ..)| share > least) {
            continue;
        }
        let lot = hasher.hash_one((salt, machine.id.0));
        let better = best.is_none_or(|(least, known, _)| share < least || lot < known);
        if better {
            best = Some((share, lot, machine.id));
        }
    }
    best.map(|(_, _, id)| id).ok_or(why)
}

/// Returns the share of a host that would be in use, or the reason that it does not fit.
fn weigh(machine: &Machine, ask: &Ask<'_>) -> Result<f64, NoFit> {
    if !ask.tags.iter().all(|tag| machine.tags.contains(tag)) {
        return Err(NoFit::Tags);
    }
    if machine.isolation < ask.isolation {
        return Err(NoFit::Isolation(ask.isolation));
    }
    let holds = match ask.near {
        Some(near) => machine.id == near,
        None => machine.templates.iter().any(|name| name == ask.template),
    };
    let fetches = ask.fetches && machine.store;
    if !holds && !fetches {
        return Err(NoFit::Origin);
    }
    let mut used = machine.used;
    used.add(ask.size);
    let mut share = 0_f64;
    for (used, room) in used.fields().into_iter().zip(machine.room.fields()) {
        if used > room {
            let Size { vcpus, memory_mib, disk_mib } = ask.size;
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

    fn host(n: u128, used: u64) -> Machine {
        Machine {
            id: HostId(uuid::Uuid::from_u128(n)),
            open: true,
            team: None,
            tags: Vec::new(),
            isolation: Isolation::Tcg,
            templates: vec!["base".to_owned()],
            store: true,
            room: Size { vcpus: 32, memory_mib: 4096, disk_mib: 100_000 },
            used: Size { vcpus: 0, memory_mib: used, disk_mib: 0 },
        }
    }

    fn ask<'a>() -> Ask<'a> {
        let size = Size { vcpus: 1, memory_mib: 512, disk_mib: 1024 };
        Ask {
            team: TeamId::new(),
            size,
            template: "base",
            near: None,
            fetches: false,
            tags: &[],
            isolation: Isolation::None,
            without: &[],
        }
    }

    #[test]
    fn a_host_of_a_weaker_tier_takes_nothing_that_asks_for_a_better_one() {
        let mut hosts = vec![host(1, 0), host(2, 3000)];
        hosts[1].isolation = Isolation::Kvm;
        let wants = |isolation| Ask { isolation, ..ask() };
        assert_eq!(pick(&hosts, &wants(Isolation::Tcg), 7), Ok(hosts[0].id));
        assert_eq!(pick(&hosts, &wants(Isolation::Kvm), 7), Ok(hosts[1].id));
        let jailed = pick(&hosts, &wants(Isolation::Jailed), 7);
        assert_eq!(jailed, Err(NoFit::Isolation(Isolation::Jailed)));
    }

    #[test]
    fn the_least_full_is_picked_and_what_a_host_holds_counts() {
        let mut hosts = vec![host(1, 2000), host(2, 1000), host(3, 3000)];
        assert_eq!(pick(&hosts, &ask(), 7), Ok(hosts[1].id));
        hosts[1].templates.clear();
        assert_eq!(pick(&hosts, &ask(), 7), Ok(hosts[0].id));
        hosts[0].templates.clear();
        hosts[2].templates.clear();
        assert_eq!(pick(&hosts, &ask(), 7), Err(NoFit::Origin));
        let fetches = Ask { fetches: true, ..ask() };
        assert_eq!(pick(&hosts, &fetches, 7), Ok(hosts[1].id));
        let near = Ask { near: Some(hosts[0].id), ..fetches };
        assert_eq!(pick(&hosts, &near, 7), Ok(hosts[0].id));
    }

    #[test]
    fn a_small_machine_is_used_to_its_last_megabyte() {
        let mut small = host(1, 0);
        small.room = Size { vcpus: 1, memory_mib: 512, disk_mib: 1024 };
        assert_eq!(pick(&[small.clone()], &ask(), 0), Ok(small.id));
        small.used.memory_mib = 1;
        assert_eq!(pick(&[small], &ask(), 0), Err(NoFit::Full(1, 512, 1024)));
    }

    #[test]
    fn those_that_pick_at_once_pick_differently() {
        let hosts: Vec<Machine> = (0..50).map(|n| host(n, 0)).collect();
        let picked: std::collections::HashSet<_> =
            (0..50).map(|salt| pick(&hosts, &ask(), salt).unwrap()).collect();
        assert!(picked.len() > 20, "{}", picked.len());
    }

    fn machines() -> impl Strategy<Value = Vec<Machine>> {
        let one = (any::<bool>(), 0_u128..3, 0_u8..4, any::<bool>(), 0_u64..40, 0_u64..5000);
        proptest::collection::vec(one, 0..20).prop_map(|all| {
            let mut machines = Vec::new();
            for (n, (open, team, tag, holds, vcpus, memory_mib)) in (1_u128..).zip(all) {
                let mut machine = host(n, memory_mib);
                machine.open = open;
                machine.team = (team > 0).then(|| TeamId(uuid::Uuid::from_u128(team)));
                machine.tags = vec![format!("tag{tag}")];
                if !holds {
                    machine.templates.clear();
                }
                machine.used.vcpus = vcpus;
                machines.push(machine);
            }
            machines
        })
    }

    proptest! {
        #[test]
        fn whoever_is_picked_fits_and_nobody_who_fits_is_emptier(
            hosts in machines(), team in 0_u128..3, tag in 0_u8..5, fetches: bool, salt: u64,
        ) {
            let tags: Vec<String> = (tag < 4).then(|| format!("tag{tag}")).into_iter().collect();
            let team = TeamId(uuid::Uuid::from_u128(team));
            let ask = Ask { team, fetches, tags: &tags, ..ask() };
            let own = hosts.iter().any(|h| h.team == Some(team));
            let fits = |h: &&Machine| {
                h.open
                    && h.team == own.then_some(team)
                    && tags.iter().all(|t| h.tags.contains(t))
                    && (fetches || !h.templates.is_empty())
                    && h.used.vcpus < h.room.vcpus
                    && h.used.memory_mib + 512 <= h.room.memory_mib
            };
            match pick(&hosts, &ask, salt) {
                Err(_) => prop_assert!(hosts.iter().find(fits).is_none()),
                Ok(id) => {
                    let picked = hosts.iter().find(|h| h.id == id).unwrap();
                    prop_assert!(fits(&picked));
                    let share = weigh(picked, &ask).unwrap();
                    prop_assert!(hosts.iter().filter(fits).all(|h| weigh(h, &ask).unwrap() >= share));
                }
            }
        }
    }
}
