//! Writer of EROFS images (Linux, `fs/erofs/erofs_fs.h`), without compression.
//!
//! Contents of files come first, in the order in which the layers bring them. Folders and inodes
//! follow once the tree is known, and the superblock's `meta_blkaddr` says where. All inodes are
//! of the extended form, and no value depends on the host, the time or the order of a hash map.

mod contents;
mod folder;
mod inode;
mod layout;
mod superblock;
mod xattr;

pub(crate) use contents::Contents;
pub(crate) use inode::device_number;
pub(crate) use xattr::encode as encode_xattrs;

use crate::error::Fault;
use crate::tree::{Node, Tree};
use layout::Layout;
use std::fs::File;

/// Version of the writer. Equal layers give other bytes by another version, so names of kept
/// images have it.
pub const FORMAT: u32 = 1;

/// Size of a block.
pub(crate) const BLOCK: u64 = 4096;
/// Size of a block, for buffers.
const BLOCK_BYTES: usize = 4096;
/// Border at which each layer's contents begin: the size of the store's chunks. A change in one
/// layer then leaves the chunks of the others as they are.
const PIECE: u64 = 2 << 20;
/// Longest tail of a file that stands beside its inode. Longer ones take a block of their own,
/// so that they need no memory until the end.
const TAIL_MAX: u64 = 1024;
/// Most bytes of all tails together.
const TAILS_MAX: u64 = 64 << 20;
/// Part of a layer's contents that may be hidden by higher layers: a tenth.
const HIDDEN_PART: u64 = 10;

/// Figures of a finished image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finished {
    pub bytes: u64,
    pub inodes: u64,
    pub dropped: u64,
}

/// Writes folders, inodes and superblock behind the contents.
///
/// # Errors
/// Fails when the file cannot be written, and at the limit of its size.
pub(crate) fn finish(
    mut contents: Contents,
    tree: &Tree,
    digest: &[u8; 32],
) -> Result<Finished, Fault> {
    let dropped = drop_hidden(&mut contents, tree)?;
    contents.align(PIECE)?;
    let layout = Layout::new(tree, contents.block()?)?;
    layout.write_blocks(tree, &mut contents)?;
    contents.align(BLOCK)?;
    layout.write_inodes(tree, &mut contents)?;
    contents.align(BLOCK)?;
    let blocks = contents.block()?;
    let superblock = superblock::encode(&layout.place(), blocks, digest);
    contents.write_superblock(&superblock)?;
    let bytes = contents.finish()?;
    Ok(Finished { bytes, inodes: layout.inodes(), dropped })
}

/// Gives the room of contents back that higher layers hide, where it is more than a tenth of a
/// layer. The places of all other contents stay. Returns the number of bytes.
fn drop_hidden(contents: &mut Contents, tree: &Tree) -> Result<u64, Fault> {
    let mut sums: Vec<(u64, u64)> = Vec::new();
    for inode in &tree.inodes {
        let Node::File { size, .. } = &inode.node else { continue };
        let layer = usize::try_from(inode.layer).unwrap_or_default();
        if sums.len() <= layer {
            sums.resize(layer.saturating_add(1), (0, 0));
        }
        if let Some((all, hidden)) = sums.get_mut(layer) {
            *all = all.saturating_add(*size);
            *hidden = hidden.saturating_add(if inode.links == 0 { *size } else { 0 });
        }
    }
    let mut dropped: u64 = 0;
    for inode in tree.inodes.iter().filter(|inode| inode.links == 0) {
        let Node::File { size, block, tail } = &inode.node else { continue };
        let layer = usize::try_from(inode.layer).unwrap_or_default();
        let (all, hidden) = sums.get(layer).copied().unwrap_or_default();
        if hidden <= all / HIDDEN_PART {
            continue;
        }
        let inline = tail.as_ref().map_or(0, |tail| tail.len() as u64);
        let bytes = size.saturating_sub(inline).next_multiple_of(BLOCK);
        contents.zero(u64::from(*block).saturating_mul(BLOCK), bytes)?;
        dropped = dropped.saturating_add(bytes);
    }
    Ok(dropped)
}

/// Opens an image's file for its contents.
///
/// # Errors
/// Fails when the file cannot be emptied.
pub(crate) fn begin(file: File, limit: u64) -> Result<Contents, Fault> {
    Contents::new(file, limit)
}
