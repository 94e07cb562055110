//! The proxy's rivals: nginx and Caddy, each with two hops in a row, and an nginx as their
//! upstream.
//!
//! Each hop does the same work as a hop of ours. It keeps connections open, passes the requested
//! host name on, and reports the client's address. Between the hops there is plain HTTP, or mutual
//! TLS with certificates of the platform's own authority.

mod caddy;
mod nginx;

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

pub(crate) const UPSTREAM: u16 = 7411;
/// First hops with plain HTTP to the second.
pub(crate) const NGINX: u16 = 7421;
pub(crate) const CADDY: u16 = 7431;
/// First hops with mutual TLS to the second.
pub(crate) const NGINX_TLS: u16 = 7423;
pub(crate) const CADDY_TLS: u16 = 7433;
/// First hops with TLS and HTTP/2 for the public, and mutual TLS to the second.
pub(crate) const NGINX_H2: u16 = 7425;
pub(crate) const CADDY_H2: u16 = 7435;

/// Ports of the second hops.
const NGINX_SECOND: u16 = 7422;
const NGINX_SECOND_TLS: u16 = 7424;
const CADDY_SECOND: u16 = 7432;
const CADDY_SECOND_TLS: u16 = 7434;
/// Ports of all servers.
const ALL: [u16; 11] = [
    UPSTREAM,
    NGINX,
    NGINX_TLS,
    NGINX_H2,
    NGINX_SECOND,
    NGINX_SECOND_TLS,
    CADDY,
    CADDY_TLS,
    CADDY_H2,
    CADDY_SECOND,
    CADDY_SECOND_TLS,
];

/// Files of an authority, and of a server's and a client's certificate, each with its key.
pub(crate) struct Certificates {
    pub authority: String,
    pub server: (String, String),
    pub client: (String, String),
}

impl Certificates {
    /// Writes the PEM texts into a folder.
    pub(crate) fn write(
        dir: &Path,
        authority: &str,
        server: (&str, &str),
        client: (&str, &str),
    ) -> Self {
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        Self {
            authority: write("ca.crt", authority),
            server: (write("server.crt", server.0), write("server.key", server.1)),
            client: (write("client.crt", client.0), write("client.key", client.1)),
        }
    }
}

/// The rivals' running processes.
pub(crate) struct Rival {
    processes: Vec<Child>,
}

impl Rival {
    /// Starts the rivals, with their files in a folder. The upstream serves `/1k` and `/large`.
    pub(crate) fn start(dir: &Path, certificates: &Certificates, large: usize) -> Self {
        // nginx's workers run as another user.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir, mode).unwrap();
        fs::create_dir(dir.join("www")).unwrap();
        fs::write(dir.join("www/1k"), vec![b'x'; 1024]).unwrap();
        fs::File::create(dir.join("www/large")).unwrap().set_len(large as u64).unwrap();
        let processes = vec![
            nginx::upstream(dir),
            nginx::hops(dir, certificates),
            caddy::hops(dir, certificates),
        ];
        ALL.into_iter().for_each(wait);
        Self { processes }
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // TERM lets nginx end its workers.
            tests::signal(i32::try_from(process.id()).unwrap(), rustix::process::Signal::TERM);
            let _ = process.wait();
        }
    }
}

fn wait(port: u16) {
    let limit = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < limit, "nothing listens on {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
