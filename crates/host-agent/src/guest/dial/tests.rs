//! A fake envd whose answers for the loopback include those of a hostile guest.

use super::*;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Returns a dialer to a guest whose envd answers each request with `answer`, and the requests'
/// heads.
async fn guest(answer: &'static str) -> (Dialer, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let tasks = Tasks::default();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tell.send(head(&mut stream).await);
            let _ = stream.write_all(answer.as_bytes()).await;
            // The rest of the connection is an echo.
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    let dialer = Dialer::new(Route::Loopback(at), Arc::from("secret"), &Signal::default(), tasks);
    (dialer, told)
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}

/// Returns a port of this machine at which no server listens.
async fn closed() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap().port()
}

const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
    upgrade: tcp\r\n\r\n";

#[tokio::test]
async fn loopback_is_dialled_with_the_newest_token() {
    let (dialer, mut told) = guest(SWITCHED).await;
    let port = closed().await;
    let later = dialer.renewed(&Signal::default(), Tasks::default());
    dialer.set_token("newer".into());
    for (dialer, token) in [(&dialer, "newer"), (&later, "secret")] {
        let _stream = dialer.dial(&port).await.unwrap();
        let head = told.recv().await.unwrap();
        assert!(head.contains(&format!("x-access-token: {token}\r\n")), "{head}");
    }
}

#[tokio::test]
async fn refused_port_is_dialled_through_envd_with_capsule_token() {
    let (dialer, mut told) = guest(SWITCHED).await;
    let port = closed().await;
    let mut stream = dialer.dial(&port).await.unwrap();
    let head = told.recv().await.unwrap();
    assert!(head.starts_with(&format!("post /ports/connect?port={port} http/1.1\r\n")), "{head}");
    for line in ["x-access-token: secret", "connection: upgrade", "upgrade: tcp"] {
        assert!(head.lines().any(|is| is == line), "{line} is not in {head}");
    }
    stream.write_all(b"there and back").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert_eq!(back, b"there and back");
}

#[tokio::test]
async fn bytes_after_upgrade_response_are_read_first() {
    let (dialer, _told) = guest(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: tcp\r\n\r\n220 ready",
    )
    .await;
    let mut stream = dialer.dial(&closed().await).await.unwrap();
    stream.write_all(b"!").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"220 ready!");
}

#[tokio::test]
async fn refusal_by_current_or_older_envd_is_connection_refused() {
    for (answer, wanted) in [
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", io::ErrorKind::ConnectionRefused),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", io::ErrorKind::ConnectionRefused),
        ("HTTP/1.1 504 Late\r\ncontent-length: 0\r\n\r\n", io::ErrorKind::TimedOut),
        ("nonsense\r\n\r\n", io::ErrorKind::Other),
    ] {
        let (dialer, _told) = guest(answer).await;
        let error = dialer.dial(&closed().await).await.err().unwrap();
        assert_eq!(error.kind(), wanted, "{answer}: {error}");
    }
}

#[tokio::test]
async fn open_port_and_envd_port_are_dialled_directly() {
    let (dialer, mut told) = guest(SWITCHED).await;
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let (stream, _) = tokio::join!(dialer.dial(&port), server.accept());
    stream.unwrap();
    let gone = SocketAddr::from((Ipv4Addr::LOCALHOST, closed().await));
    let (cut, tasks) = (Signal::default(), Tasks::default());
    let dead = Dialer::new(Route::Loopback(gone), Arc::from(""), &cut, tasks);
    let error = dead.dial(&protocol::ENVD_PORT).await.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert!(told.try_recv().is_err(), "envd was asked");
}
