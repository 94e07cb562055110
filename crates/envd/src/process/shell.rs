//! The shell for callers who ask for `/bin/bash`, as SDKs do. Many images have a smaller shell, or
//! none.

use crate::console::console;
use crate::error::{Error, Result};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const BASH: &str = "/bin/bash";
const SH: &str = "/bin/sh";
/// Options that every shell takes, in one word or several: a login shell, an interactive shell, and
/// a command.
const COMMON: &str = "lic";

/// Set once the console tells that another shell stands in.
static NOTED: AtomicBool = AtomicBool::new(false);

/// Returns the program to run for `cmd`. This is another one only for a bash that the image lacks,
/// if its options are those of every shell.
///
/// # Errors
/// Returns `not_found` when `cmd` is a shell and the image has none.
pub(super) fn choose<'a>(cmd: &'a str, args: &[String]) -> Result<&'a str> {
    choose_in(Path::new("/"), cmd, args)
}

fn choose_in<'a>(root: &Path, cmd: &'a str, args: &[String]) -> Result<&'a str> {
    if (cmd != BASH && cmd != SH) || !is_missing(root, cmd) {
        return Ok(cmd);
    }
    if cmd == SH || is_missing(root, SH) {
        return Err(Error::not_found(format!("cannot run '{cmd}': no shell in this image")));
    }
    if !are_common(args) {
        return Ok(cmd);
    }
    if !NOTED.swap(true, Ordering::Relaxed) {
        console(&format!("envd: this image has no {BASH}; {SH} runs in its place"));
    }
    Ok(SH)
}

/// Reports whether nothing is at a path. A file that cannot be looked at is not missing, so that
/// its start gives the reason.
fn is_missing(root: &Path, path: &str) -> bool {
    let found = std::fs::metadata(root.join(path.trim_start_matches('/')));
    found.is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
}

/// Reports whether the options before the command are those of every shell.
fn are_common(args: &[String]) -> bool {
    let options = args.iter().map_while(|arg| arg.strip_prefix('-'));
    options.into_iter().all(|word| !word.is_empty() && word.chars().all(|c| COMMON.contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn args(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn sh_runs_in_place_of_a_missing_bash_with_common_options() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        fs::write(dir.path().join("bin/sh"), "").unwrap();
        let choose =
            |cmd, words: &[&str]| choose_in(dir.path(), cmd, &args(words)).unwrap().to_owned();
        for words in [&["-l", "-c", "true"][..], &["-lc", "a --b"], &["-i", "-l"], &[], &["file"]] {
            assert_eq!(choose(BASH, words), SH, "{words:?}");
        }
        for words in [&["-o", "pipefail", "-c", "x"][..], &["--norc"], &["-lx"], &["-"]] {
            assert_eq!(choose(BASH, words), BASH, "{words:?}");
        }
        assert_eq!(choose(SH, &["-c", "x"]), SH);
        assert_eq!(choose("bash", &["-c", "x"]), "bash", "a name is looked for by the PATH");
        fs::write(dir.path().join("bin/bash"), "").unwrap();
        assert_eq!(choose(BASH, &["-l", "-c", "x"]), BASH);
    }

    #[test]
    fn image_without_a_shell_is_named_as_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        for cmd in [BASH, SH] {
            let error = choose_in(dir.path(), cmd, &args(&["-l", "-c", "x"])).unwrap_err();
            assert_eq!(error.code, connectrpc::ErrorCode::NotFound);
            assert_eq!(error.message, format!("cannot run '{cmd}': no shell in this image"));
        }
        assert_eq!(choose_in(dir.path(), "/bin/zsh", &[]).unwrap(), "/bin/zsh");
    }
}
