//! Which Firecracker an agent runs capsules with, and which it refuses, each with the reason.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::binary;

/// Something that says it is a Firecracker of a version; it is asked for nothing else.
fn firecracker(dir: &Path, version: &str) -> PathBuf {
    let path = dir.join(format!("firecracker-{version}"));
    let script = format!(
        "#!/bin/sh\ncase $1 in --version) echo Firecracker v{version};; \
         --snapshot-version) echo v10.0.0;; *) exit 1;; esac\n"
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// What an agent says that is to run capsules with it.
fn said(dir: &Path, vars: &[(&str, &Path)]) -> String {
    let mut agent = Command::new(binary("wrenn"));
    agent.args(["agent", "--agent-listen", "127.0.0.1:0", "--driver", "firecracker"]);
    agent.env("WRENN_DIR", dir.join("w")).env("WRENN_REGISTER_TOKEN", "of nobody");
    agent.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(vars.iter().copied());
    let out = agent.output().unwrap();
    assert!(!out.status.success());
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Whether a VMM's unprivileged user, who joins the group of the device, may open it.
fn a_vmm_opens_kvm() -> bool {
    std::fs::metadata("/dev/kvm").is_ok_and(|found| {
        let needed = if found.gid() == 0 { 0o006 } else { 0o060 };
        found.mode() & needed == needed
    })
}

#[test]
fn an_old_firecracker_and_one_without_its_jailer_are_refused_with_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (firecracker(dir.path(), "1.15.0"), firecracker(dir.path(), "1.15.1"));
    let none = dir.path().join("none");
    for (vars, told) in [
        (vec![], "no `firecracker` on the PATH"),
        (vec![("WRENN_FIRECRACKER", none.as_path())], "there is no Firecracker at"),
        (vec![("WRENN_FIRECRACKER", old.as_path())], "1.15.0 is older than 1.15.1"),
        (vec![("WRENN_FIRECRACKER", new.as_path())], "WRENN_JAILER=none"),
        (
            vec![("WRENN_FIRECRACKER", new.as_path()), ("WRENN_JAILER", none.as_path())],
            "there is no jailer at",
        ),
        // Told to, it goes on; this one then starts nothing.
        (
            vec![
                ("WRENN_FIRECRACKER", old.as_path()),
                ("WRENN_FIRECRACKER_ANY_VERSION", Path::new("1")),
                ("WRENN_JAILER", Path::new("none")),
            ],
            if a_vmm_opens_kvm() { "no guest boots on it" } else { "/dev/kvm" },
        ),
    ] {
        let said = said(dir.path(), &vars);
        assert!(said.contains(told), "{vars:?}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "{said}");
    }
}
