//! A port of a real guest, reached the way users reach it. A browser-like client speaks TLS and
//! HTTP/2 to Caddy with the deployed Caddyfile. Behind it come the control plane, the host agent
//! and a Python server in the guest.

use crate::small;
use futures::{SinkExt, StreamExt};
use reqwest::{Method, StatusCode};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;
use tests::{Caddy, Client, Driver, Platform, eventually, free_port};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{Connector, client_async_tls_with_config};

const DOMAIN: &str = "capsules.test";

/// Starts a Python server in a capsule, and waits until requests by its host name reach the server.
/// The process has address and port as its tag, as `127.0.0.1-8080`.
pub(crate) async fn serve(client: &Client, id: &str, address: &str, port: u16) {
    let put = client.request(Method::PUT, &format!("/v1/capsules/{id}/files?path=/tmp/server.py"));
    client.send(put.body(include_str!("server.py"))).await.expect(204);
    let (text, tag) = (port.to_string(), format!("{address}-{port}"));
    let args = ["/tmp/server.py", text.as_str(), address];
    let body = json!({ "cmd": "python3", "args": args, "background": true, "tag": tag });
    client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(202);
    eventually("the server listens", || async {
        let ask = client.request(Method::GET, "/").header("host", format!("{port}-{id}.{DOMAIN}"));
        (client.send(ask).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_reaches_guest_server_through_caddy() {
    let port = free_port();
    let public = format!("https://{DOMAIN}:{port}");
    let vars = [("WRENN_DOMAINS", DOMAIN), ("WRENN_PUBLIC_URL", &public)];
    let platform = Platform::start(Driver::Guests, &vars).await;
    let client = platform.client();
    let id = client.create(&small()).await;
    serve(&client, &id, "0.0.0.0", 8080).await;
    let caddy = Caddy::start(DOMAIN, port, platform.url());
    let (name, closed) = (format!("8080-{id}.{DOMAIN}"), format!("81-{id}.{DOMAIN}"));
    let browser = caddy.client(&[&name, &closed, DOMAIN]);
    let at = |path: &str| format!("https://{name}:{port}{path}");

    // The domain itself serves the API. The port's name admits nobody yet.
    let health = browser.get(format!("{public}/health")).send().await.unwrap();
    assert_eq!((health.status(), health.version()), (StatusCode::OK, reqwest::Version::HTTP_2));
    let page = browser.get(at("/")).header("accept", "text/html").send().await.unwrap();
    assert_eq!(page.status(), StatusCode::UNAUTHORIZED);
    assert!(page.text().await.unwrap().contains("<h1>Unauthorized</h1>"));

    // A link that the owner made lets the browser in.
    let link = platform.run(&["capsule", "url", &id, "8080", "--expires", "1h"]);
    let link = String::from_utf8(link.stdout).unwrap();
    assert!(link.starts_with(&at("/?wrenn-preview=")), "{link}");
    let entered = browser.get(link.trim()).send().await.unwrap();
    assert_eq!(entered.status(), StatusCode::SEE_OTHER);
    assert_eq!(entered.headers()["location"], "/");
    let cookie = entered.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with("__Host-wrenn-preview=") && cookie.contains("Secure"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let get = |path: &str| browser.get(at(path)).header("cookie", &cookie);
    let page = get("/a%20b?c").send().await.unwrap();
    assert_eq!(page.version(), reqwest::Version::HTTP_2);
    let page = page.text().await.unwrap();
    for seen in ["<h1>/a%20b?c</h1>", &format!("Host: {name}:{port}"), "X-Forwarded-Proto: https"] {
        assert!(page.to_lowercase().contains(&seen.to_lowercase()), "{seen} is not in {page}");
    }
    assert!(!page.contains("wrenn-preview") && !page.to_lowercase().contains("cookie"), "{page}");
    let moved = get("/move").send().await.unwrap();
    assert_eq!(moved.headers()["location"], at("/moved"));

    // This part sends a large body up, reads events, and asks a port without a server.
    let body: Vec<u8> = (0..3_000_000u32).map(|i| u8::try_from(i % 253).unwrap()).collect();
    let sum = types::hex::encode(&Sha256::digest(&body));
    let post = browser.post(at("/")).header("cookie", &cookie).body(body).send().await.unwrap();
    assert_eq!(post.text().await.unwrap(), sum);
    let events = get("/events").send().await.unwrap();
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    assert_eq!(events.text().await.unwrap(), "data: 0\n\ndata: 1\n\ndata: 2\n\n");
    let key = client.key();
    let owner = browser.get(format!("https://{closed}:{port}/")).header("x-api-key", key);
    let answer = owner.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    assert!(answer.text().await.unwrap().contains("port is not open"));

    websocket(&caddy, &name, port, &cookie).await;
    forwarded(&platform, &id, 8080);

    // A client that is connected when the capsule ends sees the connection end.
    let mut socket = open(&caddy, &name, port, &cookie).await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    let ended = tokio::time::timeout(Duration::from_secs(10), socket.next()).await;
    assert!(!matches!(ended.expect("nobody was told"), Some(Ok(Message::Text(_)))));
    let gone = get("/").send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::UNAUTHORIZED);
    drop(caddy);
    platform.finish();
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<TcpStream>>;

async fn open(caddy: &Caddy, name: &str, port: u16, cookie: &str) -> Socket {
    let mut request = format!("wss://{name}:{port}/ws").into_client_request().unwrap();
    request.headers_mut().insert("cookie", cookie.parse().unwrap());
    let stream = TcpStream::connect(caddy.address).await.unwrap();
    let tls = Some(Connector::Rustls(caddy.tls()));
    client_async_tls_with_config(request, stream, None, tls).await.unwrap().0
}

/// Checks that texts and bytes, small and large, and a closing message are echoed.
async fn websocket(caddy: &Caddy, name: &str, port: u16, cookie: &str) {
    let mut socket = open(caddy, name, port, cookie).await;
    let large: Vec<u8> = (0..200_000u32).map(|i| u8::try_from(i % 241).unwrap()).collect();
    for message in
        [Message::text("hello ü"), Message::binary(vec![0, 1, 255]), Message::binary(large)]
    {
        socket.send(message.clone()).await.unwrap();
        let back = tokio::time::timeout(Duration::from_secs(30), socket.next()).await.unwrap();
        assert_eq!(back.unwrap().unwrap(), message);
    }
    socket.close(None).await.unwrap();
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
}

/// Checks a forwarded port of this machine, which carries any protocol to the guest's port.
pub(crate) fn forwarded(platform: &Platform, id: &str, port: u16) {
    let mut command = platform.wrenn();
    command.args(["capsule", "forward", id, &port.to_string(), "0"]);
    let mut forward = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut address = String::new();
    let out = forward.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut address).unwrap();
    for path in ["/one", "/two"] {
        let mut stream = std::net::TcpStream::connect(address.trim()).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(&format!("<h1>{path}</h1>")), "{answer}");
    }
    tests::signal(i32::try_from(forward.id()).unwrap(), rustix::process::Signal::TERM);
    assert!(forward.wait().unwrap().success());
}
