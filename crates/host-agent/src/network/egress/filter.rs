//! Filter of a capsule's connections to ports 80 and 443, which the namespace's rules lead here. A
//! connection passes to its destination or is refused, by the name that it asks for.

use super::names::{Asked, Verdict, count_refused, decide, of_head};
use super::requests::{Exchange, Gate};
use super::resolver::Resolver;
use super::rules::{Known, Rules};
use super::tls::{HELLO_MAX, Hello, Later, Step, hello};
use crate::network::namespace::{Namespace, NamespaceStream};
use crate::network::plan::Plan;
use daemon::lock;
use hop::{Bounds, Share, Shares};
use std::future::Future;
use std::io::{self, Cursor};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use types::Egress;

/// Connections of one capsule at once; further ones wait.
const CONNECTIONS: usize = 256;
/// Connections that one capsule may hold once half of all places are taken. Capsules that hold more
/// take them from the first half.
const FEW: u64 = 16;
/// Divisor of this process's limit of open files: connections may use a quarter of the files. Each
/// connection uses two.
const SHARE: u64 = 4;
/// Time limits for a connection's first bytes, and for the connection to the server.
const HEAD: Duration = Duration::from_secs(10);
const DIAL: Duration = Duration::from_secs(10);
/// Most first bytes that are examined.
const HEAD_MAX: usize = HELLO_MAX;
/// Port of HTTP, where a refusal is answered with text.
const HTTP: u16 = 80;
/// A TLS alert, fatal: access denied (RFC 8446, 6.2).
const DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// Shared context that decides on the connections of one capsule.
#[derive(Clone)]
pub(super) struct Way {
    pub namespace: Namespace,
    pub plan: Plan,
    pub rules: Arc<Rules>,
    pub resolver: Arc<Resolver>,
}

/// Places for the connections of all capsules. The limit keeps guests from using up the files that
/// this process may open. A limit for each capsule leaves places to the others.
struct Places {
    held: Shares<u64>,
    most: u64,
    /// Next number for a capsule, which holds its places by that number.
    next: AtomicU64,
}

impl Places {
    fn new(most: u64) -> Self {
        Self { held: Shares::default(), most, next: AtomicU64::new(0) }
    }

    fn of_this_process() -> &'static Self {
        static PLACES: OnceLock<Places> = OnceLock::new();
        PLACES.get_or_init(|| {
            let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
            let most = files.map_or(16_384, |files| files / SHARE / 2);
            Self::new(most.clamp(64, 65_536))
        })
    }

    /// Takes a place for a capsule's connection; `None` when there is none for it.
    fn take(&self, capsule: u64) -> Option<Share<u64>> {
        let bounds =
            [Bounds { all: self.most / 2, each: u64::MAX }, Bounds { all: self.most, each: FEW }];
        bounds.into_iter().find_map(|bounds| self.held.take(capsule, 1, bounds).ok())
    }
}

pub(super) fn serve(way: Way, listener: TcpListener) {
    let (places, at) = (Arc::new(Semaphore::new(CONNECTIONS)), way.namespace.tasks().clone());
    let all = Places::of_this_process();
    let capsule = all.next.fetch_add(1, Ordering::Relaxed);
    at.clone().spawn(async move {
        let accepting = async {
            loop {
                // The semaphore is never closed.
                let place = Arc::clone(&places).acquire_owned().await.ok();
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let Some(shared) = all.take(capsule) else {
                    metrics::counter!("wrenn_egress_full_total").increment(1);
                    continue;
                };
                let (way, stop) = (way.clone(), at.clone());
                at.spawn(async move {
                    tokio::select! {
                        passed = way.pass(stream) => {
                            if let Err(error) = passed {
                                tracing::debug!(
                                    %error,
                                    "a capsule's connection ended with an error"
                                );
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
        let guest = self.namespace.hold(guest)?;
        // The futures are boxed, since one is far larger than the other.
        if to.port() == HTTP {
            Box::pin(self.pass_http(guest, to)).await
        } else {
            Box::pin(self.pass_tls(guest, to)).await
        }
    }

    async fn pass_http(&self, mut guest: NamespaceStream, to: SocketAddrV4) -> io::Result<()> {
        let mut first = Vec::new();
        // If unreadable requests may pass, other protocols may too, and their servers may speak
        // first.
        if self.admits(&self.rules.now().egress, &Asked::Unreadable, *to.ip()).await {
            let asked = head(&mut guest, &mut first, of_head).await?;
            if asked.is_none_or(|asked| asked == Asked::Unreadable) {
                return self.join(guest, first, None, to).await;
            }
        }
        let asked = Mutex::default();
        let exchange = Exchange::new(Open { way: self, to }, &asked);
        let (read, write) = tokio::io::split(guest);
        let guest = tokio::io::join(Cursor::new(first).chain(read), write);
        self.under_rules(&asked, *to.ip(), exchange.serve(guest)).await
    }

    async fn pass_tls(&self, mut guest: NamespaceStream, to: SocketAddrV4) -> io::Result<()> {
        let mut first = Vec::with_capacity(2048);
        let hello = head(&mut guest, &mut first, hello).await?;
        let asked = hello.as_ref().map_or(Asked::Unreadable, |hello| hello.asked.clone());
        if !self.admits(&self.rules.now().egress, &asked, *to.ip()).await {
            count_refused();
            self.rules.note_refused();
            if asked.name().is_some() {
                guest.write_all(&DENIED).await?;
            }
            return guest.shutdown().await;
        }
        self.join(guest, first, hello.filter(|_| asked != Asked::Unreadable), to).await
    }

    /// Joins a connection with its original destination, under the name in its hello, if it has
    /// one.
    async fn join(
        &self,
        mut guest: NamespaceStream,
        first: Vec<u8>,
        hello: Option<Hello>,
        to: SocketAddrV4,
    ) -> io::Result<()> {
        let asked = hello.as_ref().map_or(Asked::Unreadable, |hello| hello.asked.clone());
        let asked = Mutex::new(Some(asked));
        let joined = async {
            let mut server = self.dial(to).await?;
            let Some(hello) = hello else {
                server.write_all(&first).await?;
                drop(first);
                return tokio::io::copy_bidirectional(&mut guest, &mut server).await.map(|_| ());
            };
            let (opening, more) = first.split_at(hello.length);
            server.write_all(opening).await?;
            let mut more = more.to_vec();
            drop(first);
            let (mut from_guest, mut to_guest) = tokio::io::split(&mut guest);
            let (mut from_server, mut to_server) = tokio::io::split(&mut server);
            let there = async {
                encrypted(&mut more, &mut from_guest, &mut to_server, Later::new(hello)).await?;
                to_server.write_all(&std::mem::take(&mut more)).await?;
                tokio::io::copy(&mut from_guest, &mut to_server).await?;
                to_server.shutdown().await
            };
            let back = async {
                tokio::io::copy(&mut from_server, &mut to_guest).await?;
                to_guest.shutdown().await
            };
            tokio::try_join!(there, back).map(|_| ())
        };
        self.under_rules(&asked, *to.ip(), joined).await
    }

    /// Runs `work` as long as the rules admit the host in `asked`. When the rules are replaced,
    /// `work` does not move until the new rules have admitted that host.
    async fn under_rules(
        &self,
        asked: &Mutex<Option<Asked>>,
        to: Ipv4Addr,
        work: impl Future<Output = io::Result<()>>,
    ) -> io::Result<()> {
        let mut work = std::pin::pin!(work);
        loop {
            let Known { egress, replaced, under_way } = self.rules.now();
            let asked = lock(asked).clone();
            if let Some(asked) = asked
                && !self.admits(&egress, &asked, to).await
            {
                count_refused();
                self.rules.note_refused();
                return Err(io::Error::other(
                    "the capsule's network rules no longer allow the connection",
                ));
            }
            let _passing = under_way.token();
            tokio::select! {
                biased;
                () = replaced.cancelled() => {}
                done = work.as_mut() => return done,
            }
        }
    }

    async fn admits(&self, egress: &Egress, asked: &Asked, to: Ipv4Addr) -> bool {
        if self.plan.is_denied(to) {
            return false;
        }
        match (decide(egress, asked, to), asked.name()) {
            (Verdict::Yes, _) => true,
            (Verdict::IfItsOwn, Some(name)) => self.resolver.gave(name, to).await,
            (Verdict::IfItsOwn, None) | (Verdict::No, _) => false,
        }
    }

    /// Connects from inside the namespace, so that its rules and the host's apply here too.
    async fn dial(&self, to: SocketAddrV4) -> io::Result<NamespaceStream> {
        tokio::time::timeout(DIAL, self.namespace.connect(SocketAddr::V4(to))).await?
    }
}

/// Gate that opens the server's connection for one guest's requests.
struct Open<'a> {
    way: &'a Way,
    to: SocketAddrV4,
}

impl Gate for Open<'_> {
    type Stream = NamespaceStream;

    async fn admits(&self, asked: &Asked) -> bool {
        let egress = self.way.rules.now().egress;
        let admits = self.way.admits(&egress, asked, *self.to.ip()).await;
        if !admits {
            self.way.rules.note_refused();
        }
        admits
    }

    async fn dial(&self) -> io::Result<NamespaceStream> {
        self.way.dial(self.to).await
    }
}

/// Reads the first bytes of a connection until `read` finds a result in them. Returns `None` when
/// the bytes end, or do not come in time.
async fn head<T>(
    guest: &mut NamespaceStream,
    bytes: &mut Vec<u8>,
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    let late = tokio::time::Instant::now() + HEAD;
    loop {
        if let Some(found) = read(bytes) {
            return Ok(Some(found));
        }
        if bytes.len() >= HEAD_MAX {
            return Ok(None);
        }
        // A connection that sends nothing, or stops sending, asks for no name.
        match tokio::time::timeout_at(late, guest.read_buf(bytes)).await {
            Ok(Ok(1..)) => {}
            Ok(Err(error)) => return Err(error),
            Ok(Ok(0)) | Err(_) => return Ok(None),
        }
    }
}

/// Forwards a client's bytes until all the rest is encrypted. Encrypted bytes that were already
/// read are left in `bytes`.
async fn encrypted(
    bytes: &mut Vec<u8>,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut later: Later,
) -> io::Result<()> {
    loop {
        match later.look(bytes) {
            Step::Pass(count) => {
                to.write_all(&bytes[..count]).await?;
                bytes.drain(..count);
            }
            Step::More => {
                if from.read_buf(bytes).await? == 0 {
                    return Ok(());
                }
            }
            Step::Encrypted => return Ok(()),
            Step::Refuse => {
                count_refused();
                return Err(io::Error::other("a later TLS hello names another host"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_capsules_leave_connection_permits_to_others() {
        let places = Places::new(128);
        let mut held: Vec<_> = (0..CONNECTIONS).map_while(|_| places.take(0)).collect();
        assert_eq!(held.len(), 64, "one capsule takes one half");
        held.extend((0..CONNECTIONS).map_while(|_| places.take(1)));
        assert_eq!(held.len(), 64 + 16, "another takes a few of the second half");
        assert!(places.take(0).is_none());
        assert!(places.take(2).is_some());
        drop(held);
        assert_eq!(places.held.held(), 0);
    }
}
