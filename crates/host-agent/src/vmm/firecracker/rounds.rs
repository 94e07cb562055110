//! Tests of a capsule's rounds of resume and pause, without a machine. They check the files in the
//! driver's folder and the read memory.

use super::changes::{Changes, Kind};
use super::make_base;
use crate::snapshot::base::Base;
use crate::snapshot::layer::{PAGE, index};
use crate::snapshot::memory::{self, Image, Memory};
use crate::snapshot::{Layers, Staging};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const PAGES: usize = 512;
const BYTES: u64 = (PAGES * PAGE) as u64;
/// Pages that a guest writes in each round.
const WRITTEN: usize = 20;
/// Bytes that a file system may need for the block map of a file.
const SLACK: u64 = 64 * 1024;

/// A capsule between its rounds.
struct Capsule {
    dir: tempfile::TempDir,
    /// Folder of the last snapshot, with its layers.
    kept: PathBuf,
    layers: Layers,
    image: Image,
    /// First byte of each page.
    wanted: Vec<u8>,
}

/// Writes a memory, or the listed pages of it, to a sparse file.
fn write(path: &Path, pages: &[u8], listed: impl IntoIterator<Item = usize>) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(BYTES).unwrap();
    for number in listed {
        file.write_all_at(&[pages[number]; PAGE], (number * PAGE) as u64).unwrap();
    }
    file
}

/// Saves a memory as a snapshot, and returns the folder and the layers.
fn keep(to: &Path, memory: &Memory, base: &Layers, from: &Path) -> (PathBuf, Layers) {
    let staging = Staging::begin(to).unwrap();
    let layers = staging.write_memory(memory, base, from).unwrap();
    let kept = staging.path().to_owned();
    std::mem::forget(staging);
    (kept, layers)
}

impl Capsule {
    /// Makes a capsule that begins from a template.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let wanted: Vec<u8> = (0..PAGES).map(|n| u8::try_from(n % 5).unwrap()).collect();
        let all = write(&dir.path().join("all"), &wanted, 0..PAGES);
        let touched = Vec::from([std::ops::Range { start: 0, end: PAGES as u64 }]);
        let memory = Memory::of_changes(all, None, PAGES as u64, touched);
        let golden = dir.path().join("golden");
        let (kept, mut layers) = keep(&golden, &memory, &Layers::default(), dir.path());
        layers.shared = layers.all.len();
        let opened = layers.open(&kept).unwrap();
        let image = memory::image_at(&dir.path().join("image"), &opened, BYTES).unwrap();
        Self { dir, kept, layers, image, wanted }
    }

    /// Resumes the capsule's machine in a new folder.
    fn resume(&self, number: usize, paged: bool) -> Changes {
        let own = self.dir.path().join(format!("own-{number}"));
        fs::create_dir(&own).unwrap();
        let mut layers = self.layers.open(&self.kept).unwrap();
        let above = layers.split_off(self.layers.shared);
        let changes = Changes(own);
        make_base(&changes, &self.image, &above, (paged, BYTES)).unwrap();
        let mut seen = vec![0; PAGES * PAGE];
        let base = Base::open(&changes.0).unwrap().unwrap();
        base.reader().read(0, &mut seen).unwrap();
        let seen: Vec<u8> = seen.chunks_exact(PAGE).map(|page| page[PAGE - 1]).collect();
        assert_eq!(seen, self.wanted, "round {number}");
        changes
    }

    /// Lets the guest write, and pauses its machine.
    fn pause(&mut self, number: usize, changes: &Changes) {
        let own = rustix::process::geteuid().as_raw();
        let written: Vec<usize> = (0..WRITTEN).map(|n| (number * 31 + n * 13) % PAGES).collect();
        for (n, page) in written.iter().enumerate() {
            // Some pages are cleared, and some are written as they were.
            self.wanted[*page] = u8::try_from((number + n) % 4 * 50).unwrap();
        }
        let at = changes.0.join("written");
        let kind = changes.ask().unwrap();
        match kind {
            Kind::Diff => drop(write(&at, &self.wanted, written)),
            Kind::Full => drop(write(&at, &self.wanted, 0..PAGES)),
        }
        changes.add(&at, kind, own).unwrap();
        let memory = changes.memory(BYTES).unwrap();
        let to = self.dir.path().join(number.to_string());
        (self.kept, self.layers) = keep(&to, &memory, &self.layers, &self.kept);
    }
}

/// Returns the bytes of the files in a folder that have no other name.
fn alone(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    entries.filter(|found| found.nlink() == 1).map(|found| found.blocks() * 512).sum()
}

#[test]
fn each_round_writes_its_own_changes_alone() {
    let mut capsule = Capsule::new();
    for number in 0..12 {
        let changes = capsule.resume(number, true);
        assert!(alone(&changes.0) <= SLACK, "a resume copies memory");
        capsule.pause(number, &changes);
        let most = (WRITTEN * PAGE) as u64 + SLACK;
        assert!(alone(&changes.0) <= most, "{} bytes in round {number}", alone(&changes.0));
        // The layers are bounded, too.
        assert!(capsule.layers.all.len() <= 3);
        assert_eq!(capsule.layers.shared, 1);
    }
    let opened = capsule.layers.open(&capsule.kept).unwrap();
    let made = memory::image(&opened, BYTES).unwrap();
    for (number, fill) in capsule.wanted.iter().enumerate() {
        let mut page = [1; PAGE];
        made.read_exact_at(&mut page, (number * PAGE) as u64).unwrap();
        assert_eq!(page[index(7)], *fill, "page {number}");
    }
}

#[test]
fn rounds_with_one_file_of_memory_have_the_same_contents() {
    let mut capsule = Capsule::new();
    for number in 0..6 {
        let changes = capsule.resume(number, number % 2 == 0);
        capsule.pause(number, &changes);
        assert!(alone(&changes.0) <= BYTES + (WRITTEN * PAGE) as u64 + SLACK);
    }
    capsule.resume(6, false);
}

#[test]
fn agent_that_dies_after_it_asked_for_a_snapshot_loses_no_page() {
    let mut capsule = Capsule::new();
    for number in 0..4 {
        let changes = capsule.resume(number, true);
        if number % 2 == 1 {
            assert_eq!(changes.ask().unwrap(), Kind::Diff);
            // Firecracker may have forgotten its changes by now.
            assert_eq!(changes.ask().unwrap(), Kind::Full);
        }
        capsule.pause(number, &changes);
    }
    capsule.resume(4, true);
}

#[test]
fn earlier_version_finds_a_mark_beside_layers_that_it_does_not_know() {
    let mut capsule = Capsule::new();
    let changes = capsule.resume(0, true);
    assert!(!changes.0.join("asked").exists(), "the machine has no layers");
    capsule.pause(0, &changes);
    for number in 1..3 {
        let changes = capsule.resume(number, true);
        // An earlier version asks for all pages where it cannot make this file.
        assert!(File::create_new(changes.0.join("asked")).is_err());
        capsule.pause(number, &changes);
        assert!(File::create_new(changes.0.join("asked")).is_err());
        assert_eq!(changes.ask().unwrap(), Kind::Diff);
    }
}

#[test]
fn machine_of_an_earlier_version_is_paused_without_a_loss() {
    let mut capsule = Capsule::new();
    let changes = capsule.resume(0, true);
    capsule.pause(0, &changes);
    // Such a machine has image and layers in one file, and the layers in the file of changes too.
    let changes = capsule.resume(1, false);
    let mut layers = capsule.layers.open(&capsule.kept).unwrap();
    let above = layers.split_off(capsule.layers.shared);
    let changed = File::create_new(changes.0.join("changed")).unwrap();
    changed.set_len(BYTES).unwrap();
    memory::install(&above, &changed, 0, BYTES).unwrap();
    capsule.pause(1, &changes);
    capsule.resume(2, true);
}
