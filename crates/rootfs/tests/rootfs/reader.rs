//! A reader of uncompressed EROFS images for tests, written from the format's description. It
//! shares no code with the writer, and checks all that Linux relies on.

use std::collections::{BTreeMap, BTreeSet};

const BLOCK: usize = 4096;

/// An entry of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Mode with the kind.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
    pub links: u32,
    /// Number of the inode: equal for names of one file.
    pub inode: u64,
    /// Contents of a file, or text of a link.
    pub data: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Attributes by prefix number and stored name.
    pub xattrs: BTreeMap<(u8, Vec<u8>), Vec<u8>>,
}

impl Found {
    /// Describes an entry shortly. Usual modes, owners and links are left out.
    pub(crate) fn describe(&self) -> String {
        let (usual, mut text) = match self.mode >> 12 {
            0o04 => (0o755, "/".to_string()),
            0o10 => (0o644, format!("={}", self.data.escape_ascii())),
            0o12 => (0o777, format!("->{}", self.data.escape_ascii())),
            0o01 => (0o644, "|".to_string()),
            0o02 => (0o644, format!(" c{}:{}", self.device.0, self.device.1)),
            0o06 => (0o644, format!(" b{}:{}", self.device.0, self.device.1)),
            kind => panic!("kind {kind:o}"),
        };
        if self.mode & 0o7777 != usual {
            text += &format!(":{:o}", self.mode & 0o7777);
        }
        if (self.uid, self.gid) != (0, 0) {
            text += &format!("@{}:{}", self.uid, self.gid);
        }
        if self.links != 1 && self.mode >> 12 != 0o04 {
            text += &format!("*{}", self.links);
        }
        text
    }
}

struct Image<'i> {
    bytes: &'i [u8],
    meta: usize,
    names: BTreeMap<Vec<u8>, Found>,
    folders: BTreeSet<u64>,
}

/// Reads an image's tree, and panics for one that Linux would not take.
pub(crate) fn read(bytes: &[u8]) -> BTreeMap<Vec<u8>, Found> {
    assert_eq!(bytes.len() % BLOCK, 0);
    let sb = &bytes[1024..1152];
    assert_eq!(u32_at(sb, 0), 0xe0f5_e1e2);
    assert_eq!(u32_at(sb, 8), 3, "compatible features");
    assert_eq!(u32_at(sb, 80), 0, "incompatible features");
    assert_eq!(sb[12], 12, "bits of a block");
    assert_eq!(u32_at(sb, 36) as usize * BLOCK, bytes.len());
    let meta = u32_at(sb, 40) as usize * BLOCK;
    let root = u64::from(u16_at(sb, 14));
    let mut image = Image { bytes, meta, names: BTreeMap::new(), folders: BTreeSet::new() };
    image.walk(root, root, &[]);
    let inodes: BTreeMap<u64, u32> = image.names.values().map(|f| (f.inode, f.links)).collect();
    assert_eq!(inodes.len() as u64, u64_at(sb, 16), "number of inodes");
    for (inode, links) in inodes {
        let names = image.names.values().filter(|found| found.inode == inode);
        if !image.folders.contains(&inode) {
            assert_eq!(names.count(), links as usize, "links of {inode}");
        }
    }
    image.names
}

impl Image<'_> {
    fn walk(&mut self, inode: u64, parent: u64, path: &[u8]) {
        let mut found = self.inode(inode);
        let folder = found.mode >> 12 == 0o04;
        let data = if folder { std::mem::take(&mut found.data) } else { Vec::new() };
        let links = found.links;
        assert!(self.names.insert(path.to_vec(), found).is_none(), "a name is there twice");
        if !folder {
            return;
        }
        assert!(self.folders.insert(inode), "a folder has two names");
        let (mut last, mut own, mut above, mut below) = (Vec::new(), None, None, 2);
        for block in data.chunks(BLOCK) {
            for (name, inode, kind) in entries(block) {
                assert!(last.is_empty() || last < name, "names are in order");
                assert!(!name.is_empty() && name.len() <= 255);
                match name.as_slice() {
                    b"." => own = Some(inode),
                    b".." => above = Some(inode),
                    _ => {
                        let path = [path, if path.is_empty() { b"" } else { b"/" }, &name].concat();
                        self.walk(inode, self.own(own, &name, block), &path);
                        let mode = self.names[&path].mode;
                        assert_eq!(kind, kind_of(mode), "kind of {}", path.escape_ascii());
                        below += u32::from(kind == 2);
                    }
                }
                last = name;
            }
        }
        assert_eq!(own, Some(inode), "`.`");
        assert_eq!(above, Some(parent), "`..`");
        assert_eq!(links, below, "links of a folder");
    }

    /// Returns a folder's own inode: names may come before `.` in the order.
    fn own(&self, own: Option<u64>, _name: &[u8], block: &[u8]) -> u64 {
        own.or_else(|| entries(block).into_iter().find(|e| e.0 == b".").map(|e| e.1)).unwrap()
    }

    fn inode(&self, number: u64) -> Found {
        let at = self.meta + number as usize * 32;
        let raw = &self.bytes[at..at + 64];
        let format = u16_at(raw, 0);
        assert_eq!(format & 1, 1, "extended form");
        let count = usize::from(u16_at(raw, 2));
        let xattrs = if count == 0 { 0 } else { 12 + 4 * (count - 1) };
        let mode = u16_at(raw, 4);
        let size = u64_at(raw, 8) as usize;
        let place = u32_at(raw, 16);
        let is_device = matches!(mode >> 12, 0o02 | 0o06);
        let mut data = Vec::new();
        if !is_device && size > 0 {
            let tail = if format >> 1 == 2 { size % BLOCK } else { 0 };
            assert!(matches!(format >> 1, 0 | 2), "layout");
            let blocks = size - tail;
            let from = place as usize * BLOCK;
            data.extend_from_slice(&self.bytes[from..from + blocks]);
            let from = at + 64 + xattrs;
            if tail > 0 {
                assert!(from % BLOCK + tail <= BLOCK, "a tail crosses a border");
                data.extend_from_slice(&self.bytes[from..from + tail]);
            }
        }
        Found {
            mode,
            uid: u32_at(raw, 24),
            gid: u32_at(raw, 28),
            mtime: u64_at(raw, 32),
            links: u32_at(raw, 44),
            inode: number,
            data,
            device: if is_device { device(place) } else { (0, 0) },
            xattrs: attributes(&self.bytes[at + 64..at + 64 + xattrs]),
        }
    }
}

fn entries(block: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
    let count = usize::from(u16_at(block, 8)) / 12;
    (0..count)
        .map(|at| {
            let entry = &block[at * 12..at * 12 + 12];
            let from = usize::from(u16_at(entry, 8));
            let next = (at + 1) * 12 + 8;
            let to = if at + 1 < count { u16_at(block, next).into() } else { block.len() };
            let name = block[from..to].split(|byte| *byte == 0).next().unwrap();
            (name.to_vec(), u64_at(entry, 0), entry[10])
        })
        .collect()
}

fn attributes(mut bytes: &[u8]) -> BTreeMap<(u8, Vec<u8>), Vec<u8>> {
    let mut all = BTreeMap::new();
    if bytes.is_empty() {
        return all;
    }
    assert_eq!(bytes[..12], [0; 12], "head of attributes");
    bytes = &bytes[12..];
    while !bytes.is_empty() {
        let (name, value) = (usize::from(bytes[0]), usize::from(u16_at(bytes, 2)));
        let stored = bytes[4..4 + name].to_vec();
        let old = all.insert((bytes[1], stored), bytes[4 + name..4 + name + value].to_vec());
        assert!(old.is_none(), "an attribute is there twice");
        bytes = &bytes[(4 + name + value).next_multiple_of(4)..];
    }
    all
}

fn kind_of(mode: u16) -> u8 {
    match mode >> 12 {
        0o10 => 1,
        0o04 => 2,
        0o02 => 3,
        0o06 => 4,
        0o01 => 5,
        0o12 => 7,
        kind => panic!("kind {kind:o}"),
    }
}

fn device(number: u32) -> (u32, u32) {
    (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xf_ff00)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
