//! Connections of a capsule to ports 80 and 443, which the namespace's rules lead here: let through
//! to where they were going, or refused, by the name that they ask for.

use super::names::{self, HEAD_MAX, Said};
use super::resolver::Resolver;
use super::{Known, Rules};
use crate::network::namespace::{Namespace, NamespaceStream};
use crate::network::plan::Plan;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use types::Egress;

/// Connections of one capsule at once; further ones wait.
const CONNECTIONS: usize = 256;
/// Share of the files that this process may have open, which connections of all may take: each
/// takes two.
const SHARE: u64 = 4;
/// How long the first bytes may take, and how long the other side.
const HEAD: Duration = Duration::from_secs(10);
const DIAL: Duration = Duration::from_secs(10);
/// Port of HTTP, whose refusals are said in words.
const HTTP: u16 = 80;
/// A TLS alert, fatal: access denied (RFC 8446, 6.2).
const DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// What a connection is let through by.
#[derive(Clone)]
pub(super) struct Way {
    pub namespace: Namespace,
    pub plan: Plan,
    pub rules: Arc<Rules>,
    pub resolver: Arc<Resolver>,
}

/// Why a connection is let through.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Its name is allowed, so its address must be one of that name's.
    IfItsOwn,
    Yes,
    No,
}

/// By what it asks for and where it goes. Pure.
fn decide(egress: &Egress, name: Option<&str>, to: Ipv4Addr) -> Verdict {
    match name.and_then(|name| egress.admits_name(name)) {
        Some(true) => Verdict::IfItsOwn,
        Some(false) => Verdict::No,
        None if egress.admits_address(to) => Verdict::Yes,
        None => Verdict::No,
    }
}

/// Places for the connections of all capsules, so that no guest takes every file that this process
/// may open.
fn all() -> &'static Semaphore {
    static ALL: OnceLock<Semaphore> = OnceLock::new();
    ALL.get_or_init(|| {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let places = files.map_or(16_384, |files| files / SHARE / 2);
        Semaphore::new(usize::try_from(places).unwrap_or(16_384).clamp(64, 65_536))
    })
}

pub(super) fn serve(way: Way, listener: TcpListener) {
    let (places, at) = (Arc::new(Semaphore::new(CONNECTIONS)), way.namespace.tasks().clone());
    at.clone().spawn(async move {
        let accepting = async {
            loop {
                // The semaphore is never closed.
                let place = Arc::clone(&places).acquire_owned().await.ok();
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let Ok(shared) = all().try_acquire() else { continue };
                let (way, stop) = (way.clone(), at.clone());
                at.spawn(async move {
                    tokio::select! {
                        passed = way.pass(stream) => {
                            if let Err(error) = passed {
                                tracing::debug!(%error, "a capsule's connection ended");
                            }
                        }
                        () = stop.stopping() => {}
                    }
                    drop((place, shared));
                });
            }
        };
        tokio::select! {
            () = accepting => {}
            () = at.stopping() => {}
        }
    });
}

impl Way {
    async fn pass(&self, guest: TcpStream) -> io::Result<()> {
        guest.set_nodelay(true)?;
        let to = rustix::net::sockopt::ip_original_dst(&guest)?;
        let mut guest = self.namespace.hold(guest)?;
        let (head, name) = head(&mut guest, to.port()).await?;
        let mut known = self.rules.now();
        if !self.admits(&known, name.as_deref(), *to.ip()).await {
            metrics::counter!("wrenn_egress_refused_total").increment(1);
            return refuse(&mut guest, to.port(), name.as_deref()).await;
        }
        let mut outside = self.dial(to).await?;
        outside.write_all(&head).await?;
        let mut copying = std::pin::pin!(tokio::io::copy_bidirectional(&mut guest, &mut outside));
        loop {
            tokio::select! {
                copied = copying.as_mut() => return copied.map(|_| ()),
                () = known.replaced.cancelled() => {
                    known = self.rules.now();
                    if !self.admits(&known, name.as_deref(), *to.ip()).await {
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                }
            }
        }
    }

    async fn admits(&self, known: &Known, name: Option<&str>, to: Ipv4Addr) -> bool {
        if self.plan.is_denied(to) {
            return false;
        }
        match (decide(&known.egress, name, to), name) {
            (Verdict::Yes, _) => true,
            (Verdict::IfItsOwn, Some(name)) => self.resolver.gave(name, to).await,
            (Verdict::IfItsOwn, None) | (Verdict::No, _) => false,
        }
    }

    /// Connects from inside the namespace, whose rules and the host's are then for this too.
    async fn dial(&self, to: SocketAddrV4) -> io::Result<NamespaceStream> {
        tokio::time::timeout(DIAL, self.namespace.connect(SocketAddr::V4(to))).await?
    }
}

/// The first bytes of a connection, and the host that they ask for.
async fn head(guest: &mut NamespaceStream, port: u16) -> io::Result<(Vec<u8>, Option<String>)> {
    let mut bytes = Vec::with_capacity(2048);
    let late = tokio::time::Instant::now() + HEAD;
    loop {
        let said = if port == HTTP { names::of_http(&bytes) } else { names::of_tls(&bytes) };
        match said {
            Said::Host(name) => return Ok((bytes, Some(name))),
            Said::Nothing => return Ok((bytes, None)),
            Said::More if bytes.len() >= HEAD_MAX => return Ok((bytes, None)),
            Said::More => {}
        }
        // One that says nothing at first, or no more, says no name.
        match tokio::time::timeout_at(late, guest.read_buf(&mut bytes)).await {
            Ok(Ok(1..)) => {}
            Ok(Err(error)) => return Err(error),
            Ok(Ok(0)) | Err(_) => return Ok((bytes, None)),
        }
    }
}

/// Says no in the connection's own protocol.
async fn refuse(guest: &mut NamespaceStream, port: u16, name: Option<&str>) -> io::Result<()> {
    if port == HTTP {
        let what = name.unwrap_or("this address");
        let said = format!("This capsule's network rules do not allow {what}.\n");
        let head = "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\nconnection: close";
        let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{said}", said.len());
        guest.write_all(answer.as_bytes()).await?;
    } else if name.is_some() {
        guest.write_all(&DENIED).await?;
    }
    guest.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_decide_before_addresses_and_an_allowed_name_must_be_its_own() {
        let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let ip = "9.9.9.9".parse().unwrap();
        let closed = Egress { allow: read(&["*.a.com"]), deny: read(&["0.0.0.0/0"]), revision: 0 };
        assert_eq!(decide(&closed, Some("x.a.com"), ip), Verdict::IfItsOwn);
        assert_eq!(decide(&closed, Some("a.com"), ip), Verdict::No);
        assert_eq!(decide(&closed, None, ip), Verdict::No);
        let open = Egress { deny: read(&["b.com"]), ..Egress::default() };
        assert_eq!(decide(&open, Some("b.com"), ip), Verdict::No);
        assert_eq!(decide(&open, Some("a.com"), ip), Verdict::Yes);
        assert_eq!(decide(&open, None, ip), Verdict::Yes);
    }
}
