//! The changes of one layer, collected while it streams and made at its end.
//!
//! Whiteouts hide names of lower layers alone, wherever they stand in the archive. So they are
//! made first, on the lower tree. The layer's entries follow in their order, and last the hard
//! links whose targets came after them.

use super::path::split_last;
use super::{Node, ROOT, Reached, Tree, check_depth};
use crate::error::{Error, Fault};
use crate::limits::Budget;
use std::collections::BTreeSet;

/// Rounds for hard links whose targets come after them: a target may be such a link itself.
const LINK_ROUNDS: u32 = 4;
/// Estimate of the memory that a change needs beside its paths, in bytes.
const CHANGE: usize = 40;

/// A change at a path.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change<'p> {
    /// An inode gets the path as a name.
    Place(u32),
    /// The inode of a second path gets the path as a further name.
    HardLink(&'p [u8]),
    /// A lower layer's entry at the path is hidden.
    Whiteout,
    /// Lower layers' contents of the folder at the path are hidden.
    Opaque,
}

/// A path in the collected paths.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    length: u16,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Place(u32),
    HardLink(Span),
    Whiteout,
    Opaque,
}

#[derive(Debug, Clone, Copy)]
struct Item {
    path: Span,
    entry: u32,
    kind: Kind,
}

/// The changes of one layer.
#[derive(Debug)]
pub(crate) struct Changes {
    layer: u32,
    paths: Vec<u8>,
    items: Vec<Item>,
    held: usize,
}

impl Changes {
    pub(crate) fn new(layer: u32) -> Self {
        Self { layer, paths: Vec::new(), items: Vec::new(), held: 0 }
    }

    /// Collects a change of an entry. The path is clean.
    ///
    /// # Errors
    /// Fails at the limit of memory.
    pub(crate) fn add(
        &mut self,
        entry: u64,
        path: &[u8],
        change: Change<'_>,
        budget: &Budget,
    ) -> Result<(), Fault> {
        let target = if let Change::HardLink(target) = change { target } else { &[] };
        let bytes = CHANGE.saturating_add(path.len()).saturating_add(target.len());
        budget.hold(bytes)?;
        self.held = self.held.saturating_add(bytes);
        let kind = match change {
            Change::Place(inode) => Kind::Place(inode),
            Change::HardLink(target) => Kind::HardLink(self.keep(target)?),
            Change::Whiteout => Kind::Whiteout,
            Change::Opaque => Kind::Opaque,
        };
        let path = self.keep(path)?;
        self.items.push(Item { path, entry: u32::try_from(entry).unwrap_or(u32::MAX), kind });
        Ok(())
    }

    /// Makes all changes, and forgets them.
    ///
    /// # Errors
    /// Fails for the first entry that cannot be placed.
    pub(crate) fn apply(self, tree: &mut Tree, budget: &Budget) -> Result<(), Error> {
        self.hide(tree)?;
        let mut late: Vec<&Item> = Vec::new();
        for item in &self.items {
            if !self.make(item, tree, budget)? {
                late.push(item);
            }
        }
        for _ in 0..LINK_ROUNDS {
            let mut missing = Vec::new();
            for item in std::mem::take(&mut late) {
                if !self.make(item, tree, budget)? {
                    missing.push(item);
                }
            }
            late = missing;
        }
        if let Some(item) = late.first() {
            return Err(self.error(item, Fault::Refused("the target of its hard link is missing")));
        }
        budget.release(self.held);
        Ok(())
    }

    /// Makes the whiteouts.
    fn hide(&self, tree: &mut Tree) -> Result<(), Error> {
        let is_whiteout = |item: &&Item| matches!(item.kind, Kind::Whiteout | Kind::Opaque);
        let mut own: Option<BTreeSet<&[u8]>> = None;
        for item in self.items.iter().filter(is_whiteout) {
            let path = self.path(item.path);
            let (folder, name) = if matches!(item.kind, Kind::Opaque) {
                (path, None)
            } else {
                let (folder, name) = split_last(path);
                (folder, Some(name))
            };
            if tree.passes_link(folder) {
                let own = own.get_or_insert_with(|| self.own_folders(tree));
                if tree.replaces_link(folder, own) {
                    continue;
                }
            }
            let reached = tree.walk(folder, None).map_err(|fault| self.error(item, fault))?;
            match (reached, name) {
                (Some(reached), Some(name)) => tree.remove(reached.folder, name),
                (Some(reached), None) => tree.clear(reached.folder),
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// Returns the paths at which the layer itself brings a folder.
    fn own_folders(&self, tree: &Tree) -> BTreeSet<&[u8]> {
        let is_folder =
            |item: &&Item| matches!(item.kind, Kind::Place(inode) if tree.folder(inode).is_some());
        self.items.iter().filter(is_folder).map(|item| self.path(item.path)).collect()
    }

    /// Makes a change that is no whiteout. Returns `false` for a hard link without a target.
    fn make(&self, item: &Item, tree: &mut Tree, budget: &Budget) -> Result<bool, Error> {
        let path = self.path(item.path);
        let made = match item.kind {
            Kind::Place(inode) => tree.place(path, inode, self.layer, budget).map(|()| true),
            Kind::HardLink(target) => tree.link(path, self.path(target), self.layer, budget),
            Kind::Whiteout | Kind::Opaque => Ok(true),
        };
        made.map_err(|fault| self.error(item, fault))
    }

    fn error(&self, item: &Item, fault: Fault) -> Error {
        Error::of_entry(item.entry.into(), self.path(item.path), fault)
    }

    fn keep(&mut self, path: &[u8]) -> Result<Span, Fault> {
        let too_long = |_| Fault::Limit { limit: u32::MAX.into(), unit: "bytes of paths" };
        let start = u32::try_from(self.paths.len()).map_err(too_long)?;
        let length = u16::try_from(path.len()).map_err(too_long)?;
        self.paths.extend_from_slice(path);
        Ok(Span { start, length })
    }

    fn path(&self, span: Span) -> &[u8] {
        let start = usize::try_from(span.start).unwrap_or(usize::MAX);
        let end = start.saturating_add(span.length.into());
        self.paths.get(start..end).unwrap_or_default()
    }
}

impl Tree {
    /// Gives an inode a path as a name. A folder over a folder keeps the names and gets the new
    /// attributes; anything else replaces all that was at the path.
    fn place(&mut self, path: &[u8], new: u32, layer: u32, budget: &Budget) -> Result<(), Fault> {
        if path.is_empty() {
            return self.merge(ROOT, new);
        }
        let (folder, name) = split_last(path);
        let Some(at) = self.walk(folder, Some((layer, budget)))? else {
            return Ok(());
        };
        let old = self.child(at.folder, name);
        if let Some(old) = old.filter(|old| self.folder(*old).is_some())
            && self.folder(new).is_some()
        {
            return self.merge(old, new);
        }
        self.put(at, name, new, budget)
    }

    /// Gives the inode at `target` a further name. Returns `false` if there is none.
    fn link(
        &mut self,
        path: &[u8],
        target: &[u8],
        layer: u32,
        budget: &Budget,
    ) -> Result<bool, Fault> {
        let (folder, name) = split_last(target);
        let place = self.walk(folder, None)?;
        let Some(inode) = place.and_then(|at| self.child(at.folder, name)) else {
            return Ok(false);
        };
        if self.folder(inode).is_some() {
            return Err(Fault::Refused("its hard link names a folder"));
        }
        let (folder, name) = split_last(path);
        if let Some(at) = self.walk(folder, Some((layer, budget)))?
            && self.child(at.folder, name) != Some(inode)
        {
            self.put(at, name, inode, budget)?;
        }
        Ok(true)
    }

    /// Gives an inode a name in a folder, in place of what had the name.
    fn put(&mut self, at: Reached, name: &[u8], inode: u32, budget: &Budget) -> Result<(), Fault> {
        if self.folder(inode).is_some() {
            check_depth(at.depth.saturating_add(1))?;
        }
        self.remove(at.folder, name);
        self.name(at.folder, name, inode, budget)
    }

    /// Gives a folder the attributes of another, which gets no name.
    fn merge(&mut self, old: u32, new: u32) -> Result<(), Fault> {
        let Some(Node::Folder(_)) = self.inode(new).map(|inode| &inode.node) else {
            return Err(Fault::Refused("the root is no folder"));
        };
        let attributes = self.inode_mut(new).map(|inode| std::mem::take(&mut inode.attributes));
        if let (Some(inode), Some(attributes)) = (self.inode_mut(old), attributes) {
            inode.attributes = attributes;
        }
        Ok(())
    }

    /// Reports a symbolic link among the components of a path.
    fn passes_link(&self, path: &[u8]) -> bool {
        self.first_link(path).is_some()
    }

    /// Reports that the layer's own folder replaces the first link on a path. Nothing below that
    /// folder is of a lower layer.
    fn replaces_link(&self, path: &[u8], own: &BTreeSet<&[u8]>) -> bool {
        self.first_link(path).is_some_and(|link| own.contains(link))
    }

    /// Returns the part of a path that ends with its first symbolic link.
    fn first_link<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        let mut folder = ROOT;
        let mut end = 0;
        for name in path.split(|byte| *byte == b'/') {
            end += name.len();
            let child = self.child(folder, name)?;
            if let Node::Link(_) = self.inode(child)?.node {
                return path.get(..end);
            }
            folder = self.folder(child)?;
            end += 1;
        }
        None
    }
}
