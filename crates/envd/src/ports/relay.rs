//! Joins a connection of the host with a connection of a program, byte for byte. Each side may end
//! by itself. An idle relay holds no buffer.

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// Bytes per read.
const CHUNK: usize = 32 * 1024;
/// Least time without traffic after which a relay may end. The host ends its side after this time.
const SILENCE: Duration = Duration::from_secs(600);

/// Joins the host's connection, which has switched protocols, with a program's. Returns when both
/// sides have ended, a side has failed, or nothing has moved for long.
pub(crate) async fn relay(host: Upgraded, program: TcpStream) {
    // `Server` accepts connections of this type alone.
    let Ok(parts) = host.downcast::<TokioIo<TcpStream>>() else { return };
    join(parts.io.into_inner(), program, &parts.read_buf).await;
}

/// Joins two connections. `early` holds bytes that were already read from the host.
async fn join(mut host: TcpStream, mut program: TcpStream, early: &[u8]) {
    if pass_both(&mut host, &mut program, early).await.is_err() {
        // An orderly end would claim that all bytes have arrived.
        reset(&host);
        reset(&program);
    }
}

/// Makes a connection end with a reset when it is dropped.
pub(super) fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

async fn pass_both(host: &mut TcpStream, program: &mut TcpStream, early: &[u8]) -> io::Result<()> {
    program.write_all(early).await?;
    let moved = AtomicBool::new(false);
    let (from_host, to_host) = host.split();
    let (from_program, to_program) = program.split();
    let there = pass(from_host, to_program, &moved);
    let back = pass(from_program, to_host, &moved);
    let both = async { tokio::try_join!(there, back) };
    tokio::select! {
        passed = both => passed.map(|_| ()),
        () = silence(&moved) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Passes bytes in one direction until their end, and passes the end on.
async fn pass(from: ReadHalf<'_>, mut to: WriteHalf<'_>, moved: &AtomicBool) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.try_read(&mut buffer) {
                Ok(0) => return to.shutdown().await,
                Ok(count) => {
                    moved.store(true, Ordering::Relaxed);
                    to.write_all(&buffer[..count]).await?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Completes when nothing has moved for [`SILENCE`], after at most twice that time.
async fn silence(moved: &AtomicBool) {
    loop {
        tokio::time::sleep(SILENCE).await;
        if !moved.swap(false, Ordering::Relaxed) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    /// Returns both ends of a connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    /// Runs a relay and returns its far ends: the host and the program.
    async fn running(early: &'static [u8]) -> (TcpStream, TcpStream) {
        let ((host, near), (far, program)) = (pair().await, pair().await);
        tokio::spawn(join(near, far, early));
        (host, program)
    }

    #[tokio::test]
    async fn relay_passes_all_bytes_and_half_closes_each_side() {
        let (mut host, mut program) = running(b"early ").await;
        let sent: Vec<u8> = (0..3_000_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let copy = sent.clone();
        let writing = tokio::spawn(async move {
            host.write_all(&copy).await.unwrap();
            host.shutdown().await.unwrap();
            host
        });
        let mut got = Vec::new();
        program.read_to_end(&mut got).await.unwrap();
        assert!(got.starts_with(b"early ") && got[6..] == sent, "{} bytes came", got.len());
        // The way back stays open after the end of the way there.
        program.write_all(b"and back").await.unwrap();
        drop(program);
        let mut back = Vec::new();
        writing.await.unwrap().read_to_end(&mut back).await.unwrap();
        assert_eq!(back, b"and back");
    }

    #[tokio::test]
    async fn program_reset_is_relayed_to_the_host() {
        let (mut host, mut program) = running(b"").await;
        host.write_all(b"x").await.unwrap();
        program.read_exact(&mut [0]).await.unwrap();
        reset(&program);
        drop(program);
        let error = host.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
