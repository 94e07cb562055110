//! Builds the files that guests boot from: the kernel and initramfs, and the template `base`. Also
//! imports templates of the operator's from container images.
//!
//! Each item is built once, in `images/store/NAME-HASH`. The hash covers all inputs of the item.
//! The build happens in a staging folder, which is renamed when complete. A symbolic link names the
//! item in use and is replaced atomically, so a build that dies changes nothing. Running machines
//! keep their files open.

mod boot;
mod import;
mod kernel;
mod template;

pub(crate) use import::import;

use crate::output::Progress;
use anyhow::Context;
use rustix::fs::{CWD, RenameFlags};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use types::hex;

/// Builds the items that are missing or out of date. With `refresh`, the distribution is asked for
/// newer packages.
///
/// # Errors
/// When an item could not be built, with the fix where there is one.
pub(crate) fn build(dir: &Path, envd: &Path, refresh: bool) -> anyhow::Result<()> {
    let store = Store { images: dir.join("images") };
    fs::create_dir_all(store.images.join("store"))
        .with_context(|| format!("cannot create {}", store.images.display()))?;
    let _lock = store.lock()?;
    store.sweep()?;
    let kernel = kernel::ensure(&store, refresh)?;
    boot::ensure(&store, &kernel, envd)?;
    template::ensure(&store, refresh)
}

/// Folder of finished items.
pub(crate) struct Store {
    images: PathBuf,
}

impl Store {
    fn lock(&self) -> anyhow::Result<File> {
        let file = File::create(self.images.join("lock"))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .context("cannot wait for another build of images")?;
        Ok(file)
    }

    /// Returns the path of the item `name` built from these inputs.
    fn path(&self, name: &str, inputs: &[&[u8]]) -> PathBuf {
        let mut hash = Sha256::new();
        for input in inputs {
            hash.update((input.len() as u64).to_le_bytes());
            hash.update(input);
        }
        let hash = hex::encode(&hash.finalize()[..8]);
        self.images.join("store").join(format!("{name}-{hash}"))
    }

    /// Builds `path` by `make`, unless it exists. With `again`, an existing one is replaced.
    fn ensure(
        &self,
        path: &Path,
        what: &str,
        again: bool,
        make: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if path.exists() && !again {
            return Ok(());
        }
        let progress = Progress::start(what);
        let staged = path.with_extension("new");
        fs::create_dir_all(&staged)?;
        make(&staged).with_context(|| format!("cannot build {what}"))?;
        sync_tree(&staged)?;
        let replace = if path.exists() { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
        rustix::fs::renameat_with(CWD, &staged, CWD, path, replace)?;
        sync_dir(&self.images.join("store"))?;
        remove(&staged)?;
        progress.done();
        Ok(())
    }

    /// Points the link `name` at an item and removes earlier items of the same kind. The link is
    /// relative, so that the folder may be moved, or have several paths.
    fn publish(&self, path: &Path, name: &str) -> anyhow::Result<()> {
        let link = self.images.join(name);
        let dir = link.parent().unwrap_or(&self.images);
        fs::create_dir_all(dir)?;
        let up: PathBuf = Path::new(name).components().skip(1).map(|_| "..").collect();
        let target = up.join(path.strip_prefix(&self.images)?);
        if fs::read_link(&link).is_ok_and(|at| at == target) {
            return Ok(());
        }
        let staged = link.with_extension("new");
        let _ = fs::remove_file(&staged);
        std::os::unix::fs::symlink(target, &staged)?;
        fs::rename(&staged, &link)?;
        sync_dir(dir)?;
        self.forget_others(path)
    }

    fn forget_others(&self, keep: &Path) -> anyhow::Result<()> {
        let kind = |path: &Path| {
            let name = path.file_name()?.to_str()?;
            Some(name.rsplit_once('-')?.0.to_owned())
        };
        for entry in fs::read_dir(self.images.join("store"))? {
            let path = entry?.path();
            if path != keep && kind(&path) == kind(keep) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes the staging folders of builds that died.
    fn sweep(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(self.images.join("store"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "new") {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not valid UTF-8", path.display()))
}

/// Removes a folder with its contents. A missing folder is a success.
fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a folder and everything in it through to the disk.
fn sync_tree(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> anyhow::Result<()> {
    Ok(File::open(dir)?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("store")).unwrap();
        let store = Store { images: dir.path().to_owned() };
        (dir, store)
    }

    fn write(text: &'static str) -> impl FnOnce(&Path) -> anyhow::Result<()> {
        move |dir| Ok(fs::write(dir.join("file"), text)?)
    }

    #[test]
    fn equal_inputs_are_built_once_and_new_inputs_replace_the_image() {
        let (_dir, store) = store();
        let first = store.path("thing", &[b"a", b"b"]);
        assert_ne!(first, store.path("thing", &[b"ab", b""]), "where one input ends matters");
        store.ensure(&first, "a thing", false, write("1")).unwrap();
        store.ensure(&first, "a thing", false, |_| panic!("made twice")).unwrap();
        store.publish(&first, "current").unwrap();
        let second = store.path("thing", &[b"c"]);
        store.ensure(&second, "a thing", false, write("2")).unwrap();
        assert_eq!(fs::read(store.images.join("current/file")).unwrap(), b"1");
        store.publish(&second, "current").unwrap();
        assert_eq!(fs::read(store.images.join("current/file")).unwrap(), b"2");
        assert!(!first.exists());
        store.publish(&second, "deep/current").unwrap();
        let link = fs::read_link(store.images.join("deep/current")).unwrap();
        assert!(link.is_relative() && store.images.join("deep/current/file").exists());
    }

    #[test]
    fn failed_build_keeps_current_image_and_its_rest_is_swept() {
        let (_dir, store) = store();
        let path = store.path("thing", &[b"a"]);
        store.ensure(&path, "a thing", false, write("1")).unwrap();
        store.publish(&path, "current").unwrap();
        let failed = store.ensure(&path, "a thing", true, |_| anyhow::bail!("no"));
        assert!(format!("{:#}", failed.unwrap_err()).contains("no"));
        assert_eq!(fs::read(store.images.join("current/file")).unwrap(), b"1");
        assert!(path.with_extension("new").exists());
        store.sweep().unwrap();
        assert!(!path.with_extension("new").exists());
    }
}
