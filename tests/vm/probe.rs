//! Which accelerator is chosen, and that the machine is asked once per boot of its own.

use serde_json::json;
use tests::{Driver, Platform};

#[tokio::test]
async fn what_boots_a_guest_is_found_out_once_and_remembered() {
    let vars = [("WRENN_DRIVER", "auto")];
    let mut platform = Platform::start(Driver::Tcg, &vars).await;
    let hosts = platform.client().get("/v1/hosts").await.expect(200);
    let chosen = hosts["items"][0]["accelerator"].as_str().unwrap().to_owned();
    let kept = platform.dir().join("kvm-probe");
    if std::fs::exists("/dev/kvm").unwrap() {
        let word = if chosen == "kvm" { "works" } else { "fails" };
        let remembered = std::fs::read_to_string(&kept).unwrap();
        assert!(remembered.starts_with(word), "{remembered}, and {chosen} was chosen");
    } else {
        assert_eq!(chosen, "tcg");
        assert!(!kept.exists());
    }
    // One that dies while it probes leaves a guest, which the next one ends.
    platform.kill();
    if std::fs::exists("/dev/kvm").unwrap() {
        std::fs::remove_file(&kept).unwrap();
        let mut dying = platform.up_command().spawn().unwrap();
        let probes =
            || platform.leftovers().processes.iter().any(|args| args.contains("-name probe"));
        tests::eventually("it probes, or has", || async {
            (probes() || kept.exists()).then_some(())
        })
        .await;
        dying.kill().unwrap();
        dying.wait().unwrap();
    }
    platform.resume().await;
    assert!(platform.leftovers().processes.iter().all(|args| !args.contains("-name probe")));
    let made = kept.metadata().and_then(|found| found.modified()).ok();
    platform.stop();
    platform.resume().await;
    let again = kept.metadata().and_then(|found| found.modified()).ok();
    assert_eq!(made, again, "the machine was probed twice");
    let client = platform.client();
    let id = client.create(&json!({ "memory_mb": 256 })).await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    platform.finish();
}
