//! The internet for tests: a namespace behind the host's way out. Its addresses belong to nothing
//! else on this machine, and it answers everybody.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};

/// Two servers of the internet. The first is its name server too.
pub(crate) const INTERNET: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 44);
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 45);
/// The host's own address on its way to the internet. It looks like a public address.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 1);
/// Server in a private network behind the same way out.
pub(crate) const PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 7);
pub(crate) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const NAMESPACE: &str = "wrenn-test-internet";
/// Port at which every address answers with the caller's address.
pub(crate) const PORT: u16 = 8080;

/// Other side of the host's way out. The machine has only one, so a test holds a lock on it.
pub(crate) struct Internet {
    started: Vec<Child>,
    _turn: std::fs::File,
}

impl Internet {
    /// Creates the internet, with a server on every address.
    pub(crate) fn make() -> Self {
        let at = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/internet.lock");
        let turn = std::fs::File::create(at).unwrap();
        rustix::fs::flock(&turn, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let this = Self { started: Vec::new(), _turn: turn };
        remove();
        let in_ns = format!("-n {NAMESPACE}");
        for command in [
            format!("netns add {NAMESPACE}"),
            format!("link add wt-host type veth peer name wt-inet netns {NAMESPACE}"),
            format!("addr add {HOST}/24 dev wt-host"),
            "link set wt-host up".to_owned(),
            format!("{in_ns} link set lo up"),
            format!("{in_ns} addr add {INTERNET}/24 dev wt-inet"),
            format!("{in_ns} addr add {OTHER}/24 dev wt-inet"),
            format!("{in_ns} addr add {PRIVATE}/32 dev lo"),
            format!("{in_ns} addr add {METADATA}/32 dev lo"),
            format!("{in_ns} link set wt-inet up"),
            format!("route add {PRIVATE}/32 via {INTERNET}"),
            format!("route add {METADATA}/32 via {INTERNET}"),
        ] {
            ip(&command);
        }
        inside(|ready| answer(TcpListener::bind(("0.0.0.0", PORT)).unwrap(), ready));
        this
    }

    /// Adds servers for HTTP, HTTPS with a self-made certificate, and DNS. Every name leads to
    /// `INTERNET`, except that names beginning with `other` lead to `OTHER`.
    pub(crate) fn with_names(mut self) -> Self {
        inside(|ready| answer_names(&UdpSocket::bind(("0.0.0.0", 53)).unwrap(), ready));
        let dir = tempfile::tempdir().unwrap();
        let made = pki::Authority::generate().unwrap();
        let authority = pki::Authority::load(&made.cert_pem, &made.key_pem).unwrap();
        let pair = authority.wildcard("test").unwrap();
        std::fs::write(dir.path().join("both.pem"), format!("{}{}", pair.key_pem, pair.cert_pem))
            .unwrap();
        let mut web = Command::new("ip");
        web.args(["netns", "exec", NAMESPACE, "python3", "-c", WEB]).current_dir(dir.path());
        let mut web = web.stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        web.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        self.started.push(web);
        self
    }

    /// Opens a port on every address of the internet.
    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        let bind = move || {
            enter();
            TcpListener::bind(("0.0.0.0", port)).unwrap()
        };
        std::thread::spawn(bind).join().unwrap()
    }
}

/// Web server that answers with the requested host and its own address. `/slow` never ends.
const WEB: &str = r#"
import http.server, ssl, threading, time
class Web(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        said = f"{self.headers['host']} at {self.request.getsockname()[0]}\n".encode()
        slow = self.path == "/slow"
        self.send_response(200)
        if slow: self.close_connection = True
        else: self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        try:
            while slow:
                self.wfile.write(b"."); time.sleep(0.1)
            self.wfile.write(said)
        except OSError: pass
    def log_message(self, *_): pass
plain = http.server.ThreadingHTTPServer(("0.0.0.0", 80), Web)
tls = http.server.ThreadingHTTPServer(("0.0.0.0", 443), Web)
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH); context.load_cert_chain("both.pem")
tls.socket = context.wrap_socket(tls.socket, server_side=True)
threading.Thread(target=plain.serve_forever, daemon=True).start()
print("ready", flush=True); tls.serve_forever()
"#;

impl Drop for Internet {
    fn drop(&mut self) {
        for started in &mut self.started {
            let _ = started.kill();
            let _ = started.wait();
        }
        remove();
    }
}

fn remove() {
    let _ = Command::new("ip").args(["netns", "del", NAMESPACE]).output();
    let _ = Command::new("ip").args(["link", "del", "wt-host"]).output();
}

/// Serves in the namespace on a thread of its own. Returns once the server is ready.
fn inside(serve: impl FnOnce(&Sender<()>) + Send + 'static) {
    let (ready, wait) = channel();
    std::thread::spawn(move || {
        enter();
        serve(&ready);
    });
    wait.recv().unwrap();
}

/// Moves the calling thread into the namespace.
fn enter() {
    let ns = std::fs::File::open(format!("/run/netns/{NAMESPACE}")).unwrap();
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    let fd = std::os::fd::AsFd::as_fd(&ns);
    rustix::thread::move_into_link_name_space(fd, kind).unwrap();
}

/// Answers connections with the caller's address.
pub(crate) fn answer(listener: TcpListener, ready: &Sender<()>) {
    ready.send(()).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let from = stream.peer_addr().unwrap().ip();
        let _ = stream.write_all(format!("hello {from}\n").as_bytes());
        let _ = stream.read(&mut [0; 16]);
    }
}

/// Answers DNS questions for IPv4 addresses (RFC 1035, 4.1). Other questions get an empty answer.
fn answer_names(socket: &UdpSocket, ready: &Sender<()>) {
    ready.send(()).unwrap();
    let mut question = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut question) {
        let name: Vec<u8> = question[12..length].iter().copied().take_while(|b| *b != 0).collect();
        let end = 12 + name.len() + 5;
        let is_a = question[end - 4..end] == [0, 1, 0, 1];
        let mut said = question[..2].to_vec();
        said.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
        said.extend(&question[12..end]);
        if is_a {
            let address = if name[1..].starts_with(b"other") { OTHER } else { INTERNET };
            said.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            said.extend(address.octets());
        }
        let _ = socket.send_to(&said, from);
    }
}

fn ip(command: &str) {
    let out = Command::new("ip").args(command.split(' ')).output().unwrap();
    assert!(out.status.success(), "ip {command}: {}", String::from_utf8_lossy(&out.stderr));
}
