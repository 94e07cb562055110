//! Files: contents of any size and bytes, every way to upload, ranges, and operations on paths.

use crate::capsule;
use futures::StreamExt;
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::json;
use tests::Client;

async fn read(client: &Client, id: &str, path: &str) -> Vec<u8> {
    let request = client.request(Method::GET, &format!("/v1/capsules/{id}/files?path={path}"));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    answer.bytes().await.unwrap().to_vec()
}

#[tokio::test]
async fn written_file_is_read_by_every_route() {
    let (platform, client, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("deep/er/ü f").display().to_string();
    let contents: Vec<u8> = (0..300_000_u32).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
    let files = format!("/v1/capsules/{id}/files");
    let put = client.request(Method::PUT, &files).query(&[("path", &at)]).body(contents.clone());
    client.send(put).await.expect(204);
    let get = client.request(Method::GET, &files).query(&[("path", &at)]);
    let answer = get.send().await.unwrap();
    assert_eq!(answer.headers()["content-length"], "300000");
    assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    assert!(answer.bytes().await.unwrap() == contents);
    let read = client.request(Method::POST, &format!("{files}/read")).json(&json!({ "path": at }));
    assert!(read.send().await.unwrap().bytes().await.unwrap() == contents);
    let stream = format!("{files}/stream/read");
    let read = client.request(Method::POST, &stream).json(&json!({ "path": at }));
    assert!(read.send().await.unwrap().bytes().await.unwrap() == contents);
    let range = client.request(Method::GET, &files).query(&[("path", &at)]);
    let part = range.header("range", "bytes=10-19").send().await.unwrap();
    assert_eq!(part.status().as_u16(), 206);
    assert!(part.bytes().await.unwrap() == contents[10..20]);
    let range = client.request(Method::GET, &files).query(&[("path", &at)]);
    let beyond = range.header("range", "bytes=300000-").send().await.unwrap();
    assert_eq!(beyond.status().as_u16(), 416);
    let form = Form::new().text("path", at.clone()).part("file", Part::bytes(b"short".to_vec()));
    let write = client.request(Method::POST, &format!("{files}/write")).multipart(form);
    client.send(write).await.expect(204);
    assert_eq!(super::files::read(&client, &id, &at).await, b"short");
    let form = Form::new().text("path", at.clone()).part("file", Part::bytes(b"again".to_vec()));
    let write = client.request(Method::POST, &format!("{files}/stream/write")).multipart(form);
    client.send(write).await.expect(204);
    assert_eq!(super::files::read(&client, &id, &at).await, b"again");
    let empty = client.request(Method::PUT, &files).query(&[("path", &at)]).body("");
    client.send(empty).await.expect(204);
    assert_eq!(super::files::read(&client, &id, &at).await, b"");
    platform.finish();
}

/// A client that still sends its body receives the refusal, whichever hop refuses.
#[tokio::test]
async fn refusal_reaches_client_that_is_still_sending() {
    let (platform, client, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let files = format!("/v1/capsules/{id}/files");
    let at = dir.path().display().to_string();
    let nobody = platform.client_with("wrn_0000");
    let large = vec![7_u8; 16 << 20];
    for _ in 0..20 {
        let put = client.request(Method::PUT, &files).query(&[("path", &at)]);
        client.send(put.body(large.clone())).await.refuses(400, "invalid_request", "path");
        let put = nobody.request(Method::PUT, &files).query(&[("path", &at)]);
        nobody.send(put.body(large.clone())).await.refuses(401, "unauthorized", "X-API-Key");
    }
    platform.finish();
}

#[tokio::test]
async fn invalid_form_names_error_and_writes_nothing() {
    let (platform, client, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("f").display().to_string();
    let write = format!("/v1/capsules/{id}/files/write");
    let part = || Part::bytes(b"x".to_vec());
    for (form, told) in [
        (Form::new().part("file", part()).text("path", at.clone()), "path must come before"),
        (Form::new().text("path", at.clone()), "file is required"),
        (Form::new().text("path", at.clone()).text("mode", "1"), "the parts `path` and `file`"),
        (Form::new().text("path", "").part("file", part()), "path must be 1 to 4095"),
    ] {
        let request = client.request(Method::POST, &write).multipart(form);
        client.send(request).await.refuses(400, "invalid_request", told);
    }
    let plain = client.request(Method::POST, &write).body("x");
    client.send(plain).await.refuses(400, "invalid_request", "body is invalid");
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    platform.finish();
}

#[tokio::test]
async fn truncated_upload_leaves_no_file_and_chunked_upload_is_written() {
    let (platform, client, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let files = format!("/v1/capsules/{id}/files");
    let at = dir.path().join("broken").display().to_string();
    let chunks = futures::stream::iter([Ok("some"), Err(std::io::Error::other("gone"))]);
    let body = reqwest::Body::wrap_stream(chunks);
    let put = client.request(Method::PUT, &files).query(&[("path", &at)]).body(body);
    assert!(put.send().await.is_err(), "the request was answered");
    tests::eventually("the half of it is removed", || async {
        (!std::path::Path::new(&at).exists()).then_some(())
    })
    .await;
    let at = dir.path().join("chunked").display().to_string();
    let piece = vec![7_u8; 100_000];
    let chunks =
        futures::stream::iter((0..50).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
    let body = reqwest::Body::wrap_stream(chunks);
    let put = client.request(Method::PUT, &files).query(&[("path", &at)]).body(body);
    client.send(put).await.expect(204);
    assert_eq!(std::fs::metadata(&at).unwrap().len(), 5_000_000);
    // A reader that leaves holds nothing up.
    let get = client.request(Method::GET, &files).query(&[("path", &at)]);
    let mut stream = get.send().await.unwrap().bytes_stream();
    assert!(stream.next().await.is_some());
    drop(stream);
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    platform.finish();
}

#[tokio::test]
async fn paths_are_created_shown_listed_moved_and_removed() {
    let (platform, client, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let files = |what: &str| format!("/v1/capsules/{id}/files/{what}");
    let made = client.post(&files("mkdir"), &json!({ "path": at("a/b") })).await.expect(201);
    assert_eq!(made["entry"]["type"], "directory");
    let again = client.post(&files("mkdir"), &json!({ "path": at("a/b") })).await;
    again.refuses(409, "conflict", "already exists");
    std::fs::write(at("a/f"), "four").unwrap();
    std::os::unix::fs::symlink(at("a/f"), at("l")).unwrap();
    let stat = client.post(&files("stat"), &json!({ "path": at("a/f") })).await.expect(200);
    let entry = &stat["entry"];
    assert_eq!((&entry["size"], &entry["type"]), (&json!(4), &json!("file")));
    assert_eq!(entry["permissions"], "-rw-r--r--");
    let list =
        client.post(&files("list"), &json!({ "path": at(""), "depth": 5 })).await.expect(200);
    let names: Vec<&str> =
        list["entries"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b", "f", "l"]);
    assert_eq!(list["entries"][3]["symlink_target"], at("a/f"));
    let flat = client.post(&files("list"), &json!({ "path": at("") })).await.expect(200);
    assert_eq!(flat["entries"].as_array().unwrap().len(), 2);
    let body = json!({ "source": at("a"), "destination": at("new/place") });
    client.post(&files("move"), &body).await.expect(200);
    assert!(std::fs::exists(at("new/place/f")).unwrap());
    client.post(&files("remove"), &json!({ "path": at("new") })).await.expect(204);
    client.post(&files("remove"), &json!({ "path": at("new") })).await.expect(204);
    assert!(!std::fs::exists(at("new")).unwrap());
    platform.finish();
}

/// Runs `tar`, which must succeed. Returns its output.
fn tar(args: &[&str]) -> Vec<u8> {
    let out = std::process::Command::new("tar").args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {out:?}");
    out.stdout
}

#[tokio::test]
async fn archives_are_exchanged_with_tar_both_ways() {
    let (platform, client, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let archive = format!("/v1/capsules/{id}/files/archive");
    let name = "n".repeat(150);
    std::fs::create_dir_all(at("src/deep")).unwrap();
    std::fs::write(at(&format!("src/deep/{name}")), vec![3; 1_000_000]).unwrap();
    std::fs::hard_link(at(&format!("src/deep/{name}")), at("src/again")).unwrap();
    std::os::unix::fs::symlink("deep", at("src/link")).unwrap();
    for format in ["--format=gnu", "--format=posix", "--format=ustar"] {
        if format == "--format=ustar" {
            std::fs::rename(at(&format!("src/deep/{name}")), at("src/deep/short")).unwrap();
        }
        let target = at(&format!("made{format}/below"));
        let body = tar(&["-C", &at("src"), "-c", format, "."]);
        let put = client.request(Method::PUT, &archive).query(&[("path", &target)]).body(body);
        client.send(put).await.expect(204);
        let args = ["-r", &at("src"), &target];
        let same = std::process::Command::new("diff").args(args).output().unwrap();
        assert!(same.status.success(), "{format}: {same:?}");
        let get = client.request(Method::GET, &archive).query(&[("path", &target)]);
        let answer = get.send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/x-tar");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        std::fs::write(at("got.tar"), answer.bytes().await.unwrap()).unwrap();
        let back = at(&format!("back{format}"));
        std::fs::create_dir(&back).unwrap();
        tar(&["-C", &back, "-x", "-f", &at("got.tar")]);
        let args = ["-r", &at("src"), &format!("{back}/below")];
        let same = std::process::Command::new("diff").args(args).output().unwrap();
        assert!(same.status.success(), "{format}: {same:?}");
    }
    platform.finish();
}

#[tokio::test]
async fn invalid_or_missing_archive_is_an_error() {
    let (platform, client, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let archive = format!("/v1/capsules/{id}/files/archive");
    let get =
        |path: String| client.send(client.request(Method::GET, &archive).query(&[("path", &path)]));
    get(at("none")).await.refuses(404, "not_found", "file");
    std::fs::create_dir(at("src")).unwrap();
    std::fs::write(at("src/f"), "evil").unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, at("src/pipe"), fifo, mode, 0).unwrap();
    get(at("src/pipe")).await.refuses(400, "invalid_request", "neither a file nor a folder");
    let put = |body: Vec<u8>| {
        let put = client.request(Method::PUT, &archive).query(&[("path", &at("target"))]);
        client.send(put.body(body))
    };
    put(b"nonsense".repeat(100)).await.refuses(400, "invalid_request", "not a tar");
    put(vec![]).await.refuses(400, "invalid_request", "ended early");
    let out = ["-P", "--transform=s,^f,../out,"];
    let outside = tar(&[&["-C", &at("src"), "-c"], &out[..], &["f"]].concat());
    put(outside).await.refuses(400, "invalid_request", "leads out");
    assert!(!std::fs::exists(at("out")).unwrap());
    put(tar(&["-C", &at("src"), "-c", "pipe"])).await.refuses(400, "invalid_request", "FIFO");
    let whole = tar(&["-C", &at("src"), "-c", "f"]);
    put(whole[..514].to_vec()).await.refuses(400, "invalid_request", "ended early");
    assert!(std::fs::read_dir(at("target")).unwrap().next().is_none(), "something was left");
    put(whole).await.expect(204);
    assert_eq!(std::fs::read(at("target/f")).unwrap(), b"evil");
    platform.finish();
}
