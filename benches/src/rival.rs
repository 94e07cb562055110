//! The proxy's rivals: nginx and Caddy, each with two hops in a row, and an nginx as their
//! upstream.
//!
//! Each hop does the same work as a hop of ours. It keeps connections open, passes the requested
//! host name on, and reports the client's address.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) const UPSTREAM: u16 = 7411;
pub(crate) const NGINX: u16 = 7421;
const NGINX_SECOND: u16 = 7422;
pub(crate) const CADDY: u16 = 7431;
const CADDY_SECOND: u16 = 7432;

/// The rivals' running processes.
pub(crate) struct Rival {
    processes: Vec<Child>,
    _dir: TempDir,
}

impl Rival {
    /// Starts the rivals. The upstream serves `/1k` and `/large`.
    pub(crate) fn start(large: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        // nginx's workers run as another user.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(at, mode).unwrap();
        fs::create_dir(at.join("www")).unwrap();
        fs::write(at.join("www/1k"), vec![b'x'; 1024]).unwrap();
        fs::File::create(at.join("www/large")).unwrap().set_len(large as u64).unwrap();
        let root = format!("location / {{ root {}/www; }}", at.display());
        let upstream =
            nginx(at, "upstream", 1, &format!("server {{ {} {root} }}", listen(UPSTREAM)));
        let first = hop(NGINX, NGINX_SECOND, "first");
        let second = hop(NGINX_SECOND, UPSTREAM, "second");
        let hops = nginx(at, "hops", 2, &format!("{first}\n{second}"));
        let processes = vec![upstream, hops, caddy(at)];
        for port in [UPSTREAM, NGINX, NGINX_SECOND, CADDY, CADDY_SECOND] {
            wait(port);
        }
        Self { processes, _dir: dir }
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

fn listen(port: u16) -> String {
    format!("listen 127.0.0.1:{port} backlog=4096;")
}

fn hop(port: u16, next: u16, name: &str) -> String {
    format!(
        "upstream {name} {{ server 127.0.0.1:{next}; keepalive 256; keepalive_requests 1000000; }}
         server {{ {}
             location / {{
                 proxy_pass http://{name};
                 proxy_http_version 1.1;
                 proxy_max_temp_file_size 0;
                 proxy_set_header Connection '';
                 proxy_set_header Host $http_host;
                 proxy_set_header X-Forwarded-Host $http_host;
                 proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                 proxy_set_header X-Forwarded-Proto $scheme;
             }}
         }}",
        listen(port)
    )
}

fn nginx(dir: &Path, name: &str, workers: u32, servers: &str) -> Child {
    let path = dir.join(format!("{name}.conf"));
    let config = format!(
        "worker_processes {workers};
         pid {0}/{name}.pid;
         error_log {0}/{name}.log;
         events {{ worker_connections 8192; }}
         http {{
             access_log off;
             keepalive_requests 1000000;
             client_body_temp_path {0}/{name}-body;
             proxy_temp_path {0}/{name}-proxy;
             fastcgi_temp_path {0}/{name}-fastcgi;
             scgi_temp_path {0}/{name}-scgi;
             uwsgi_temp_path {0}/{name}-uwsgi;
             {servers}
         }}",
        dir.display()
    );
    fs::write(&path, config).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&path).args(["-g", "daemon off;"]);
    command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("nginx is missing")
}

fn caddy(dir: &Path) -> Child {
    let path = dir.join("Caddyfile");
    let hop = |port: u16, next: u16| {
        format!("http://127.0.0.1:{port} {{\n\treverse_proxy 127.0.0.1:{next}\n}}\n")
    };
    let hops = hop(CADDY, CADDY_SECOND) + &hop(CADDY_SECOND, UPSTREAM);
    fs::write(&path, format!("{{\n\tadmin off\n\tauto_https off\n}}\n{hops}")).unwrap();
    let mut command = Command::new("caddy");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&path).env("HOME", dir);
    command.env("XDG_DATA_HOME", dir).env("XDG_CONFIG_HOME", dir);
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("caddy is missing")
}

fn wait(port: u16) {
    let limit = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < limit, "nothing listens on {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
