//! The watched directories of a watch as a tree, keyed by the kernel's numbers.
//!
//! A node knows its parent and its name there. Paths are put together on demand, so the move of a
//! directory changes a single node, whatever is below it.

use inotify::WatchDescriptor;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::hash::BuildHasher;
use std::path::PathBuf;

/// Number of a watch in its inotify instance. The kernel does not use a number again.
pub(super) type Id = i32;

struct Node {
    watch: WatchDescriptor,
    /// The parent, and the name there. The root has neither.
    place: Option<(Id, Box<OsStr>)>,
}

/// Watched directories below a root.
pub(super) struct Tree {
    root: Id,
    nodes: HashMap<Id, Node>,
    /// Children, by their parent and the hash of their name.
    children: BTreeMap<(Id, u64), Id>,
    hasher: RandomState,
}

impl Tree {
    /// Makes a tree of a root alone.
    pub(super) fn new(watch: WatchDescriptor) -> Self {
        let root = watch.get_watch_descriptor_id();
        let nodes = HashMap::from([(root, Node { watch, place: None })]);
        Self { root, nodes, children: BTreeMap::new(), hasher: RandomState::new() }
    }

    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn contains(&self, id: Id) -> bool {
        self.nodes.contains_key(&id)
    }

    /// Puts a directory's path together, relative to the root.
    pub(super) fn path(&self, id: Id) -> Option<PathBuf> {
        let mut names: Vec<&OsStr> = Vec::new();
        let mut at = id;
        while let Some((parent, name)) = &self.nodes.get(&at)?.place {
            names.push(name);
            at = *parent;
        }
        Some(names.into_iter().rev().collect())
    }

    /// Finds a watched directory by its parent and its name.
    pub(super) fn child(&self, parent: Id, name: &OsStr) -> Option<Id> {
        let id = *self.children.get(&(parent, self.hash(name)))?;
        let (of, known) = self.nodes.get(&id)?.place.as_ref()?;
        (*of == parent && **known == *name).then_some(id)
    }

    /// Gives a directory its place. Directories below it move along. Refuses a place below itself,
    /// which a bind mount may lead to.
    pub(super) fn link(&mut self, parent: Id, name: &OsStr, watch: WatchDescriptor) -> bool {
        let id = watch.get_watch_descriptor_id();
        if self.is_within(parent, id) {
            return false;
        }
        self.remove(id);
        self.children.insert((parent, self.hash(name)), id);
        self.nodes.insert(id, Node { watch, place: Some((parent, name.into())) });
        true
    }

    /// Forgets a directory. Directories below it keep their places, but have no path.
    pub(super) fn remove(&mut self, id: Id) -> Option<WatchDescriptor> {
        let node = self.nodes.remove(&id)?;
        if let Some((parent, name)) = &node.place {
            let key = (*parent, self.hash(name));
            // A directory that was made under the same name since then keeps its link.
            if self.children.get(&key) == Some(&id) {
                self.children.remove(&key);
            }
        }
        Some(node.watch)
    }

    /// Forgets a directory and all below it, and returns their watches.
    pub(super) fn cut(&mut self, id: Id) -> Vec<(Id, WatchDescriptor)> {
        let mut cut = Vec::new();
        let mut left = vec![id];
        while let Some(at) = left.pop() {
            left.extend(self.children.range((at, 0)..=(at, u64::MAX)).map(|(_, child)| *child));
            cut.extend(self.remove(at).map(|watch| (at, watch)));
        }
        cut
    }

    /// Reports whether `at` is `id` or below it.
    fn is_within(&self, mut at: Id, id: Id) -> bool {
        loop {
            if at == id {
                return true;
            }
            match self.nodes.get(&at).and_then(|node| node.place.as_ref()) {
                Some((parent, _)) => at = *parent,
                None => return false,
            }
        }
    }

    fn hash(&self, name: &OsStr) -> u64 {
        self.hasher.hash_one(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inotify::{Inotify, WatchMask};
    use std::path::Path;

    /// Makes watches of `count` directories, which need no relation to each other here.
    fn watches(count: usize) -> (tempfile::TempDir, Inotify, Vec<WatchDescriptor>) {
        let dir = tempfile::tempdir().unwrap();
        let inotify = Inotify::init().unwrap();
        let watch = |n: usize| {
            let path = dir.path().join(n.to_string());
            std::fs::create_dir(&path).unwrap();
            inotify.watches().add(path, WatchMask::CREATE).unwrap()
        };
        let watches = (0..count).map(watch).collect();
        (dir, inotify, watches)
    }

    #[test]
    fn moved_directory_moves_its_descendants() {
        let (_dir, _inotify, watches) = watches(4);
        let ids: Vec<Id> = watches.iter().map(WatchDescriptor::get_watch_descriptor_id).collect();
        let mut tree = Tree::new(watches[0].clone());
        let name = OsStr::new;
        assert!(tree.link(ids[0], name("a"), watches[1].clone()));
        assert!(tree.link(ids[0], name("b"), watches[2].clone()));
        assert!(tree.link(ids[1], name("c"), watches[3].clone()));
        assert_eq!(tree.path(ids[3]).unwrap(), Path::new("a/c"));
        assert!(tree.link(ids[2], name("d"), watches[1].clone()));
        assert_eq!(tree.path(ids[3]).unwrap(), Path::new("b/d/c"));
        assert_eq!(tree.child(ids[0], name("a")), None);
        assert_eq!(tree.child(ids[2], name("d")), Some(ids[1]));
        assert!(!tree.link(ids[3], name("loop"), watches[2].clone()), "below itself");
        assert!(!tree.link(ids[3], name("loop"), watches[0].clone()), "the root below itself");
        let cut: Vec<Id> = tree.cut(ids[2]).into_iter().map(|(id, _)| id).collect();
        assert_eq!(cut, [ids[2], ids[1], ids[3]]);
        assert_eq!((tree.nodes.len(), tree.children.len()), (1, 0));
    }

    #[test]
    fn recreated_directory_stays_watched_when_the_old_one_is_dropped() {
        let (_dir, _inotify, watches) = watches(3);
        let ids: Vec<Id> = watches.iter().map(WatchDescriptor::get_watch_descriptor_id).collect();
        let mut tree = Tree::new(watches[0].clone());
        assert!(tree.link(ids[0], OsStr::new("a"), watches[1].clone()));
        assert!(tree.link(ids[0], OsStr::new("a"), watches[2].clone()));
        tree.remove(ids[1]);
        assert_eq!(tree.child(ids[0], OsStr::new("a")), Some(ids[2]));
        assert_eq!(tree.path(ids[1]), None);
        assert!(!tree.contains(ids[1]) && tree.contains(ids[2]));
    }
}
