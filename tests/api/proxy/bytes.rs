//! Transfer of bytes: every byte unchanged, as soon as it was sent, both ways.

use super::{answer, head};
use crate::capsule;
use futures::StreamExt;
use reqwest::Method;
use sha2::{Digest, Sha256};
use std::sync::mpsc;
use std::time::Duration;
use tests::{Upstream, Wire, eventually};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn path_reaches_guest_byte_for_byte() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::echo();
    let mut wire = Wire::to(platform.url());
    for path in [
        "/",
        "/a%2Fb/%2e%2e/../c//",
        "/%E2%82%AC?x=%20&y=a+b&&=?",
        "/?",
        "/;p=1/@:!$&'()*,~",
        "/proxy/x/1/",
        "/v1/capsules",
    ] {
        wire.send(head(&client, &id, guest.port, &format!("GET {path}")) + "\r\n");
        let (status, _, body) = answer(&mut wire);
        let line = String::from_utf8_lossy(&body).lines().next().unwrap().to_owned();
        assert_eq!((status, line), (200, format!("GET {path} HTTP/1.1")));
    }
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn location_and_cookie_headers_of_guest_are_rewritten() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::start(|mut wire| {
        while let Some(head) = wire.head() {
            let to = head.split(' ').nth(1).unwrap().trim_start_matches('/');
            let headers = format!(
                "Location: {to}\r\nSet-Cookie: a=1; Domain=.localhost; Path=/\r\n\
                 Set-Cookie: wrenn-preview=forged\r\nSet-Cookie: b=2; Secure\r\n"
            );
            wire.answer("302 Found", &headers, b"");
        }
    });
    let port = guest.port;
    let mut wire = Wire::to(platform.url());
    for (said, wanted) in [
        ("x/y?z", "x/y?z".to_owned()),
        (&format!("http://localhost:{port}/in"), format!("http://{port}-{id}.localhost/in")),
        ("http://127.0.0.1:81/other", format!("http://81-{id}.localhost/other")),
        ("https://example.com/", "https://example.com/".to_owned()),
    ] {
        wire.send(head(&client, &id, port, &format!("GET /{said}")) + "\r\n");
        let (status, head, _) = answer(&mut wire);
        assert_eq!(status, 302);
        assert!(head.contains(&format!("location: {wanted}\r\n")), "{wanted} is not in {head}");
        assert!(head.contains("set-cookie: a=1; Path=/\r\nset-cookie: b=2; Secure\r\n"), "{head}");
        assert!(!head.contains("forged"), "{head}");
    }
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn server_sent_events_pass_unbuffered_and_disconnect_reaches_guest() {
    let (platform, client, id) = capsule().await;
    let (tell, told) = mpsc::channel();
    let (left, leaving) = mpsc::channel();
    let (told, left) = (std::sync::Mutex::new(told), std::sync::Mutex::new(left));
    let guest = Upstream::start(move |mut wire| {
        wire.head();
        wire.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n");
        for event in told.lock().unwrap().iter() {
            wire.send(event);
        }
        // The program sends nothing more, so only a read shows the client's end.
        wire.rest();
        left.lock().unwrap().send(()).unwrap();
    });
    let mut events =
        client.to_port(Method::GET, &id, guest.port, "/").send().await.unwrap().bytes_stream();
    for event in ["data: one\n\n", "data: two\n\n", ": ping\n\n"] {
        tell.send(event).unwrap();
        let next = tokio::time::timeout(PATIENCE, events.next()).await.expect("not as it came");
        assert_eq!(next.unwrap().unwrap(), event);
    }
    drop(tell);
    drop(events);
    leaving.recv_timeout(PATIENCE).expect("the guest did not see its client leave");
    // A client that leaves before the answer leaves no request behind either.
    let (gone, going) = mpsc::channel();
    let gone = std::sync::Mutex::new(gone);
    let silent = Upstream::start(move |mut wire| {
        wire.head();
        wire.rest();
        gone.lock().unwrap().send(()).unwrap();
    });
    let mut wire = Wire::to(platform.url());
    wire.send(head(&client, &id, silent.port, "GET /") + "\r\n");
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(wire);
    going.recv_timeout(PATIENCE).expect("the guest did not see its client leave");
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_bodies_are_streamed_whole_both_ways() {
    const CHUNK: usize = 1 << 20;
    const CHUNKS: usize = 256;
    let (platform, client, id) = capsule().await;
    let guest = Upstream::start(|mut wire| {
        let head = wire.head().unwrap();
        // A chunked body is read by the sizes that stand before its chunks.
        assert!(head.contains("Transfer-Encoding: chunked\r\n"), "{head}");
        let mut digest = Sha256::new();
        loop {
            let mut size = Vec::new();
            while !size.ends_with(b"\r\n") {
                size.extend(wire.take(1));
            }
            let size = std::str::from_utf8(&size).unwrap().trim();
            let size = usize::from_str_radix(size, 16).unwrap();
            digest.update(wire.take(size));
            wire.take(2);
            if size == 0 {
                break;
            }
        }
        let length = CHUNKS * CHUNK;
        let digest = types::hex::encode(&digest.finalize());
        wire.send(format!(
            "HTTP/1.1 200 OK\r\nx-sum: {digest}\r\ncontent-length: {length}\r\n\r\n"
        ));
        for number in 0..CHUNKS {
            wire.send(vec![u8::try_from(number % 251).unwrap(); CHUNK]);
        }
    });
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", platform.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
    };
    let before = memory();
    let chunks =
        (0..CHUNKS).map(|n| Ok::<_, std::io::Error>(vec![u8::try_from(n % 249).unwrap(); CHUNK]));
    let body = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
    let ask = client.to_port(Method::POST, &id, guest.port, "/").body(body);
    let answer = ask.send().await.unwrap();
    let mut sent = Sha256::new();
    (0..CHUNKS).for_each(|n| sent.update(vec![u8::try_from(n % 249).unwrap(); CHUNK]));
    let sent = types::hex::encode(&sent.finalize());
    assert_eq!(answer.headers()["x-sum"].to_str().unwrap(), sent);
    let (mut count, mut stream) = (0, answer.bytes_stream());
    while let Some(chunk) = stream.next().await {
        for byte in chunk.unwrap() {
            assert_eq!(usize::from(byte), count / CHUNK % 251);
            count += 1;
        }
    }
    assert_eq!(count, CHUNKS * CHUNK);
    let grown = memory().saturating_sub(before);
    assert!(grown < 64, "{grown} MiB more than before");
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_continue_and_bodiless_answers_pass() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::start(|mut wire| {
        while let Some(head) = wire.head() {
            assert!(!head.to_lowercase().contains("expect"), "{head}");
            if head.starts_with("HEAD") {
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 12345\r\n\r\n");
            } else if head.starts_with("PUT") {
                let body = wire.take(5);
                wire.answer("201 Created", "", &body);
            } else if head.starts_with("DELETE") {
                wire.send("HTTP/1.1 204 No Content\r\n\r\n");
            } else {
                assert!(head.contains("\nTe: trailers\r\n"), "{head}");
                wire.send(
                    "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n",
                );
                wire.send("3\r\nabc\r\n0\r\nx-sum: 42\r\n\r\n");
            }
        }
    });
    let mut wire = Wire::to(platform.url());
    let ask = |line: &str| head(&client, &id, guest.port, line);
    wire.send(ask("GET /") + "TE: trailers\r\nConnection: TE\r\n\r\n");
    let got = wire.head().unwrap();
    assert!(got.contains("trailer: x-sum\r\n"), "{got}");
    let body = String::from_utf8(wire.take(b"3\r\nabc\r\n0\r\nx-sum: 42\r\n\r\n".len())).unwrap();
    assert!(body.ends_with("0\r\nx-sum: 42\r\n\r\n"), "{body}");
    wire.send(ask("HEAD /") + "\r\n");
    assert!(wire.head().unwrap().contains("content-length: 12345\r\n"));
    wire.send(ask("DELETE /") + "\r\n");
    assert!(wire.head().unwrap().starts_with("HTTP/1.1 204"));
    wire.send(ask("PUT /") + "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(wire.head().unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
    wire.send("hello");
    let (status, _, body) = answer(&mut wire);
    assert_eq!((status, body.as_slice()), (201, &b"hello"[..]));
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn upgraded_connection_passes_both_ways_until_both_sides_close() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::start(|mut wire| {
        let head = wire.head().unwrap();
        assert!(head.contains("Connection: upgrade\r\n") && head.contains("Upgrade: echo\r\n"));
        wire.send(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\nhi",
        );
        // After the client's half-close, the program still sends.
        let heard = wire.rest();
        wire.send(heard);
        wire.finish();
    });
    for round in 0..3 {
        let mut wire = Wire::to(platform.url());
        wire.send(
            head(&client, &id, guest.port, "GET /")
                + "Connection: Upgrade\r\nUpgrade: echo\r\n\r\nearly ",
        );
        let head = wire.head().unwrap();
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: echo\r\n"), "{head}");
        assert_eq!(wire.take(2), b"hi");
        let body = vec![b'x'; 300_000 * round];
        wire.send(&body);
        wire.finish();
        let back = wire.rest();
        assert_eq!(back.strip_prefix(b"early ").map(<[u8]>::len), Some(body.len()));
    }
    // A declined upgrade is an ordinary answer, and its connection stays usable.
    let declining = Upstream::echo();
    let mut wire = Wire::to(platform.url());
    for _ in 0..2 {
        wire.send(
            head(&client, &id, declining.port, "GET /")
                + "Connection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        );
        assert_eq!(answer(&mut wire).0, 200);
    }
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_reused_and_stale_one_causes_no_error() {
    let (platform, client, id) = capsule().await;
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    // The program closes each connection after its third answer, without notice.
    let guest = Upstream::start(move |mut wire| {
        let mut answered = 0;
        while answered < 3 && wire.head().is_some() {
            wire.answer("200 OK", "", b"x");
            answered += 1;
        }
        drop(wire);
        tell.lock().unwrap().send(answered).unwrap();
    });
    for number in 1..=30 {
        // The whole body is read, since a client that leaves early closes the connection.
        let answer = client.send(client.to_port(Method::GET, &id, guest.port, "/")).await;
        assert_eq!(answer.expect(200), "x");
        if number % 3 == 0 {
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), 3);
        }
    }
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_capsule_limit_are_refused() {
    let platform =
        tests::Platform::start(tests::Driver::Fake, &[("WRENN_CAPSULE_CONNECTIONS", "2")]).await;
    let client = platform.client();
    let id = client.create(&serde_json::json!({})).await;
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let silent = Upstream::start(move |mut wire| {
        wire.head();
        tell.lock().unwrap().send(()).unwrap();
        wire.rest();
    });
    let hold = || {
        let mut wire = Wire::to(platform.url());
        wire.send(head(&client, &id, silent.port, "GET /") + "\r\n");
        wire
    };
    let held = [hold(), hold()];
    for _ in &held {
        told.recv_timeout(PATIENCE).unwrap();
    }
    let answer = client.send(client.to_port(Method::GET, &id, silent.port, "/")).await;
    answer.refuses(429, "too_many_connections", "concurrent requests");
    drop(held);
    let guest = Upstream::echo();
    eventually("there is room again", || async {
        let answer = client.to_port(Method::GET, &id, guest.port, "/").send().await.unwrap();
        (answer.status() == 200).then_some(())
    })
    .await;
    platform.finish();
}
