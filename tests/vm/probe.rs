//! Choice of the accelerator. The machine is probed once per boot of its own.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::{Driver, Platform, binary};

#[tokio::test]
async fn driver_is_probed_once_and_cached() {
    let vars = [("WRENN_DRIVER", "auto")];
    let remembered = |dir: &Path| -> Vec<(PathBuf, String)> {
        let entries = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
        let probed = entries.filter(|path| path.to_string_lossy().ends_with("-probe"));
        probed.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
    };
    let is_probe = |args: &String| args.contains("-name probe") || args.contains("--id probe");
    let mut platform = Platform::start(Driver::Guests, &vars).await;
    let hosts = platform.client().get("/v1/hosts").await.expect(200);
    let chosen = hosts["items"][0]["accelerator"].as_str().unwrap().to_owned();
    let dir = platform.dir();
    let kept = remembered(&dir);
    // Nothing is remembered without KVM, or where no VMM may open the device.
    let probed = !kept.is_empty();
    if probed {
        let works = kept.iter().any(|(_, told)| told.contains("\"why_not\":null"));
        assert!(works == (chosen == "kvm"), "{kept:?}, and {chosen}");
    } else {
        assert_eq!(chosen, "tcg");
    }
    // An agent that dies while it probes leaves a guest, which the next agent ends.
    platform.kill();
    if probed {
        for (path, _) in &kept {
            std::fs::remove_file(path).unwrap();
        }
        let mut dying = platform.up_command().spawn().unwrap();
        let probes = || platform.leftovers().processes.iter().any(is_probe);
        tests::eventually("it probes, or has", || async {
            (probes() || !remembered(&dir).is_empty()).then_some(())
        })
        .await;
        dying.kill().unwrap();
        dying.wait().unwrap();
    }
    platform.resume().await;
    assert!(!platform.leftovers().processes.iter().any(is_probe));
    let made = |dir: &Path| -> Vec<_> {
        let probed = remembered(dir).into_iter();
        probed.map(|(path, _)| path.metadata().unwrap().modified().unwrap()).collect()
    };
    let before = made(&dir);
    platform.stop();
    platform.resume().await;
    assert_eq!(made(&dir), before, "the machine was probed twice");
    let client = platform.client();
    let id = client.create(&json!({ "memory_mib": 256 })).await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    platform.finish();
}

/// Runs `wrenn doctor` and returns its line about QEMU on KVM. With `device`, the KVM device has
/// this mode and group, if the machine has the device at all.
fn doctor(platform: &Platform, device: Option<(&str, &str)>, more: &[&str]) -> String {
    let script = "mount -t tmpfs -o mode=0755 none \"$1\" && mknod -m $2 \"$1/kvm\" c 10 232 &&
        chgrp $3 \"$1/kvm\" && mount --bind \"$1/kvm\" /dev/kvm && shift 3 && exec \"$@\"";
    let at = tempfile::tempdir().unwrap();
    let mut doctor = Command::new("unshare");
    doctor.args(["--mount", "--propagation", "private"]);
    if let Some((mode, group)) = device {
        doctor.args(["sh", "-c", script, "sh"]).arg(at.path()).args([mode, group]);
    }
    doctor.arg(binary("wrenn")).args(["--json", "doctor"]).args(more);
    doctor.env("WRENN_DIR", platform.dir()).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let out = doctor.output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let checks: Value = serde_json::from_str(&said)
        .unwrap_or_else(|_| panic!("{said} {}", String::from_utf8_lossy(&out.stderr)));
    let qemu = checks.as_array().unwrap().iter().find(|check| check["name"] == "qemu/kvm");
    let qemu = qemu.unwrap_or_else(|| panic!("nothing is said of QEMU on KVM: {said}"));
    qemu["detail"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn doctor_reports_inaccessible_kvm_device_and_cached_probe() {
    let platform = Platform::start(Driver::Guests, &[]).await;
    if !std::fs::exists("/dev/kvm").unwrap() {
        assert_eq!(doctor(&platform, None, &[]), "/dev/kvm does not exist");
        return platform.finish();
    }
    let file = platform.dir().join("qemu-probe");
    for (mode, group, told) in [("0600", "0", "mode 0600"), ("0660", "0", "group 0")] {
        let said = doctor(&platform, Some((mode, group)), &[]);
        assert!(said.contains("cannot open /dev/kvm") && said.contains(told), "{said}");
        assert!(said.contains("chgrp kvm /dev/kvm && chmod 0660 /dev/kvm"), "{said}");
        assert!(!file.exists(), "a guest was booted");
    }
    // With a group other than root's, a guest is booted, and the outcome is remembered.
    let ours = Some(("0660", "4242"));
    let first = doctor(&platform, ours, &[]);
    assert!(!first.contains("ermission denied") && !first.contains("checked at"), "{first}");
    let when = std::fs::metadata(&file).unwrap().modified().unwrap();
    let again = doctor(&platform, ours, &[]);
    assert!(again.starts_with(&first), "{again}");
    assert!(again.contains("(checked at 2") && again.contains("wrenn doctor --probe"), "{again}");
    let anew = doctor(&platform, ours, &["--probe"]);
    assert!(!anew.contains("checked at"), "{anew}");
    assert!(std::fs::metadata(&file).unwrap().modified().unwrap() > when);
    platform.finish();
}
