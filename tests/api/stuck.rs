//! Files that could block envd, or that have no contents of their own. Examples are named pipes,
//! devices, files that the kernel makes up, and files that change or fail under way.

use crate::capsule;
use crate::envd::envd;
use futures::StreamExt;
use futures::future::join_all;
use reqwest::Method;
use serde_json::json;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// Number of named pipes in concurrent calls.
const PIPES: usize = 64;

#[tokio::test]
async fn named_pipes_in_every_call_do_not_block_envd() {
    let (platform, client, id) = capsule().await;
    let (envd, token) = envd(&platform, &id);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let pipes: Vec<String> = (0..PIPES).map(|n| at(&format!("p{n:02}"))).collect();
    assert_eq!(
        client.out(&id, &format!("mkfifo {} && echo made", pipes.join(" "))).await,
        "made\n"
    );
    let files = format!("/v1/capsules/{id}/files");
    let writes = pipes.iter().map(|pipe| {
        let put = client.request(Method::PUT, &files).query(&[("path", pipe)]).body("x");
        client.send(put)
    });
    let reads = pipes
        .iter()
        .map(|pipe| client.send(client.request(Method::GET, &files).query(&[("path", pipe)])));
    let (writes, reads) = tokio::join!(join_all(writes), join_all(reads));
    for (answer, pipe) in writes.into_iter().chain(reads).zip(pipes.iter().cycle()) {
        let told = format!("path is not a regular file: {pipe}");
        answer.refuses(400, "invalid_request", &told);
    }
    let composed = pipes.iter().map(|pipe| {
        let body = json!({ "sources": [pipe], "destination": at("whole") });
        let request = envd.request(Method::POST, "/files/compose");
        client.send(request.header("x-access-token", &token).json(&body))
    });
    for answer in join_all(composed).await {
        let refused = answer.expect(400);
        assert!(refused["message"].as_str().unwrap().contains("not a regular file"), "{refused}");
    }
    let health = envd.request(Method::GET, "/health").send().await.unwrap();
    assert_eq!(health.status().as_u16(), 204);
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    let stat = |pipe| json!({ "path": pipe });
    for pipe in &pipes {
        let found = client.post(&format!("{files}/stat"), &stat(pipe)).await.expect(200);
        assert_eq!(found["entry"]["type"], "other");
    }
    let listed = client.post(&format!("{files}/list"), &json!({ "path": at("") })).await;
    assert_eq!(listed.expect(200)["entries"].as_array().unwrap().len(), PIPES);
    for pipe in &pipes {
        client.post(&format!("{files}/remove"), &stat(pipe)).await.expect(204);
    }
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    platform.finish();
}

#[tokio::test]
async fn kernel_generated_files_are_read_to_end_in_chunks() {
    let (platform, client, id) = capsule().await;
    let files = format!("/v1/capsules/{id}/files");
    for path in ["/proc/self/status", "/proc/sys/kernel/ostype", "/sys/devices/system/cpu/online"] {
        let get = || client.request(Method::GET, &files).query(&[("path", path)]);
        for request in [get(), get().header("range", "bytes=0-1")] {
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 200, "{path}");
            assert!(!answer.headers().contains_key("content-length"), "{path}");
            let contents = answer.text().await.unwrap();
            assert!(contents.ends_with('\n'), "{path}: {contents}");
        }
    }
    // An empty file has a length, which the JavaScript SDK needs.
    let empty = tempfile::NamedTempFile::new().unwrap();
    let path = empty.path().display().to_string();
    let answer = client.request(Method::GET, &files).query(&[("path", &path)]).send().await;
    let answer = answer.unwrap();
    assert_eq!(answer.headers()["content-length"], "0");
    assert_eq!(answer.bytes().await.unwrap().len(), 0);
    platform.finish();
}

#[tokio::test]
async fn read_of_shrinking_file_is_aborted() {
    let (platform, client, id) = capsule().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 40).unwrap();
    let path = file.path().display().to_string();
    let get = client.request(Method::GET, &format!("/v1/capsules/{id}/files"));
    let answer = get.query(&[("path", &path)]).send().await.unwrap();
    assert_eq!(answer.headers()["content-length"], (1_u64 << 40).to_string());
    let mut body = answer.bytes_stream();
    assert!(body.next().await.unwrap().is_ok());
    file.as_file().set_len(0).unwrap();
    let broken = async {
        while let Some(chunk) = body.next().await {
            if chunk.is_err() {
                return true;
            }
        }
        false
    };
    assert!(broken.await, "the body ended as if it were whole");
    platform.finish();
}

#[tokio::test]
async fn aborted_overwrite_keeps_old_contents() {
    let (platform, client, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("f"), dir.path().join("link"));
    std::fs::write(&file, "old").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o751)).unwrap();
    std::os::unix::fs::symlink("f", &link).unwrap();
    let put = |body: reqwest::Body| {
        let put = client.request(Method::PUT, &format!("/v1/capsules/{id}/files"));
        put.query(&[("path", link.display().to_string())]).body(body)
    };
    let names = || std::fs::read_dir(dir.path()).unwrap().count();
    let piece = bytes::Bytes::from(vec![7_u8; 1 << 20]);
    let chunks = [Ok(piece), Err(std::io::Error::other("gone"))];
    let broken = put(reqwest::Body::wrap_stream(futures::stream::iter(chunks))).send().await;
    assert!(broken.is_err(), "the request was answered");
    tests::eventually("the half of it is removed", || async { (names() == 2).then_some(()) }).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
    client.send(put("new".into())).await.expect(204);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o751);
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    // The first write may have begun late.
    tests::eventually("no staged file is left", || async { (names() == 2).then_some(()) }).await;
    platform.finish();
}

#[tokio::test]
async fn null_device_accepts_write_and_reads_empty() {
    let (platform, client, id) = capsule().await;
    let files = format!("/v1/capsules/{id}/files");
    let before = std::fs::metadata("/dev/null").unwrap();
    let of = |method| client.request(method, &files).query(&[("path", "/dev/null")]);
    client.send(of(Method::PUT).body("x")).await.expect(204);
    client.send(of(Method::GET)).await.refuses(400, "invalid_request", "regular file");
    let after = std::fs::metadata("/dev/null").unwrap();
    assert_eq!((before.uid(), before.mode()), (after.uid(), after.mode()));
    platform.finish();
}
