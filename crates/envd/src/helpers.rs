//! Small stand-ins for `ss`, `curl` and `pgrep`, which ready commands of E2B's SDKs call. Many images
//! lack these programs. envd itself runs in their places, and knows only the forms of these commands.

mod curl;
mod pgrep;
mod ss;

use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::jobs;
use anyhow::Context;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Folder with the helpers.
const FOLDER: &str = "/run/wrenn-helpers";
/// Folder of the real programs on an ordinary machine.
const ORDINARY: &str = "/usr/bin";
/// Names of the helpers.
const NAMES: [&str; 3] = ["ss", "curl", "pgrep"];

/// Runs as a helper if this program was called by a helper's name. Returns its exit status.
pub(crate) fn run() -> Option<i32> {
    let mut args = std::env::args();
    let called = args.next()?;
    let name = called.rsplit('/').next().unwrap_or_default().to_owned();
    let args: Vec<String> = args.collect();
    match name.as_str() {
        "ss" => Some(ss::run(&args)),
        "curl" => Some(curl::run(&args)),
        "pgrep" => Some(pgrep::run(&args)),
        _ => None,
    }
}

/// Writes text to standard output or, with `error`, to standard error.
fn print(text: &str, error: bool) {
    use std::io::Write;
    let _ = match error {
        true => std::io::stderr().write_all(text.as_bytes()),
        false => std::io::stdout().write_all(text.as_bytes()),
    };
}

/// Makes the folder with the helpers, unless it is there. Returns its path.
pub(crate) async fn provide(guest: &Guest) -> Result<String> {
    if !guest.in_guest {
        return Ok(ORDINARY.to_owned());
    }
    let mut made = guest.helpers.lock().await;
    if let Some(path) = &*made {
        return Ok(path.clone());
    }
    let make =
        || make(FOLDER).map_err(|e| Error::internal(format!("cannot make the helpers: {e:#}")));
    guest.jobs.host.run(jobs::LIMIT, make).await?;
    *made = Some(FOLDER.to_owned());
    Ok(FOLDER.to_owned())
}

fn make(folder: &str) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {folder}"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", folder, "tmpfs", flags, Some(c"mode=755")).context("mounting")?;
    let filled = fill(folder).and_then(|()| {
        mount_remount(folder, flags | MountFlags::RDONLY, c"mode=755").context("closing it")
    });
    if filled.is_err() {
        let _ = unmount(folder, UnmountFlags::DETACH);
    }
    filled
}

/// Copies this program into a folder, once, with a name for each helper.
fn fill(folder: &str) -> anyhow::Result<()> {
    let mut names = NAMES.iter().map(|name| Path::new(folder).join(name));
    let first = names.next().context("there are no helpers")?;
    fs::copy("/proc/self/exe", &first).context("copying envd")?;
    fs::set_permissions(&first, Permissions::from_mode(0o755))?;
    names.try_for_each(|name| fs::hard_link(&first, name)).context("naming a helper")
}
