//! A guest of the template `base`, as its users see it.

use crate::ready::claimed;
use crate::{capsule, small};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::json;
use tests::eventually;

#[tokio::test]
async fn base_template_has_what_programs_expect() {
    let (platform, client, id) = claimed().await;
    assert_eq!(client.out(&id, "id -un; pwd; hostname").await, "user\n/home/user\ncapsule\n");
    assert_eq!(client.out(&id, "id -G").await, "1000\n");
    assert_eq!(client.out(&id, "sudo -n id -u").await, "0\n");
    let exec = format!("/v1/capsules/{id}/exec");
    let root = json!({ "cmd": "id", "args": ["-u"], "user": "root" });
    assert_eq!(client.post(&exec, &root).await.expect(200)["stdout"], "0\n");
    let script = "import sys, venv, ssl, json; print(sum(range(10)))";
    let python = json!({ "cmd": "python3", "args": ["-c", script] });
    assert_eq!(client.post(&exec, &python).await.expect(200)["stdout"], "45\n");
    for program in
        ["bash", "pip3", "git", "curl", "tput", "sudo", "ps", "ip", "modprobe", "fusermount3"]
    {
        client.out(&id, &format!("command -v {program}")).await;
    }
    client.out(&id, "test -x /usr/lib/git-core/git-daemon").await;
    client.out(&id, "test -s /etc/ssl/certs/ca-certificates.crt").await;
    client
        .out(
            &id,
            "git init -q /tmp/r && cd /tmp/r && git -c user.name=a -c user.email=a@b \
        commit -q --allow-empty -m x && git log --oneline | grep -q x",
        )
        .await;
    client.out(&id, "grep -q ^nameserver /etc/resolv.conf && grep -q capsule /etc/hosts").await;
    client.out(&id, "test -w /tmp -a -d /dev/shm -a -c /dev/ptmx -a -e /dev/fd/0").await;
    assert_eq!(client.out(&id, "df -m --output=size / | tail -n 1 | wc -w").await, "1\n");
    // The guest's clock follows the host's.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let there: u64 = client.out(&id, "date +%s").await.trim().parse().unwrap();
    assert!(there.abs_diff(now.as_secs()) < 20, "the guest's clock is {there}");
    // File metadata of E2B's API is stored in extended attributes of the `user` namespace.
    let set = "import os; open('/home/user/f','w'); os.setxattr('/home/user/f','user.e2b.k',b'v'); \
        print(os.getxattr('/home/user/f','user.e2b.k'))";
    let set = json!({ "cmd": "python3", "args": ["-c", set] });
    assert_eq!(client.post(&exec, &set).await.expect(200)["stdout"], "b'v'\n");
    let other = client.create(&small()).await;
    let ids = [
        client.out(&id, "cat /etc/machine-id").await,
        client.out(&other, "cat /etc/machine-id").await,
    ];
    assert!(ids[0].trim().len() == 32 && ids[0] != ids[1], "{ids:?}");
    let random = "head -c 16 /dev/urandom | od -An -tx1";
    assert_ne!(client.out(&id, random).await, client.out(&other, random).await);
    platform.finish();
}

#[tokio::test]
async fn files_terminals_and_orphans_are_handled_in_a_real_guest() {
    let (platform, client, id) = capsule().await;
    let contents: Vec<u8> =
        (0..20_000_000_u32).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect();
    let files = format!("/v1/capsules/{id}/files");
    let put = client.request(Method::PUT, &files).query(&[("path", "data/blob")]);
    client.send(put.body(contents.clone())).await.expect(204);
    let sum = client.out(&id, "sha256sum data/blob | cut -c 1-64; stat -c '%U %a' data/blob").await;
    let get = client.request(Method::GET, &files).query(&[("path", "/home/user/data/blob")]);
    assert!(get.send().await.unwrap().bytes().await.unwrap() == contents);
    assert!(sum.ends_with("user 644\n") && sum.len() == 64 + 10, "{sum}");
    let mut pty = client.socket(&format!("/v1/capsules/{id}/pty")).await;
    pty.send(json!({ "type": "start", "cols": 100, "rows": 40 })).await;
    pty.next().await.unwrap();
    pty.send(json!({ "type": "input", "data": STANDARD.encode("stty size; tty\n") })).await;
    let seen = pty.until("output", "/dev/pts/").await;
    assert!(seen.contains("40 100"), "{seen}");
    pty.send(json!({ "type": "input", "data": STANDARD.encode("exit\n") })).await;
    pty.until_exit("output").await;
    // Children whose parents are gone are reaped by the first process.
    client.out(&id, "for i in 1 2 3 4 5; do (sh -c 'sleep 0.1' &) ; done; sleep 0.5").await;
    eventually("no zombie is left", || async {
        (client.out(&id, "ps -eo stat= | grep -c ^Z || true").await == "0\n").then_some(())
    })
    .await;
    platform.finish();
}

#[tokio::test]
async fn envd_requires_its_token_except_for_health() {
    let (platform, _, id) = capsule().await;
    let agent = platform.agent_client().below(&format!("/proxy/{id}/49983"));
    agent.get("/health").await.expect(204);
    for path in [
        "/metrics",
        "/envs",
        "/files?path=/etc/passwd",
        "/ports",
        "/processes",
        "/terminals",
        "/nosuch",
    ] {
        agent.get(path).await.expect(401);
    }
    for path in [
        "/process.Process/List",
        "/filesystem.Filesystem/Stat",
        "/files/compose",
        "/init",
        "/ports/connect?port=22",
        "/processes/signal",
    ] {
        let answer = agent.post(path, &json!({ "accessToken": "guess" })).await;
        assert_eq!(answer.status.as_u16(), 401, "{path}: {}", answer.body);
    }
    let link = "/files?path=/etc/passwd&signature=v1_guess";
    assert_eq!(agent.get(link).await.expect(401)["message"], "invalid signature");
    platform.finish();
}
