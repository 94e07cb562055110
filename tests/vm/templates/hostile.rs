//! Steps that attack their builder, and archives that attack its files. Images, layers and other
//! capsules stay as they were.

use super::{capsule_of, delete, is_quiet, kept_files, over_app, run, with, workshop};
use serde_json::{Value, json};
use std::time::Duration;
use tests::{Tree, gzip};

/// Writes to each drive that the guest may only read, with new device files too.
const WRITE: &str = "for name in $(ls /sys/block | grep ^vd); do \
    [ $(cat /sys/block/$name/ro) = 1 ] || continue; \
    rm -f /tmp/$name; busybox mknod /tmp/$name b $(tr : ' ' < /sys/block/$name/dev); \
    echo 0 > /sys/block/$name/ro; \
    dd if=/dev/zero of=/tmp/$name bs=4096 count=64 conv=notrunc && sync && echo WROTE-$name; \
    done; mount -o remount,rw /; echo tried";

#[tokio::test]
async fn hostile_step_changes_no_image_and_no_layer_and_disturbs_nobody() {
    let workshop = workshop().await;
    let (client, platform) = (&workshop.client, &workshop.platform);
    let first = run("echo layer > /layer");
    client.build(&over_app(&workshop, "web", &json!([first]))).await;
    let bystander = capsule_of(client, "web").await;
    let kept = kept_files(platform);
    assert!(kept.keys().any(|path| path.ends_with(".erofs")), "{kept:?}");
    assert!(kept.keys().any(|path| path.contains("/layers/")), "{kept:?}");
    let unchanged = || {
        let now = kept_files(platform);
        for (path, sum) in &kept {
            assert_eq!(now.get(path), Some(sum), "{path} has changed");
        }
    };
    let attack = |steps: &Value| over_app(&workshop, "evil", steps);

    // The builder's own disk is its own damage. The build then fails, or its layer is whole.
    let ruin = "busybox mknod /tmp/own b $(tr : ' ' < /sys/block/vdb/dev); \
        dd if=/dev/urandom of=/tmp/own bs=4096 count=256 conv=notrunc; echo ruined";
    // A boot takes most of a build's time here, so the same guest makes both attacks.
    let wrote = client.attempt(&attack(&json!([first, run(WRITE), run(ruin)]))).await;
    assert_eq!(wrote.count("[stdout]: tried"), 1, "{:?}", wrote.lines);
    assert_eq!(wrote.count("]: WROTE-"), 0, "{:?}", wrote.lines);
    assert_eq!(wrote.count("[stdout]: ruined"), 1, "{:?}", wrote.lines);
    println!("a ruined disk: {}", wrote.body["status"]);
    unchanged();

    let bomb = run("bomb() { bomb | bomb & }; bomb; sleep 1000");
    let id = client.begin(&attack(&json!([first, bomb]))).await;
    client.logged(&id, "] RUN bomb").await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(client.out(&bystander, "cat /layer").await, "layer\n");
    }
    client.cancel(&id).await.expect(200);
    client.ended(&id).await;
    unchanged();

    let fill =
        json!([first, run("dd if=/dev/zero of=/fill bs=1M; true"), run("echo more > /more")]);
    let full = with(attack(&fill), json!({ "disk_mib": 128 }));
    let full = client.attempt(&full).await;
    assert_eq!(full.body["status"], "error", "{:?}", full.lines);
    assert!(full.lines.join("\n").contains("No space left on device"), "{:?}", full.lines);
    unchanged();

    is_quiet(platform, 1).await;
    let built = client.build(&over_app(&workshop, "web", &json!([first, run("cat /layer")]))).await;
    assert_eq!((built.cached(), built.count("[stdout]: layer")), (vec![1], 1), "{:?}", built.lines);
    assert_eq!(client.out(&bystander, "cat /layer").await, "layer\n");
    delete(client, &bystander).await;
    workshop.finish();
}

#[tokio::test]
async fn hostile_archive_of_copy_places_nothing_outside_of_the_root() {
    let workshop = workshop().await;
    let client = &workshop.client;
    let copy = |files: &str| {
        let copy = json!({ "copy": { "sources": ["."], "dest": "/in/", "files": files } });
        over_app(&workshop, "copied", &json!([copy]))
    };
    let outside = [
        Tree::new().file("../evil", 0o644, "x"),
        Tree::new().file("/evil", 0o644, "x"),
        Tree::new().file("a/../../evil", 0o644, "x"),
    ];
    for (number, tree) in outside.into_iter().enumerate() {
        let files = client.upload(tree).await;
        let built = client.attempt(&copy(&files)).await;
        // A member is refused with its step, or stays below the destination.
        match built.body["status"].as_str() {
            Some("error") => {
                assert_eq!(built.body["error"]["step"], "1", "{number}: {}", built.body["error"]);
            }
            _ => {
                let id = capsule_of(client, "copied").await;
                let look = "ls -d /evil /etc/evil 2>/dev/null; true";
                assert_eq!(client.out(&id, look).await, "", "archive {number}");
                delete(client, &id).await;
            }
        }
    }
    // Links to folders are followed, and lead to places within the template's root alone.
    for (link, place) in [("/etc", "/etc/evil"), ("../../../../..", "/evil")] {
        let tree = Tree::new().link("a", link).file("a/evil", 0o644, "x");
        client.build(&copy(&client.upload(tree).await)).await;
        let id = capsule_of(client, "copied").await;
        assert_eq!(
            client.out(&id, &format!("readlink /in/a; cat {place}")).await,
            format!("{link}\nx")
        );
        assert!(!std::path::Path::new(place).exists(), "{place} of this machine");
        delete(client, &id).await;
    }
    // Archives that are none, are cut, or lack their files fail the step with its number.
    let whole = gzip(&Tree::new().file("a", 0o644, vec![7; 100_000]).archive());
    for bytes in [b"no archive".to_vec(), whole[..whole.len() / 2].to_vec()] {
        let files = client.upload_bytes(&bytes).await;
        let built = client.attempt(&copy(&files)).await;
        assert_eq!(built.body["error"]["step"], "1", "{} {:?}", built.body, built.lines);
    }
    let files = client.upload_bytes(&whole).await;
    let absent = json!([{ "copy": { "sources": ["b"], "dest": "/", "files": files } }]);
    let built = client.attempt(&over_app(&workshop, "copied", &absent)).await;
    built.failed("1", "b");
    workshop.finish();
}
