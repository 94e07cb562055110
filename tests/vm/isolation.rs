//! Network isolation of guests: each reaches the internet and nothing else.

use crate::internet::{HOST, INTERNET, Internet, METADATA, PORT, PRIVATE, answer};
use crate::{capsule, small};
use std::net::{Ipv4Addr, TcpListener};
use tests::Client;

/// Tries connections from a capsule, all at once. Returns a line for each connection that succeeds.
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
async fn guest_reaches_only_the_internet() {
    let _internet = Internet::make();
    let (ready, wait) = std::sync::mpsc::channel();
    let host = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let host_port = host.local_addr().unwrap().port();
    std::thread::spawn(move || answer(host, &ready));
    wait.recv().unwrap();
    // This machine itself reaches each server.
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
    // The targets are every address of the host: its way out, the gateway and both ends of every
    // link. The other capsule's address is among them.
    let mut addresses = vec![HOST, Ipv4Addr::new(169, 254, 0, 1)];
    let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").map_or(200, |slot| slot.parse().unwrap());
    addresses.extend((0..4).map(|last| Ipv4Addr::new(10, 199, slot, last)));
    let ports = [host_port, 22, 49983, PORT];
    let mut targets = vec![(PRIVATE, PORT), (METADATA, PORT)];
    targets.extend(addresses.iter().flat_map(|to| ports.map(|port| (*to, port))));
    assert_eq!(reach(&client, &one, &targets).await, "");
    // A guest with a forged source address gets no further.
    let lie = "sudo ip addr add 11.22.33.99/32 dev eth0; \
        timeout 4 curl -s --interface 11.22.33.99 http://11.22.33.44:8080/ || echo refused";
    assert_eq!(client.out(&one, lie).await, "refused\n");
    assert_eq!(
        client.out(&one, "ping -c 1 -W 1 169.254.0.1 >/dev/null 2>&1 || echo no").await,
        "no\n"
    );
    platform.finish();
}
