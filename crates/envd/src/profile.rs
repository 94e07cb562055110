//! The template's `PATH` in login shells. Debian's `/etc/profile` sets `PATH` anew, and then reads
//! the files of `/etc/profile.d`. So a file there gives the template's value back.

use crate::error::{Error, Result};
use crate::open::open_regular;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Folder of the files that login shells read, in the order of their names.
pub(crate) const FOLDER: &str = "/etc/profile.d";
/// Name of the file. It is read after all other files.
const FILE: &str = "zz-wrenn.sh";
/// Longest value, in bytes.
const MAX: usize = 4096;

/// Checks a value for `PATH`.
///
/// # Errors
/// Returns `invalid_argument` for a control character, an empty value, or more than 4096 bytes.
pub(crate) fn check(path: &str) -> Result<()> {
    if path.is_empty() || path.len() > MAX || path.contains(|c: char| c.is_control()) {
        let message = format!("templatePath must have 1 to {MAX} bytes and no control character");
        return Err(Error::invalid(message));
    }
    Ok(())
}

/// Writes the file for `path` into a folder, as a whole, unless the file is up to date.
pub(crate) fn write(dir: &Path, path: &str) -> io::Result<()> {
    let wanted = script(path);
    let (file, staged) = (dir.join(FILE), dir.join(format!(".{FILE}.new")));
    if is_equal(&file, wanted.as_bytes()) {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    // Root in the guest may have put a named pipe there. A write would wait for its reader.
    let _ = fs::remove_file(&staged);
    let mut new = File::create_new(&staged)?;
    new.write_all(wanted.as_bytes())?;
    new.set_permissions(Permissions::from_mode(0o644))?;
    fs::rename(staged, file)
}

fn is_equal(file: &Path, wanted: &[u8]) -> bool {
    let mut found = Vec::new();
    let most = wanted.len() as u64 + 1;
    let read = open_regular(file).map(|file| file.take(most).read_to_end(&mut found));
    matches!(read, Ok(Ok(_))) && found == wanted
}

/// Returns the shell's text that sets `PATH`, whatever characters the value has.
pub(crate) fn script(path: &str) -> String {
    let quoted = path.replace('\'', r"'\''");
    format!(
        "# Wrenn: the template's PATH. Each boot writes this file anew.\nexport PATH='{quoted}'\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn shell_reads_any_path_back_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("profile.d");
        for path in ["/opt/x:/usr/bin", "/it's $HOME/`id`:\\ \"a\" b", "'", "/ü"] {
            check(path).unwrap();
            write(&at, path).unwrap();
            let show = format!(". '{}/{FILE}'; printf %s \"$PATH\"", at.display());
            let out = Command::new("/bin/sh").args(["-c", &show]).output().unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), path);
        }
        assert_eq!(fs::read_dir(&at).unwrap().count(), 1);
    }

    #[test]
    fn path_with_control_characters_is_refused() {
        let long = "x".repeat(MAX + 1);
        for wrong in ["", "/a\n/b", "/a\0", "\u{7f}", long.as_str()] {
            assert!(check(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn pipe_in_place_of_the_file_is_replaced_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        for name in [FILE.to_owned(), format!(".{FILE}.new")] {
            let mode = rustix::fs::Mode::RWXU;
            rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join(name), mode).unwrap();
        }
        write(dir.path(), "/bin").unwrap();
        let written = || fs::metadata(dir.path().join(FILE)).unwrap().modified().unwrap();
        let before = written();
        write(dir.path(), "/bin").unwrap();
        assert_eq!(written(), before);
        assert!(fs::read_to_string(dir.path().join(FILE)).unwrap().contains("PATH='/bin'"));
    }
}
