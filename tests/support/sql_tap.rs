//! Socket between a control plane and PostgreSQL. The socket passes all bytes on, and records each
//! round trip. A round trip is a message after which the client waits for the server.

use crate::eventually;
use crate::platform::Platform;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Name of PostgreSQL's socket in its folder, at the default port.
const SOCKET: &str = ".s.PGSQL.5432";
/// Time without a round trip after which the control plane is quiet. Its own rounds come each
/// second at most.
const QUIET: Duration = Duration::from_millis(200);
/// Codes in place of a protocol version in the requests for TLS and GSSAPI.
const ENCRYPTION: [u32; 2] = [80_877_103, 80_877_104];

/// Round trip to the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoundTrip {
    /// A statement ran. `BEGIN` and `COMMIT` are statements, too.
    Statement(String),
    /// A statement was prepared or forgotten, as at its first use on a connection.
    Prepare,
    /// The connection was tested.
    Test,
}

/// Recorded round trip.
struct Entry {
    at: Instant,
    /// Number of the connection.
    connection: usize,
    trip: RoundTrip,
}

/// Round trips in the order of their times.
type Record = Arc<Mutex<Vec<Entry>>>;

/// Recorder of a control plane's round trips. The recorder lives as long as the test's process.
pub struct SqlTap {
    dir: TempDir,
    trips: Record,
}

impl SqlTap {
    /// Starts a recorder before the platform's database.
    ///
    /// # Panics
    /// When the recorder cannot listen.
    #[must_use]
    pub fn start(platform: &Platform) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let server = platform.dir().join("postgres/run").join(SOCKET);
        let trips = Record::default();
        let record = Arc::clone(&trips);
        std::thread::spawn(move || serve(&listener, &server, &record));
        Self { dir, trips }
    }

    /// Returns the URL of the database by way of the recorder.
    #[must_use]
    pub fn url(&self) -> String {
        let dir = self.dir.path().display().to_string().replace('/', "%2F");
        format!("postgres://wrenn@{dir}/wrenn")
    }

    /// Returns all round trips since the recorder's start.
    ///
    /// # Panics
    /// When a recording thread has panicked.
    #[must_use]
    pub fn all(&self) -> Vec<RoundTrip> {
        self.trips.lock().unwrap().iter().map(|entry| entry.trip.clone()).collect()
    }

    /// Counts the tests that came less than `rest` after another test of their connection, with
    /// nothing between. The library tests each connection after its use, too.
    ///
    /// # Panics
    /// When a recording thread has panicked.
    #[must_use]
    pub fn repeated_tests(&self, rest: Duration) -> usize {
        let (mut last, mut count) = (HashMap::new(), 0);
        for Entry { at, connection, trip } in self.trips.lock().unwrap().iter() {
            let tested = (*trip == RoundTrip::Test).then_some(*at);
            let before = last.insert(*connection, tested).flatten();
            let soon = before.zip(tested).is_some_and(|(before, at)| at - before < rest);
            count += usize::from(soon);
        }
        count
    }

    /// Runs `work` once the control plane is quiet. Returns the statements that ran meanwhile.
    pub async fn statements(&self, work: impl Future<Output = ()>) -> Vec<String> {
        eventually("the control plane is quiet", async || {
            let last = self.trips.lock().unwrap().last().map(|entry| entry.at);
            last.is_none_or(|at| at.elapsed() >= QUIET).then_some(())
        })
        .await;
        let before = self.all().len();
        work.await;
        let trips = self.all().split_off(before);
        let statement = |trip| match trip {
            RoundTrip::Statement(sql) => Some(sql),
            RoundTrip::Prepare | RoundTrip::Test => None,
        };
        trips.into_iter().filter_map(statement).collect()
    }
}

fn serve(listener: &UnixListener, server: &Path, record: &Record) {
    for (connection, client) in listener.incoming().enumerate() {
        let (Ok(client), Ok(server)) = (client, UnixStream::connect(server)) else { continue };
        let (mut answers, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut answers, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
        let record = Arc::clone(record);
        std::thread::spawn(move || pass(client, server, connection, &record));
    }
}

/// Passes the client's bytes on. Records a round trip before the server can answer it.
fn pass(mut client: UnixStream, mut server: UnixStream, connection: usize, record: &Record) {
    let (mut messages, mut piece) = (Messages::default(), [0; 16 * 1024]);
    while let Ok(count @ 1..) = client.read(&mut piece) {
        let trips = messages.read(&piece[..count]);
        let at = Instant::now();
        let entries = trips.into_iter().map(|trip| Entry { at, connection, trip });
        record.lock().unwrap().extend(entries);
        if server.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = server.shutdown(std::net::Shutdown::Both);
}

/// Reader of a client's messages (PostgreSQL's documentation, "Message Formats").
#[derive(Default)]
struct Messages {
    rest: Vec<u8>,
    /// Set after the start-up message, which has no type.
    started: bool,
    prepared: HashMap<String, String>,
    /// Statement that runs at the next `Sync`.
    bound: Option<String>,
    /// Set if a statement was prepared or closed since the last `Sync`.
    prepares: bool,
}

impl Messages {
    /// Takes bytes, and returns the round trips that they complete.
    fn read(&mut self, bytes: &[u8]) -> Vec<RoundTrip> {
        self.rest.extend_from_slice(bytes);
        let mut trips = Vec::new();
        loop {
            let head = usize::from(self.started);
            let Some(length) = self.rest.get(head..head + 4) else { return trips };
            let length = u32::from_be_bytes(length.try_into().unwrap());
            let end = head + usize::try_from(length).unwrap();
            if self.rest.len() < end {
                return trips;
            }
            let message: Vec<u8> = self.rest.drain(..end).collect();
            if self.started {
                trips.extend(self.message(message[0], &message[5..]));
            } else {
                let code = u32::from_be_bytes(message[4..8].try_into().unwrap());
                self.started = !ENCRYPTION.contains(&code);
            }
        }
    }

    fn message(&mut self, kind: u8, body: &[u8]) -> Option<RoundTrip> {
        let mut texts = body.split(|byte| *byte == 0);
        let mut text = || String::from_utf8_lossy(texts.next().unwrap_or_default()).into_owned();
        match kind {
            b'Q' => return Some(RoundTrip::Statement(text())),
            b'P' => {
                let name = text();
                self.prepared.insert(name, text());
                self.prepares = true;
            }
            b'B' => {
                let (_portal, name) = (text(), text());
                self.bound = Some(self.prepared.get(&name).cloned().unwrap_or(name));
            }
            b'C' => self.prepares = true,
            b'S' => {
                let prepares = std::mem::take(&mut self.prepares);
                return Some(match self.bound.take() {
                    Some(sql) => RoundTrip::Statement(sql),
                    None if prepares => RoundTrip::Prepare,
                    None => RoundTrip::Test,
                });
            }
            _ => {}
        }
        None
    }
}
