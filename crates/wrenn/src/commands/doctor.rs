//! `wrenn doctor`: checks this machine, and names the fix for each failed check.

use crate::client::Client;
use crate::output::{self, Form};
use crate::sys;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;

/// Programs: the name, its Debian package, and whether nothing works without the program. QEMU is
/// optional here: another driver may do, and each driver is tested by booting a guest.
const PROGRAMS: [(&str, &str, bool); 7] = [
    ("qemu-system-x86_64", "qemu-system-x86", false),
    ("mkfs.ext4", "e2fsprogs", true),
    ("mmdebstrap", "mmdebstrap", false),
    ("apt-get", "apt", false),
    ("dpkg-deb", "dpkg", false),
    ("depmod", "kmod", false),
    ("xz", "xz-utils", false),
];

#[derive(Serialize)]
struct Check {
    name: String,
    /// `ok`, `failed`, or `note` for a finding that stops nothing.
    status: &'static str,
    detail: String,
}

impl Check {
    fn new(name: &str, good: bool, detail: impl Into<String>) -> Self {
        let status = if good { "ok" } else { "failed" };
        Self { name: name.to_owned(), status, detail: detail.into() }
    }
}

/// Runs all checks and prints them. The exit code is a failure when a check failed.
pub(crate) async fn doctor(
    config: &host_agent::Config,
    path: &str,
    client: Option<Client>,
    (again, form): (bool, Form),
) -> anyhow::Result<ExitCode> {
    let mut checks = machine(path);
    checks.extend(files(&config.dir));
    checks.extend(drivers(config, again).await?);
    checks.push(platform(client).await);
    let failed = checks.iter().any(|check| check.status == "failed");
    if form == Form::Json {
        output::json(&checks)?;
    } else {
        let row = |c: Check| vec![c.status.to_owned(), c.name, c.detail];
        output::table(&["", "WHAT", "FOUND"], checks.into_iter().map(row).collect());
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn machine(path: &str) -> Vec<Check> {
    let root = rustix::process::getuid().is_root();
    let mut checks = vec![Check::new(
        "root",
        root,
        if root { "yes" } else { "run the command as root, for example with sudo" },
    )];
    for (program, package, needed) in PROGRAMS {
        let found = sys::find_program(program, path);
        let fix = format!("missing: apt-get install {package}");
        let mut check =
            Check::new(program, found.is_some(), found.map_or(fix, |at| at.display().to_string()));
        if !needed && check.status == "failed" {
            check.status = "note";
        }
        checks.push(check);
    }
    let postgres = Path::new("/usr/lib/postgresql").is_dir();
    let fix = "missing: apt-get install postgresql, or set DATABASE_URL";
    checks.push(Check::new("postgresql", postgres, if postgres { "installed" } else { fix }));
    let tun = Path::new("/dev/net/tun").exists();
    checks.push(Check::new("/dev/net/tun", tun, if tun { "there" } else { "modprobe tun" }));
    let kvm = Path::new("/dev/kvm").exists();
    let without = "missing: capsules run under software emulation, which is slower";
    checks.push(Check {
        name: "/dev/kvm".into(),
        status: if kvm { "ok" } else { "note" },
        detail: if kvm { "there" } else { without }.into(),
    });
    checks
}

/// Checks each driver by booting a guest on it. A single working driver is enough, and the first is
/// used. The outcome of an earlier boot is trusted unless `again` is set.
async fn drivers(config: &host_agent::Config, again: bool) -> anyhow::Result<Vec<Check>> {
    let can = rustix::process::getuid().is_root() && config.kernel().exists();
    if !can {
        // The checks of root and of the guest's kernel have reported the lack already.
        return Ok(Vec::new());
    }
    let all = host_agent::examine(config, again).await?;
    let first = all.iter().position(|one| one.why_not.is_none());
    let check = |(at, one): (usize, host_agent::Examined)| {
        let (status, detail) = match one.why_not {
            None if Some(at) == first => ("ok", "used by WRENN_DRIVER=auto".to_owned()),
            None => ("ok", "works".to_owned()),
            Some(why) if first.is_some() => ("note", why),
            Some(why) => ("failed", why),
        };
        let detail = match one.remembered {
            Some(at) => format!("{detail} (checked at {at}; `wrenn doctor --probe` checks again)"),
            None => detail,
        };
        Check { name: format!("{}/{}", one.driver, one.accelerator), status, detail }
    };
    Ok(all.into_iter().enumerate().map(check).collect())
}

fn files(dir: &Path) -> Vec<Check> {
    let room = std::iter::successors(Some(dir), |at| at.parent()).find(|at| at.exists());
    let room = room.and_then(|at| rustix::fs::statvfs(at).ok());
    let free = room.map_or(0, |s| s.f_bavail * s.f_frsize);
    let images = dir.join("images/boot/vmlinux").exists();
    let base = ["rootfs.erofs", "rootfs.ext4"];
    let base = base.iter().any(|name| dir.join("images/templates/base").join(name).exists());
    let fix = "missing: wrenn image build";
    vec![
        Check::new(
            "free space in WRENN_DIR",
            free > 2 << 30,
            format!("{} free in {}", output::bytes(free), dir.display()),
        ),
        Check::new("guest kernel", images, if images { "built" } else { fix }),
        Check::new("template base", base, if base { "built" } else { fix }),
    ]
}

async fn platform(client: Option<Client>) -> Check {
    let Some(client) = client else {
        return Check::new("platform", false, "not running; start it with `wrenn up`");
    };
    match client.get::<api::HostList>("/v1/hosts").await {
        Ok(list) => {
            let kinds: Vec<String> =
                list.items.iter().map(|h| format!("{}/{}", h.driver, h.accelerator)).collect();
            Check::new("platform", true, format!("answers; hosts: {}", kinds.join(", ")))
        }
        Err(error) => Check::new("platform", false, format!("{error:#}")),
    }
}
