//! Inodes in their extended form.

use super::{BLOCK, BLOCK_BYTES, xattr};
use crate::tree::{Inode, Node};

/// Bytes of an extended inode.
pub(super) const SIZE: usize = 64;
/// Inodes begin at multiples of this, and their numbers count it.
pub(super) const SLOT: u64 = 32;

/// Layouts of contents.
const PLAIN: u16 = 0;
const INLINE: u16 = 2;
/// Mark of the extended form.
const EXTENDED: u16 = 1;

/// Values of an inode beside its attributes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    /// Size of the contents.
    pub size: u64,
    /// First block, where the contents have blocks.
    pub block: u32,
    /// Bytes of the contents that stand behind the inode.
    pub inline: usize,
    /// Number of names; for a folder, with those of `.` and `..`.
    pub links: u32,
    /// Serial number.
    pub serial: u32,
}

/// Reports that an inode with its attributes and a tail fits into one block.
pub(super) fn fits(xattrs: usize, tail: u64) -> bool {
    (SIZE.saturating_add(xattrs) as u64).saturating_add(tail) <= BLOCK
}

/// Encodes an inode with its attributes, and without its tail.
pub(super) fn encode(inode: &Inode, parts: &Parts) -> Vec<u8> {
    let attributes = &inode.attributes;
    let xattrs = attributes.xattrs.as_deref().unwrap_or_default();
    let layout = if parts.inline > 0 { INLINE } else { PLAIN };
    let place = device(&inode.node).unwrap_or(parts.block);
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    bytes.extend((EXTENDED | layout << 1).to_le_bytes());
    bytes.extend(xattr::count(xattrs.len()).to_le_bytes());
    bytes.extend((kind(&inode.node) | attributes.mode).to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(parts.size.to_le_bytes());
    bytes.extend(place.to_le_bytes());
    bytes.extend(parts.serial.to_le_bytes());
    bytes.extend(attributes.uid.to_le_bytes());
    bytes.extend(attributes.gid.to_le_bytes());
    bytes.extend(attributes.mtime.to_le_bytes());
    bytes.extend([0; 4]); // nanoseconds
    bytes.extend(parts.links.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend_from_slice(xattrs);
    bytes
}

/// Kind of a file among the bits of its mode.
fn kind(node: &Node) -> u16 {
    match node {
        Node::Fifo => 0o010_000,
        Node::Character(_) => 0o020_000,
        Node::Folder(_) => 0o040_000,
        Node::Block(_) => 0o060_000,
        Node::File { .. } => 0o100_000,
        Node::Link(_) => 0o120_000,
    }
}

fn device(node: &Node) -> Option<u32> {
    match node {
        Node::Character(number) | Node::Block(number) => Some(*number),
        Node::Folder(_) | Node::File { .. } | Node::Link(_) | Node::Fifo => None,
    }
}

/// Joins the numbers of a device as Linux does on disks. They have 12 and 20 bits.
pub(crate) fn device_number((major, minor): (u32, u32)) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}
