//! Index of all layers on this host: for each team, the keys of finished steps. The index is in
//! memory; the descriptions of the layers are its source. Pure.

use super::layer::{Layer, Part};
use recipe::Key;
use std::collections::{HashMap, HashSet};
use types::{BuildId, TeamId};

/// All layers, by team. Teams never share keys, since clients choose hashes of files.
#[derive(Debug, Default)]
pub(crate) struct Index {
    teams: HashMap<TeamId, Team>,
}

#[derive(Debug, Default)]
struct Team {
    layers: HashMap<BuildId, Layer>,
    /// Layer and step of each key. The newest layer wins.
    keys: HashMap<Key, (BuildId, usize)>,
}

impl Index {
    /// Adds a layer.
    pub(super) fn add(&mut self, team: TeamId, layer: Layer) {
        let team = self.teams.entry(team).or_default();
        team.layers.insert(layer.id, layer.clone());
        for (at, done) in layer.steps.iter().enumerate() {
            let before = team.keys.get(&done.key).and_then(|(id, _)| team.layers.get(id));
            if before.is_none_or(|before| before.made_ms <= layer.made_ms) {
                team.keys.insert(done.key, (layer.id, at));
            }
        }
    }

    /// Removes a layer. Keys that an older layer has too are known by that one again.
    pub(super) fn remove(&mut self, team: TeamId, id: BuildId) {
        let Some(found) = self.teams.remove(&team) else { return };
        for (_, layer) in found.layers.into_iter().filter(|(other, _)| *other != id) {
            self.add(team, layer);
        }
    }

    /// Returns the folders of a finished step, if every layer that they are in is here.
    pub(super) fn find(&self, team: TeamId, key: &Key) -> Option<&[Part]> {
        let team = self.teams.get(&team)?;
        let (id, at) = team.keys.get(key)?;
        let chain = &team.layers.get(id)?.steps.get(*at)?.chain;
        chain.iter().all(|part| team.layers.contains_key(&part.layer)).then_some(chain)
    }

    /// Lists a team's layers whose folders lie below those of other layers.
    pub(super) fn referenced(&self, team: TeamId) -> HashSet<BuildId> {
        let layers = self.teams.get(&team).into_iter().flat_map(|team| team.layers.values());
        let parts = layers.flat_map(|layer| {
            let chains = layer.steps.iter().flat_map(|done| &done.chain);
            chains.map(|part| part.layer).filter(|id| *id != layer.id)
        });
        parts.collect()
    }

    /// Lists all layers with their teams.
    pub(super) fn layers(&self) -> Vec<(TeamId, BuildId)> {
        let teams = self.teams.iter();
        teams.flat_map(|(team, found)| found.layers.keys().map(|id| (*team, *id))).collect()
    }

    /// Reports whether a layer completes any step. A copy of a capsule's disk completes none.
    pub(super) fn has_steps(&self, team: TeamId, id: BuildId) -> bool {
        let layer = self.teams.get(&team).and_then(|team| team.layers.get(&id));
        layer.is_some_and(|layer| !layer.steps.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::super::layer::Done;
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn id(n: u8) -> BuildId {
        BuildId(Uuid::from_u128(n.into()))
    }

    fn team(n: u8) -> TeamId {
        TeamId(Uuid::from_u128(n.into()))
    }

    fn key(n: u8) -> Key {
        [n; 32].into()
    }

    /// Returns a layer whose steps lie on another layer.
    fn layer(n: u8, made_ms: u64, keys: &[u8], below: Option<u8>) -> Layer {
        let below = below.map(|below| Part { layer: id(below), folders: vec![1] });
        let steps = keys.iter().zip(1..).map(|(k, folder)| {
            let own = Part { layer: id(n), folders: (1..=folder).collect() };
            Done { key: key(*k), chain: below.clone().into_iter().chain([own]).collect() }
        });
        Layer { id: id(n), made_ms, steps: steps.collect() }
    }

    #[test]
    fn key_of_another_team_or_over_a_missing_layer_is_unknown() {
        let mut index = Index::default();
        index.add(team(1), layer(2, 1, &[7], Some(1)));
        assert_eq!(index.find(team(1), &key(7)), None);
        index.add(team(1), layer(1, 0, &[6], None));
        assert_eq!(index.find(team(1), &key(7)).unwrap().len(), 2);
        assert_eq!(index.find(team(2), &key(7)), None);
        assert_eq!(index.referenced(team(1)), HashSet::from([id(1)]));
        index.remove(team(1), id(1));
        assert_eq!(index.find(team(1), &key(7)), None);
        assert!(index.has_steps(team(1), id(2)) && !index.has_steps(team(1), id(1)));
    }

    proptest! {
        #[test]
        fn newest_layer_wins_in_any_order_of_adds_and_removals(
            layers in proptest::collection::vec(
                (0u64..5, proptest::collection::vec(0u8..6, 1..4)), 1..8),
            removed in proptest::collection::vec(any::<bool>(), 8),
            order in any::<u64>(),
        ) {
            let made: Vec<Layer> = (0u8..).zip(&layers)
                .map(|(n, (at, keys))| layer(n, *at * 10 + u64::from(n), keys, None)).collect();
            let mut shuffled = made.clone();
            shuffled.sort_by_key(|layer| layer.id.0.as_u128().wrapping_add(1).wrapping_mul(order.into()) % 97);
            let mut index = Index::default();
            shuffled.into_iter().for_each(|layer| index.add(team(1), layer));
            for (layer, removed) in made.iter().zip(&removed) {
                if *removed {
                    index.remove(team(1), layer.id);
                }
            }
            let left: Vec<&Layer> =
                made.iter().zip(&removed).filter(|(_, gone)| !**gone).map(|(l, _)| l).collect();
            for k in 0..6 {
                let having = left.iter().filter(|l| l.steps.iter().any(|done| done.key == key(k)));
                let wanted = having.max_by_key(|layer| layer.made_ms).map(|layer| layer.id);
                let found = index.find(team(1), &key(k)).and_then(|chain| Some(chain.last()?.layer));
                prop_assert_eq!(found, wanted);
            }
            prop_assert_eq!(index.layers().len(), left.len());
        }
    }
}
