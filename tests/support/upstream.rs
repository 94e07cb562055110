//! Program that listens, as a program in a capsule does. The test sees each received byte and
//! chooses the answers. A raw client sends bytes that no library would send.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time limit for bytes from the other side.
const WAIT: Duration = Duration::from_secs(30);

/// Listening program.
pub struct Upstream {
    /// Port that the program listens on.
    pub port: u16,
}

/// Use of a port that all capsules of the fake driver share. Tests that use the port wait for each
/// other.
pub struct SharedPort {
    port: u16,
    /// Locked file; its lock ends with the value.
    _lock: File,
    stop: Arc<AtomicBool>,
    serving: bool,
}

impl SharedPort {
    /// Waits until no other test uses the port.
    ///
    /// # Panics
    /// When the lock cannot be made.
    #[must_use]
    pub fn take(port: u16) -> Self {
        let path = std::env::temp_dir().join(format!("wrenn-tests-port-{port}"));
        let lock = File::options().create(true).append(true).open(path).unwrap();
        lock.lock().unwrap();
        Self { port, _lock: lock, stop: Arc::new(AtomicBool::new(false)), serving: false }
    }

    /// Starts a program at the port that handles each connection by `serve`, on a thread of its own.
    /// The port is free again when the value is dropped.
    ///
    /// # Panics
    /// When the port stays in use.
    pub fn serve(&mut self, serve: impl Fn(Wire) + Send + Sync + 'static) {
        let until = Instant::now() + WAIT;
        // The kernel may have given the port to an outgoing connection, which soon ends.
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", self.port)) {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < until, "port {}: {error}", self.port),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let (serve, stop) = (Arc::new(serve), Arc::clone(&self.stop));
        self.serving = true;
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(Wire::new(stream)));
            }
        });
    }
}

impl Drop for SharedPort {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if self.serving {
            // The connection wakes the program, which then ends.
            let _ = TcpStream::connect(("127.0.0.1", self.port));
        }
    }
}

/// Connection, with bytes that were read too early.
pub struct Wire {
    stream: TcpStream,
    early: Vec<u8>,
}

impl Upstream {
    /// Starts a program that handles each connection by `serve`, on a thread of its own.
    pub fn start(serve: impl Fn(Wire) + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1", serve)
    }

    /// Starts a program as [`Self::start`] does, at one address of this machine. No other address
    /// of the loopback has a server at the port.
    ///
    /// # Panics
    /// When the program cannot listen there.
    /// When it cannot listen there.
    pub fn start_at(address: &str, serve: impl Fn(Wire) + Send + Sync + 'static) -> Self {
        let (listener, port) = loop {
            let listener = TcpListener::bind((address, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            if address == "127.0.0.1" || TcpListener::bind(("127.0.0.1", port)).is_ok() {
                break (listener, port);
            }
        };
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(Wire::new(stream)));
            }
        });
        Self { port }
    }

    /// Starts a program that answers each request with the request's own head as the body.
    pub fn echo() -> Self {
        Self::echo_at("127.0.0.1")
    }

    /// Starts a program as [`Self::echo`] does, at one address of this machine.
    pub fn echo_at(address: &str) -> Self {
        Self::start_at(address, |mut wire| {
            while let Some(head) = wire.head() {
                let length = head.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length")
                        .then(|| value.trim().parse().ok())?
                });
                wire.take(length.unwrap_or(0));
                wire.answer("200 OK", "", head.as_bytes());
            }
        })
    }
}

impl Wire {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, early: Vec::new() }
    }

    /// Connects to a URL's host and port.
    #[must_use]
    pub fn to(url: &str) -> Self {
        Self::new(TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap())
    }

    fn more(&mut self) -> usize {
        let mut chunk = [0; 65536];
        let count = self.stream.read(&mut chunk).unwrap_or(0);
        self.early.extend_from_slice(&chunk[..count]);
        count
    }

    /// Reports whether unread bytes have arrived.
    ///
    /// # Panics
    /// When the socket cannot be asked.
    #[must_use]
    pub fn has_bytes(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        !self.early.is_empty() || peeked.is_ok_and(|count| count > 0)
    }

    /// Returns the next head, with the empty line that ends it, or `None` at the end.
    pub fn head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.early.windows(4).position(|w| w == b"\r\n\r\n") {
                let head: Vec<u8> = self.early.drain(..at + 4).collect();
                return Some(String::from_utf8_lossy(&head).into_owned());
            }
            if self.more() == 0 {
                return None;
            }
        }
    }

    /// Returns the next bytes. There are fewer than `count` at the end of the stream.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        while self.early.len() < count && self.more() > 0 {}
        let count = count.min(self.early.len());
        self.early.drain(..count).collect()
    }

    /// Returns all bytes up to the end of the stream.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.more() > 0 {}
        std::mem::take(&mut self.early)
    }

    /// Sends bytes. Returns `false` when the other side is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Answers with a body and its length.
    pub fn answer(&mut self, status: &str, headers: &str, body: &[u8]) {
        let length = body.len();
        self.send(format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n"));
        self.send(body);
    }

    /// Closes the sending direction.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}
