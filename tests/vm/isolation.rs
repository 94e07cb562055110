//! What a guest reaches: the internet, and nothing else. The internet here is a namespace that
//! the test makes, with an address that is nobody's on this machine.

use crate::{capsule, small};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use tests::Client;

const INTERNET: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 44);
/// The host's own address on its way there: a public one, by its looks.
const HOST: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 1);
/// A private network behind the same way.
const PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 7);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const NAMESPACE: &str = "wrenn-test-internet";
const PORT: u16 = 8080;

/// The other side of the host's way out.
struct Internet;

impl Internet {
    fn make() -> Self {
        let this = Self;
        this.remove();
        let in_ns = format!("-n {NAMESPACE}");
        for command in [
            format!("netns add {NAMESPACE}"),
            format!("link add wt-host type veth peer name wt-inet netns {NAMESPACE}"),
            format!("addr add {HOST}/24 dev wt-host"),
            "link set wt-host up".to_owned(),
            format!("{in_ns} link set lo up"),
            format!("{in_ns} addr add {INTERNET}/24 dev wt-inet"),
            format!("{in_ns} addr add {PRIVATE}/32 dev lo"),
            format!("{in_ns} addr add {METADATA}/32 dev lo"),
            format!("{in_ns} link set wt-inet up"),
            format!("route add {PRIVATE}/32 via {INTERNET}"),
            format!("route add {METADATA}/32 via {INTERNET}"),
        ] {
            ip(&command);
        }
        this
    }

    fn remove(&self) {
        let _ = Command::new("ip").args(["netns", "del", NAMESPACE]).output();
        let _ = Command::new("ip").args(["link", "del", "wt-host"]).output();
    }

    /// Serves on every address there: answers with the caller's address.
    fn serve(&self) {
        let (ready, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let ns = std::fs::File::open(format!("/run/netns/{NAMESPACE}")).unwrap();
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            let fd = std::os::fd::AsFd::as_fd(&ns);
            rustix::thread::move_into_link_name_space(fd, kind).unwrap();
            answer(TcpListener::bind(("0.0.0.0", PORT)).unwrap(), &ready);
        });
        wait.recv().unwrap();
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        self.remove();
    }
}

fn answer(listener: TcpListener, ready: &std::sync::mpsc::Sender<()>) {
    ready.send(()).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let from = stream.peer_addr().unwrap().ip();
        let _ = stream.write_all(format!("hello {from}\n").as_bytes());
        let _ = stream.read(&mut [0; 16]);
    }
}

fn ip(command: &str) {
    let out = Command::new("ip").args(command.split(' ')).output().unwrap();
    assert!(out.status.success(), "ip {command}: {}", String::from_utf8_lossy(&out.stderr));
}

/// What connections from a capsule bring, all tried at once: a line each, where there is one.
async fn reach(client: &Client, id: &str, targets: &[(Ipv4Addr, u16)]) -> String {
    let one = |(to, port): &(Ipv4Addr, u16)| {
        format!(
            "(timeout 8 bash -c 'exec 3<>/dev/tcp/{to}/{port} && echo {to}:{port} $(head -n 1 <&3)' &) 2>/dev/null\n"
        )
    };
    let tries: String = targets.iter().map(one).collect();
    client.out(id, &format!("{tries} sleep 9")).await
}

#[tokio::test]
async fn a_guest_reaches_the_internet_and_nothing_else() {
    let internet = Internet::make();
    internet.serve();
    let (ready, wait) = std::sync::mpsc::channel();
    let host = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let host_port = host.local_addr().unwrap().port();
    std::thread::spawn(move || answer(host, &ready));
    wait.recv().unwrap();
    // Each is there for this machine itself.
    for (to, port) in [(INTERNET, PORT), (PRIVATE, PORT), (METADATA, PORT), (HOST, host_port)] {
        std::net::TcpStream::connect((to, port)).unwrap_or_else(|e| panic!("{to}: {e}"));
    }
    let (platform, client, one) = capsule().await;
    let two = client.create(&small()).await;
    let serve = "cd /tmp && (python3 -m http.server 8080 >/dev/null 2>&1 &) ; sleep 3; \
        curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/";
    assert_eq!(client.out(&two, serve).await, "200");
    // The internet sees the host's address, never a capsule's.
    let seen = reach(&client, &one, &[(INTERNET, PORT)]).await;
    assert_eq!(seen, format!("{INTERNET}:{PORT} hello {HOST}\n"));
    let log = platform.leftovers();
    assert_eq!((log.namespaces.len(), log.links.len()), (2, 2), "{log:?}");
    // The host, by each address it has: its way out, the gateway, both ends of every link; and
    // the other capsule by its.
    let mut addresses = vec![HOST, Ipv4Addr::new(169, 254, 0, 1)];
    let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").map_or(200, |slot| slot.parse().unwrap());
    addresses.extend((0..4).map(|last| Ipv4Addr::new(10, 199, slot, last)));
    let ports = [host_port, 22, 49983, PORT];
    let mut targets = vec![(PRIVATE, PORT), (METADATA, PORT)];
    targets.extend(addresses.iter().flat_map(|to| ports.map(|port| (*to, port))));
    assert_eq!(reach(&client, &one, &targets).await, "");
    // One that lies about its address gets no further.
    let lie = "sudo ip addr add 11.22.33.99/32 dev eth0; \
        timeout 4 curl -s --interface 11.22.33.99 http://11.22.33.44:8080/ || echo refused";
    assert_eq!(client.out(&one, lie).await, "refused\n");
    assert_eq!(
        client.out(&one, "ping -c 1 -W 1 169.254.0.1 >/dev/null 2>&1 || echo no").await,
        "no\n"
    );
    platform.finish();
}
