//! The folders that every guest needs. An image may hold none of them, or links in their places.

use crate::console::console;
use crate::root::Root;
use anyhow::Context;
use rustix::fs::{Mode, OFlags, fstat};
use std::path::Path;

/// Mode of a folder that every user may write to.
const SHARED: u32 = 0o1777;

/// A folder that every guest has.
struct Folder {
    path: &'static str,
    /// Mode of the folder when it is made.
    mode: u32,
    /// Set if a folder of the image gets the mode too.
    always: bool,
}

const FOLDERS: [Folder; 4] = [
    Folder { path: "/etc", mode: 0o755, always: false },
    Folder { path: "/tmp", mode: SHARED, always: true },
    Folder { path: "/var/tmp", mode: SHARED, always: false },
    Folder { path: "/run", mode: 0o755, always: false },
];

/// Makes the folders that programs expect, where the image has none. The console names a folder for
/// which this fails, since no boot may fail for what root in the guest has put there.
pub(super) fn provide() {
    let provided = Root::open("/").map(|root| {
        for folder in &FOLDERS {
            if let Err(error) = provide_one(&root, folder) {
                console(&format!("envd: {}: {error:#}", folder.path));
            }
        }
    });
    if let Err(error) = provided {
        console(&format!("envd: {error:#}"));
    }
}

/// Makes a folder that every guest has, and sets its mode where the folder's rule says so.
fn provide_one(root: &Root, folder: &Folder) -> anyhow::Result<()> {
    let made = root.make(Path::new(folder.path))?;
    if !made && !folder.always {
        return Ok(());
    }
    // A path alone cannot change a mode. The folder is not a device or a pipe, so it opens.
    let opened = root.at(Path::new(folder.path), OFlags::RDONLY | OFlags::DIRECTORY);
    let opened = opened.context("opening it")?;
    // An equal mode is not written, since that would copy the folder to the capsule's disk.
    let current = fstat(&opened).context("looking at it")?.st_mode & 0o7777;
    if current == folder.mode {
        return Ok(());
    }
    let mode = Mode::from_raw_mode(folder.mode);
    rustix::fs::fchmod(&opened, mode).context("setting its mode")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn provide(root: &Root) {
        FOLDERS.iter().for_each(|folder| provide_one(root, folder).unwrap());
    }

    #[test]
    fn every_folder_is_made_in_an_empty_root() {
        let (dir, root) = root();
        for _ in 0..2 {
            provide(&root);
        }
        for (name, wanted) in
            [("etc", 0o755), ("tmp", 0o1777), ("var", 0o755), ("var/tmp", 0o1777), ("run", 0o755)]
        {
            assert_eq!(mode(&dir.path().join(name)), wanted, "{name}");
        }
    }

    #[test]
    fn folders_of_an_image_keep_their_modes_except_tmp() {
        let (dir, root) = root();
        for name in ["tmp", "var/tmp", "etc"] {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        }
        provide(&root);
        let modes = ["tmp", "var/tmp", "etc"].map(|name| mode(&dir.path().join(name)));
        assert_eq!(modes, [0o1777, 0o700, 0o700]);
    }

    #[test]
    fn links_that_lead_nowhere_get_their_targets_within_the_root() {
        let (dir, root) = root();
        fs::create_dir(dir.path().join("var")).unwrap();
        symlink("/var/tmp", dir.path().join("tmp")).unwrap();
        symlink("../private/etc", dir.path().join("etc")).unwrap();
        symlink("../../data/run", dir.path().join("var/run")).unwrap();
        symlink("var/run", dir.path().join("run")).unwrap();
        provide(&root);
        assert_eq!(mode(&dir.path().join("var/tmp")), 0o1777);
        assert!(dir.path().join("private/etc").is_dir());
        assert!(dir.path().join("data/run").is_dir());
        for link in ["tmp", "etc", "run"] {
            assert!(fs::symlink_metadata(dir.path().join(link)).unwrap().is_symlink(), "{link}");
        }
    }
}
