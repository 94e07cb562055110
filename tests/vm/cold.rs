//! Files of the guest's init across boots. A resume after a pause of the disk alone boots the
//! guest.

use crate::{capsule, small};
use serde_json::json;
use tests::{Client, Driver, Platform};

/// Boots a capsule again with its current disk.
async fn boot(client: &Client, id: &str) {
    let paused = client.change(id, "pause", &json!({ "memory": false })).await;
    assert_eq!(paused["status"], "paused", "{paused}");
    let resumed = client.change(id, "resume", &json!({})).await;
    assert_eq!(resumed["booted"], true, "{resumed}");
}

#[tokio::test]
async fn user_lines_of_hosts_and_resolver_survive_boot() {
    let (platform, client, id) = capsule().await;
    let both = "cat /etc/hosts /etc/resolv.conf";
    let add = "echo 10.1.2.3 db.test | sudo tee -a /etc/hosts; \
        echo options rotate | sudo tee -a /etc/resolv.conf; sudo chmod 640 /etc/hosts";
    client.out(&id, add).await;
    let read = format!("sudo {both}; sudo stat -c %a /etc/hosts");
    let before = client.out(&id, &read).await;
    assert!(before.contains("db.test") && before.contains("options rotate"), "{before}");
    boot(&client, &id).await;
    assert_eq!(client.out(&id, &read).await, before);

    // A name server that the user wrote stays. Names that programs need come back.
    let own = "echo nameserver 9.9.9.9 | sudo tee /etc/resolv.conf; \
        echo 10.1.2.3 db.test | sudo tee /etc/hosts; sudo chmod 644 /etc/hosts";
    client.out(&id, own).await;
    boot(&client, &id).await;
    let wanted =
        "10.1.2.3 db.test\n127.0.0.1 localhost capsule\n::1 localhost\nnameserver 9.9.9.9\n";
    assert_eq!(client.out(&id, both).await, wanted);

    // Kernel modules and headers of a user's own are kept too.
    let module = "/lib/modules/$(uname -r)/mine";
    client.out(&id, &format!("echo mine | sudo tee {module}")).await;
    boot(&client, &id).await;
    assert_eq!(client.out(&id, &format!("cat {module}")).await, "mine\n");
    platform.finish();
}

#[tokio::test]
async fn name_servers_follow_host_at_boot_and_other_lines_stay() {
    let mut platform = Platform::start(Driver::Guests, &[("WRENN_DNS", "11.22.33.44")]).await;
    let client = platform.client();
    let id = client.create(&small()).await;
    let servers = "grep ^nameserver /etc/resolv.conf";
    assert_eq!(client.out(&id, servers).await, "nameserver 11.22.33.44\n");
    client.out(&id, "echo search a.test | sudo tee -a /etc/resolv.conf").await;
    let paused = client.change(&id, "pause", &json!({ "memory": false })).await;
    assert_eq!(paused["status"], "paused", "{paused}");
    platform.kill();
    platform.set_var("WRENN_DNS", Some("11.22.33.45"));
    platform.resume().await;
    let client = platform.client();
    client.resume(&id).await;
    assert_eq!(client.out(&id, servers).await, "nameserver 11.22.33.45\n");
    client.out(&id, "grep -qx 'search a.test' /etc/resolv.conf").await;
    platform.finish();
}

/// Root in a guest may turn any path that a boot reads or writes into anything.
#[tokio::test]
async fn pipes_and_directories_in_place_of_files_do_not_block_boot() {
    let (platform, client, id) = capsule().await;
    let break_all = "umount /etc/machine-id /lib/modules/*; \
        rm -rf /etc/machine-id /etc/resolv.conf /etc/hosts /tmp /lib/modules; \
        mkfifo /etc/hosts; mkdir /etc/resolv.conf /etc/machine-id; echo x >/usr/lib/modules";
    let body = json!({ "cmd": "sh", "args": ["-c", break_all], "user": "root" });
    client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(200);
    boot(&client, &id).await;
    let left = "test -p /etc/hosts && test -d /etc/resolv.conf && test -d /etc/machine-id && \
        test -w /tmp && echo whole";
    assert_eq!(client.out(&id, left).await, "whole\n");
    // A link to nowhere is replaced, and a link to a device is left alone.
    let links = "rm -r /etc/hosts /etc/resolv.conf /etc/machine-id; ln -s /dev/tty /etc/hosts; \
        ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf";
    let body = json!({ "cmd": "sh", "args": ["-c", links], "user": "root" });
    client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(200);
    boot(&client, &id).await;
    let left = "test -L /etc/hosts && test -f /etc/resolv.conf && ! test -L /etc/resolv.conf && \
        test $(wc -c </etc/machine-id) -ge 32 && echo whole";
    assert_eq!(client.out(&id, left).await, "whole\n");
    platform.finish();
}

/// Container images often hold no `modprobe`.
#[tokio::test]
async fn guest_without_modprobe_has_common_modules_after_boot() {
    let (platform, client, id) = capsule().await;
    client.out(&id, "sudo rm /usr/sbin/modprobe").await;
    boot(&client, &id).await;
    let loaded = client.out(&id, "cut -d ' ' -f 1 /proc/modules").await;
    for module in ["fuse", "loop", "tun"] {
        assert!(loaded.lines().any(|line| line == module), "{module} is not loaded: {loaded}");
    }
    let modes = "stat -c %a /dev/fuse /dev/net/tun";
    assert_eq!(client.out(&id, modes).await, "666\n666\n");
    platform.finish();
}
