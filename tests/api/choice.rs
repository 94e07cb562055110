//! Choice of the Firecracker that an agent runs, and refusals of unfit ones, each with the reason.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::binary;

/// Writes a program that only prints a Firecracker's version.
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

/// Returns the error output of an agent that is to run capsules with this Firecracker.
fn said(dir: &Path, vars: &[(&str, &Path)]) -> String {
    let mut agent = Command::new(binary("wrenn"));
    agent.args(["agent", "--agent-listen", "127.0.0.1:0", "--driver", "firecracker"]);
    agent.env("WRENN_DIR", dir.join("w")).env("WRENN_REGISTER_TOKEN", "of nobody");
    agent.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(vars.iter().copied());
    let out = agent.output().unwrap();
    assert!(!out.status.success());
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Reports whether a VMM's unprivileged user, who joins the device's group, may open it.
fn a_vmm_opens_kvm() -> bool {
    std::fs::metadata("/dev/kvm").is_ok_and(|found| {
        let needed = if found.gid() == 0 { 0o006 } else { 0o060 };
        found.mode() & needed == needed
    })
}

#[test]
fn old_or_unjailed_firecracker_is_refused_with_fix() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (firecracker(dir.path(), "1.15.0"), firecracker(dir.path(), "1.15.1"));
    let none = dir.path().join("none");
    for (vars, told) in [
        (vec![], "the PATH has no `firecracker`"),
        (vec![("WRENN_FIRECRACKER", none.as_path())], "Firecracker is missing at"),
        (vec![("WRENN_FIRECRACKER", old.as_path())], "install 1.15.1 or newer"),
        (vec![("WRENN_FIRECRACKER", new.as_path())], "WRENN_JAILER=none"),
        (
            vec![("WRENN_FIRECRACKER", new.as_path()), ("WRENN_JAILER", none.as_path())],
            "jailer is missing at",
        ),
        // With permission for any version, the agent continues. This program then starts nothing.
        (
            vec![
                ("WRENN_FIRECRACKER", old.as_path()),
                ("WRENN_FIRECRACKER_ANY_VERSION", Path::new("1")),
                ("WRENN_JAILER", Path::new("none")),
            ],
            if a_vmm_opens_kvm() { "no guest boots on the requested driver" } else { "/dev/kvm" },
        ),
    ] {
        let said = said(dir.path(), &vars);
        assert!(said.contains(told), "{vars:?}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "{said}");
    }
}

/// Compiles a program that prints a Firecracker's version and does nothing else, linked with these
/// options.
fn compiled(dir: &Path, name: &str, linking: &[&str]) -> PathBuf {
    let (source, path) = (dir.join("main.c"), dir.join(name));
    let program = "#include <stdio.h>\n#include <string.h>\nint main(int c, char **v) {\n\
        puts(c > 1 && !strcmp(v[1], \"--version\") ? \"Firecracker v1.16.1\" : \"v10.0.0\");\n}\n";
    std::fs::write(&source, program).unwrap();
    let compiled = Command::new("cc").args(linking).arg("-o").args([&path, &source]).status();
    assert!(compiled.unwrap().success());
    path
}

/// Writes a jailer that prints a message and whose Firecracker ends at once.
fn failing_jailer(dir: &Path) -> PathBuf {
    let path = dir.join("failing-jailer");
    let script = "#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in --id) id=$2;; --exec-file) exec=$(basename $2);; --chroot-base-dir) base=$2;; esac
    shift
done
root=$base/$exec/$id/root
(sleep 0.3; echo 'cannot execute it, said the jailer' >&2; exit 1) &
echo $! > $root/$exec.pid
";
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

#[test]
fn firecracker_that_fails_in_jail_is_reported_with_reason() {
    let dir = tempfile::tempdir().unwrap();
    let jailer = failing_jailer(dir.path());
    let run = |program: &Path| {
        let vars = [("WRENN_FIRECRACKER", program), ("WRENN_JAILER", jailer.as_path())];
        said(dir.path(), &vars)
    };
    let refused = run(&compiled(dir.path(), "dynamic", &[]));
    assert!(refused.contains("is dynamically linked"), "{refused}");
    assert!(refused.contains("install an official, static release"), "{refused}");
    let refused = run(&firecracker(dir.path(), "1.16.1"));
    assert!(refused.contains("must be a static ELF executable"), "{refused}");
    // The agent starts a static program, as far as this machine can.
    let boot = dir.path().join("w/images/boot");
    std::fs::create_dir_all(&boot).unwrap();
    std::fs::write(boot.join("vmlinux"), "").unwrap();
    std::fs::write(boot.join("initramfs"), "").unwrap();
    let ended = run(&compiled(dir.path(), "static", &["-static"]));
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Err(_) => assert!(ended.contains("/dev/kvm"), "{ended}"),
        Ok(_) => {
            assert!(ended.contains("cannot execute it, said the jailer"), "{ended}");
            assert!(ended.contains("Firecracker ended"), "{ended}");
        }
    }
}
