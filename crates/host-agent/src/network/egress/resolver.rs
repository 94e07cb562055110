//! The name server of a capsule whose rules have host names. The server asks the host's name
//! servers and remembers the addresses of each name. No query goes out for a name that the rules
//! deny.
//!
//! Each question is asked anew, under an id and from a port of its own. Only the name, type and
//! class of the guest's message go on. An answer is written anew too: the guest gets only records
//! that lead from the name to the wanted type.

use super::dns::{Question, leading, refused, respond, room, written};
use super::rules::Rules;
use crate::network::namespace::{Namespace, NamespaceStream};
use daemon::{Tasks, lock};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use types::Egress;

/// Time limit for a name server's answer.
const ASK: Duration = Duration::from_secs(3);
/// Longest time that a capsule's connection may stay idle between two questions.
const REST: Duration = Duration::from_secs(30);
/// Most UDP questions and most TCP connections of one capsule at once. A further UDP question is
/// lost, and a further connection waits.
const QUESTIONS: usize = 64;
const CONNECTIONS: usize = 16;
/// Questions a second that are asked for one capsule, once it has asked `BURST`. Each question
/// takes an entry in the host's connection-tracking table for up to half a minute.
const RATE: f64 = 100.0;
const BURST: f64 = 500.0;
/// Delay before another attempt to accept a connection, after a failure.
const AGAIN: Duration = Duration::from_millis(50);
/// Largest question that is accepted, and largest UDP answer that is read, in bytes.
const MESSAGE_MAX: usize = 4096;
/// Most names that are remembered, and most addresses of each name.
const NAMES_MAX: usize = 4096;
const ADDRESSES_MAX: usize = 64;

pub(super) struct Resolver {
    servers: Vec<IpAddr>,
    rules: Arc<Rules>,
    given: Mutex<Given>,
    pace: Mutex<Pace>,
}

/// Questions that may be asked at once: the rest of `BURST`, and the time of its last update.
struct Pace {
    left: f64,
    at: Instant,
}

impl Pace {
    fn take(&mut self, now: Instant) -> bool {
        let grown = now.saturating_duration_since(self.at).as_secs_f64() * RATE;
        (self.left, self.at) = ((self.left + grown).min(BURST), now);
        let taken = self.left >= 1.0;
        self.left -= f64::from(u8::from(taken));
        taken
    }
}

/// Addresses that the name server gave for each name, and the names from oldest to newest.
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

/// Decision on a question before any name server is asked. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Ask,
    /// Answer without records.
    Empty,
    Refuse,
}

fn decide(egress: &Egress, name: &str, kind: RecordType) -> Decision {
    match egress.admits_name(name) {
        Some(false) => return Decision::Refuse,
        None if egress.denies_all() => return Decision::Refuse,
        Some(true) | None => {}
    }
    // These records tell how to hide a connection's name, and contain addresses that nobody checks.
    let hides = matches!(kind, RecordType::HTTPS | RecordType::SVCB);
    if hides { Decision::Empty } else { Decision::Ask }
}

impl Resolver {
    pub(super) fn new(servers: &[IpAddr], rules: Arc<Rules>) -> Arc<Self> {
        let servers = servers.to_vec();
        let pace = Mutex::new(Pace { left: BURST, at: Instant::now() });
        Arc::new(Self { servers, rules, given: Mutex::default(), pace })
    }

    /// Reports whether an address belongs to a name, by an earlier answer or a new one. A capsule
    /// that was resumed may know the answer of an earlier name server.
    pub(super) async fn gave(&self, name: &str, address: Ipv4Addr) -> bool {
        let name = key(name);
        if self.lock().has(&name, address) {
            return true;
        }
        let Ok(asked) = Name::from_ascii(format!("{name}.")) else { return false };
        let query = Query::query(asked, RecordType::A);
        if let Ok(answer) = self.ask(&query, false).await {
            self.remember(&query, &leading(&query, answer.answers));
        }
        self.lock().has(&name, address)
    }

    /// Answers a question; `None` for a message that is no question.
    async fn answer(&self, question: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let asked = Message::from_vec(question).ok()?;
        if asked.metadata.message_type != MessageType::Query {
            return None;
        }
        let [query] = asked.queries.as_slice() else { return refused(&asked) };
        if asked.metadata.op_code != OpCode::Query || query.query_class() != DNSClass::IN {
            return refused(&asked);
        }
        let name = key(&query.name().to_ascii());
        let decision = || decide(&self.rules.now().egress, &name, query.query_type());
        match decision() {
            Decision::Refuse => return refused(&asked),
            Decision::Empty => return respond(&asked, ResponseCode::NoError),
            Decision::Ask => {}
        }
        let answered = self.ask(query, tcp).await;
        // The rules may have changed while the question was under way.
        if decision() != Decision::Ask {
            return refused(&asked);
        }
        match answered {
            Ok(answer) => {
                let (code, cut) = (answer.metadata.response_code, answer.metadata.truncation);
                let records = leading(query, answer.answers);
                self.remember(query, &records);
                let most = if tcp { u16::MAX } else { room(&asked) };
                written(&asked, code, records, cut, most.into())
            }
            Err(error) => {
                tracing::debug!(%error, "no name server answers");
                respond(&asked, ResponseCode::ServFail)
            }
        }
    }

    /// Asks the host's name servers, one after the other.
    async fn ask(&self, query: &Query, tcp: bool) -> io::Result<Message> {
        let mut last = io::Error::other("the host has no name server; set WRENN_DNS");
        for server in &self.servers {
            if !lock(&self.pace).take(Instant::now()) {
                return Err(io::Error::other("the capsule sends too many DNS queries"));
            }
            let at = SocketAddr::new(*server, 53);
            let question = Question::new(query)?;
            let asked = async {
                if tcp { over_tcp(at, &question).await } else { over_udp(at, &question).await }
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

    fn remember(&self, query: &Query, records: &[Record]) {
        // The addresses count for the name in the question, whatever aliases led to them.
        let addresses = records.iter().filter_map(|record| {
            if let RData::A(address) = &record.data { Some(address.0) } else { None }
        });
        self.lock().add(&key(&query.name().to_ascii()), addresses);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Given> {
        lock(&self.given)
    }
}

/// Returns the form in which a name is remembered.
fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

async fn over_udp(server: SocketAddr, question: &Question) -> io::Result<Message> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // Each question has a port of its own, which the kernel picks at random.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(&question.bytes).await?;
    let mut answer = vec![0; MESSAGE_MAX];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Other messages are answers to other questions, or forged.
        if let Some(answer) = question.answer(&answer[..length]) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Question) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, &question.bytes).await?;
    let answer = read_message(&mut stream).await?;
    question.answer(&answer).ok_or_else(|| io::Error::other("the answer does not match the query"))
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
        // A question without a place is lost, as any question by UDP may be.
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
                        tracing::debug!(
                            %error,
                            "the DNS connection of a capsule ended with an error"
                        );
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
    fn dns_forwards_only_allowed_names() {
        let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let closed = Egress { allow: read(&["a.com"]), deny: read(&["0.0.0.0/0"]), revision: 0 };
        assert_eq!(decide(&closed, "a.com", RecordType::A), Decision::Ask);
        assert_eq!(decide(&closed, "secret.evil.org", RecordType::TXT), Decision::Refuse);
        assert_eq!(decide(&closed, "a.com", RecordType::HTTPS), Decision::Empty);
        let open = Egress { deny: read(&["*.b.com"]), ..Egress::default() };
        assert_eq!(decide(&open, "x.b.com", RecordType::A), Decision::Refuse);
        assert_eq!(decide(&open, "c.com", RecordType::AAAA), Decision::Ask);
    }

    #[test]
    fn dns_queries_are_limited_by_burst_and_rate() {
        let start = Instant::now();
        let mut pace = Pace { left: BURST, at: start };
        let asked = |pace: &mut Pace, at| (0..10_000).filter(|_| pace.take(at)).count();
        assert_eq!(asked(&mut pace, start), 500);
        assert_eq!(asked(&mut pace, start + Duration::from_secs(2)), 200);
        assert_eq!(asked(&mut pace, start + Duration::from_secs(90)), 500);
    }

    #[test]
    fn remembered_dns_answers_are_bounded() {
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
