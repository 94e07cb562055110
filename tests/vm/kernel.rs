//! Parts of the guest's kernel that load when programs need them: for file systems in user space,
//! disks in files, networks and containers.

use crate::capsule;
use crate::internet::{INTERNET, Internet, PORT};
use reqwest::Method;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::{Client, Driver, Platform, S3, eventually};

/// Port of the store on the tests' internet.
const STORE_PORT: u16 = 9000;

/// Puts a file into a capsule.
async fn put(client: &Client, id: &str, path: &str, contents: Vec<u8>) {
    let request = client.request(Method::PUT, &format!("/v1/capsules/{id}/files"));
    client.send(request.query(&[("path", path)]).body(contents)).await.expect(204);
}

/// Reads a file of a capsule. Returns the status, and the contents or the error.
async fn read(client: &Client, id: &str, path: &str) -> (u16, String) {
    let request = client.request(Method::GET, &format!("/v1/capsules/{id}/files"));
    let answer = request.query(&[("path", path)]).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Starts a program as root in the background, and returns its process id.
async fn start(client: &Client, id: &str, args: &[&str]) -> u64 {
    let body = json!({ "cmd": args[0], "args": args[1..], "user": "root", "background": true });
    let started = client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(202);
    started["pid"].as_u64().unwrap()
}

/// Runs a shell command as root that may take long and must succeed.
async fn run(client: &Client, id: &str, script: &str) -> String {
    let args = ["-c", script];
    let body = json!({ "cmd": "sh", "args": args, "user": "root", "timeout": 600 });
    let result = client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(200);
    assert_eq!(result["exit_code"], 0, "{script}: {result}");
    result["stdout"].as_str().unwrap().to_owned()
}

/// Returns the path of a program for guests that `./test` unpacked.
fn guest_program(name: &str) -> PathBuf {
    let path = guest_packages().join(name);
    assert!(path.exists(), "{} is missing: run ./test, which unpacks it", path.display());
    path
}

fn guest_packages() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guest-packages"))
}

/// Packs files below a folder into a tar archive.
fn tar(dir: &Path, args: &[&str]) -> Vec<u8> {
    let out = Command::new("tar").arg("-C").arg(dir).arg("-c").args(args).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

async fn large() -> (Platform, Client, String) {
    let dns = INTERNET.to_string();
    let platform = Platform::start(Driver::Guests, &[("WRENN_DNS", dns.as_str())]).await;
    let client = platform.client();
    let id = client.create(&json!({ "memory_mib": 512, "disk_mib": 512 })).await;
    (platform, client, id)
}

#[tokio::test]
async fn kernel_modules_load_on_demand() {
    let (platform, client, id) = capsule().await;
    let modes = "stat -c '%n %a %t:%T' /dev/fuse /dev/net/tun";
    assert_eq!(client.out(&id, modes).await, "/dev/fuse 666 a:e5\n/dev/net/tun 666 a:c8\n");
    let loaded = "cut -d ' ' -f 1 /proc/modules";
    let cases = [
        ("fuse", "exec 3<>/dev/fuse"),
        ("tun", "sudo ip tuntap add tun9 mode tun"),
        (
            "loop",
            "truncate -s 8M /tmp/disk && sudo mkfs.ext4 -q /tmp/disk && sudo mkdir /mnt/disk && \
             sudo mount -o loop /tmp/disk /mnt/disk && sudo touch /mnt/disk/file",
        ),
        ("bridge", "sudo ip link add br9 type bridge"),
        ("veth", "sudo ip link add v9 type veth peer name w9"),
        // The option is unknown, so nothing is mounted.
        (
            "nfs",
            "sudo mount -i -t nfs -o nonsense 127.0.0.1:/x /mnt; grep -qw nfs /proc/filesystems",
        ),
        ("squashfs", "sudo modprobe squashfs"),
    ];
    for (module, script) in cases {
        let before = client.out(&id, loaded).await;
        assert!(!before.lines().any(|line| line == module), "{module} is loaded too early");
        client.out(&id, script).await;
        let after = client.out(&id, loaded).await;
        assert!(after.lines().any(|line| line == module), "{module} is not loaded: {after}");
    }
    // All other modules load too, and the kernel logs nothing about them.
    let every = "cd /lib/modules/$(uname -r) && find kernel -name '*.ko*' | \
        sed 's,.*/,,; s,[.]ko.*,,' | xargs modprobe -a && wc -l </proc/modules";
    let count: u32 = run(&client, &id, every).await.trim().parse().unwrap();
    assert!(count >= 100, "{count} modules");
    client.out(&id, "! sudo dmesg | grep -E 'BUG:|Oops|Unknown symbol'").await;
    platform.finish();
}

/// A file system with a stopped server blocks calls on its own files and nothing else.
#[tokio::test]
async fn stopped_fuse_server_blocks_only_its_own_files() {
    const CALLS: usize = 64;
    let (platform, client, id) = capsule().await;
    put(&client, &id, "/tmp/hello.py", include_bytes!("hello_fuse.py").to_vec()).await;
    let server = start(&client, &id, &["python3", "/tmp/hello.py", "/mnt/hello"]).await;
    let hello = (200, "hello\n".to_owned());
    eventually("the file system serves", || async {
        (read(&client, &id, "/mnt/hello/f0").await == hello).then_some(())
    })
    .await;
    assert_eq!(client.out(&id, "ls /mnt/hello | wc -l").await, "100\n");
    run(&client, &id, "mount -t fusectl none /sys/fs/fuse/connections").await;
    // A client that does not read keeps a file open.
    let files = format!("/v1/capsules/{id}/files");
    let open = client.request(Method::GET, &files).query(&[("path", "/mnt/hello/f99")]);
    let open = open.send().await.unwrap();
    assert_eq!(open.status(), 200);
    run(&client, &id, &format!("kill -STOP {server}")).await;
    let calls: Vec<_> = (0..CALLS)
        .map(|number| {
            let (client, id) = (client.clone(), id.clone());
            tokio::spawn(async move { read(&client, &id, &format!("/mnt/hello/f{number}")).await })
        })
        .collect();
    eventually("the calls wait for the server", || async {
        let waiting = run(&client, &id, "cat /sys/fs/fuse/connections/*/waiting").await;
        (waiting.trim().parse::<usize>().unwrap() >= CALLS).then_some(())
    })
    .await;
    // Programs started while the file was open. Its close waits for the server too.
    drop(open);
    for round in 0..5 {
        assert_eq!(client.out(&id, "echo up").await, "up\n");
        put(&client, &id, "/tmp/other", vec![b'x'; round]).await;
        assert_eq!(read(&client, &id, "/tmp/other").await, (200, "x".repeat(round)));
        assert_eq!(client.status(&id).await, "running");
    }
    for call in calls {
        let (status, said) = call.await.unwrap();
        assert!(status >= 400, "{status}: {said}");
    }
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    // The server continues, and with it the file system and the calls.
    run(&client, &id, &format!("kill -CONT {server}")).await;
    eventually("the file system serves again", || async {
        (read(&client, &id, "/mnt/hello/f1").await == hello).then_some(())
    })
    .await;
    // A capsule with such a file system ends like any other.
    run(&client, &id, &format!("kill -STOP {server}")).await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    platform.finish();
}

#[tokio::test]
async fn s3_bucket_is_mounted_by_fuse() {
    let internet = Internet::make();
    let s3 = S3::serve(internet.listen(STORE_PORT));
    std::fs::create_dir_all(s3.objects()).unwrap();
    std::fs::write(s3.objects().join("from-outside"), "hello from outside\n").unwrap();
    let (platform, client, id) = large().await;
    let rclone = std::fs::read(guest_program("usr/bin/rclone")).unwrap();
    put(&client, &id, "/tmp/rclone", rclone).await;
    let var = |name: &str| {
        let vars = s3.vars();
        vars.iter().find(|(known, _)| *known == name).unwrap().1.to_owned()
    };
    let mount = format!(
        "mkdir -p /mnt/bucket; chmod +x /tmp/rclone; exec /tmp/rclone mount :s3:{} /mnt/bucket \
         --config '' --s3-provider Other --s3-endpoint http://{INTERNET}:{STORE_PORT} \
         --s3-access-key-id {} --s3-secret-access-key {} --s3-region us-east-1 \
         --s3-no-check-bucket --vfs-cache-mode writes --vfs-write-back 100ms --allow-other \
         >/tmp/rclone.log 2>&1",
        s3.url().split('/').nth(2).unwrap(),
        var("AWS_ACCESS_KEY_ID"),
        var("AWS_SECRET_ACCESS_KEY"),
    );
    start(&client, &id, &["sh", "-c", &mount]).await;
    eventually("the bucket is mounted", || async {
        let there = client.sh(&id, "grep ' /mnt/bucket fuse' /proc/mounts").await;
        (there["exit_code"] == 0).then_some(())
    })
    .await;
    let at = "/mnt/bucket/below/this";
    let outside = "hello from outside\n";
    assert_eq!(client.out(&id, &format!("cat {at}/from-outside")).await, outside);
    let seen = read(&client, &id, &format!("{at}/from-outside")).await;
    assert_eq!(seen, (200, outside.to_owned()));
    let write = format!("mkdir {at}/dir; echo hello from inside >{at}/dir/file");
    run(&client, &id, &write).await;
    let object = s3.objects().join("dir/file");
    eventually("the object is in the store", || async {
        let contents = std::fs::read_to_string(&object).unwrap_or_default();
        (contents == "hello from inside\n").then_some(())
    })
    .await;
    run(&client, &id, "umount /mnt/bucket").await;
    platform.finish();
}

/// Runs an image of one static program, out of a tar. Layers, limits and network are as Docker
/// makes them.
#[tokio::test]
async fn container_runs_in_a_capsule_and_reaches_the_internet() {
    let _internet = Internet::make();
    let image = tempfile::tempdir().unwrap();
    for dir in ["bin", "dev", "proc", "sys", "etc"] {
        std::fs::create_dir(image.path().join(dir)).unwrap();
    }
    std::fs::copy(guest_program("bin/busybox"), image.path().join("bin/busybox")).unwrap();
    let (platform, client, id) = large().await;
    let programs = ["--exclude=usr/share", "--exclude=usr/bin/rclone", "usr"];
    put(&client, &id, "/tmp/programs.tar", tar(guest_packages(), &programs)).await;
    put(&client, &id, "/tmp/image.tar", tar(image.path(), &["."])).await;
    put(&client, &id, "/tmp/container.sh", include_bytes!("container.sh").to_vec()).await;
    run(&client, &id, "tar -x -C / --keep-directory-symlink -f /tmp/programs.tar").await;
    let script = format!("sh /tmp/container.sh /tmp/image.tar '{INTERNET} {PORT}'");
    let said = run(&client, &id, &script).await;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 4, "{said}");
    assert_eq!(lines[..2], ["0", "67108864"], "its user and its memory");
    assert!(lines[2].starts_with("hello ") && lines[3] == "x", "{said}");
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    platform.finish();
}
