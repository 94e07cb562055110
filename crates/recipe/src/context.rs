//! The files of a COPY in a folder on this machine: their choice, their hash and their archive.
//! This is the one module of the crate that reads files. It follows no link, reads nothing outside
//! of the folder, and bounds entries, bytes and depth.

use crate::ignore::{Ignore, Verdict};
use crate::placement::{self, Sources};
use rustix::fs::{Mode, OFlags};
use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Deepest nesting of folders.
const DEPTH_MAX: usize = 256;
/// Name of this use of the hash.
const DOMAIN: &str = "wrenn 2026 files of a build's context";

/// Bounds of one COPY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries that are looked at.
    pub entries: usize,
    /// Bytes of chosen files.
    pub bytes: u64,
}

impl Default for Limits {
    /// A million entries and 2 GiB, the largest upload.
    fn default() -> Self {
        Self { entries: 1_000_000, bytes: 2 << 30 }
    }
}

/// Reasons why files cannot be chosen or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A source is malformed.
    #[error(transparent)]
    Source(#[from] placement::Error),
    /// A source names no file.
    #[error("the source `{0}` names no file of the context")]
    Missing(String),
    /// All files that a source names are left out.
    #[error("the source `{0}` names only files that .dockerignore leaves out")]
    Ignored(String),
    /// A bound is passed.
    #[error("the context has over {0}")]
    Limit(String),
    /// A name cannot stand in a recipe.
    #[error("the name of a file is not UTF-8: {0}")]
    Name(String),
    /// A call to the file system failed.
    #[error("reading {path}")]
    File {
        /// Path of the file.
        path: String,
        /// Error of the system.
        #[source]
        source: io::Error,
    },
    /// The archive could not be written.
    #[error("packing the context")]
    Pack(#[from] archive::Error),
}

/// A folder with the files of a build.
#[derive(Debug, Clone)]
pub struct Context {
    root: PathBuf,
    ignore: Ignore,
    limits: Limits,
}

/// Kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link, kept as it is.
    Link,
}

/// A chosen entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path below the context, with `/` between names.
    pub path: String,
    /// Kind.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes of a file; 0 for other kinds.
    pub size: u64,
}

/// Chosen entries, each folder before its contents, names of a folder in order.
#[derive(Debug, Clone)]
pub struct Selection {
    root: PathBuf,
    entries: Vec<Entry>,
    bytes: u64,
}

impl Context {
    /// Opens a folder. Sockets, FIFOs and devices in it are passed over.
    ///
    /// # Errors
    /// Returns `File` when the path is no folder that can be read.
    pub fn open(root: &Path, ignore: Ignore, limits: Limits) -> Result<Self, Error> {
        let found = fs::metadata(root).map_err(|error| reading(root, error))?;
        if !found.is_dir() {
            return Err(reading(root, io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self { root: root.to_owned(), ignore, limits })
    }

    /// Chooses the files that the sources of a Dockerfile's COPY name. Parents of a chosen entry
    /// are chosen from the source's own folder on. A source through a link names nothing.
    ///
    /// # Errors
    /// Names the source without a file, the bound that is passed, or the file that fails.
    pub fn select<S: AsRef<str>>(&self, sources: &[S]) -> Result<Selection, Error> {
        let patterns = Sources::docker(sources)?;
        let count = sources.len();
        let mut walk = Walk {
            context: self,
            sources: &patterns,
            seen: vec![Seen::Nothing; count],
            chosen: HashSet::new(),
            entries: Vec::new(),
            looked_at: 0,
            bytes: 0,
            pending: Vec::new(),
        };
        for (index, seen) in walk.seen.iter_mut().enumerate() {
            if patterns.is_top(index) {
                *seen = Seen::Chosen;
            }
        }
        walk.run()?;
        for (seen, source) in walk.seen.iter().zip(sources) {
            match seen {
                Seen::Chosen => {}
                Seen::Ignored => return Err(Error::Ignored(source.as_ref().to_owned())),
                Seen::Nothing => return Err(Error::Missing(source.as_ref().to_owned())),
            }
        }
        Ok(Selection { root: self.root.clone(), entries: walk.entries, bytes: walk.bytes })
    }
}

/// Fate of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Nothing,
    Ignored,
    Chosen,
}

/// A path that is still to be looked at.
struct Pending {
    path: String,
    above: Rc<Verdict>,
    depth: usize,
}

struct Walk<'a> {
    context: &'a Context,
    sources: &'a Sources,
    seen: Vec<Seen>,
    /// Folders that are chosen already.
    chosen: HashSet<String>,
    entries: Vec<Entry>,
    looked_at: usize,
    bytes: u64,
    pending: Vec<Pending>,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), Error> {
        self.read("", &Rc::new(Verdict::default()), 0)?;
        while let Some(next) = self.pending.pop() {
            self.look(&next)?;
        }
        Ok(())
    }

    /// Puts the entries of a folder on the stack, the last one first.
    fn read(&mut self, folder: &str, verdict: &Rc<Verdict>, depth: usize) -> Result<(), Error> {
        if depth >= DEPTH_MAX {
            return Err(Error::Limit(format!("{DEPTH_MAX} folders below each other: {folder}")));
        }
        let path = self.context.root.join(folder);
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(|error| reading(&path, error))? {
            let name = entry.map_err(|error| reading(&path, error))?.file_name();
            self.looked_at += 1;
            if self.looked_at > self.context.limits.entries {
                return Err(Error::Limit(format!("{} entries", self.context.limits.entries)));
            }
            match name.into_string() {
                Ok(name) => names.push(name),
                Err(name) => self.unnamed(folder, &name.to_string_lossy(), verdict)?,
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        let join = |name: String| if folder.is_empty() { name } else { format!("{folder}/{name}") };
        let above = verdict;
        self.pending.extend(names.into_iter().map(|name| Pending {
            path: join(name),
            above: Rc::clone(above),
            depth: depth + 1,
        }));
        Ok(())
    }

    /// Refuses a name that is not UTF-8, unless nobody asks for the file.
    fn unnamed(&self, folder: &str, name: &str, above: &Verdict) -> Result<(), Error> {
        let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        let is_asked = self.sources.names(&path);
        let is_kept = !self.context.ignore.judge(&path, above).is_ignored;
        if is_asked && is_kept { Err(Error::Name(path)) } else { Ok(()) }
    }

    fn look(&mut self, at: &Pending) -> Result<(), Error> {
        let named: Vec<_> = self.sources.places(&at.path).map(|placed| placed.source).collect();
        if named.is_empty() && !self.sources.may_hold(&at.path) {
            return Ok(());
        }
        let full = self.context.root.join(&at.path);
        let found = fs::symlink_metadata(&full).map_err(|error| reading(&full, error))?;
        let verdict = self.context.ignore.judge(&at.path, &at.above);
        let seen = if verdict.is_ignored { Seen::Ignored } else { Seen::Chosen };
        for source in &named {
            if let Some(now) = self.seen.get_mut(*source).filter(|now| **now != Seen::Chosen) {
                *now = seen;
            }
        }
        if !named.is_empty() && !verdict.is_ignored {
            self.choose(&at.path, &found)?;
        }
        let is_open = !verdict.is_ignored || self.context.ignore.may_except_below(&at.path);
        if found.is_dir() && is_open {
            self.read(&at.path, &Rc::new(verdict), at.depth)?;
        }
        Ok(())
    }

    /// Chooses an entry, after the folders above it that a source names.
    fn choose(&mut self, path: &str, found: &Metadata) -> Result<(), Error> {
        let mut above = Vec::new();
        let mut rest = path;
        while let Some((folder, _)) = rest.rsplit_once('/') {
            if self.chosen.contains(folder) || !self.sources.names(folder) {
                break;
            }
            above.push(folder);
            rest = folder;
        }
        for folder in above.into_iter().rev() {
            let full = self.context.root.join(folder);
            let found = fs::symlink_metadata(&full).map_err(|error| reading(&full, error))?;
            self.add(folder, &found)?;
        }
        self.add(path, found)
    }

    fn add(&mut self, path: &str, found: &Metadata) -> Result<(), Error> {
        let kind = match found {
            found if found.is_dir() => Kind::Folder,
            found if found.is_file() => Kind::File,
            found if found.is_symlink() => Kind::Link,
            _ => return Ok(()),
        };
        let size = if kind == Kind::File { found.len() } else { 0 };
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.context.limits.bytes {
            return Err(Error::Limit(format!("{} bytes", self.context.limits.bytes)));
        }
        if kind == Kind::Folder {
            self.chosen.insert(path.to_owned());
        }
        let mode = found.permissions().mode() & 0o7777;
        self.entries.push(Entry { path: path.to_owned(), kind, mode, size });
        Ok(())
    }
}

impl Selection {
    /// Returns the chosen entries.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the bytes of all chosen files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hashes names, kinds, permissions, targets and contents: 64 lower-case hexadecimal digits.
    /// Owners and times have no part, so a fresh checkout has the same hash.
    ///
    /// # Errors
    /// Returns `File` when a file cannot be read, or has passed the bound of its size.
    pub fn hash(&self) -> Result<String, Error> {
        let mut hasher = blake3::Hasher::new_derive_key(DOMAIN);
        for entry in &self.entries {
            let full = self.root.join(&entry.path);
            let (kind, contents) = match entry.kind {
                Kind::Folder => (b'd', *blake3::hash(b"").as_bytes()),
                Kind::Link => {
                    let target = fs::read_link(&full).map_err(|error| reading(&full, error))?;
                    (b'l', *blake3::hash(target.as_os_str().as_bytes()).as_bytes())
                }
                Kind::File => (b'f', contents(&full, entry.size)?),
            };
            let length = entry.path.len() as u64;
            hasher.update(&length.to_le_bytes()).update(entry.path.as_bytes());
            hasher.update(&[kind]).update(&entry.mode.to_le_bytes()).update(&contents);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Packs the chosen entries as a tar archive, under their paths below the context.
    ///
    /// # Errors
    /// Returns `Pack` when a file cannot be read or the archive cannot be written.
    pub fn pack(&self, to: &mut impl Write) -> Result<(), Error> {
        let mut builder = archive::Builder::new(to);
        for entry in &self.entries {
            builder.add(&self.root.join(&entry.path), entry.path.as_bytes())?;
        }
        builder.finish()?;
        Ok(())
    }
}

/// Hashes a file's contents, and no more than it had when it was chosen.
fn contents(path: &Path, size: u64) -> Result<[u8; 32], Error> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| reading(path, error.into()))?;
    let mut file = File::from(file).take(size.saturating_add(1));
    let mut hasher = blake3::Hasher::new();
    let read = io::copy(&mut file, &mut hasher).map_err(|error| reading(path, error))?;
    if read != size {
        let message = "the file changed while it was read";
        return Err(reading(path, io::Error::other(message)));
    }
    Ok(*hasher.finalize().as_bytes())
}

fn reading(path: &Path, source: io::Error) -> Error {
    Error::File { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests;
