//! `wrenn capsule cp`: streams files and folders of any size into or out of a capsule. Modes, times
//! and links are kept, as by `docker cp` and `scp`. No guest is trusted: contents land only below
//! the name that the caller wrote.

mod transfer;

use super::capsule::{is_name, path};
use crate::cli;
use crate::client::{Client, Refused};
use crate::output::{self, Form};
use anyhow::Context;
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use tokio::fs::File;

/// Name of a capsule's root folder in an archive, as envd gives it.
const ROOT: &str = "root";

/// Source or target of a copy.
enum Side<'a> {
    /// Standard input or output.
    Stream,
    Local(&'a Path),
    Capsule {
        id: &'a str,
        path: &'a str,
    },
}

impl<'a> Side<'a> {
    fn parse(text: &'a str) -> anyhow::Result<Self> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        match text.split_once(':') {
            Some((id, path)) if id.starts_with(types::CapsuleId::PREFIX) || is_name(id) => {
                let none = || output::usage(format!("`{text}` has no path in the capsule"));
                if path.is_empty() { Err(none()) } else { Ok(Self::Capsule { id, path }) }
            }
            _ => Ok(Self::Local(Path::new(text))),
        }
    }
}

pub(super) async fn cp(cp: &cli::Cp, client: &Client, form: Form) -> anyhow::Result<()> {
    let (copied, at) = match (Side::parse(&cp.from)?, Side::parse(&cp.to)?) {
        (Side::Capsule { id, path }, Side::Local(local)) => {
            let (copied, at) = download(client, (id, path), local, cp.recursive).await?;
            (copied, at.display().to_string())
        }
        (Side::Capsule { id, path }, Side::Stream) => {
            let mut out = tokio::io::stdout();
            return transfer::fetch(client, id, path, &mut out).await.map(|_| ());
        }
        (Side::Local(local), Side::Capsule { id, path }) => {
            let (copied, at) = upload(client, local, (id, path), cp.recursive).await?;
            (copied, format!("{id}:{at}"))
        }
        (Side::Stream, Side::Capsule { id, path }) => {
            let sent = transfer::send(client, id, path, tokio::io::stdin()).await?;
            (sent, format!("{id}:{path}"))
        }
        _ => {
            let must = "one side must be CAPSULE:PATH, and the other a local path or `-`";
            return Err(output::usage(must));
        }
    };
    if form == Form::Json {
        return output::json(&serde_json::json!({ "to": at, "bytes": copied }));
    }
    output::note(&format!("copied {} to {at}", output::bytes(copied)));
    Ok(())
}

/// Refuses the copy of a folder without `-r`.
fn check_folder(is_folder: bool, recursive: bool, shown: &str) -> anyhow::Result<()> {
    if is_folder && !recursive {
        return Err(output::usage(format!("{shown} is a folder; copy it with -r")));
    }
    Ok(())
}

/// Reports whether a path means a folder's contents instead of the folder, as in `cp -r dir/. to`.
fn means_contents(text: &str) -> bool {
    text == "." || text.ends_with("/.")
}

/// Describes a path of a capsule; `None` when nothing is there.
async fn stat(client: &Client, id: &str, at: &str) -> anyhow::Result<Option<api::Entry>> {
    let asked = api::PathRequest { path: at.to_owned() };
    let found: anyhow::Result<api::EntryResult> =
        client.post(&path(id, "/files/stat")?, &asked).await;
    match found {
        Ok(found) => Ok(Some(found.entry)),
        // A missing capsule is an error. A missing path may be a target.
        Err(error) if is_missing_path(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_missing_path(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref::<Refused>();
    refused.is_some_and(|refused| refused.code == "not_found" && refused.message.contains("path"))
}

async fn download(
    client: &Client,
    (id, from): (&str, &str),
    local: &Path,
    recursive: bool,
) -> anyhow::Result<(u64, PathBuf)> {
    let entry = stat(client, id, from).await?;
    let entry = entry.ok_or_else(|| output::not_found(format!("{from}: file not found")))?;
    let is_folder = entry.r#type == "directory";
    check_folder(is_folder, recursive, from)?;
    if !is_folder && entry.r#type != "file" {
        anyhow::bail!("{from} is neither a file nor a folder");
    }
    let source = Source { name: own_name(from), is_folder, contents: means_contents(from) };
    let place = match local_target(local, &source)? {
        Target::Place(place) => place,
        Target::Special => {
            let opened = File::options().write(true).open(local).await;
            let mut file = opened.with_context(|| format!("cannot open {}", local.display()))?;
            let copied = transfer::fetch(client, id, &entry.path, &mut file).await?;
            return Ok((copied, local.to_owned()));
        }
    };
    let at = place.folder.join(&place.name);
    let from = name_of(&entry.path).into();
    let top = archive::Top { from, to: place.name, folder: is_folder };
    let copied = match transfer::unpack(client, (id, &entry.path), place.folder, top).await {
        Err(error) if !is_folder && is_too_old(&error) => {
            transfer::save(client, (id, &entry.path), &at).await?
        }
        copied => copied?,
    };
    Ok((copied, at))
}

/// Returns the last name of a path in a capsule as the caller wrote it. Thus no guest chooses a
/// name on this machine. The name of a path such as `~` or `..` is empty.
fn own_name(path: &str) -> &OsStr {
    match Path::new(path).file_name() {
        Some(name) if path.trim_end_matches('/') != "~" => name,
        None if path.starts_with('/') => OsStr::new(ROOT),
        Some(_) | None => OsStr::new(""),
    }
}

/// Returns the last name of an absolute path in a capsule, as envd calls the archive's entry.
fn name_of(path: &str) -> &str {
    path.rsplit('/').find(|name| !name.is_empty()).unwrap_or(ROOT)
}

/// Source of a copy.
struct Source<'a> {
    /// Name that a copy into a folder gets; empty for a source without a name of its own.
    name: &'a OsStr,
    is_folder: bool,
    /// Set if a folder's contents are copied instead of the folder.
    contents: bool,
}

/// Place of a copy: a folder, which may be missing, and a name in it.
#[derive(Debug, PartialEq, Eq)]
struct Place<F> {
    folder: F,
    name: OsString,
}

/// Target of a copy on this machine.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Place(Place<PathBuf>),
    /// A device or a FIFO. The contents are written into it.
    Special,
}

/// Finds the place of a copy on this machine. A link at `local` itself is followed, as by `cp`.
fn local_target(local: &Path, source: &Source<'_>) -> anyhow::Result<Target> {
    let shown = local.display();
    let found = match std::fs::metadata(local) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return new_target(local, source),
        Err(error) => return Err(error).with_context(|| format!("cannot inspect {shown}")),
    };
    if found.is_dir() && !source.contents {
        let name = source.name.to_owned();
        anyhow::ensure!(!name.is_empty(), "the source has no name; add a file name to {shown}");
        return Ok(Target::Place(Place { folder: local.to_owned(), name }));
    }
    if source.is_folder && !found.is_dir() {
        anyhow::bail!("{shown} is not a folder, but the source is");
    }
    if is_special(&found) {
        return Ok(Target::Special);
    }
    anyhow::ensure!(found.is_dir() || found.is_file(), "{shown} is a socket");
    let real = std::fs::canonicalize(local).with_context(|| format!("cannot inspect {shown}"))?;
    let (folder, name) = real.parent().zip(real.file_name()).context("the target has no name")?;
    Ok(Target::Place(Place { folder: folder.to_owned(), name: name.to_owned() }))
}

fn is_special(found: &Metadata) -> bool {
    let kind = found.file_type();
    kind.is_char_device() || kind.is_block_device() || kind.is_fifo()
}

/// Finds the place of a copy to a path that does not exist yet.
fn new_target(local: &Path, source: &Source<'_>) -> anyhow::Result<Target> {
    let shown = local.display();
    let is_link = std::fs::symlink_metadata(local).is_ok();
    anyhow::ensure!(!is_link, "{shown} is a broken link");
    let wants_folder = local.as_os_str().as_encoded_bytes().ends_with(b"/");
    anyhow::ensure!(source.is_folder || !wants_folder, "{shown} is not a folder");
    let name = local.file_name().with_context(|| format!("{shown} has no file name"))?.to_owned();
    let folder = local.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).to_owned();
    Ok(Target::Place(Place { folder, name }))
}

async fn upload(
    client: &Client,
    local: &Path,
    (id, to): (&str, &str),
    recursive: bool,
) -> anyhow::Result<(u64, String)> {
    let shown = local.display().to_string();
    let what = || format!("cannot read {shown}");
    let found = tokio::fs::metadata(local).await.with_context(what)?;
    check_folder(found.is_dir(), recursive, &shown)?;
    let real;
    let name = match local.file_name() {
        Some(name) => name,
        // The path ends with `.` or `..`, and the real folder has a name.
        None => {
            real = std::fs::canonicalize(local).with_context(what)?;
            real.file_name().unwrap_or(OsStr::new(ROOT))
        }
    };
    let contents = means_contents(&shown);
    let source = Source { name, is_folder: found.is_dir(), contents };
    let entry = stat(client, id, to).await?;
    let place = remote_target(to, entry.as_ref(), &source)?;
    let at = place.as_ref().map_or_else(
        || to.to_owned(),
        |place| format!("{}/{}", place.folder.trim_end_matches('/'), place.name.display()),
    );
    let copied = match place {
        Some(place) if found.is_dir() || found.is_file() => {
            match transfer::pack(client, local, (id, &place.folder), place.name).await {
                Err(error) if found.is_file() && is_too_old(&error) => None,
                copied => Some(copied?),
            }
        }
        // A device or a FIFO on either side has contents but no metadata to copy.
        _ => None,
    };
    let copied = match copied {
        Some(copied) => copied,
        None => {
            anyhow::ensure!(!found.file_type().is_socket(), "{shown} is a socket");
            let file = File::open(local).await.with_context(what)?;
            transfer::send(client, id, &at, file).await?
        }
    };
    Ok((copied, at))
}

/// Reports whether a capsule's agent is older than this version and supports no archives. Contents
/// of single files can be copied all the same.
fn is_too_old(error: &anyhow::Error) -> bool {
    output::is_refused(error, "not_supported")
}

/// Finds the place of a copy in a capsule. Returns `None` for a device or the like: envd writes
/// into it or refuses.
fn remote_target(
    to: &str,
    entry: Option<&api::Entry>,
    source: &Source<'_>,
) -> anyhow::Result<Option<Place<String>>> {
    let Some(entry) = entry else {
        let wants_folder = to.ends_with('/');
        anyhow::ensure!(source.is_folder || !wants_folder, "{to} is not a folder in the capsule");
        return split(to).map(Some);
    };
    let is_folder = entry.r#type == "directory";
    if is_folder && !source.contents {
        let folder = entry.path.clone();
        return Ok(Some(Place { folder, name: source.name.to_owned() }));
    }
    if source.is_folder && !is_folder {
        anyhow::bail!("{to} is not a folder in the capsule, but the source is a folder");
    }
    if !is_folder && entry.r#type != "file" {
        return Ok(None);
    }
    // A link is followed, as by `cp`.
    split(entry.symlink_target.as_deref().unwrap_or(&entry.path)).map(Some)
}

/// Splits a path of a capsule into its folder and its name.
fn split(path: &str) -> anyhow::Result<Place<String>> {
    let trimmed = path.trim_end_matches('/');
    let (folder, name) = match trimmed.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((folder, name)) => (folder, name),
        // The path is relative to the account's home folder.
        None => (".", trimmed),
    };
    if matches!(name, "" | "." | ".." | "~") {
        return Err(output::usage(format!("`{path}` has no file name")));
    }
    Ok(Place { folder: folder.to_owned(), name: name.into() })
}

#[cfg(test)]
mod tests;
