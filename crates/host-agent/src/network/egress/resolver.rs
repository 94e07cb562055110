//! The name server of a capsule whose rules speak of names: passes questions on to the host's name
//! servers and remembers which addresses a name has. Of names that may not be reached nothing is
//! told, so that nothing leaves by way of a question.

use super::Rules;
use crate::network::namespace::{Namespace, NamespaceStream};
use daemon::Tasks;
use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use types::Egress;

/// How long a name server may take.
const ASK: Duration = Duration::from_secs(3);
/// How long a capsule's connection may rest between two questions.
const REST: Duration = Duration::from_secs(30);
/// Questions of one capsule by UDP that are under way at once, and connections for others; what
/// finds no place waits, or is lost.
const QUESTIONS: usize = 64;
const CONNECTIONS: usize = 16;
/// Before another try where none can be taken in.
const AGAIN: Duration = Duration::from_millis(50);
/// Largest question that is taken, and largest answer by UDP, in bytes.
const MESSAGE_MAX: usize = 4096;
/// Names that are remembered, and addresses of each.
const NAMES_MAX: usize = 4096;
const ADDRESSES_MAX: usize = 64;

pub(super) struct Resolver {
    servers: Vec<IpAddr>,
    rules: Arc<Rules>,
    given: Mutex<Given>,
}

/// The addresses that were given for names, the longest known name first.
#[derive(Default)]
struct Given {
    names: HashMap<String, HashSet<Ipv4Addr>>,
    order: VecDeque<String>,
}

impl Given {
    fn add(&mut self, name: &str, addresses: impl Iterator<Item = Ipv4Addr>) {
        if !self.names.contains_key(name) {
            if self.order.len() >= NAMES_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.names.remove(&oldest);
            }
            self.order.push_back(name.to_owned());
        }
        let known = self.names.entry(name.to_owned()).or_default();
        for address in addresses {
            if known.len() >= ADDRESSES_MAX {
                known.clear();
            }
            known.insert(address);
        }
    }

    fn has(&self, name: &str, address: Ipv4Addr) -> bool {
        self.names.get(name).is_some_and(|known| known.contains(&address))
    }
}

/// What a question comes to before anyone is asked. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Ask,
    /// There is nothing to tell of it.
    Empty,
    Refuse,
}

fn turn(egress: &Egress, name: &str, kind: RecordType) -> Turn {
    match egress.admits_name(name) {
        Some(false) => return Turn::Refuse,
        None if egress.denies_all() => return Turn::Refuse,
        Some(true) | None => {}
    }
    // These tell how to hide the name of a connection, and addresses that are not looked at.
    let hides = matches!(kind, RecordType::HTTPS | RecordType::SVCB);
    if hides { Turn::Empty } else { Turn::Ask }
}

impl Resolver {
    pub(super) fn new(servers: &[IpAddr], rules: Arc<Rules>) -> Arc<Self> {
        let servers = servers.to_vec();
        Arc::new(Self { servers, rules, given: Mutex::default() })
    }

    /// Whether an address is one that a name has: as it was told before, or is told now, since a
    /// capsule that was brought back knows what an earlier name server told it.
    pub(super) async fn gave(&self, name: &str, address: Ipv4Addr) -> bool {
        let name = key(name);
        if self.lock().has(&name, address) {
            return true;
        }
        let Ok(asked) = Name::from_ascii(format!("{name}.")) else { return false };
        let mut question = Message::query();
        question.add_query(Query::query(asked, RecordType::A));
        question.metadata.recursion_desired = true;
        if let Ok(bytes) = question.to_vec()
            && let Ok(answer) = self.ask(&bytes, false).await
        {
            self.remember(&answer);
        }
        self.lock().has(&name, address)
    }

    /// Answers a question; none for what is none.
    async fn answer(&self, question: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let asked = Message::from_vec(question).ok()?;
        let [query] = asked.queries.as_slice() else { return refused(&asked) };
        if asked.metadata.message_type != MessageType::Query {
            return None;
        }
        let name = key(&query.name().to_ascii());
        let egress = self.rules.now().egress;
        match turn(&egress, &name, query.query_type()) {
            Turn::Refuse => refused(&asked),
            Turn::Empty => told(&asked, ResponseCode::NoError),
            Turn::Ask => match self.ask(question, tcp).await {
                Ok(answer) => {
                    self.remember(&answer);
                    Some(answer)
                }
                Err(error) => {
                    tracing::debug!(%error, "no name server answers");
                    told(&asked, ResponseCode::ServFail)
                }
            },
        }
    }

    /// Asks the host's name servers, one after the other.
    async fn ask(&self, question: &[u8], tcp: bool) -> io::Result<Vec<u8>> {
        let mut last = io::Error::other("the host has no name server (WRENN_DNS)");
        for server in &self.servers {
            let at = SocketAddr::new(*server, 53);
            let asked = async {
                if tcp { over_tcp(at, question).await } else { over_udp(at, question).await }
            };
            match tokio::time::timeout(ASK, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    /// Answers questions on a connection until there are no more.
    async fn converse(&self, stream: &mut NamespaceStream) -> io::Result<()> {
        loop {
            let question = tokio::time::timeout(REST, read_message(stream)).await??;
            let Some(answer) = self.answer(&question, true).await else { return Ok(()) };
            write_message(stream, &answer).await?;
        }
    }

    fn remember(&self, answer: &[u8]) {
        let Ok(answer) = Message::from_vec(answer) else { return };
        let [query] = answer.queries.as_slice() else { return };
        // Whatever other names led to them, they were asked for by this one.
        let addresses = answer.answers.iter().filter_map(|record| {
            if let RData::A(address) = &record.data { Some(address.0) } else { None }
        });
        self.lock().add(&key(&query.name().to_ascii()), addresses);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name as it is remembered.
fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn refused(asked: &Message) -> Option<Vec<u8>> {
    told(asked, ResponseCode::Refused)
}

/// An answer without records.
fn told(asked: &Message, code: ResponseCode) -> Option<Vec<u8>> {
    let mut answer = Message::error_msg(asked.metadata.id, asked.metadata.op_code, code);
    answer.add_queries(asked.queries.iter().cloned());
    answer.metadata.recursion_desired = asked.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.to_vec().ok()
}

async fn over_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; MESSAGE_MAX];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Of another question, or nobody's.
        if length >= 2 && answer[..2] == question[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, question).await?;
    read_message(&mut stream).await
}

async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await
}

async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Serves a capsule's questions, in its namespace.
pub(super) fn serve(
    resolver: Arc<Resolver>,
    udp: UdpSocket,
    tcp: TcpListener,
    namespace: &Namespace,
) {
    let (at, also) = (namespace.tasks().clone(), Arc::clone(&resolver));
    namespace.tasks().spawn(async move {
        tokio::select! {
            () = by_udp(resolver, udp, &at) => {}
            () = at.stopping() => {}
        }
    });
    let inside = namespace.clone();
    namespace.tasks().spawn(async move {
        tokio::select! {
            () = by_tcp(also, tcp, &inside) => {}
            () = inside.tasks().stopping() => {}
        }
    });
}

async fn by_udp(resolver: Arc<Resolver>, udp: UdpSocket, tasks: &Tasks) {
    let (udp, places) = (Arc::new(udp), Arc::new(Semaphore::new(QUESTIONS)));
    let mut question = vec![0; MESSAGE_MAX];
    loop {
        let Ok((length, from)) = udp.recv_from(&mut question).await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        // What finds no place is lost, as any question by UDP may be.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (udp, asked) = (Arc::clone(&udp), question[..length].to_vec());
        let resolver = Arc::clone(&resolver);
        tasks.spawn(async move {
            if let Some(answer) = resolver.answer(&asked, false).await {
                let _ = udp.send_to(&answer, from).await;
            }
            drop(place);
        });
    }
}

async fn by_tcp(resolver: Arc<Resolver>, tcp: TcpListener, namespace: &Namespace) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let place = Arc::clone(&places).acquire_owned().await.ok();
        let Ok((stream, _)) = tcp.accept().await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        let Ok(mut stream) = namespace.hold(stream) else { return };
        let (resolver, stop) = (Arc::clone(&resolver), namespace.tasks().clone());
        namespace.tasks().spawn(async move {
            tokio::select! {
                asked = resolver.converse(&mut stream) => {
                    if let Err(error) = asked {
                        tracing::debug!(%error, "a capsule's questions ended");
                    }
                }
                () = stop.stopping() => {}
            }
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_may_be_reached_are_asked_for() {
        let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let closed = Egress { allow: read(&["a.com"]), deny: read(&["0.0.0.0/0"]), revision: 0 };
        assert_eq!(turn(&closed, "a.com", RecordType::A), Turn::Ask);
        assert_eq!(turn(&closed, "secret.evil.org", RecordType::TXT), Turn::Refuse);
        assert_eq!(turn(&closed, "a.com", RecordType::HTTPS), Turn::Empty);
        let open = Egress { deny: read(&["*.b.com"]), ..Egress::default() };
        assert_eq!(turn(&open, "x.b.com", RecordType::A), Turn::Refuse);
        assert_eq!(turn(&open, "c.com", RecordType::AAAA), Turn::Ask);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut given = Given::default();
        let ip = |n: u32| Ipv4Addr::from(n);
        for n in 0..NAMES_MAX + 5 {
            given.add(&format!("n{n}"), [ip(1)].into_iter());
        }
        assert_eq!((given.names.len(), given.order.len()), (NAMES_MAX, NAMES_MAX));
        assert!(!given.has("n0", ip(1)) && given.has("n9", ip(1)));
        given.add("n9", (0..1000).map(ip));
        assert!(given.names["n9"].len() <= ADDRESSES_MAX && given.has("n9", ip(999)));
    }
}
