//! Places of all inodes, and the writing of folders and inodes there.
//!
//! Two rounds over the tree: the first gives each inode its place, the second writes. Inodes of a
//! folder's names are neighbours.

use super::contents::Contents;
use super::inode::{self, Parts, SLOT};
use super::superblock::Metadata;
use super::{BLOCK, BLOCK_BYTES, folder};
use crate::error::Fault;
use crate::tree::{Inode, Node, ROOT, Tree};

/// Free bytes before the root. Number 0 would be the root's otherwise, and some programs take an
/// entry with number 0 for a removed one.
const BEFORE_ROOT: u64 = SLOT;

/// Place of an inode.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// Offset in the metadata in slots; 0 for an inode without a name.
    slot: u32,
    /// First block of a folder's or link's contents, counted from the first such block.
    block: u32,
}

/// Places of all inodes.
#[derive(Debug)]
pub(super) struct Layout {
    /// By inode.
    places: Vec<Place>,
    /// Inodes in the order of their places.
    order: Vec<u32>,
    /// By folder: inode of the folder above.
    parents: Vec<u32>,
    /// By folder: number of folders in it.
    below: Vec<u32>,
    /// First block of folders and links.
    first: u32,
    /// Number of blocks of folders and links.
    blocks: u32,
}

const TOO_LARGE: Fault = Fault::Limit { limit: u32::MAX as u64, unit: "blocks" };

impl Layout {
    /// Gives each inode of the tree its place. `first` is the first block behind the contents.
    ///
    /// # Errors
    /// Fails for a tree beyond EROFS' numbers.
    pub(super) fn new(tree: &Tree, first: u32) -> Result<Self, Fault> {
        let mut layout = Self {
            places: vec![Place::default(); tree.inodes.len()],
            order: Vec::new(),
            parents: vec![ROOT; tree.folders.len()],
            below: vec![0; tree.folders.len()],
            first,
            blocks: 0,
        };
        let mut end = BEFORE_ROOT;
        layout.add(tree, ROOT, &mut end)?;
        let mut folders = vec![ROOT];
        while let Some(above) = folders.pop() {
            let Some(number) = tree.folder(above) else { continue };
            for inode in tree.names(number).into_iter().flat_map(|names| names.values()) {
                layout.add(tree, *inode, &mut end)?;
                if let Some(folder) = tree.folder(*inode) {
                    set(&mut layout.parents, folder, above);
                    let below = get(&layout.below, number).saturating_add(1);
                    set(&mut layout.below, number, below);
                    folders.push(*inode);
                }
            }
        }
        Ok(layout)
    }

    /// Places an inode behind the earlier ones, unless it has a place by another name.
    fn add(&mut self, tree: &Tree, number: u32, end: &mut u64) -> Result<(), Fault> {
        let Some(inode) = tree.inode(number) else { return Ok(()) };
        if get(&self.places, number).slot != 0 {
            return Ok(());
        }
        let (in_blocks, inline) = split(tree, inode);
        let bytes = head(inode).saturating_add(inline as u64);
        let start = end.next_multiple_of(SLOT);
        // Neither a head nor its tail crosses a border of blocks, unless attributes are longer.
        let room = BLOCK.saturating_sub(start % BLOCK);
        let start = if bytes > room && bytes <= BLOCK { start.saturating_add(room) } else { start };
        *end = start.saturating_add(bytes);
        let slot = u32::try_from(start / SLOT).map_err(|_| TOO_LARGE)?;
        set(&mut self.places, number, Place { slot, block: self.blocks });
        self.blocks = self.blocks.checked_add(in_blocks).ok_or(TOO_LARGE)?;
        self.order.push(number);
        Ok(())
    }

    /// Writes the blocks of folders and of long links.
    ///
    /// # Errors
    /// As [`Contents::write`].
    pub(super) fn write_blocks(&self, tree: &Tree, to: &mut Contents) -> Result<(), Fault> {
        for number in &self.order {
            let Some(inode) = tree.inode(*number) else { continue };
            let (in_blocks, inline) = split(tree, inode);
            if in_blocks > 0 {
                let bytes = self.body(tree, *number, inode);
                let inline = bytes.len().saturating_sub(inline);
                to.write(bytes.get(..inline).unwrap_or_default())?;
                to.align(BLOCK)?;
            }
        }
        Ok(())
    }

    /// Writes all inodes, with their attributes and tails.
    ///
    /// # Errors
    /// As [`Contents::write`].
    pub(super) fn write_inodes(&self, tree: &Tree, to: &mut Contents) -> Result<(), Fault> {
        let start = to.position();
        for (serial, number) in (1..).zip(&self.order) {
            let Some(inode) = tree.inode(*number) else { continue };
            let place = u64::from(get(&self.places, *number).slot).saturating_mul(SLOT);
            let written = to.position().saturating_sub(start);
            to.write_zeros(place.saturating_sub(written))?;
            let (_, inline) = split(tree, inode);
            to.write(&inode::encode(inode, &self.parts(tree, *number, inode, inline, serial)))?;
            if let Node::File { tail: Some(tail), .. } = &inode.node {
                to.write(tail)?;
            } else if inline > 0 {
                let body = self.body(tree, *number, inode);
                let from = body.len().saturating_sub(inline);
                to.write(body.get(from..).unwrap_or_default())?;
            }
        }
        Ok(())
    }

    /// Returns the places for the superblock.
    pub(super) fn place(&self) -> Metadata {
        let block = self.first.saturating_add(self.blocks);
        let root = u16::try_from(get(&self.places, ROOT).slot).unwrap_or_default();
        Metadata { block, root, inodes: self.inodes() }
    }

    pub(super) fn inodes(&self) -> u64 {
        self.order.len() as u64
    }

    fn parts(&self, tree: &Tree, number: u32, inode: &Inode, inline: usize, serial: u32) -> Parts {
        let block = self.first.saturating_add(get(&self.places, number).block);
        let mut parts = Parts { size: 0, block, inline, links: inode.links, serial };
        match &inode.node {
            Node::Folder(folder) => {
                parts.size = folder::size(tree, *folder);
                parts.links = get(&self.below, *folder).saturating_add(2);
            }
            Node::File { size, block, .. } => (parts.size, parts.block) = (*size, *block),
            Node::Link(text) => parts.size = text.len() as u64,
            Node::Character(_) | Node::Block(_) | Node::Fifo => {}
        }
        parts
    }

    /// Returns the contents of a folder or link.
    fn body(&self, tree: &Tree, number: u32, inode: &Inode) -> Vec<u8> {
        match &inode.node {
            Node::Folder(folder) => {
                let parent = get(&self.parents, *folder);
                let slot = |inode| u64::from(get(&self.places, inode).slot);
                folder::encode(tree, (*folder, number, parent), slot)
            }
            Node::Link(text) => text.to_vec(),
            Node::File { .. } | Node::Character(_) | Node::Block(_) | Node::Fifo => Vec::new(),
        }
    }
}

/// Bytes of an inode and of its attributes.
fn head(inode: &Inode) -> u64 {
    let xattrs = inode.attributes.xattrs.as_ref().map_or(0, |xattrs| xattrs.len());
    inode::SIZE.saturating_add(xattrs) as u64
}

/// Splits the contents of a folder or link into whole blocks and bytes behind the inode. Files
/// have their blocks already.
fn split(tree: &Tree, inode: &Inode) -> (u32, usize) {
    let size = match &inode.node {
        Node::Folder(folder) => folder::size(tree, *folder),
        Node::Link(text) => text.len() as u64,
        Node::File { tail, .. } => return (0, tail.as_ref().map_or(0, |tail| tail.len())),
        Node::Character(_) | Node::Block(_) | Node::Fifo => return (0, 0),
    };
    let tail = size % BLOCK;
    let whole = u32::try_from(size / BLOCK).unwrap_or(u32::MAX);
    if head(inode).saturating_add(tail) <= BLOCK {
        (whole, usize::try_from(tail).unwrap_or(BLOCK_BYTES))
    } else {
        (whole.saturating_add(1), 0)
    }
}

fn get<T: Copy + Default>(list: &[T], number: u32) -> T {
    usize::try_from(number).ok().and_then(|at| list.get(at)).copied().unwrap_or_default()
}

fn set<T>(list: &mut [T], number: u32, value: T) {
    if let Some(old) = usize::try_from(number).ok().and_then(|at| list.get_mut(at)) {
        *old = value;
    }
}
