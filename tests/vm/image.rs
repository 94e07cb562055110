//! Guests of other images than `base`. The image here is an EROFS of a minimal tree: a static
//! busybox, without `/etc`, a table of users, or bash.

use crate::small;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::{Client, Driver, Platform};

/// Programs of busybox that the tests run.
const APPLETS: [&str; 12] =
    ["sh", "id", "cat", "ls", "stat", "echo", "env", "readlink", "pwd", "sleep", "printf", "mount"];

fn run(program: &str, dir: &Path, args: &[&str]) {
    let out = Command::new(program).current_dir(dir).args(args).output().unwrap();
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Returns the path of Debian's static busybox, which `./test` unpacks.
fn busybox() -> PathBuf {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest-packages");
    let mut places = ["bin/busybox", "usr/bin/busybox"].map(|path| packages.join(path)).into_iter();
    places.find(|path| path.exists()).expect("busybox-static is missing: run ./test")
}

/// Starts a platform whose template `base` is an EROFS of a tree that `furnish` completes.
async fn platform(furnish: impl FnOnce(&Path)) -> Platform {
    let platform = Platform::start(Driver::Guests, &[]).await;
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    fs::create_dir_all(tree.join("bin")).unwrap();
    fs::copy(busybox(), tree.join("bin/busybox")).unwrap();
    furnish(&tree);
    let (shared, images) =
        (platform.dir().join("images").canonicalize().unwrap(), platform.dir().join("images"));
    fs::remove_file(&images).unwrap();
    let base = images.join("templates/base");
    fs::create_dir_all(&base).unwrap();
    symlink(shared.join("boot"), images.join("boot")).unwrap();
    let image = base.join("rootfs.erofs");
    let paths = [image.to_str().unwrap(), tree.to_str().unwrap()];
    run("mkfs.erofs", work.path(), &[&["--quiet", "-T0"], &paths[..]].concat());
    platform
}

/// Ends a test. The machines of its image are of no use to later tests.
async fn finish(platform: Platform, client: &Client, ids: &[&str]) {
    for id in ids {
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    let _ = fs::remove_dir_all(platform.dir().join("golden"));
    platform.finish();
}

fn link_applets(tree: &Path) {
    APPLETS.iter().for_each(|name| symlink("busybox", tree.join("bin").join(name)).unwrap());
}

/// Runs a program by its arguments, as a user.
async fn exec(client: &Client, id: &str, words: &[&str], user: Option<&str>) -> Value {
    let body = json!({ "cmd": words[0], "args": &words[1..], "user": user });
    client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(200)
}

async fn out(client: &Client, id: &str, words: &[&str], user: Option<&str>) -> String {
    let result = exec(client, id, words, user).await;
    assert_eq!(result["exit_code"], 0, "{words:?}: {result}");
    result["stdout"].as_str().unwrap().to_owned()
}

/// Checks programs, files and figures of a guest that holds only busybox.
async fn serves(client: &Client, id: &str) {
    let box_ = "/bin/busybox";
    assert_eq!(out(client, id, &[box_, "echo", "hi"], None).await, "hi\n");
    assert_eq!(out(client, id, &[box_, "id", "-u"], None).await, "0\n", "root is the default");
    let files = format!("/v1/capsules/{id}/files");
    let put = client.request(Method::PUT, &files).query(&[("path", "/data/file")]);
    client.send(put.body("contents")).await.expect(204);
    let get = client.request(Method::GET, &files).query(&[("path", "/data/file")]);
    assert_eq!(get.send().await.unwrap().text().await.unwrap(), "contents");
    let figures = client.get(&format!("/api/v1/capsules/{id}/metrics")).await.expect(200);
    assert!(figures["points"][0]["mem_bytes"].as_u64().unwrap() > 0, "{figures}");
}

#[tokio::test]
async fn guest_of_an_erofs_with_busybox_alone_runs_pauses_and_resumes() {
    let platform = platform(|_| {}).await;
    let client = platform.client();
    // The first capsule boots. The second one is restored from the template's snapshot.
    let ids = [client.create(&small()).await, client.create(&small()).await];
    let [first, second] = ids.each_ref().map(String::as_str);
    for id in [first, second] {
        serves(&client, id).await;
    }
    let mounts = out(&client, first, &["/bin/busybox", "cat", "/proc/mounts"], None).await;
    assert!(mounts.lines().any(|line| line.starts_with("overlay / overlay")), "{mounts}");
    let modes = ["/bin/busybox", "stat", "-c", "%a %n", "/etc", "/tmp", "/var/tmp", "/run"];
    assert_eq!(
        out(&client, first, &modes, None).await,
        "755 /etc\n1777 /tmp\n1777 /var/tmp\n755 /run\n"
    );
    let names = ["/bin/busybox", "cat", "/etc/hosts", "/etc/resolv.conf", "/etc/machine-id"];
    let names = out(&client, first, &names, None).await;
    assert!(names.contains("capsule") && names.contains("nameserver"), "{names}");
    // The placeholder drives hold no data, and nothing mounts them.
    let sizes = ["/bin/busybox", "cat", "/sys/block/vdc/size", "/sys/block/vdd/size"];
    assert_eq!(out(&client, first, &sizes, None).await, "8\n8\n");
    let marks = ["/bin/busybox", "cat", "/sys/block/vdc/ro", "/sys/block/vdd/ro"];
    assert_eq!(out(&client, first, &marks, None).await, "1\n0\n");
    assert!(!mounts.contains("/dev/vdc") && !mounts.contains("/dev/vdd"), "{mounts}");
    // A program by its path alone needs no shell, and a shell that is missing is named.
    let shell = json!({ "cmd": "/bin/bash", "args": ["-l", "-c", "true"] });
    let answer = client.post(&format!("/v1/capsules/{first}/exec"), &shell).await;
    answer.refuses(400, "command_not_found", "no shell in this image");
    client.pause(first).await;
    client.resume(first).await;
    serves(&client, first).await;
    // After a pause of the disk alone, the image boots again.
    let paused = client.change(first, "pause", &json!({ "memory": false })).await;
    assert_eq!(paused["status"], "paused", "{paused}");
    client.resume(first).await;
    serves(&client, first).await;
    let fork = format!("/v1/capsules/{second}/fork");
    let forked = client.post(&fork, &json!({ "count": 1 })).await.expect(201);
    let child = forked["items"][0]["id"].as_str().unwrap();
    serves(&client, child).await;
    finish(platform, &client, &[first, second, child]).await;
}

#[tokio::test]
async fn guest_without_bash_or_users_runs_shells_and_numbers() {
    let furnish = |tree: &Path| {
        link_applets(tree);
        // Images of systemd have such a link, whose target only its resolver makes.
        fs::create_dir(tree.join("etc")).unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", tree.join("etc/resolv.conf")).unwrap();
        symlink("/var/tmp", tree.join("tmp")).unwrap();
        fs::create_dir(tree.join("var")).unwrap();
        symlink("../run", tree.join("var/run")).unwrap();
    };
    let platform = platform(furnish).await;
    let client = platform.client();
    let id = client.create(&small()).await;
    let login = |script| ["/bin/bash", "-l", "-c", script];
    assert_eq!(out(&client, &id, &login("echo $0"), None).await, "/bin/sh\n");
    assert_eq!(out(&client, &id, &login("echo $0"), None).await, "/bin/sh\n");
    let logs = client.get(&format!("/v1/capsules/{id}/logs")).await.expect(200);
    let noted = logs.as_str().unwrap().matches("/bin/sh runs in its place").count();
    assert_eq!(noted, 1, "{logs}");
    let look = "readlink /tmp; stat -L -c %a /tmp; echo x > /var/run/x; cat /run/x; \
        busybox grep -q ^nameserver /etc/resolv.conf && echo names";
    assert_eq!(out(&client, &id, &login(look), None).await, "/var/tmp\n1777\nx\nnames\n");
    let mut pty = client.socket(&format!("/v1/capsules/{id}/pty")).await;
    pty.send(json!({ "type": "start", "cols": 80, "rows": 24 })).await;
    pty.next().await.unwrap();
    pty.send(json!({ "type": "input", "data": STANDARD.encode("echo a$((1+1))b\n") })).await;
    pty.until("output", "a2b").await;
    pty.send(json!({ "type": "input", "data": STANDARD.encode("exit\n") })).await;
    pty.until_exit("output").await;
    let show = ["sh", "-c", "id -u; id -g; id -G; echo $HOME $USER; pwd"];
    for (user, wanted) in [
        (None, "0\n0\n0\n/ root\n/\n"),
        (Some("0"), "0\n0\n0\n/ root\n/\n"),
        (Some("1000"), "1000\n0\n0\n/ 1000\n/\n"),
        (Some("1000:50"), "1000\n50\n50\n/ 1000\n/\n"),
        (Some("4294967294"), "4294967294\n0\n0\n/ 4294967294\n/\n"),
    ] {
        assert_eq!(out(&client, &id, &show, user).await, wanted, "{user:?}");
    }
    let table = "printf '1000:x:7:7::/:/bin/sh\nann:x:1000:1000::/data:/bin/sh\n' > /etc/passwd; \
        printf 'ann:x:1000:\nstaff:x:50:ann\n' > /etc/group";
    out(&client, &id, &login(table), None).await;
    for (user, wanted) in [
        ("ann", "1000\n1000\n1000 50\n/data ann\n/\n"),
        ("1000", "1000\n1000\n1000 50\n/data ann\n/\n"),
        ("ann:staff", "1000\n50\n50\n/data ann\n/\n"),
    ] {
        assert_eq!(out(&client, &id, &show, Some(user)).await, wanted, "{user}");
    }
    for user in ["4294967295", "4294967296", "-1", "nobody", "ann:nobody"] {
        let body = json!({ "cmd": "/bin/id", "user": user });
        let answer = client.post(&format!("/v1/capsules/{id}/exec"), &body).await;
        assert!(answer.status.is_client_error(), "{user}: {} {}", answer.status, answer.body);
        assert!(answer.body.to_string().contains("invalid"), "{user}: {}", answer.body);
    }
    finish(platform, &client, &[&id]).await;
}

#[tokio::test]
async fn image_of_an_unknown_kind_is_named_in_the_error() {
    let platform = platform(|_| {}).await;
    let image = platform.dir().join("images/templates/base/rootfs.erofs");
    fs::write(&image, vec![7; 1 << 20]).unwrap();
    let client = platform.client();
    let answer = client.post("/v1/capsules", &small()).await;
    assert!(!answer.status.is_success(), "{}", answer.body);
    let told = "the root image /dev/vda is neither EROFS nor ext4";
    let log = platform.log();
    assert!(log.contains(told) || answer.body.to_string().contains(told), "{log}");
    platform.finish();
}
