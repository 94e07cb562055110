//! Description of a snapshot: its machine, its layers, and the hashes of its files.

use super::damage::{as_damage, damaged};
use super::layer::Layer;
use crate::config::System;
use crate::placeholder;
use crate::version::Version;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use types::resources::Resources;

/// Reference to a layer, in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct LayerRef {
    pub id: String,
    /// BLAKE3 hash of the layer's index, in hexadecimal.
    pub hash: String,
    /// Size of the layer's page data, in bytes, without its index.
    pub bytes: u64,
}

impl LayerRef {
    /// Returns the name of the layer's file in the snapshot's folder.
    pub(crate) fn file(&self) -> String {
        format!("{}.pages", self.id)
    }

    /// Reports whether the id is a UUID without hyphens, as a staged snapshot names its layers.
    fn has_valid_id(&self) -> bool {
        self.id.len() == 32 && uuid::Uuid::try_parse(&self.id).is_ok()
    }

    fn open(&self, dir: &Path) -> io::Result<Layer> {
        let hash = blake3::Hash::from_hex(&self.hash).map_err(|e| damaged(e.to_string()))?;
        Layer::open(File::open(dir.join(self.file())).map_err(as_damage)?, &hash)
    }
}

/// Layers of a memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Layers {
    /// All layers, from the lowest. A page in a later layer hides the same page in earlier layers.
    pub all: Vec<LayerRef>,
    /// Number of the first layers that form the image which machines map and share.
    pub shared: usize,
}

impl Layers {
    /// Reports whether the ids can be parts of file names and the shared layers are there.
    fn is_valid(&self) -> bool {
        self.shared <= self.all.len() && self.all.iter().all(LayerRef::has_valid_id)
    }

    pub(crate) fn open(&self, dir: &Path) -> io::Result<Vec<Layer>> {
        self.all.iter().map(|layer| layer.open(dir)).collect()
    }

    /// Links the layers' files from one folder into another.
    pub(crate) fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        for layer in &self.all {
            match fs::hard_link(from.join(layer.file()), to.join(layer.file())) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                linked => linked?,
            }
        }
        Ok(())
    }
}

/// Description of a snapshot, stored in its folder.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Manifest {
    /// VMM and processor that the snapshot was made on. Another kind of machine could not read it.
    pub fingerprint: String,
    #[serde(default)]
    pub system: System,
    pub template: String,
    /// Version of the template, with the number of its machine's read-only disks. `None` for a
    /// template of the operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Team that owns the snapshot; `None` for a template snapshot, which belongs to the host.
    #[serde(default)]
    pub team: Option<String>,
    pub resources: Resources,
    /// Number of the machine's placeholder drives. Snapshots of earlier versions lack the field, and
    /// their machines have none.
    #[serde(default)]
    pub placeholders: u8,
    /// Time of the snapshot, in milliseconds since 1970.
    pub taken_at_ms: i64,
    /// Layers of the memory; `None` if only the disk was saved.
    pub memory: Option<Layers>,
    /// Hash of the devices' state.
    pub state: Option<String>,
    /// Hash of the disk's contents; `None` for machines without disks.
    pub disk: Option<String>,
    /// Token that envd in the memory expects; `None` before envd has a token.
    pub envd_token: Option<String>,
}

impl Manifest {
    /// Returns the number of the machine's read-only disks beside its image.
    pub(crate) fn layers(&self) -> usize {
        self.version.as_ref().map_or(0, |version| version.layers.len())
    }

    /// Reads a manifest whose first line is the hash of the rest.
    pub(super) fn read(text: &[u8]) -> io::Result<Self> {
        let wrong = || damaged("the manifest differs from the written one");
        let at = text.iter().position(|byte| *byte == b'\n').ok_or_else(wrong)?;
        let (hash, body) = (&text[..at], &text[at + 1..]);
        if blake3::hash(body).to_hex().as_bytes() != hash {
            return Err(wrong());
        }
        let read: Self = serde_json::from_slice(body).map_err(|e| damaged(e.to_string()))?;
        // The hash proves nothing about the author, since anyone who can write to a store can make
        // one.
        if !read.memory.iter().all(Layers::is_valid) {
            return Err(damaged("the manifest's layers are not valid"));
        }
        if !read.version.iter().all(Version::is_valid) {
            return Err(damaged("the manifest's version is not valid"));
        }
        if read.placeholders > placeholder::COUNT {
            let told = format!("the manifest names {} placeholder drives", read.placeholders);
            return Err(damaged(told));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::super::damage::is_damage;
    use super::*;

    #[test]
    fn manifest_with_invalid_layers_is_reported_as_damage() {
        let read = |id: &str, shared: usize| {
            let layer = serde_json::json!({ "id": id, "hash": "00", "bytes": 1 });
            let body = serde_json::json!({
                "fingerprint": "f", "template": "base", "taken_at_ms": 1, "state": null,
                "resources": { "vcpus": 1, "memory_mib": 512, "disk_mib": 5120 }, "disk": null,
                "memory": { "all": [layer], "shared": shared }, "envd_token": null,
            });
            let body = body.to_string();
            Manifest::read(format!("{}\n{body}", blake3::hash(body.as_bytes())).as_bytes())
        };
        let id = uuid::Uuid::new_v4().simple().to_string();
        assert_eq!(read(&id, 1).unwrap().placeholders, 0, "a manifest of an earlier version");
        for (id, shared) in [("../../etc/shadow", 1), ("", 1), (&*format!("/{id}"), 1), (&id, 2)] {
            assert!(is_damage(&read(id, shared).unwrap_err()), "{id} {shared}");
        }
    }

    #[test]
    fn manifest_of_a_version_round_trips_and_too_many_disks_are_damage() {
        let read = |version: &Version| {
            let body = serde_json::json!({
                "fingerprint": "f", "template": "base", "taken_at_ms": 1, "state": null,
                "resources": { "vcpus": 1, "memory_mib": 512, "disk_mib": 5120 }, "disk": null,
                "memory": null, "envd_token": null, "version": version,
            });
            let body = body.to_string();
            Manifest::read(format!("{}\n{body}", blake3::hash(body.as_bytes())).as_bytes())
        };
        let version = crate::version::example(types::BuildId::new());
        let manifest = read(&version).unwrap();
        assert_eq!((manifest.layers(), manifest.version.as_ref()), (1, Some(&version)));
        let layers = vec![protocol::lower::Folders::Upper; 99];
        assert!(is_damage(&read(&Version { layers, ..version }).unwrap_err()));
    }

    #[test]
    fn manifest_names_at_most_the_placeholders_of_this_version() {
        let read = |placeholders: u8| {
            let body = serde_json::json!({
                "fingerprint": "f", "template": "base", "taken_at_ms": 1, "state": null,
                "resources": { "vcpus": 1, "memory_mib": 512, "disk_mib": 5120 }, "disk": null,
                "memory": null, "envd_token": null, "placeholders": placeholders,
            });
            let body = body.to_string();
            Manifest::read(format!("{}\n{body}", blake3::hash(body.as_bytes())).as_bytes())
        };
        assert_eq!(read(placeholder::COUNT).unwrap().placeholders, placeholder::COUNT);
        assert!(is_damage(&read(placeholder::COUNT + 1).unwrap_err()));
    }
}
