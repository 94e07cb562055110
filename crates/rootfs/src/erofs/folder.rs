//! Folders as blocks of entries. Each block has its entries first and their names behind.

use super::BLOCK_BYTES;
use crate::tree::{Node, Tree};

/// Bytes of an entry without its name.
const ENTRY: usize = 12;

/// Kinds of files in entries, as Linux numbers them.
fn kind(node: &Node) -> u8 {
    match node {
        Node::File { .. } => 1,
        Node::Folder(_) => 2,
        Node::Character(_) => 3,
        Node::Block(_) => 4,
        Node::Fifo => 5,
        Node::Link(_) => 7,
    }
}

/// Lists a folder's names with their inodes, sorted by bytes, with `.` and `..` among them.
fn list(tree: &Tree, folder: u32, own: u32, parent: u32) -> Vec<(&[u8], u32)> {
    let names = tree.names(folder);
    let mut list: Vec<(&[u8], u32)> = vec![(b".", own), (b"..", parent)];
    list.extend(names.into_iter().flatten().map(|(name, inode)| (&**name, *inode)));
    list.sort_unstable();
    list
}

/// Splits a list into the entries of each block.
fn blocks<'l, 't>(list: &'l [(&'t [u8], u32)]) -> Vec<&'l [(&'t [u8], u32)]> {
    let (mut blocks, mut rest, mut used, mut count) = (Vec::new(), list, 0, 0);
    for (name, _) in list {
        let bytes = ENTRY.saturating_add(name.len());
        if used + bytes > BLOCK_BYTES {
            let (block, behind) = rest.split_at_checked(count).unwrap_or_default();
            blocks.push(block);
            (rest, used, count) = (behind, 0, 0);
        }
        used += bytes;
        count += 1;
    }
    blocks.push(rest);
    blocks
}

/// Returns a folder's size: whole blocks, and what the last one uses.
pub(super) fn size(tree: &Tree, folder: u32) -> u64 {
    let list = list(tree, folder, 0, 0);
    let blocks = blocks(&list);
    let last = blocks.last().copied().unwrap_or_default();
    let used: usize = last.iter().map(|(name, _)| ENTRY.saturating_add(name.len())).sum();
    let whole = blocks.len().saturating_sub(1).saturating_mul(BLOCK_BYTES);
    whole.saturating_add(used) as u64
}

/// Encodes a folder. All blocks but the last are whole. `number` gives the number of an inode.
pub(super) fn encode(
    tree: &Tree,
    (folder, own, parent): (u32, u32, u32),
    number: impl Fn(u32) -> u64,
) -> Vec<u8> {
    let list = list(tree, folder, own, parent);
    let mut bytes = Vec::new();
    for block in blocks(&list) {
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        let mut offset = block.len().saturating_mul(ENTRY);
        for (name, inode) in block {
            bytes.extend(number(*inode).to_le_bytes());
            bytes.extend(u16::try_from(offset).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend([tree.inode(*inode).map_or(0, |inode| kind(&inode.node)), 0]);
            offset = offset.saturating_add(name.len());
        }
        for (name, _) in block {
            bytes.extend_from_slice(name);
        }
    }
    bytes
}
