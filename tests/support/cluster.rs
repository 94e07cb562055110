//! New PostgreSQL cluster, made once and copied into the folders of platforms. Making a cluster
//! takes longer than many a test, and several hundred tests need one.
//!
//! The program makes a cluster of its own in `Platform::start_with_new_cluster`. A test compares
//! both kinds.

use crate::platform::memory_or_disk;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Arguments of `initdb`, as the program gives them.
const ARGS: [&str; 6] =
    ["-U", "wrenn", "--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=reject"];
/// Variable of a platform that uses another database.
const OTHER: &str = "DATABASE_URL";

/// Puts a copy of a new cluster into the folder of a platform, unless its variables name another
/// database. Without root, the program makes its own.
pub(crate) fn share_cluster(dir: &Path, vars: &[(String, String)]) {
    if !rustix::process::getuid().is_root() || vars.iter().any(|(name, _)| name == OTHER) {
        return;
    }
    // A missing PostgreSQL is reported by the program.
    let Some(version) = version() else { return };
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let made = target.join(format!("test-cluster-{version}"));
    if !made.exists() {
        make(version, &made);
    }
    let home = dir.join("postgres");
    std::fs::create_dir_all(&home).unwrap();
    copy(&made, &home.join("data"));
}

/// Returns the newest installed version, which the program chooses too.
fn version() -> Option<u32> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).max()
}

/// Makes a cluster at `made`, completely or not at all. Another test may make it at the same time.
fn make(version: u32, made: &Path) {
    let staged = tempfile::Builder::new().tempdir_in(memory_or_disk()).unwrap();
    let (user, group) = postgres();
    std::os::unix::fs::chown(staged.path(), Some(user), Some(group)).unwrap();
    let fresh = staged.path().join("data");
    let program = PathBuf::from(format!("/usr/lib/postgresql/{version}/bin/initdb"));
    let mut command = Command::new(program);
    command.args(ARGS).arg("-D").arg(&fresh).current_dir(staged.path());
    command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    let ran = command.uid(user).gid(group).output().unwrap();
    assert!(ran.status.success(), "initdb: {}", String::from_utf8_lossy(&ran.stderr));
    let beside = made.with_extension(std::process::id().to_string());
    let _ = std::fs::remove_dir_all(&beside);
    copy(&fresh, &beside);
    if std::fs::rename(&beside, made).is_err() {
        std::fs::remove_dir_all(&beside).unwrap();
    }
}

/// Returns the user and group that PostgreSQL runs as.
fn postgres() -> (u32, u32) {
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let user = users.lines().find_map(|line| {
        let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    user.unwrap_or((65_534, 65_534))
}

/// Copies a folder with its owners.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to).status();
    assert!(copied.unwrap().success(), "cannot copy {}", from.display());
}
