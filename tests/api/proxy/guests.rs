//! Guests that answer wrongly. Each case gets its own error, and the next request works.

use super::head;
use crate::capsule;
use reqwest::Method;
use std::net::TcpListener;
use std::time::Duration;
use tests::{Client, Upstream, Wire, eventually};

/// Sends a request to a port of a capsule.
async fn ask(client: &Client, id: &str, port: u16) -> tests::Answer {
    client.send(client.to_port(Method::GET, id, port, "/")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_port_error_suits_api_sdk_and_browser() {
    let (platform, client, id) = capsule().await;
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let says = format!("nothing listens on its port {free}");
    ask(&client, &id, free).await.refuses(502, "port_closed", &says);
    ask(&client, &id, free).await.refuses(502, "port_closed", "port is not open");
    // E2B's SDKs get their own form.
    let sdk = client.to_port(Method::GET, &id, free, "/").header("e2b-sandbox-id", &id);
    let answer = client.send(sdk).await;
    assert_eq!(answer.status, 502);
    let wanted = serde_json::json!({ "sandboxId": id, "port": free, "code": 502,
        "message": "The sandbox is running but port is not open" });
    assert_eq!(answer.body, wanted);
    // Browsers get a page.
    let page = client.to_port(Method::GET, &id, free, "/<script>").header("accept", "text/html");
    let page = page.send().await.unwrap();
    assert_eq!(
        (page.status().as_u16(), &page.headers()["content-type"]),
        (502, &"text/html; charset=utf-8".parse().unwrap())
    );
    let page = page.text().await.unwrap();
    assert!(
        page.contains(&says) && !page.contains("script") && !page.contains("127.0.0.1"),
        "{page}"
    );
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn request_waits_for_program_about_to_listen() {
    let (platform, client, id) = capsule().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(120));
        let (stream, _) = TcpListener::bind(address).unwrap().accept().unwrap();
        let mut stream = std::io::BufReader::new(stream);
        let mut line = String::new();
        std::io::BufRead::read_line(&mut stream, &mut line).unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate";
        std::io::Write::write_all(stream.get_mut(), answer).unwrap();
    });
    assert_eq!(ask(&client, &id, address.port()).await.expect(200), "late");
    late.join().unwrap();
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_empty_and_truncated_guest_answers_are_distinguished() {
    let (platform, client, id) = capsule().await;
    let saying = |bytes: Vec<u8>| {
        Upstream::start(move |mut wire| {
            wire.head();
            wire.send(&bytes);
        })
    };
    let many: String = (0..150).map(|i| format!("x-{i}: 1\r\n")).collect();
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(100_000));
    for garbage in [
        "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
        "\0\u{1}\u{2}\r\n\r\n".to_owned(),
        "HTTP/1.1 999999 What\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx".to_owned(),
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n".to_owned(),
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
        long,
    ] {
        let guest = saying(garbage.clone().into_bytes());
        let answer = ask(&client, &id, guest.port).await;
        let shown = garbage.chars().take(60).collect::<String>();
        assert_eq!(answer.body["error"]["code"], "bad_answer", "{shown}: {answer:?}");
        answer.refuses(502, "bad_answer", "program in the capsule");
    }
    let closing = saying(Vec::new());
    let answer = ask(&client, &id, closing.port).await;
    answer.refuses(502, "bad_answer", "closed the connection without an answer");
    let half = saying(b"HTTP/1.1 200 OK\r\ncontent-le".to_vec());
    ask(&client, &id, half.port).await.refuses(502, "bad_answer", "closed the connection");
    // A body that breaks off stays cut off for the client, and never looks whole.
    for short in ["content-length: 100\r\n\r\nfew", "transfer-encoding: chunked\r\n\r\n5\r\nab"] {
        let guest = saying(format!("HTTP/1.1 200 OK\r\n{short}").into_bytes());
        let answer = client.to_port(Method::GET, &id, guest.port, "/").send().await.unwrap();
        assert_eq!(answer.status(), 200, "{short}");
        assert!(answer.bytes().await.is_err(), "{short}");
    }
    // An answer with two length headers is read by one of them. The other is not passed on.
    let two = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    let two = saying(two.as_bytes().to_vec());
    let answer = client.to_port(Method::GET, &id, two.port, "/").send().await.unwrap();
    assert!(!answer.headers().contains_key("content-length"), "{answer:?}");
    assert_eq!(answer.text().await.unwrap(), "x");
    // Informational answers do not count as the answer.
    let early = saying(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx".to_vec());
    assert_eq!(ask(&client, &id, early.port).await.expect(200), "x");
    // A guest cannot speak for its host's agent.
    let forged = saying(
        b"HTTP/1.1 200 OK\r\nwrenn-refusal: not-running\r\ncontent-length: 1\r\n\r\nx".to_vec(),
    );
    assert_eq!(ask(&client, &id, forged.port).await.expect(200), "x");
    let guest = Upstream::echo();
    assert_eq!(ask(&client, &id, guest.port).await.status, 200);
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn open_connections_close_when_capsule_is_deleted() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::start(|mut wire| {
        let head = wire.head().unwrap();
        if head.contains("upgrade") {
            wire.send(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
            );
        } else {
            wire.send("HTTP/1.1 200 OK\r\n\r\nsome");
        }
        wire.rest();
    });
    let mut switched = Wire::to(platform.url());
    switched.send(
        head(&client, &id, guest.port, "GET /") + "Connection: upgrade\r\nUpgrade: x\r\n\r\n",
    );
    assert!(switched.head().unwrap().starts_with("HTTP/1.1 101"));
    let mut answer = client.to_port(Method::GET, &id, guest.port, "/").send().await.unwrap();
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "some");
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    let told = tokio::time::timeout(Duration::from_secs(5), answer.chunk()).await;
    assert!(told.expect("nobody was told").is_err(), "as if the answer were whole");
    assert_eq!(switched.rest(), b"");
    // The next request finds nothing.
    eventually("it is gone", || async {
        let answer = ask(&client, &id, guest.port).await;
        (answer.status == 404).then_some(())
    })
    .await;
    platform.finish();
}
