//! Folders of drives as the lower folders of an overlay. PID 1 mounts the drives below fixed paths,
//! which every boot, every step of a build and every origin of a COPY share.

use anyhow::Context;
use protocol::lower::{Lower, OWN_DISK};
use rustix::fs::{AtFlags, FileType, statat};
use std::os::fd::AsFd;

/// Place of the image.
pub(crate) const IMAGE: &str = "/image";
/// Place of the guest's own disk.
pub(crate) const DISK: &str = "/disk";
/// Place of the read-only drives, each in a folder with its number.
pub(crate) const DRIVES: &str = "/r";
/// Most bytes of a mount's options. The kernel takes a page, and needs its last byte.
const OPTIONS_MAX: usize = 4095;
/// Features that make an upper folder useless below another overlay.
const PLAIN: &str = "redirect_dir=off,index=off,metacopy=off";

/// Returns the path of a drive's folder. Drive 0 is the own disk.
pub(crate) fn folder(drive: u8, name: &str) -> String {
    match drive {
        OWN_DISK => format!("{DISK}/{name}"),
        drive => format!("{DRIVES}/{drive}/{name}"),
    }
}

/// Returns the path of an image: drive 0 is the guest's image, any other a read-only drive.
pub(crate) fn image(drive: u8) -> String {
    match drive {
        0 => IMAGE.to_owned(),
        drive => format!("{DRIVES}/{drive}"),
    }
}

/// Returns the folders of an overlay from the highest to the lowest, with the image below them.
pub(crate) fn folders(lower: &Lower, image: Option<u8>) -> Vec<String> {
    let steps = lower.from_top().into_iter().map(|(drive, name)| folder(drive, &name));
    steps.chain(image.map(self::image)).collect()
}

/// Checks that each path is a folder, seen from `base`.
///
/// # Errors
/// Names the first path that is none. A link counts as none.
pub(crate) fn check(base: impl AsFd, paths: &[String]) -> anyhow::Result<()> {
    for path in paths {
        let found = statat(&base, path.trim_start_matches('/'), AtFlags::SYMLINK_NOFOLLOW);
        let found = found.with_context(|| format!("there is no folder {path}"))?;
        let kind = FileType::from_raw_mode(found.st_mode);
        anyhow::ensure!(kind == FileType::Directory, "{path} is no folder");
    }
    Ok(())
}

/// Returns the options of an overlay's mount. `upper` has the folder that takes writes, and the
/// folder that the kernel works in.
///
/// # Errors
/// Fails for options that are too long for the kernel.
pub(crate) fn options(lower: &[String], upper: Option<(&str, &str)>) -> anyhow::Result<String> {
    let mut options = format!("lowerdir={}", lower.join(":"));
    if let Some((upper, work)) = upper {
        options = format!("{options},upperdir={upper},workdir={work}");
    }
    options = format!("{options},{PLAIN}");
    anyhow::ensure!(
        options.len() <= OPTIONS_MAX,
        "{} folders need {} bytes of mount options, and the kernel takes {OPTIONS_MAX}",
        lower.len(),
        options.len()
    );
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::lower::FOLDERS_MAX;

    #[test]
    fn folders_are_listed_from_the_top_with_the_image_below() {
        let lower: Lower = "1/1-2,2/upper,0/7".parse().unwrap();
        let all = folders(&lower, Some(0));
        assert_eq!(all, ["/disk/7", "/r/2/upper", "/r/1/2", "/r/1/1", "/image"]);
        assert_eq!(folders(&lower, Some(3)).last().unwrap(), "/r/3");
        assert!(folders(&Lower::default(), None).is_empty());
    }

    #[test]
    fn longest_list_of_folders_fits_into_mount_options() {
        let first = u32::MAX - u32::try_from(FOLDERS_MAX).unwrap();
        let steps = (first..u32::MAX).collect();
        let lower = Lower(vec![(8, protocol::lower::Folders::Steps(steps))]);
        let all = folders(&lower, Some(0));
        assert_eq!(all.len(), FOLDERS_MAX + 1);
        options(&all, Some(("/disk/4294967295", "/disk/w"))).unwrap();
        let error = options(&[all.clone(), all].concat(), None).unwrap_err();
        assert!(error.to_string().contains("402 folders need"), "{error}");
    }

    #[test]
    fn missing_folder_or_link_in_its_place_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("r/1/5")).unwrap();
        std::os::unix::fs::symlink("5", dir.path().join("r/1/6")).unwrap();
        let base = std::fs::File::open(dir.path()).unwrap();
        check(&base, &["/r/1/5".to_owned()]).unwrap();
        for (path, told) in [("/r/1/6", "/r/1/6 is no folder"), ("/r/2/1", "no folder /r/2/1")] {
            let error = check(&base, &[path.to_owned()]).unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
        }
    }
}
