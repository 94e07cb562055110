//! Facts about a kept image, and the rule of who may have it. Pure.
//!
//! `image.json` never changes. `uses.json` tells where the image came from and who may read it
//! there. Digests are no secrets, so a digest alone gives nobody an image: a registry of a caller's
//! own could name any digest.

use recipe::{Command, Config};
use registry::Digest;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Most sources of one image, and most tags of one source. The oldest are forgotten.
const SOURCES_MAX: usize = 64;
const TAGS_MAX: usize = 64;
/// Most teams of one source that are known to have read it. Others ask the registry again.
const TEAMS_MAX: usize = 1024;

/// Contents of `image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub digest: Digest,
    pub config_digest: Digest,
    /// Registry or mirror that sent the image; absent for an archive.
    pub from: Option<String>,
    pub config: Config,
    /// Size of the root image's file. Holes count.
    pub bytes: u64,
    /// Digests of the plain layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

/// Contents of `uses.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Uses {
    /// Last use, in seconds of Unix time.
    pub used: u64,
    /// Digests of indexes that led to the image on this host's platform, with that platform.
    pub asked: BTreeMap<String, String>,
    /// Places that gave the whole image, by the name of registry and repository.
    pub sources: BTreeMap<String, Source>,
}

/// A place that gave the whole image once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Source {
    /// Set if everybody may read the image there.
    pub public: bool,
    /// Set if every caller of this host may read it there, by the operator's login.
    pub open: bool,
    /// Teams that showed that they may read it.
    pub teams: BTreeSet<String>,
    /// Tags that stood for the image, with the time in seconds of Unix time.
    pub tags: BTreeMap<String, u64>,
    /// Last use, in seconds of Unix time.
    pub used: u64,
}

/// A caller's access to one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Access {
    /// Name of registry and repository.
    pub source: String,
    /// Credentials that gave access; absent for an archive, which proves nothing before it was read.
    pub proof: Option<registry::Proof>,
    pub team: String,
    /// Tag or digest that was asked for.
    pub tag: Option<String>,
}

impl Uses {
    /// Reports whether a caller may have the image without its layers being read again.
    ///
    /// A caller who proved access at a source right now may have an image of exactly that source.
    pub(super) fn serves(&self, access: &Access) -> bool {
        if self.sources.values().any(|source| source.public) {
            return true;
        }
        let Some(source) = self.sources.get(&access.source) else { return false };
        access.proof.is_some() || source.teams.contains(&access.team)
    }

    /// Returns the time at which a tag of a source stood for the image, if a caller may have it
    /// without asking the registry.
    pub(super) fn known(&self, source: &str, tag: &str, team: &str) -> Option<u64> {
        let source = self.sources.get(source)?;
        let may = source.public || source.open || source.teams.contains(team);
        source.tags.get(tag).copied().filter(|_| may)
    }

    /// Reports whether a digest leads to the image on a platform.
    pub(super) fn is_asked(&self, digest: &str, platform: &str) -> bool {
        self.asked.get(digest).is_some_and(|known| known == platform)
    }

    /// Notes that a caller read all layers of the image at a source, and the login that this took.
    pub(super) fn note_whole(&mut self, access: &Access) {
        let source = self.sources.entry(access.source.clone()).or_default();
        match access.proof {
            Some(registry::Proof::Anonymous) => source.public = true,
            Some(registry::Proof::Operator) => source.open = true,
            Some(registry::Proof::Caller) | None => {}
        }
    }

    /// Notes that a caller got the image.
    pub(super) fn note(&mut self, access: &Access, asked: &Digest, platform: &str, now: u64) {
        self.used = now;
        self.asked.insert(asked.to_string(), platform.to_owned());
        while self.asked.len() > SOURCES_MAX && self.asked.pop_first().is_some() {}
        let source = self.sources.entry(access.source.clone()).or_default();
        source.used = now;
        if !source.public {
            source.teams.insert(access.team.clone());
            while source.teams.len() > TEAMS_MAX && source.teams.pop_first().is_some() {}
        }
        source.tags.extend(access.tag.clone().map(|tag| (tag, now)));
        forget_oldest(&mut source.tags, TAGS_MAX, |time| *time);
        forget_oldest(&mut self.sources, SOURCES_MAX, |source| source.used);
    }
}

fn forget_oldest<T>(map: &mut BTreeMap<String, T>, most: usize, time: impl Fn(&T) -> u64) {
    while map.len() > most {
        let oldest = map.iter().min_by_key(|(_, value)| time(value)).map(|(key, _)| key.clone());
        let Some(oldest) = oldest else { return };
        map.remove(&oldest);
    }
}

/// Converts an image's configuration to the form that steps and starts see. Variables without a
/// name are left out, and the last of equal names counts.
pub(super) fn config(image: &registry::Config) -> Config {
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let command = |words: &Vec<String>| {
        Some(words.clone()).filter(|words| !words.is_empty()).map(Command::Exec)
    };
    let variables = image.env.iter().filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    });
    Config {
        env: variables.collect(),
        user: text(&image.user),
        workdir: text(&image.working_dir),
        entrypoint: command(&image.entrypoint),
        cmd: command(&image.cmd),
        labels: image.labels.clone(),
        exposed: image.exposed_ports.iter().cloned().collect(),
        volumes: image.volumes.iter().cloned().collect(),
        stop_signal: text(&image.stop_signal),
        onbuild: image.on_build.clone(),
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use registry::Proof;

    fn access(source: &str, proof: Option<Proof>, team: &str) -> Access {
        Access { source: source.into(), proof, team: team.into(), tag: Some("1".into()) }
    }

    fn uses(access: &Access) -> Uses {
        let mut uses = Uses::default();
        uses.note_whole(access);
        uses.note(access, &Digest::sha256(b"index"), "amd64", 5);
        uses
    }

    #[test]
    fn public_image_serves_everybody() {
        let uses = uses(&access("docker.io/a", Some(Proof::Anonymous), "one"));
        assert!(uses.serves(&access("evil.example/a", Some(Proof::Anonymous), "two")));
        assert_eq!(uses.known("docker.io/a", "1", "two"), Some(5));
        assert_eq!(uses.known("docker.io/a", "2", "two"), None);
        assert_eq!(uses.known("evil.example/a", "1", "two"), None);
    }

    #[test]
    fn private_image_serves_only_who_proves_access_at_its_source() {
        let uses = uses(&access("ghcr.io/a", Some(Proof::Caller), "one"));
        assert!(uses.serves(&access("ghcr.io/a", Some(Proof::Caller), "two")));
        // A registry of the caller's own may name the digest, and an archive may hold the manifest.
        assert!(!uses.serves(&access("evil.example/a", Some(Proof::Anonymous), "two")));
        assert!(!uses.serves(&access("archive", None, "one")));
        assert_eq!(uses.known("ghcr.io/a", "1", "one"), Some(5));
        assert_eq!(uses.known("ghcr.io/a", "1", "two"), None);
    }

    #[test]
    fn archive_serves_its_own_team_alone() {
        let uses = uses(&access("archive", None, "one"));
        assert!(uses.serves(&access("archive", None, "one")));
        assert!(!uses.serves(&access("archive", None, "two")));
    }

    #[test]
    fn image_of_the_operators_login_is_known_to_all_teams_at_that_source() {
        let uses = uses(&access("ghcr.io/a", Some(Proof::Operator), "one"));
        assert_eq!(uses.known("ghcr.io/a", "1", "two"), Some(5));
        assert!(!uses.serves(&access("evil.example/a", Some(Proof::Anonymous), "two")));
    }

    #[test]
    fn digest_of_an_index_leads_to_the_image_on_its_platform_alone() {
        let uses = uses(&access("docker.io/a", Some(Proof::Anonymous), "one"));
        let index = Digest::sha256(b"index").to_string();
        assert!(uses.is_asked(&index, "amd64"));
        assert!(!uses.is_asked(&index, "arm64"));
    }

    #[test]
    fn tags_and_sources_are_bounded() {
        let mut uses = Uses::default();
        for at in 0..200 {
            let name = format!("r.example/{at}");
            let access = Access { tag: Some(at.to_string()), ..access(&name, None, "one") };
            uses.note(&access, &Digest::sha256(name.as_bytes()), "amd64", at);
        }
        assert_eq!((uses.sources.len(), uses.asked.len()), (SOURCES_MAX, SOURCES_MAX));
        assert!(uses.sources.contains_key("r.example/199"));
    }

    #[test]
    fn configuration_keeps_the_last_of_equal_variables() {
        let image = registry::Config {
            env: ["A=1", "B=x=y", "A=2", "=z", "C"].map(str::to_owned).to_vec(),
            cmd: vec!["sh".to_owned()],
            ..registry::Config::default()
        };
        let config = config(&image);
        let pairs: Vec<_> = config.env.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("A", "2"), ("B", "x=y"), ("C", "")]);
        assert_eq!((config.user, config.entrypoint), (None, None));
        assert_eq!(config.cmd, Some(Command::Exec(vec!["sh".to_owned()])));
    }
}
