//! Copies of folders by hard links, for images and machines that tests share.

use std::path::Path;
use std::process::Command;

/// Links the files of each folder in `from` into a folder of the same name in `to`, unless that
/// exists. Each folder is linked completely or not at all. Where hard links are impossible, nothing
/// is shared.
pub(crate) fn link_trees(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let files: Vec<_> =
            std::fs::read_dir(entry.path()).into_iter().flatten().flatten().collect();
        if name.contains('.') || to.join(&name).exists() || files.is_empty() {
            continue;
        }
        let staged = to.join(format!("{name}.{}", std::process::id()));
        std::fs::create_dir_all(&staged).unwrap();
        let linked =
            files.iter().all(|f| std::fs::hard_link(f.path(), staged.join(f.file_name())).is_ok());
        if !linked || std::fs::rename(&staged, to.join(&name)).is_err() {
            let _ = std::fs::remove_dir_all(&staged);
        }
    }
}

/// Copies a folder of images by hard links, with its symbolic links, which are relative.
pub(crate) fn copy_images(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    let linked = |how: &str| Command::new("cp").arg(how).arg(from).arg(to).status().unwrap();
    if !linked("-al").success() {
        let _ = std::fs::remove_dir_all(to);
        assert!(linked("-a").success(), "cannot copy {}", from.display());
    }
}
