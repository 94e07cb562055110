//! Events of a watch in compact form. Their names are one text, so ten thousand events take two
//! blocks of memory.

use crate::filesystem::entry::Entry;
use std::ffi::OsStr;
use std::sync::Arc;

/// Kinds of change of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Create,
    Write,
    Remove,
    Rename,
    Chmod,
}

/// An event below a watched directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event<'a> {
    /// Name, relative to the watched directory.
    pub name: &'a str,
    pub change: Change,
    /// Description of the path, if the caller asked for it and the path existed.
    pub entry: Option<&'a Entry>,
}

struct Item {
    /// End of the name in the text.
    end: usize,
    change: Change,
    entry: Option<Arc<Entry>>,
}

/// Events in the order in which they happened.
#[derive(Default)]
pub(crate) struct Events {
    names: String,
    items: Vec<Item>,
    /// Bytes of the entries.
    entries: usize,
}

impl Events {
    /// Adds an event of `name` in a directory, whose path is empty or ends with a slash. Joins it
    /// with an equal event just before it, as the kernel does.
    pub(crate) fn push(
        &mut self,
        dir: &str,
        name: &OsStr,
        change: Change,
        entry: Option<Arc<Entry>>,
    ) {
        self.names.push_str(dir);
        self.names.push_str(&name.to_string_lossy());
        self.finish(change, entry);
    }

    /// Moves all events of `other` to the end.
    pub(super) fn append(&mut self, other: Self) {
        let Self { names, items, .. } = other;
        let mut begin = 0;
        for item in items {
            self.names.push_str(&names[begin..item.end]);
            begin = item.end;
            self.finish(item.change, item.entry);
        }
    }

    /// Makes an event of the rest of the text, which belongs to no event yet.
    fn finish(&mut self, change: Change, entry: Option<Arc<Entry>>) {
        let before = self.items.len().checked_sub(2).map_or(0, |n| self.items[n].end);
        self.entries += entry.as_deref().map_or(0, weight);
        if let Some(last) = self.items.last_mut()
            && last.change == change
            && self.names[before..last.end] == self.names[last.end..]
        {
            self.names.truncate(last.end);
            self.entries -= last.entry.as_deref().map_or(0, weight);
            last.entry = entry;
            return;
        }
        self.items.push(Item { end: self.names.len(), change, entry });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Counts the bytes that the events take.
    pub(super) fn bytes(&self) -> usize {
        self.names.len() + self.items.len() * size_of::<Item>() + self.entries
    }

    /// Yields the events in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Event<'_>> {
        let mut begin = 0;
        self.items.iter().map(move |item| {
            let name = &self.names[begin..item.end];
            begin = item.end;
            Event { name, change: item.change, entry: item.entry.as_deref() }
        })
    }
}

/// Counts the bytes of an entry. Several events may share an entry, and each of them counts it. The
/// sum is an upper bound.
fn weight(entry: &Entry) -> usize {
    let target = entry.symlink_target.as_ref().map_or(0, String::len);
    let metadata: usize = entry.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    size_of::<Entry>() + entry.name.len() + entry.path.as_os_str().len() + target + metadata
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_keep_their_order_and_equal_neighbours_are_merged() {
        let (mut all, mut more) = (Events::default(), Events::default());
        all.push("", OsStr::new("a"), Change::Create, None);
        all.push("dir/", OsStr::new("ü"), Change::Write, None);
        more.push("dir/", OsStr::new("ü"), Change::Write, None);
        more.push("", OsStr::new("b"), Change::Remove, None);
        more.push("", OsStr::new("b"), Change::Remove, None);
        more.push("", OsStr::new("b"), Change::Create, None);
        all.append(more);
        let told: Vec<_> = all.iter().map(|event| (event.name, event.change)).collect();
        let wanted = [
            ("a", Change::Create),
            ("dir/ü", Change::Write),
            ("b", Change::Remove),
            ("b", Change::Create),
        ];
        assert_eq!(told, wanted);
        assert!(all.bytes() >= "adir/übb".len() && all.len() == 4);
    }
}
