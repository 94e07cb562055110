//! The COPY of a build's step: its order, its owner, and the three kinds of its files. They come
//! from an uploaded archive, from the order itself, or from folders of drives.

use super::place::{Attributes, Node, Placer, Rules, Spot};
use super::{Build, members, origin};
use crate::error::{Error, Result};
use crate::root::Root;
use crate::users;
use recipe::Dialect;
use recipe::placement::Sources;
use recipe::resolve::CopyWork;
use std::ffi::OsString;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Folder of PID 1's root in which origins are mounted.
pub(crate) const ORIGINS: &str = "/origins";
/// Largest order, in bytes. Files whose contents stand in the order have at most 4 MiB, and JSON may
/// write a byte as six.
const ORDER_MAX: u64 = 32 << 20;
/// Mode of a file whose contents stand in the order.
const INLINE_MODE: u32 = 0o644;

/// Order of a COPY: the first line of a request's body.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Order {
    #[serde(flatten)]
    work: CopyWork,
    /// Rules of the copy.
    dialect: Dialect,
    /// Folders of drives that hold the files, in place of an archive.
    origin: Option<Origin>,
}

/// Folders of drives that hold the files of a COPY.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Origin {
    /// Folders, as the text of `protocol::lower`.
    #[serde(default)]
    pub lower: String,
    /// Drive of the image below all folders.
    #[serde(default)]
    pub image: Option<u8>,
}

/// Counts of a COPY.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Copied {
    /// Files, folders and links.
    pub files: u64,
    /// Bytes of files' contents.
    pub bytes: u64,
}

impl Order {
    /// Reads the first line of a body.
    ///
    /// # Errors
    /// Returns `invalid_argument` for a line that is no order.
    pub(crate) fn read(from: &mut impl BufRead) -> Result<Self> {
        let mut line = Vec::new();
        let read = from.take(ORDER_MAX).read_until(b'\n', &mut line);
        read.map_err(|e| Error::invalid(format!("the body ended early: {e}")))?;
        let order: Self = serde_json::from_slice(&line)
            .map_err(|e| Error::invalid(format!("the first line of the body: {e}")))?;
        if !order.work.dest.starts_with('/') || order.work.dest.contains('\0') {
            return Err(Error::invalid("dest must be an absolute path"));
        }
        Ok(order)
    }

    fn sources(&self) -> Result<Sources> {
        let invalid = |e: recipe::placement::Error| Error::invalid(e.to_string());
        match (self.dialect, self.work.sources.as_slice()) {
            (Dialect::E2b, [source]) => Sources::e2b(source).map_err(invalid),
            (Dialect::E2b, [_, _, ..]) => {
                Err(Error::invalid("sources: this dialect has a single source"))
            }
            (Dialect::E2b | Dialect::Steps | Dialect::Dockerfile, sources) => {
                Sources::docker(sources).map_err(invalid)
            }
        }
    }
}

/// Finds user and group of an owner. With Docker, a number without a group is the group too.
fn owner(account: &str) -> Result<(u32, u32)> {
    let user = users::get(account)?;
    let is_number = !account.is_empty() && account.bytes().all(|byte| byte.is_ascii_digit());
    Ok((user.uid, if is_number { user.uid } else { user.gid }))
}

/// Copies files into a step's root. `progress` counts for a watcher of the thread.
pub(crate) fn run(
    build: &Build,
    order: &Order,
    from: impl Read,
    progress: Arc<AtomicU64>,
) -> Result<Copied> {
    let root = &build.step()?.files;
    build.uncover();
    let owner = owner(&order.work.owner)?;
    match &order.origin {
        Some(origin) if !order.work.sources.is_empty() => origin::with(build, origin, |origin| {
            let mut placer = placer(root, order, owner, progress)?;
            place_origin(&mut placer, order, origin)?;
            end(placer, order)
        }),
        _ => place(root, order, owner, from, progress),
    }
}

fn place_origin(placer: &mut Placer<'_>, order: &Order, origin: &Root) -> Result<()> {
    let mut sources = order.work.sources.iter();
    sources.try_for_each(|source| origin::place(placer, origin, source, order.work.unpack))
}

fn placer<'a>(
    root: &'a Root,
    order: &Order,
    owner: (u32, u32),
    progress: Arc<AtomicU64>,
) -> Result<Placer<'a>> {
    let rules = Rules {
        dest: PathBuf::from(&order.work.dest),
        into: order.work.into,
        owner,
        mode: order.work.mode,
        overrides: order.dialect != Dialect::E2b,
    };
    Placer::new(root, rules, progress)
}

/// Places the members of an archive and the files of the order.
fn place(
    root: &Root,
    order: &Order,
    owner: (u32, u32),
    from: impl Read,
    progress: Arc<AtomicU64>,
) -> Result<Copied> {
    let mut placer = placer(root, order, owner, progress)?;
    let sources = order.sources()?;
    let mut used = vec![false; order.work.sources.len()];
    if !used.is_empty() {
        members::place(&mut placer, &sources, order.work.unpack, &mut used, from)?;
    }
    let unused = order.work.sources.iter().zip(&used).find(|(_, used)| !**used);
    match unused {
        Some((source, _)) => Err(not_found(source)),
        None => end(placer, order),
    }
}

/// Makes the error for a source without files.
pub(super) fn not_found(source: &str) -> Error {
    Error::invalid(format!("the source `{source}` was not found"))
}

/// Places the files whose contents stand in the order.
fn end(mut placer: Placer<'_>, order: &Order) -> Result<Copied> {
    for (name, text) in &order.work.inline {
        if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
            return Err(Error::invalid(format!("inline: `{name}` is no name of a file")));
        }
        let spot = Spot { top: OsString::from(name), below: PathBuf::new() };
        let path = placer.path(&spot, false)?;
        let attributes = Attributes { mode: INLINE_MODE, modified: None };
        placer.put(&path, Node::File(&mut text.as_bytes()), attributes)?;
    }
    placer.finish_folders();
    Ok(Copied { files: placer.files, bytes: placer.bytes })
}

/// Makes a folder with its parents. Folders that are made get the owner.
pub(crate) fn make_folder(build: &Build, path: &str, account: &str) -> Result<()> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(Error::invalid("path must be an absolute path"));
    }
    let made = build.step()?.files.make_for(Path::new(path), Some(owner(account)?));
    made.map(|_| ()).map_err(|e| Error::invalid(format!("cannot make {path}: {e:#}")))
}

#[cfg(test)]
mod tests;
