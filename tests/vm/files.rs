//! Files of a real guest: an overwrite on a full disk, devices, and files that the kernel makes up.

use crate::capsule;
use reqwest::{Method, RequestBuilder};
use tests::Client;

/// Builds a request for the contents of a file.
fn file(client: &Client, id: &str, method: Method, path: &str) -> RequestBuilder {
    client.request(method, &format!("/v1/capsules/{id}/files")).query(&[("path", path)])
}

#[tokio::test]
async fn overwrite_on_full_disk_keeps_old_contents_and_no_staged_file() {
    let (platform, client, id) = capsule().await;
    let begin =
        "mkdir /home/user/d && cd /home/user/d && seq 100000 > f && chmod 640 f && sha256sum f";
    let sum = client.out(&id, begin).await;
    // A little room stays, so that the disk fills while the body arrives.
    let fill = "head -c 1G /dev/zero > /home/user/fill 2> /dev/null; truncate -s -4M /home/user/fill; sync";
    client.sh(&id, fill).await;
    let put = file(&client, &id, Method::PUT, "/home/user/d/f");
    let answer = client.send(put.body(vec![1_u8; 64 << 20])).await;
    answer.refuses(507, "disk_full", "disk is full");
    assert_eq!(client.out(&id, "cd /home/user/d && sha256sum f").await, sum);
    assert_eq!(client.out(&id, "ls -A /home/user/d").await, "f\n");
    client.out(&id, "rm /home/user/fill").await;
    let put = file(&client, &id, Method::PUT, "/home/user/d/f");
    client.send(put.body("new")).await.expect(204);
    assert_eq!(client.out(&id, "cd /home/user/d && cat f && stat -c ' %a' f").await, "new 640\n");
    platform.finish();
}

#[tokio::test]
async fn file_writes_do_not_replace_devices_or_pipes() {
    let (platform, client, id) = capsule().await;
    let look = "stat -c '%F %U %a' /dev/null /dev/vdb /tmp/p";
    let before = client.out(&id, &format!("mkfifo /tmp/p && {look}")).await;
    let put = file(&client, &id, Method::PUT, "/dev/null").query(&[("user", "user")]);
    client.send(put.body("x")).await.expect(204);
    for path in ["/dev/vdb", "/tmp/p", "/tmp"] {
        let put = file(&client, &id, Method::PUT, path).body("x");
        client.send(put).await.refuses(400, "invalid_request", "regular file");
        let get = file(&client, &id, Method::GET, path);
        client.send(get).await.refuses(400, "invalid_request", "regular file");
    }
    assert_eq!(client.out(&id, look).await, before);
    client.pause(&id).await;
    client.resume(&id).await;
    assert_eq!(client.out(&id, look).await, before);
    platform.finish();
}

#[tokio::test]
async fn procfs_files_are_read_and_written_as_by_a_shell() {
    let (platform, client, id) = capsule().await;
    for path in [
        "/proc/version",
        "/proc/filesystems",
        "/sys/block/vda/size",
        "/sys/fs/cgroup/cgroup.controllers",
    ] {
        let wanted = client.out(&id, &format!("cat {path}")).await;
        let answer = file(&client, &id, Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        assert_eq!(answer.text().await.unwrap(), wanted, "{path}");
    }
    let put = file(&client, &id, Method::PUT, "/proc/sys/vm/swappiness").body("7");
    client.send(put).await.expect(204);
    assert_eq!(client.out(&id, "cat /proc/sys/vm/swappiness").await, "7\n");
    platform.finish();
}

#[tokio::test]
async fn passwd_that_is_a_named_pipe_fails_only_calls_that_need_it() {
    let (platform, client, id) = capsule().await;
    client.out(&id, "cp /etc/passwd /home/user/passwd").await;
    // The shell that moves the table away puts it back by itself.
    let script = "mv /etc/passwd /etc/kept; mkfifo /etc/passwd; sleep 30; mv /etc/kept /etc/passwd";
    let exec =
        serde_json::json!({ "cmd": "sudo", "args": ["sh", "-c", script], "background": true });
    client.post(&format!("/v1/capsules/{id}/exec"), &exec).await.expect(202);
    tests::eventually("the table is gone", || async {
        let answer = client.send(file(&client, &id, Method::GET, "/home/user/passwd")).await;
        (answer.status.as_u16() == 400).then_some(())
    })
    .await;
    tests::eventually("the table is back", || async {
        let answer = client.send(file(&client, &id, Method::GET, "/home/user/passwd")).await;
        (answer.status.as_u16() == 200).then_some(())
    })
    .await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    platform.finish();
}
