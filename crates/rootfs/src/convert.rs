//! The conversion: reads each layer's archive, and keeps tree and image in step.

use crate::erofs::{self, Contents};
use crate::error::{Error, Fault};
use crate::layer::Layer;
use crate::limits::{Budget, LINK_MAX, Limits};
use crate::tar::{Data, Entry, Kind, Reader};
use crate::tree::{Attributes, Change, Changes, Inode, Name, Node, Tree, clean, name_of};
use std::fs::File;
use std::io::Read;

/// Figures of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSummary {
    /// SHA-256 of the plain bytes (`diff_id` in OCI's image configuration).
    pub diff_id: [u8; 32],
    /// Plain bytes of the layer's archive.
    pub bytes: u64,
    /// Entries of the layer's archive, with whiteouts.
    pub entries: u64,
}

/// Figures of a finished image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Size of the image's file, a multiple of 4 KiB. Holes of the file count.
    pub bytes: u64,
    /// Number of inodes in the image.
    pub inodes: u64,
    /// Bytes of contents that were given back because higher layers hide them.
    pub dropped_bytes: u64,
    /// Layers in their order.
    pub layers: Vec<LayerSummary>,
}

/// A conversion of layers into one EROFS image.
///
/// A failed call takes the converter with it, so no image is made of half a layer.
#[derive(Debug)]
pub struct Converter {
    contents: Contents,
    tree: Tree,
    digest: [u8; 32],
    budget: Budget,
    layers: Vec<LayerSummary>,
}

impl Converter {
    /// Begins an image in a file, whose earlier contents are lost. `digest` is the manifest's, and
    /// gives the image its UUID.
    ///
    /// The file is written with `pwrite`, `ftruncate` and `fallocate` alone. The caller syncs it.
    ///
    /// # Errors
    /// Fails when the file cannot be emptied.
    pub fn new(out: File, digest: [u8; 32], limits: Limits) -> Result<Self, Error> {
        Ok(Self {
            contents: erofs::begin(out, limits.bytes)?,
            tree: Tree::new(),
            digest,
            budget: Budget::new(limits),
            layers: Vec::new(),
        })
    }

    /// Adds the next layer, from the lowest up. `reader` gives a tar archive, plain or compressed
    /// by gzip or zstd. With `diff_id`, the SHA-256 of the plain bytes must be equal.
    ///
    /// # Errors
    /// Fails for a broken stream, a wrong digest, an archive that is damaged or refused, at a
    /// limit, and when the image cannot be written. The error names layer and entry.
    pub fn layer<R: Read>(mut self, reader: R, diff_id: Option<[u8; 32]>) -> Result<Self, Error> {
        let number = self.budget.layer()?;
        let summary = self.read(number, reader).and_then(|summary| {
            check(&summary, diff_id)?;
            Ok(summary)
        });
        self.layers.push(summary.map_err(|error| error.in_layer(number))?);
        Ok(self)
    }

    /// Writes the tree behind the contents, and ends the image.
    ///
    /// # Errors
    /// Fails when the image cannot be written, and at a limit.
    pub fn finish(mut self) -> Result<Summary, Error> {
        self.tree.drop_mounted();
        let finished = erofs::finish(self.contents, &self.tree, &self.digest)?;
        Ok(Summary {
            bytes: finished.bytes,
            inodes: finished.inodes,
            dropped_bytes: finished.dropped,
            layers: self.layers,
        })
    }

    fn read<R: Read>(&mut self, number: u32, reader: R) -> Result<LayerSummary, Error> {
        let mut archive = Reader::new(Layer::open(reader, &self.budget)?);
        let mut build = Build {
            contents: &mut self.contents,
            tree: &mut self.tree,
            budget: &self.budget,
            changes: Changes::new(number),
            layer: number,
        };
        build.contents.begin_layer();
        let mut entries: u64 = 0;
        loop {
            let next = entries.saturating_add(1);
            let entry = archive.next().map_err(|fault| Error::of_entry(next, &[], fault))?;
            let Some(entry) = entry else { break };
            entries = next;
            let taken = build.take(entries, &entry, &mut archive);
            taken.map_err(|fault| Error::of_entry(entries, &entry.path, fault))?;
        }
        let changes = build.changes;
        let (diff_id, bytes) = archive.into_source().finish()?;
        changes.apply(&mut self.tree, &self.budget)?;
        Ok(LayerSummary { diff_id, bytes, entries })
    }
}

/// Compares a layer's digest.
fn check(summary: &LayerSummary, expected: Option<[u8; 32]>) -> Result<(), Fault> {
    match expected.filter(|expected| *expected != summary.diff_id) {
        None => Ok(()),
        Some(expected) => {
            Err(Fault::Digest { expected: hex(&expected), found: hex(&summary.diff_id) })
        }
    }
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The parts that an entry changes.
struct Build<'c> {
    contents: &'c mut Contents,
    tree: &'c mut Tree,
    budget: &'c Budget,
    changes: Changes,
    layer: u32,
}

impl Build<'_> {
    /// Takes an entry: writes its contents, and collects its change.
    fn take(
        &mut self,
        number: u64,
        entry: &Entry,
        archive: &mut Reader<Layer<'_, impl Read>>,
    ) -> Result<(), Fault> {
        self.budget.entry()?;
        let path = clean(&entry.path)?;
        match name_of(&path)? {
            Name::Ignored => Ok(()),
            Name::Opaque(folder) => self.changes.add(number, folder, Change::Opaque, self.budget),
            Name::Whiteout(folder, hidden) => {
                let slash: &[u8] = if folder.is_empty() { b"" } else { b"/" };
                let path = [folder, slash, hidden].concat();
                self.changes.add(number, &path, Change::Whiteout, self.budget)
            }
            Name::Root if entry.kind != Kind::Folder => {
                Err(Fault::Refused("the root is no folder"))
            }
            Name::Entry if entry.kind == Kind::HardLink => {
                let target = clean(&entry.link)?;
                self.changes.add(number, &path, Change::HardLink(&target), self.budget)
            }
            Name::Root | Name::Entry => {
                let inode = self.inode(entry, archive)?;
                self.changes.add(number, &path, Change::Place(inode), self.budget)
            }
        }
    }

    /// Adds the inode of an entry to the tree, still without a name.
    fn inode(
        &mut self,
        entry: &Entry,
        archive: &mut Reader<Layer<'_, impl Read>>,
    ) -> Result<u32, Fault> {
        let attributes = Attributes {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: erofs::encode_xattrs(&entry.xattrs)?,
        };
        let node = match entry.kind {
            Kind::Folder => return self.tree.add_folder(attributes, self.layer, self.budget),
            Kind::File => {
                let beside = attributes.xattrs.as_ref().map_or(0, |xattrs| xattrs.len());
                self.file(entry.size, beside, archive)?
            }
            Kind::Link => link(&entry.link)?,
            Kind::Character if entry.device == (0, 0) => {
                return Err(Fault::Refused("the device 0:0 is a whiteout of overlayfs"));
            }
            Kind::Character => Node::Character(erofs::device_number(entry.device)),
            Kind::Block => Node::Block(erofs::device_number(entry.device)),
            Kind::Fifo => Node::Fifo,
            Kind::HardLink => return Err(Fault::Malformed("a hard link has no inode")),
        };
        let inode = Inode { node, attributes, links: 0, layer: self.layer };
        self.tree.add(inode, self.budget)
    }

    /// Writes a file's contents into the image.
    fn file(
        &mut self,
        size: u64,
        beside: usize,
        archive: &mut Reader<Layer<'_, impl Read>>,
    ) -> Result<Node, Fault> {
        let limit = self.budget.limits().bytes;
        if size > limit {
            return Err(Fault::TooLarge { limit, unit: "bytes in a file" });
        }
        let place = self.contents.begin_file(size, beside)?;
        let mut tail = Vec::new();
        let mut left = place.in_blocks;
        archive.contents(|data| {
            match data {
                Data::Bytes(bytes) => {
                    let front = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let (front, behind) = bytes.split_at_checked(front).unwrap_or((bytes, &[]));
                    self.contents.write(front)?;
                    left = left.saturating_sub(front.len() as u64);
                    tail.extend_from_slice(behind);
                }
                Data::Hole(zeros) => {
                    let front = zeros.min(left);
                    self.contents.write_zeros(front)?;
                    left = left.saturating_sub(front);
                    // A tail is at most 1 KiB.
                    let behind = usize::try_from(zeros.saturating_sub(front)).unwrap_or_default();
                    tail.resize(tail.len().saturating_add(behind), 0);
                }
            }
            Ok::<(), Fault>(())
        })?;
        if place.in_blocks > 0 {
            self.contents.end_file()?;
        }
        let tail = (!tail.is_empty()).then(|| tail.into_boxed_slice());
        Ok(Node::File { size, block: place.block, tail })
    }
}

/// Makes a symbolic link. Its text stays as it is: it leads nowhere but inside the guest.
fn link(text: &[u8]) -> Result<Node, Fault> {
    if text.is_empty() {
        return Err(Fault::Refused("its symbolic link has no text"));
    }
    if text.len() > LINK_MAX {
        let limit = LINK_MAX as u64;
        return Err(Fault::Limit { limit, unit: "bytes in its symbolic link" });
    }
    Ok(Node::Link(text.into()))
}
