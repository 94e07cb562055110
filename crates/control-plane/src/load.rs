//! Limits on the concurrent work of one control plane, and on the share of each network, caller,
//! team and capsule. A full share refuses the newest request at once. Nobody waits in a queue that
//! others can fill.

use crate::error::{Error, Result};
use daemon::lock;
use hop::{Bounds, Full, Held, Limits, Share, Shares, Standing};
use quick_cache::sync::Cache;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use types::{CapsuleId, ClientNetwork, TeamId};
use uuid::Uuid;

/// Largest JSON body of a caller with a credential, in bytes.
const JSON_MAX: usize = 1 << 20;
/// Largest JSON body that carries the input of a command, in bytes.
const INPUT_MAX: usize = 20 << 20;
/// Largest JSON body of a caller without a credential, in bytes.
const STRANGERS_JSON_MAX: usize = 256 << 10;
/// Time limits of JSON bodies, from the head to the last byte, in the order of the sizes above.
const JSON_TIME: Duration = Duration::from_secs(60);
const INPUT_TIME: Duration = Duration::from_secs(600);
const STRANGERS_JSON_TIME: Duration = Duration::from_secs(20);
/// Bytes that a body counts for before any of it has come.
const BODY_LEAST: usize = 1024;
/// Bytes of JSON bodies and of commands' output in memory at once: of all callers, and of one key
/// or session.
const BODIES: Bounds = Bounds { all: 512 << 20, each: 128 << 20 };
/// Bytes of the same kind of all keys and sessions of one person.
const PERSONS_BODIES: Bounds = Bounds { all: u64::MAX, each: 192 << 20 };
/// Bytes of JSON bodies of callers without a credential: of all, and of one network. Networks that
/// showed a credential before have room that strangers cannot take, and so has this machine.
const STRANGERS_BODIES: Bounds = Bounds { all: 64 << 20, each: 4 << 20 };
const KNOWN_BODIES: Bounds = Bounds { all: 96 << 20, each: 4 << 20 };
const TRUSTED_BODIES: Bounds = Bounds { all: 128 << 20, each: 32 << 20 };
/// Bytes of JSON bodies of hosts that have shown their tokens.
const HOSTS_BODIES: Bounds = Bounds { all: u64::MAX, each: 4 << 20 };
/// Event streams: of all, and of one team.
const STREAMS: Bounds = Bounds { all: 1000, each: 250 };
/// Event streams of one key or session.
const CALLERS_STREAMS: Bounds = Bounds { all: 1000, each: 50 };
/// Event streams of all keys and sessions of one person, in any team.
const PERSONS_STREAMS: Bounds = Bounds { all: 1000, each: 250 };
/// Requests of strangers that wait for a capsule: for all capsules, and for one.
const WAITING: Bounds = Bounds { all: 4096, each: 256 };
/// Reads that may keep the database busy for long: of all, and of one team. The pool has twice as
/// many connections as all of these.
const LONG_READS: Bounds = Bounds { all: 8, each: 3 };
/// Time between two attempts to get a place for such a read.
const LONG_READ_RETRY: Duration = Duration::from_millis(50);
/// Concurrent queries for entries that the caches lack, such as unknown keys and capsules: of all
/// networks, and of one. Known networks have more, and the pool has more connections than all of
/// these.
const LOOKUPS: Bounds = Bounds { all: 8, each: 4 };
const STRANGERS_LOOKUPS: Bounds = Bounds { all: 4, each: 2 };
/// Password checks that wait at once: of all networks, and of one. Each check takes a processor for
/// some 50 ms. Known networks have more.
const PASSWORDS: Bounds = Bounds { all: 48, each: 12 };
const STRANGERS_PASSWORDS: Bounds = Bounds { all: 24, each: 3 };
/// Time between two attempts to get a place for such a query or check.
const LOOKUP_LOOK: Duration = Duration::from_millis(5);
/// Longest wait for a place among reads, queries or password checks.
const PLACE_WAIT: Duration = Duration::from_secs(5);
/// Most known networks, and the time that a network stays known after a credential was shown there.
const KNOWN: usize = 10_000;
const KNOWN_FOR: Duration = Duration::from_secs(3600);
/// Age at which the entry of a known network is renewed.
const KNOWN_RENEWED: Duration = Duration::from_secs(600);

/// The shares of one control plane.
pub(crate) struct Load {
    limits: Limits,
    /// Networks where a credential was shown, with the time of it.
    known: Cache<ClientNetwork, Instant>,
    /// Requests that share a connection with others: through a proxy on this machine, and by
    /// HTTP/2.
    requests: Shares<(ClientNetwork, Standing)>,
    callers: Shares<Uuid>,
    teams: Shares<TeamId>,
    streams: Shares<TeamId>,
    callers_streams: Shares<Uuid>,
    persons_streams: Shares<Uuid>,
    persons: Shares<Uuid>,
    bodies: Shares<Payer>,
    persons_bodies: Shares<Uuid>,
    strangers_bodies: Shares<Payer>,
    hosts_bodies: Shares<Payer>,
    waiting: Shares<CapsuleId>,
    long_reads: Shares<TeamId>,
    lookups: Shares<ClientNetwork>,
    passwords: Shares<ClientNetwork>,
}

/// Holder of the share that a body is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Payer {
    /// A client who has shown no credential, by their network.
    Network(Option<ClientNetwork>, Standing),
    /// A host that has shown its token.
    Host(Uuid),
    /// A key or a user.
    Caller(Holder),
}

/// A key or a session that holds shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Holder {
    /// Key that the requests count as, or the user.
    pub who: Uuid,
    /// The user, or the key's maker. A person may have any number of keys and teams.
    pub person: Uuid,
}

impl Payer {
    /// Returns the largest size of a JSON body and its time limit. `input` marks a body that
    /// carries the input of a command.
    pub(crate) fn allowance(self, input: bool) -> (usize, Duration) {
        match (self, input) {
            (Self::Network(..), _) => (STRANGERS_JSON_MAX, STRANGERS_JSON_TIME),
            (Self::Host(_), _) | (Self::Caller(_), false) => (JSON_MAX, JSON_TIME),
            (Self::Caller(_), true) => (INPUT_MAX, INPUT_TIME),
        }
    }
}

/// Room in memory for a body, which grows as the body comes.
pub(crate) struct Room {
    own: Share<Payer>,
    bounds: Bounds,
    persons: Option<Share<Uuid>>,
    bytes: u64,
}

impl Room {
    /// Grows the room to `bytes` in all.
    ///
    /// # Errors
    /// When the share of the payer, of the person or of all is full.
    pub(crate) fn grow_to(&mut self, bytes: usize) -> Result<()> {
        let more = of(bytes).saturating_sub(self.bytes);
        if more > 0 {
            self.own.grow(more, self.bounds).map_err(no_room)?;
            if let Some(share) = &mut self.persons {
                share.grow(more, PERSONS_BODIES).map_err(no_room)?;
            }
            self.bytes += more;
        }
        Ok(())
    }
}

fn no_room(full: Full) -> Error {
    match full {
        Full::All => Error::Overloaded,
        Full::Each => Error::TooManyAtOnce("bytes of request bodies under way from you"),
    }
}

/// Shares of the event streams: of a team, of a key or session, and of a person.
pub(crate) type Streaming = (Share<TeamId>, Share<Uuid>, Share<Uuid>);

/// Shares that a request holds until its answer has ended.
#[derive(Clone, Default)]
pub(crate) struct UnderWay(Arc<Mutex<Vec<Held>>>);

impl UnderWay {
    pub(crate) fn hold(&self, held: impl Send + 'static) {
        lock(&self.0).push(Box::new(held));
    }
}

fn of(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

impl Load {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            known: Cache::new(KNOWN),
            requests: Shares::default(),
            callers: Shares::default(),
            teams: Shares::default(),
            streams: Shares::default(),
            callers_streams: Shares::default(),
            persons_streams: Shares::default(),
            persons: Shares::default(),
            bodies: Shares::default(),
            persons_bodies: Shares::default(),
            strangers_bodies: Shares::default(),
            hosts_bodies: Shares::default(),
            waiting: Shares::default(),
            long_reads: Shares::default(),
            lookups: Shares::default(),
            passwords: Shares::default(),
        }
    }

    /// Returns the limits of each listener.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Remembers that a client at an address has shown a credential.
    pub(crate) fn vouch(&self, address: IpAddr) {
        let network = ClientNetwork::from(address);
        let shown = self.known.get(&network);
        if shown.is_none_or(|at| at.elapsed() > KNOWN_RENEWED) {
            self.known.insert(network, Instant::now());
        }
    }

    /// Returns the standing of an address, which counts credentials shown there.
    pub(crate) fn standing(&self, address: IpAddr) -> Standing {
        let standing = Standing::of(address);
        let shown = || self.known.get(&ClientNetwork::from(address));
        match standing {
            Standing::Stranger if shown().is_some_and(|at| at.elapsed() < KNOWN_FOR) => {
                Standing::Known
            }
            Standing::Stranger | Standing::Known | Standing::Trusted => standing,
        }
    }

    /// Takes a share of the requests for a client that shares its connection with others. A client
    /// with a connection of its own was counted when it connected.
    pub(crate) fn request(
        &self,
        client: IpAddr,
        peer: SocketAddr,
        version: http::Version,
    ) -> Result<Option<Held>> {
        let shared = peer.ip().is_loopback() || version == http::Version::HTTP_2;
        if !shared || client.is_loopback() {
            return Ok(None);
        }
        let standing = self.standing(client);
        let holder = (ClientNetwork::from(client), standing);
        let share = self.requests.take(holder, 1, self.limits.bounds(standing));
        share.map(|share| Some(Box::new(share) as Held)).map_err(|full| match full {
            Full::All => Error::Overloaded,
            Full::Each => Error::TooManyAtOnce("concurrent requests from your address"),
        })
    }

    /// Takes shares of the concurrent requests: a quarter of all for a key or a session, and a half
    /// for all of one person's.
    pub(crate) fn caller(&self, holder: Holder) -> Result<(Share<Uuid>, Share<Uuid>)> {
        let bounds = |part| Bounds { all: u64::MAX, each: of(self.limits.connections / part) };
        let own = self.callers.take(holder.who, 1, bounds(4));
        let own =
            own.map_err(|_| Error::TooManyAtOnce("concurrent requests of this key or user"))?;
        let persons = self.persons.take(holder.person, 1, bounds(2));
        Ok((
            own,
            persons.map_err(|_| {
                Error::TooManyAtOnce("concurrent requests of this user, across all keys")
            })?,
        ))
    }

    /// Takes a share of the concurrent requests for a team: a half of all.
    pub(crate) fn team(&self, team: TeamId) -> Result<Share<TeamId>> {
        let bounds = Bounds { all: u64::MAX, each: of(self.limits.connections / 2) };
        self.teams
            .take(team, 1, bounds)
            .map_err(|_| Error::TooManyAtOnce("concurrent requests of this team"))
    }

    /// Takes shares of the event streams.
    pub(crate) fn stream(&self, team: TeamId, holder: Holder) -> Result<Streaming> {
        let refused = |whose| move |_| Error::TooManyAtOnce(whose);
        let own = self.callers_streams.take(holder.who, 1, CALLERS_STREAMS);
        let own = own.map_err(refused("event streams of this key or user"))?;
        let persons = self.persons_streams.take(holder.person, 1, PERSONS_STREAMS);
        let persons = persons.map_err(refused("event streams of this user"))?;
        let teams = self.streams.take(team, 1, STREAMS);
        Ok((teams.map_err(refused("event streams of this team"))?, own, persons))
    }

    /// Takes room for a body of which nothing has come yet.
    pub(crate) fn body(&self, payer: Payer) -> Result<Room> {
        self.room(payer, BODY_LEAST)
    }

    /// Takes room for `bytes` bytes.
    pub(crate) fn room(&self, payer: Payer, bytes: usize) -> Result<Room> {
        let (shares, bounds) = match payer {
            Payer::Network(_, Standing::Stranger) => (&self.strangers_bodies, STRANGERS_BODIES),
            Payer::Network(_, Standing::Known) => (&self.strangers_bodies, KNOWN_BODIES),
            Payer::Network(_, Standing::Trusted) => (&self.strangers_bodies, TRUSTED_BODIES),
            Payer::Host(_) => (&self.hosts_bodies, HOSTS_BODIES),
            Payer::Caller(_) => (&self.bodies, BODIES),
        };
        let bytes = of(bytes);
        let own = shares.take(payer, bytes, bounds).map_err(no_room)?;
        let persons = match payer {
            Payer::Caller(holder) => {
                let share = self.persons_bodies.take(holder.person, bytes, PERSONS_BODIES);
                Some(share.map_err(no_room)?)
            }
            Payer::Network(..) | Payer::Host(_) => None,
        };
        Ok(Room { own, bounds, persons, bytes })
    }

    /// Takes a place among the strangers who wait for a capsule.
    pub(crate) fn waiter(&self, capsule: CapsuleId) -> Result<Share<CapsuleId>> {
        self.waiting.take(capsule, 1, WAITING).map_err(|_| Error::TooManyConnections)
    }

    /// Waits for a place among the reads that may keep the database busy for long.
    pub(crate) async fn long_read(&self, team: TeamId) -> Result<Share<TeamId>> {
        let take = || self.long_reads.take(team, 1, LONG_READS);
        place(LONG_READ_RETRY, "concurrent long reads of this team", take).await
    }

    /// Waits for a place among the queries for entries that the caches lack, for a client at an
    /// address. The platform itself and clients on this machine need none.
    pub(crate) async fn lookup(
        &self,
        from: Option<IpAddr>,
    ) -> Result<Option<Share<ClientNetwork>>> {
        let bounds = (LOOKUPS, STRANGERS_LOOKUPS);
        self.network_place(
            &self.lookups,
            from,
            bounds,
            "concurrent look-ups of unknown names from your address",
        )
        .await
    }

    /// Waits for a place among the password checks, for a client at an address. Clients on this
    /// machine need none.
    pub(crate) async fn password(
        &self,
        from: Option<IpAddr>,
    ) -> Result<Option<Share<ClientNetwork>>> {
        let bounds = (PASSWORDS, STRANGERS_PASSWORDS);
        self.network_place(&self.passwords, from, bounds, "concurrent sign-ins from your address")
            .await
    }

    /// Waits for a share of a client's network; `None` for the platform itself and for a client on
    /// this machine.
    async fn network_place(
        &self,
        shares: &Shares<ClientNetwork>,
        from: Option<IpAddr>,
        (known, strangers): (Bounds, Bounds),
        each: &'static str,
    ) -> Result<Option<Share<ClientNetwork>>> {
        let Some(address) = from else { return Ok(None) };
        let bounds = match self.standing(address) {
            Standing::Trusted => return Ok(None),
            Standing::Known => known,
            Standing::Stranger => strangers,
        };
        place(LOOKUP_LOOK, each, || shares.take(address.into(), 1, bounds)).await.map(Some)
    }
}

/// Waits for a share, with a pause between two tries.
///
/// # Errors
/// When none was free in time. `each` names the holder whose own share is full.
async fn place<K: std::hash::Hash + Eq>(
    pause: Duration,
    each: &'static str,
    take: impl Fn() -> std::result::Result<Share<K>, Full>,
) -> Result<Share<K>> {
    let until = tokio::time::Instant::now() + PLACE_WAIT;
    loop {
        match take() {
            Ok(share) => return Ok(share),
            Err(_) if tokio::time::Instant::now() < until => tokio::time::sleep(pause).await,
            Err(Full::Each) => return Err(Error::TooManyAtOnce(each)),
            Err(Full::All) => return Err(Error::Overloaded),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { connections: 32, per_network: 4, head_bytes: 8192 };
    const HTTP: http::Version = http::Version::HTTP_11;

    #[test]
    fn proxied_and_http2_clients_have_request_shares() {
        let load = Load::new(LIMITS);
        let (proxy, direct) = ("127.0.0.1:1".parse().unwrap(), "192.0.2.1:1".parse().unwrap());
        let client = |text: &str| text.parse::<IpAddr>().unwrap();
        let of = |text: &str| load.request(client(text), proxy, HTTP);
        let held: Vec<_> = (1..=4).map(|n| of(&format!("2001:db8::{n}")).unwrap()).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(matches!(of("2001:db8::5"), Err(Error::TooManyAtOnce(_))));
        assert!(of("2001:db8:0:1::5").is_ok_and(|share| share.is_some()));
        // The proxy's own requests take no share, and neither do those of a client with its own
        // connection.
        assert!(of("127.0.0.1").is_ok_and(|share| share.is_none()));
        let own = |version| load.request(client("192.0.2.1"), direct, version);
        assert!(own(HTTP).is_ok_and(|share| share.is_none()));
        let streams: Vec<_> = (0..4).map(|_| own(http::Version::HTTP_2).unwrap()).collect();
        assert!(matches!(own(http::Version::HTTP_2), Err(Error::TooManyAtOnce(_))));
        drop((held, streams));
        // A known network may hold half of all.
        load.vouch("2001:db8::77".parse().unwrap());
        let held: Vec<_> = (0..16).map(|_| of("2001:db8::5").unwrap()).collect();
        assert!(matches!(of("2001:db8::5"), Err(Error::TooManyAtOnce(_))));
        drop(held);
    }

    fn caller(who: u128, person: u128) -> Payer {
        let (who, person) = (Uuid::from_u128(who), Uuid::from_u128(person));
        Payer::Caller(Holder { who, person })
    }

    #[test]
    fn body_memory_is_bounded_per_caller_and_in_total() {
        let load = Load::new(LIMITS);
        let (most, _) = caller(0, 0).allowance(true);
        let held: Vec<_> = (0..6).map(|_| load.room(caller(0, 0), most).unwrap()).collect();
        assert!(matches!(load.room(caller(0, 0), most), Err(Error::TooManyAtOnce(_))));
        // Further keys of the same person add little.
        let persons: Vec<_> = (1..9).map_while(|n| load.room(caller(n, 0), most).ok()).collect();
        assert_eq!(persons.len(), 3);
        let others = (10..50).map(|n| load.room(caller(n, n), most));
        let (all, refused): (Vec<_>, Vec<_>) = others.partition(std::result::Result::is_ok);
        assert_eq!(all.len() + held.len() + persons.len(), (512 << 20) / most);
        assert!(refused.into_iter().all(|no| matches!(no, Err(Error::Overloaded))));
        drop((all, held, persons));
        assert_eq!((load.bodies.held(), load.persons_bodies.held()), (0, 0));
    }

    #[test]
    fn unauthenticated_bodies_leave_memory_for_known_callers_and_hosts() {
        let load = Load::new(LIMITS);
        let network = |n: u32| Some(ClientNetwork::from(IpAddr::from(n.to_be_bytes())));
        let stranger = |n| Payer::Network(network(n), Standing::Stranger);
        let (most, _) = stranger(0).allowance(true);
        assert_eq!(stranger(0).allowance(true), stranger(0).allowance(false));
        // A body of which nothing has come takes next to nothing.
        let begun: Vec<_> = (0..1000).map(|n| load.body(stranger(n)).unwrap()).collect();
        drop(begun);
        let mut held = Vec::new();
        for n in 0..16 {
            for _ in 0..16 {
                let mut room = load.body(stranger(n)).unwrap();
                room.grow_to(most).unwrap();
                held.push(room);
            }
            let refused = load.body(stranger(n));
            assert!(matches!(refused, Err(Error::TooManyAtOnce(_) | Error::Overloaded)));
        }
        assert!(matches!(load.body(stranger(99)), Err(Error::Overloaded)));
        for standing in [Standing::Known, Standing::Trusted] {
            load.body(Payer::Network(network(99), standing)).unwrap().grow_to(most).unwrap();
        }
        load.body(Payer::Host(Uuid::nil())).unwrap().grow_to(JSON_MAX).unwrap();
        drop(held);
        assert_eq!(load.strangers_bodies.held(), 0);
    }

    #[test]
    fn expensive_reads_of_one_team_leave_permits_for_others() {
        let load = Load::new(LIMITS);
        let (one, other) = (TeamId::new(), TeamId::new());
        let take = |_| load.long_reads.take(one, 1, LONG_READS).unwrap();
        let held: Vec<_> = (0..3).map(take).collect();
        assert_eq!(load.long_reads.take(one, 1, LONG_READS).unwrap_err(), Full::Each);
        assert!(load.long_reads.take(other, 1, LONG_READS).is_ok());
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn unauthenticated_lookups_leave_database_permits_for_others() {
        let load = Load::new(LIMITS);
        let at = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let mut held = Vec::new();
        for address in ["192.0.2.1", "192.0.2.1", "192.0.2.2"] {
            held.push(load.lookup(at(address)).await.unwrap());
        }
        assert!(matches!(load.lookup(at("192.0.2.1")).await, Err(Error::TooManyAtOnce(_))));
        held.push(load.lookup(at("192.0.2.3")).await.unwrap());
        assert!(matches!(load.lookup(at("192.0.2.4")).await, Err(Error::Overloaded)));
        // A network where a credential was shown has room, and this machine needs none.
        load.vouch(at("192.0.2.4").unwrap());
        assert!(load.lookup(at("192.0.2.4")).await.unwrap().is_some());
        assert!(load.lookup(at("127.0.0.1")).await.unwrap().is_none());
        assert!(load.lookup(None).await.unwrap().is_none());
        // A place that becomes free is given to a client that waits.
        let (waits, ()) = tokio::join!(load.lookup(at("192.0.2.1")), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            held.clear();
        });
        assert!(waits.is_ok());
        let passwords = (0..3).map(|_| load.password(at("192.0.2.1")));
        let passwords = futures::future::try_join_all(passwords).await.unwrap();
        assert!(matches!(load.password(at("192.0.2.1")).await, Err(Error::TooManyAtOnce(_))));
        assert!(load.password(at("192.0.2.2")).await.is_ok());
        drop(passwords);
    }
}
