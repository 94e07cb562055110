//! The tree of an image: inodes, and folders that name them. The tree holds no contents of files,
//! but places in the image.
//!
//! Folders form a tree without circles: no second name of a folder is ever made. Walks follow
//! symbolic links inside the tree, with a bound, and never leave it.

mod changes;
mod path;

pub(crate) use changes::{Change, Changes};
pub(crate) use path::{Name, clean, name_of};

use crate::error::Fault;
use crate::limits::{Budget, DEPTH_MAX, FOLLOW_MAX};
use path::split_first;
use std::collections::BTreeMap;

/// Number of the root in [`Tree::inodes`].
pub(crate) const ROOT: u32 = 0;
/// Most components that one walk passes, with those of links.
const STEPS_MAX: u32 = 4096;
/// Estimate of the memory that an inode and a name in its folder need, in bytes.
const INODE: usize = 160;
/// Estimate of the memory that a folder needs besides, in bytes.
const FOLDER: usize = 256;

/// Names of the top whose contents the guest's own mounts replace.
const MOUNTED: [&[u8]; 3] = [b"dev", b"proc", b"sys"];
/// File that Docker leaves in images, and by which programs take a machine for a container.
const DOCKERENV: &[u8] = b".dockerenv";

/// Contents of an inode.
#[derive(Debug)]
pub(crate) enum Node {
    /// Number of the folder in [`Tree::folders`].
    Folder(u32),
    File {
        size: u64,
        /// First block of the contents in the image.
        block: u32,
        /// Last bytes, when they stand beside the inode.
        tail: Option<Box<[u8]>>,
    },
    /// Text of a symbolic link.
    Link(Box<[u8]>),
    Character(u32),
    Block(u32),
    Fifo,
}

/// Attributes of an inode.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Extended attributes as the image has them.
    pub xattrs: Option<Box<[u8]>>,
}

/// An inode.
#[derive(Debug)]
pub(crate) struct Inode {
    pub node: Node,
    pub attributes: Attributes,
    /// Number of names. Without a name, an inode is not in the image.
    pub links: u32,
    /// Number of the layer that brought the inode.
    pub layer: u32,
}

/// Names in a folder, in the order of their bytes.
pub(crate) type Folder = BTreeMap<Box<[u8]>, u32>;

/// A tree of inodes.
#[derive(Debug)]
pub(crate) struct Tree {
    pub inodes: Vec<Inode>,
    pub folders: Vec<Folder>,
}

/// A folder that a walk came to.
#[derive(Debug, Clone, Copy)]
struct Reached {
    folder: u32,
    /// Number of folders from the root to this one.
    depth: usize,
}

impl Tree {
    /// Makes a tree with a root: mode 0755, owner root, time 0.
    pub(crate) fn new() -> Self {
        let attributes = Attributes { mode: 0o755, ..Attributes::default() };
        let root = Inode { node: Node::Folder(0), attributes, links: 1, layer: 0 };
        Self { inodes: vec![root], folders: vec![Folder::new()] }
    }

    /// Adds an inode without a name.
    ///
    /// # Errors
    /// Fails at the limit of memory.
    pub(crate) fn add(&mut self, inode: Inode, budget: &Budget) -> Result<u32, Fault> {
        let extra = match &inode.node {
            Node::Folder(_) => FOLDER,
            Node::Link(text) => text.len(),
            Node::File { tail, .. } => tail.as_ref().map_or(0, |tail| tail.len()),
            Node::Character(_) | Node::Block(_) | Node::Fifo => 0,
        };
        let xattrs = inode.attributes.xattrs.as_ref().map_or(0, |xattrs| xattrs.len());
        budget.hold(INODE.saturating_add(extra).saturating_add(xattrs))?;
        let number = u32::try_from(self.inodes.len()).map_err(|_| TOO_MANY)?;
        self.inodes.push(inode);
        Ok(number)
    }

    /// Adds a folder's inode without a name.
    ///
    /// # Errors
    /// As [`Tree::add`].
    pub(crate) fn add_folder(
        &mut self,
        attributes: Attributes,
        layer: u32,
        budget: &Budget,
    ) -> Result<u32, Fault> {
        let folder = u32::try_from(self.folders.len()).map_err(|_| TOO_MANY)?;
        self.folders.push(Folder::new());
        self.add(Inode { node: Node::Folder(folder), attributes, links: 0, layer }, budget)
    }

    /// Drops what a guest's mounts hide (`/dev`, `/proc` and `/sys` but for the folders
    /// themselves), and Docker's mark.
    pub(crate) fn drop_mounted(&mut self) {
        for name in MOUNTED {
            if let Some(folder) = self.child(ROOT, name).and_then(|child| self.folder(child)) {
                self.clear(folder);
            }
        }
        let is_file = |number: &u32| self.folder(*number).is_none();
        if self.child(ROOT, DOCKERENV).as_ref().is_some_and(is_file) {
            self.remove(ROOT, DOCKERENV);
        }
    }

    pub(crate) fn inode(&self, number: u32) -> Option<&Inode> {
        self.inodes.get(usize::try_from(number).ok()?)
    }

    fn inode_mut(&mut self, number: u32) -> Option<&mut Inode> {
        self.inodes.get_mut(usize::try_from(number).ok()?)
    }

    /// Returns the number of an inode's folder, if it is one.
    pub(crate) fn folder(&self, inode: u32) -> Option<u32> {
        if let Node::Folder(folder) = self.inode(inode)?.node { Some(folder) } else { None }
    }

    /// Returns the names of a folder.
    pub(crate) fn names(&self, folder: u32) -> Option<&Folder> {
        self.folders.get(usize::try_from(folder).ok()?)
    }

    fn names_mut(&mut self, folder: u32) -> Option<&mut Folder> {
        self.folders.get_mut(usize::try_from(folder).ok()?)
    }

    /// Returns the inode of a name in a folder.
    fn child(&self, folder: u32, name: &[u8]) -> Option<u32> {
        self.names(folder)?.get(name).copied()
    }

    /// Gives a name to an inode. The name is free.
    fn name(&mut self, folder: u32, name: &[u8], inode: u32, budget: &Budget) -> Result<(), Fault> {
        budget.hold(name.len())?;
        if let Some(names) = self.names_mut(folder) {
            names.insert(name.into(), inode);
        }
        if let Some(inode) = self.inode_mut(inode) {
            inode.links = inode.links.checked_add(1).ok_or(TOO_MANY)?;
        }
        Ok(())
    }

    /// Removes a name, with all names below it.
    fn remove(&mut self, folder: u32, name: &[u8]) {
        let removed = self.names_mut(folder).and_then(|names| names.remove(name));
        if let Some(folder) = removed.and_then(|inode| self.unlink(inode)) {
            self.clear(folder);
        }
    }

    /// Removes all names below a folder.
    fn clear(&mut self, folder: u32) {
        let mut folders = vec![folder];
        while let Some(folder) = folders.pop() {
            let names = self.names_mut(folder).map(std::mem::take).unwrap_or_default();
            folders.extend(names.into_values().filter_map(|inode| self.unlink(inode)));
        }
    }

    /// Takes a name off an inode's count, and returns its folder, if it is one.
    fn unlink(&mut self, inode: u32) -> Option<u32> {
        let gone = self.inode_mut(inode)?;
        gone.links = gone.links.saturating_sub(1);
        self.folder(inode)
    }

    /// Walks to a folder. Links are followed inside the tree, and `..` in a link stays below the
    /// root. `make` makes folders that are missing: mode 0755, owner root. Otherwise a missing
    /// folder gives `None`.
    fn walk(
        &mut self,
        path: &[u8],
        make: Option<(u32, &Budget)>,
    ) -> Result<Option<Reached>, Fault> {
        let mut way = vec![ROOT];
        let mut left = path.to_vec();
        let (mut at, mut followed, mut steps) = (0, 0, 0);
        while let Some((name, rest)) = split_first(left.get(at..).unwrap_or_default()) {
            let next = left.len().saturating_sub(rest.len());
            steps += 1;
            if steps > STEPS_MAX {
                return Err(Fault::Limit { limit: STEPS_MAX.into(), unit: "steps on its way" });
            }
            let here = way.last().copied().unwrap_or(ROOT);
            if name == b".." {
                way.truncate(way.len().saturating_sub(1).max(1));
                at = next;
                continue;
            }
            let Some(child) = self.child(here, name) else {
                let Some((layer, budget)) = make else {
                    return Ok(None);
                };
                check_depth(way.len())?;
                let attributes = Attributes { mode: 0o755, ..Attributes::default() };
                let made = self.add_folder(attributes, layer, budget)?;
                self.name(here, name, made, budget)?;
                way.extend(self.folder(made));
                at = next;
                continue;
            };
            match self.inode(child).map(|inode| &inode.node) {
                Some(Node::Folder(folder)) => {
                    way.push(*folder);
                    at = next;
                }
                Some(Node::Link(text)) => {
                    followed += 1;
                    if followed > FOLLOW_MAX {
                        let unit = "symbolic links on its way";
                        return Err(Fault::Limit { limit: FOLLOW_MAX.into(), unit });
                    }
                    if text.first() == Some(&b'/') {
                        way.truncate(1);
                    }
                    left = [text, &b"/"[..], rest].concat();
                    at = 0;
                }
                _ if make.is_some() => return Err(Fault::Refused("it is below a file")),
                _ => return Ok(None),
            }
        }
        let folder = way.last().copied().unwrap_or(ROOT);
        Ok(Some(Reached { folder, depth: way.len().saturating_sub(1) }))
    }
}

const TOO_MANY: Fault = Fault::Limit { limit: u32::MAX as u64, unit: "inodes" };

/// Refuses a folder below another that is at the deepest level.
fn check_depth(depth: usize) -> Result<(), Fault> {
    if depth > DEPTH_MAX {
        return Err(Fault::Limit { limit: DEPTH_MAX as u64, unit: "folders on its way" });
    }
    Ok(())
}
