//! Which accelerator is chosen, and that the machine is asked once per boot of its own.

use serde_json::json;
use std::path::{Path, PathBuf};
use tests::{Driver, Platform};

#[tokio::test]
async fn what_boots_a_guest_is_found_out_once_and_remembered() {
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
    if std::fs::exists("/dev/kvm").unwrap() {
        let works = kept.iter().any(|(_, told)| told.starts_with("works"));
        assert!(!kept.is_empty() && works == (chosen == "kvm"), "{kept:?}, and {chosen}");
    } else {
        assert_eq!((chosen.as_str(), kept.len()), ("tcg", 0));
    }
    // One that dies while it probes leaves a guest, which the next one ends.
    platform.kill();
    if std::fs::exists("/dev/kvm").unwrap() {
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
    let id = client.create(&json!({ "memory_mb": 256 })).await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    platform.finish();
}
