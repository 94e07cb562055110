//! Uploads and downloads: ranges, refusals, forms and compression.

use super::download::{Pieces, Range, download, range};
use super::upload::{Contents, is_packed, upload};
use super::*;
use crate::auth::Signed;
use axum::body::{Body, Bytes};
use axum::extract::{Query, Request};
use futures::StreamExt;
use http::header;

#[test]
fn ranges_follow_rfc_9110() {
    let of = |value: &str, length| {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, value.parse().unwrap());
        range(&headers, length)
    };
    assert_eq!(of("bytes=0-4", 10), Range::Part(0, 4));
    assert_eq!(of("bytes=5-", 10), Range::Part(5, 9));
    assert_eq!(of("bytes=-3", 10), Range::Part(7, 9));
    assert_eq!(of("bytes=-30", 10), Range::Part(0, 9));
    assert_eq!(of("bytes=8-99", 10), Range::Part(8, 9));
    assert_eq!(of("bytes=10-", 10), Range::Unsatisfiable);
    assert_eq!(of("bytes=-0", 10), Range::Unsatisfiable);
    assert_eq!(of("bytes=0-", 0), Range::Unsatisfiable);
    for whole in ["bytes=4-2", "bytes=0-1,3-4", "items=0-1", "bytes=x"] {
        assert_eq!(of(whole, 10), Range::Whole, "{whole}");
    }
}

/// Returns the status and the message of a refusal, as callers get them.
async fn refusal(error: Error) -> (u16, String) {
    let answer = error.into_response();
    let status = answer.status().as_u16();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["code"], status);
    (status, body["message"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn download_of_non_file_is_refused_with_its_reason() {
    let guest = Arc::new(Guest::new(None, 0));
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RWXU).unwrap();
    std::fs::write(at("file"), "").unwrap();
    std::os::unix::fs::symlink("loop", at("loop")).unwrap();
    for (path, status, reason) in [
        (at("pipe"), 400, "path is not a regular file"),
        (at(""), 400, "path is not a regular file"),
        ("/dev/null".to_owned(), 400, "path is not a regular file"),
        (at("file/below"), 400, "Not a directory"),
        (at("loop"), 400, "symbolic links"),
        (at("none"), 404, "No such file or directory"),
        (String::new(), 400, "path is required"),
    ] {
        let query = Ok(Query(Signed { path: path.clone(), ..Default::default() }));
        let answer = download(State(Arc::clone(&guest)), query, HeaderMap::new()).await;
        let (told, message) = refusal(answer.unwrap_err()).await;
        assert_eq!(told, status, "{path}: {message}");
        assert!(message.contains(reason), "{path}: {message}");
    }
    let query = Query::try_from_uri(&"/files?signature_expiration=x".parse().unwrap());
    let answer = download(State(guest), query, HeaderMap::new()).await;
    assert_eq!(refusal(answer.unwrap_err()).await.0, 400);
}

#[test]
fn body_in_an_unknown_encoding_is_refused() {
    let packed = |value: &'static str| {
        let value = http::HeaderValue::from_static(value);
        is_packed(&HeaderMap::from_iter([(header::CONTENT_ENCODING, value)]))
    };
    assert!(packed("gzip").unwrap() && !packed("identity").unwrap());
    assert!(!is_packed(&HeaderMap::new()).unwrap());
    assert!(packed("br").unwrap_err().message.contains("Content-Encoding"));
}

/// Uploads a form whose bytes are all there at once.
async fn send_form(form: Vec<u8>) -> Result<Json<Vec<Stored>>> {
    let chunks: Vec<Bytes> = form.chunks(64 * 1024).map(Bytes::copy_from_slice).collect();
    let chunks = futures::stream::iter(chunks).map(Ok::<_, io::Error>);
    let request = Request::builder()
        .header(header::CONTENT_TYPE, "multipart/form-data; boundary=b")
        .body(Body::from_stream(chunks))
        .unwrap();
    let guest = Arc::new(Guest::new(None, 0));
    upload(State(guest), Ok(Query(Signed::default())), request).await
}

#[tokio::test]
async fn oversized_form_is_refused_before_it_is_buffered_whole() {
    for begin in ["no part", "--b\r\nContent-Disposition: "] {
        let form = begin.to_owned() + &"x".repeat(4 << 20);
        let refused = send_form(form.into_bytes()).await.err().unwrap();
        assert!(refused.message.contains("1 MiB"), "{begin}: {refused}");
    }
}

#[tokio::test]
async fn large_form_is_streamed_and_other_parts_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    // All parts together exceed the parser's bound, and stay below the default limit of a body.
    let (path, contents) = (dir.path().join("f"), "c".repeat(900 << 10));
    let part = |disposition: &str| {
        format!("--b\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{contents}\r\n")
    };
    let file = part(&format!("name=\"file\"; filename=\"{}\"", path.display()));
    let form = part("name=\"other\"") + &file + "--b--\r\n";
    let Json(stored) = send_form(form.into_bytes()).await.unwrap();
    assert_eq!(stored.len(), 1);
    assert!(std::fs::read_to_string(path).unwrap() == contents);
}

fn contents(file: &Path, packed: bool) -> Vec<u8> {
    let mut pieces = Pieces::new(Source::open(file).unwrap(), packed);
    let mut all = Vec::new();
    loop {
        let piece = pieces.read().unwrap();
        if piece.is_empty() {
            assert!(pieces.read().unwrap().is_empty());
            return all;
        }
        all.extend(piece);
    }
}

#[tokio::test]
async fn gzip_body_is_decompressed_to_the_original() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    let plain: Vec<u8> = (0..2_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 4]).collect();
    std::fs::write(&file, &plain).unwrap();
    assert!(contents(&file, false) == plain);
    let packed = contents(&file, true);
    for size in [1_000, packed.len()] {
        let chunks = packed.chunks(size).map(|chunk| Ok(Bytes::copy_from_slice(chunk)));
        let body = futures::stream::iter(chunks.collect::<Vec<io::Result<Bytes>>>());
        let mut body = Contents::new(body, true);
        let mut unpacked = Vec::new();
        loop {
            let piece = body.gather().await.unwrap();
            if piece.is_empty() {
                break;
            }
            unpacked.extend(piece);
        }
        assert!(unpacked == plain);
    }
}
