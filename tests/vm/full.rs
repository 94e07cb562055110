//! A host whose disk is full, or nearly full. Work that needs room is refused and changes nothing.
//! Removals need no room. Guests wait and go on, and the platform comes back.

use crate::damage::parts;
use crate::small;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;
use tests::{Client, Driver, Image, Platform, Tree, Workshop, eventually, processes_of};

/// Small disk, which can be filled. A tmpfs would not do: reading a page of a mapped file takes
/// room there. A guest under Firecracker then waits for a page without room.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("wrenn-small-").tempdir().unwrap();
        let image = NamedTempFile::new().unwrap();
        image.as_file().set_len(2600 << 20).unwrap();
        let mut make = Command::new("mkfs.ext4");
        let made = make.args(["-q", "-F", "-m", "0"]).arg(image.path()).status().unwrap();
        let mut mount = Command::new("mount");
        let mounted =
            mount.args(["-o", "loop"]).arg(image.path()).arg(dir.path()).status().unwrap();
        assert!(made.success() && mounted.success());
        // The loop device keeps the image's file open, so the file may lose its name here.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    /// Fills the disk to the last block until the returned file is dropped.
    fn fill(&self) -> NamedTempFile {
        let mut filler = self.leave(1);
        let end = std::io::Seek::seek(&mut filler, std::io::SeekFrom::End(0)).unwrap();
        for size in [1 << 16, 4096] {
            let block = vec![1; size];
            while std::io::Write::write_all(&mut filler, &block).is_ok() {}
        }
        assert!(filler.as_file().metadata().unwrap().len() >= end);
        filler
    }

    /// Fills the disk except for `mib` MiB until the returned file is dropped.
    fn leave(&self, mib: u64) -> NamedTempFile {
        let filler = NamedTempFile::new_in(self.0.path()).unwrap();
        let take = self.free_mib().saturating_sub(mib) << 20;
        if take > 0 {
            let plain = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(filler.as_file(), plain, 0, take).unwrap();
        }
        filler
    }

    fn free_mib(&self) -> u64 {
        let found = rustix::fs::statvfs(self.0.path()).unwrap();
        (found.f_bavail * found.f_frsize) >> 20
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test]
async fn full_disk_fails_only_the_pause() {
    let disk = Small::new();
    let platform = Platform::start_in(Driver::Guests, disk.0.path(), &[]).await;
    let client = platform.client();
    let id = client.create(&small()).await;
    client.out(&id, "echo one > /dev/shm/x").await;
    client.pause(&id).await;
    client.resume(&id).await;
    client.out(&id, "head -c 5000000 /dev/urandom > /dev/shm/y; echo two > /dev/shm/x").await;
    let before: Vec<_> = parts(&platform, &id, 1).iter().map(|f| fs::read(f).unwrap()).collect();
    let filler = disk.fill();
    let machine = processes_of(&id);
    let refused = client.post(&format!("/v1/capsules/{id}/pause"), &json!({})).await;
    assert!(!refused.status.is_success(), "{}", refused.body);
    assert_eq!(refused.body["error"]["code"], "no_capacity", "{}", refused.body);
    assert_eq!(client.status(&id).await, "running");
    assert_eq!(processes_of(&id), machine, "another machine");
    assert_eq!(client.out(&id, "cat /dev/shm/x").await, "two\n");
    let after: Vec<_> = parts(&platform, &id, 1).iter().map(|f| fs::read(f).unwrap()).collect();
    assert!(before == after, "what was kept before has changed");
    let kept = platform.dir().join(format!("capsules/{id}/kept"));
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 1, "something is left of the pause");
    drop(filler);
    client.pause(&id).await;
    client.resume(&id).await;
    assert_eq!(client.out(&id, "cat /dev/shm/x").await, "two\n");
    platform.finish();
}

/// Has a guest write `mib` MiB to its disk in the background. The guest syncs the data to the disk
/// and then reports that it is done.
async fn write_on(client: &Client, id: &str, mib: u32) {
    let script = format!(
        "head -c {mib}M /dev/urandom > /dev/shm/data; cp /dev/shm/data /home/user/data; \
         sync /home/user/data; sha256sum < /dev/shm/data > /dev/shm/sum; echo done > /dev/shm/done"
    );
    let body: Value = json!({ "cmd": "sh", "args": ["-c", script], "background": true });
    client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(202);
}

/// Waits for the guest's report, and checks the written data.
async fn written(client: &Client, id: &str) {
    let done = "test -e /dev/shm/done && echo yes || echo no";
    eventually("the guest has written all of it", || async {
        (client.out(id, done).await == "yes\n").then_some(())
    })
    .await;
    let same = "sudo sh -c 'echo 3 > /proc/sys/vm/drop_caches'; \
                sha256sum < /home/user/data | cmp - /dev/shm/sum && echo same";
    assert_eq!(client.out(id, same).await, "same\n");
}

async fn waits(client: &Client, id: &str, wanted: bool) {
    eventually("it is told whether the guest waits", || async {
        let seen = client.get(&format!("/v1/capsules/{id}")).await.expect(200);
        assert_eq!(seen["status"], "running", "{seen}");
        assert!(seen["error"].is_null(), "{seen}");
        let told = seen["disk_full"].as_bool().unwrap_or(false);
        (told == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn only_guest_that_fills_the_disk_waits_and_it_continues_when_freed() {
    let disk = Small::new();
    let platform = Platform::start_in(Driver::Guests, disk.0.path(), &[]).await;
    let client = platform.client();
    let writer = client.create(&json!({ "memory_mib": 512, "disk_mib": 512 })).await;
    let other = client.create(&json!({ "memory_mib": 512, "disk_mib": 512 })).await;
    // Half of the reserve, 256 MiB on a disk this small, is about to be taken.
    let filler = disk.leave(150);
    write_on(&client, &writer, 130).await;
    waits(&client, &writer, true).await;
    waits(&client, &other, false).await;
    assert_eq!(client.out(&other, "echo up").await, "up\n");
    assert!(disk.free_mib() > 16, "the disk is full all the same");
    let shown = platform.run(&["capsule", "list"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("disk full"));
    // Work that needs room is refused, and removals are not.
    let body = json!({ "capsule_id": other, "name": "s" });
    client.post("/v1/snapshots", &body).await.refuses(503, "no_capacity", "are reserved");
    let fork = format!("/v1/capsules/{other}/fork");
    client.post(&fork, &json!({})).await.refuses(503, "no_capacity", "are reserved");
    let pause = format!("/v1/capsules/{other}/pause");
    client.post(&pause, &json!({})).await.refuses(503, "no_capacity", "are reserved");
    assert_eq!(client.status(&other).await, "running");
    assert_eq!(client.out(&other, "echo up").await, "up\n");
    client.post("/v1/capsules", &small()).await.refuses(503, "no_capacity", "are reserved");
    client.delete(&format!("/v1/capsules/{other}")).await.expect(204);
    drop(filler);
    waits(&client, &writer, false).await;
    written(&client, &writer).await;
    platform.finish();
}

/// Another program fills the disk to the last block. The ballast lets the database write, so that
/// removals succeed. A database that ended for lack of room starts again.
#[tokio::test]
async fn removals_succeed_on_full_disk_and_database_restarts() {
    let disk = Small::new();
    let platform = Platform::start_in(Driver::Guests, disk.0.path(), &[]).await;
    let client = platform.client();
    let (paused, runs) = (client.create(&small()).await, client.create(&small()).await);
    client.pause(&paused).await;
    let body = json!({ "capsule_id": runs, "name": "s" });
    client.post("/v1/snapshots", &body).await.expect(201);
    let ballast = platform.dir().join("ballast");
    eventually("the ballast is there", async || ballast.exists().then_some(())).await;
    let filler = disk.fill();
    eventually("the ballast is given up", async || (!ballast.exists()).then_some(())).await;
    client.delete("/v1/snapshots/s").await.expect(204);
    assert_eq!(fs::read_dir(platform.dir().join("snapshots")).unwrap().count(), 0);
    for id in [&paused, &runs] {
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    platform.left_until("no folder is left", |left| left.folders.is_empty()).await;
    let rest = disk.fill();
    tests::signal(platform.postgres_pid(), rustix::process::Signal::KILL);
    eventually("it does not get up", || async {
        let ended = platform.log().matches("PostgreSQL ended").count();
        (ended > 1).then_some(())
    })
    .await;
    drop((filler, rest));
    eventually("the database is back", || async {
        (client.get("/v1/capsules").await.status == 200).then_some(())
    })
    .await;
    eventually("the ballast is there again", async || ballast.exists().then_some(())).await;
    platform.finish();
}

/// Waits until the template's machine is saved, since the host would give back room meanwhile.
async fn template_is_kept(platform: &Platform) {
    let golden = platform.dir().join("golden");
    eventually("the template's machine is kept", async || {
        let entries = fs::read_dir(&golden).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.any(|name| !name.ends_with(".new")).then_some(())
    })
    .await;
}

/// Moves the database's folder to another disk, as on a host with two.
fn move_database(platform: &Platform) -> tempfile::TempDir {
    let elsewhere = tempfile::tempdir().unwrap();
    fs::set_permissions(elsewhere.path(), fs::Permissions::from_mode(0o711)).unwrap();
    move_database_to(platform, elsewhere.path());
    elsewhere
}

fn move_database_to(platform: &Platform, elsewhere: &Path) {
    let (from, to) = (platform.dir().join("postgres"), elsewhere.join("postgres"));
    let copied = Command::new("cp").arg("-a").arg(&from).arg(&to).status().unwrap();
    assert!(copied.success());
    fs::remove_dir_all(&from).unwrap();
    std::os::unix::fs::symlink(to, from).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn platform_start_on_full_disk_reports_it_and_waits_for_space() {
    let disk = Small::new();
    let mut platform = Platform::start(Driver::Fake, &[]).await;
    platform.stop();
    move_database_to(&platform, disk.0.path());
    let (filler, log) = (disk.fill(), platform.dir().with_file_name("log"));
    let freed = std::thread::spawn(move || {
        let limit = Instant::now() + Duration::from_secs(60);
        let told = loop {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let told = said.contains("the private PostgreSQL waits for free space");
            if told || Instant::now() > limit {
                break told;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        drop(filler);
        told
    });
    platform.resume().await;
    assert!(freed.join().unwrap(), "the full disk is not told");
    platform.client().get("/v1/capsules").await.expect(200);
    platform.stop();
    // The guard looks for remains in the platform's own folder.
    fs::remove_dir_all(disk.0.path().join("postgres")).unwrap();
    fs::remove_file(platform.dir().join("postgres")).unwrap();
    platform.finish();
}

#[tokio::test]
async fn agent_start_on_full_disk_adopts_waiting_guests() {
    if tests::firecracker().is_some() {
        // Under Firecracker, guests get a disk error instead, as `docs/operations.md` says.
        return;
    }
    let disk = Small::new();
    let mut platform = Platform::start_in(Driver::Guests, disk.0.path(), &[]).await;
    platform.stop();
    let _database = move_database(&platform);
    platform.resume().await;
    let client = platform.client();
    let writer = client.create(&json!({ "memory_mib": 512, "disk_mib": 512 })).await;
    template_is_kept(&platform).await;
    let ballast = platform.dir().join("ballast");
    eventually("the ballast is there", async || ballast.exists().then_some(())).await;
    let filler = disk.fill();
    eventually("the ballast is given up", async || (!ballast.exists()).then_some(())).await;
    let rest = disk.fill();
    write_on(&client, &writer, 150).await;
    waits(&client, &writer, true).await;
    assert_eq!(disk.free_mib(), 0);
    let machine = processes_of(&writer);
    // The agent itself writes a little at its start, so some room is left. The guest must not take
    // this room.
    let filled = filler.as_file();
    filled.set_len(filled.metadata().unwrap().len() - (8 << 20)).unwrap();
    platform.kill();
    platform.resume().await;
    let client = platform.client();
    waits(&client, &writer, true).await;
    assert_eq!(processes_of(&writer), machine, "another machine");
    // The new agent has no connection to the guest. A request waits all the same, for longer than a
    // connection may take to be opened.
    let (asks, id) = (client.clone(), writer.clone());
    let mut asked = tokio::spawn(async move { asks.out(&id, "echo waited").await });
    let early = tokio::time::timeout(Duration::from_secs(8), &mut asked).await;
    assert!(early.is_err(), "a guest that waits was asked in vain: {early:?}");
    drop((filler, rest));
    assert_eq!(asked.await.unwrap(), "waited\n");
    waits(&client, &writer, false).await;
    written(&client, &writer).await;
    assert_eq!(processes_of(&writer), machine, "another machine");
    platform.finish();
}

/// An image and a builder need room. Without it, the image fails its build, and the builder waits.
#[tokio::test]
async fn build_on_full_disk_fails_or_waits_and_older_version_stays() {
    let disk = Small::new();
    let workshop = Workshop::start_in(Driver::Guests, disk.0.path(), &[]).await;
    let (client, registry) = (&workshop.client, &workshop.registry);
    registry.push("app:1", &Image::busybox());
    let body = |image: &str, command: &str| {
        json!({
            "name": "web", "from": { "image": registry.reference(image) },
            "steps": [{ "run": { "command": command } }],
            "vcpus": 1, "memory_mib": 256, "disk_mib": 128,
        })
    };
    let first = client.build(&body("app:1", "echo one > /file")).await;
    registry.push("app:2", &Image::busybox().layer(Tree::new().file("more", 0o644, "more")));
    // The rest of the disk is less than the reserve.
    let filler = disk.leave(200);
    let failed = client.attempt(&body("app:2", "true")).await;
    failed.failed("base", "no room for image");
    let staged = workshop.platform.dir().join("images/staging");
    assert_eq!(fs::read_dir(staged).into_iter().flatten().count(), 0, "a part of the image");
    let waiting = client.begin(&body("app:1", "echo two > /file")).await;
    client.logged(&waiting, "Waiting for a host: ").await;
    drop(filler);
    let built = client.ended(&waiting).await;
    assert_eq!(built.body["status"], "ready", "{} {:?}", built.body, built.lines);
    for (version, text) in [(&first.id, "one\n"), (&built.id, "two\n")] {
        let id = client.create(&json!({ "template": format!("web@{version}") })).await;
        assert_eq!(client.out(&id, "cat /file").await, text);
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    workshop.finish();
}
