//! Network of a builder. A step reaches the internet, as capsules do, and nothing else.

use super::{capsule_of, delete, over_app, run, with, workshop};
use crate::internet::{HOST, INTERNET, Internet, METADATA, PORT, PRIVATE, answer};
use serde_json::json;
use std::net::{Ipv4Addr, TcpListener};
use tests::eventually;

/// Returns a command that tries all connections at once. It writes a line for each that succeeds.
fn scan(targets: &[(Ipv4Addr, u16)]) -> String {
    let one = |(to, port): &(Ipv4Addr, u16)| {
        format!("(echo | nc -w 5 {to} {port} 2>/dev/null | sed 's/^/REACHED {to}:{port} /') & ")
    };
    let tries: String = targets.iter().map(one).collect();
    format!("{tries} wait; echo scanned")
}

#[tokio::test]
async fn step_of_a_build_reaches_neither_host_nor_capsules_nor_private_networks() {
    let _internet = Internet::make();
    let (ready, wait) = std::sync::mpsc::channel();
    let host = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let host_port = host.local_addr().unwrap().port();
    std::thread::spawn(move || answer(host, &ready));
    wait.recv().unwrap();
    let workshop = workshop().await;
    let client = &workshop.client;
    client.build(&over_app(&workshop, "web", &json!([]))).await;
    let bystander = capsule_of(client, "web").await;
    client.out(&bystander, "mkdir -p /tmp/www; httpd -p 8080 -h /tmp/www").await;
    eventually("the bystander serves", async || {
        let look = "wget -q -O /dev/null http://127.0.0.1:8080/none; echo $?";
        let told = client.sh(&bystander, look).await;
        told["stderr"].as_str()?.contains("404").then_some(())
    })
    .await;
    // The targets are every address of the host: its way out, the gateway, and both ends of every
    // link. The bystander's address is among them.
    let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").map_or(200, |slot| slot.parse().unwrap());
    let mut addresses = vec![HOST, Ipv4Addr::new(169, 254, 0, 1)];
    addresses.extend((0..6).map(|last| Ipv4Addr::new(10, 199, slot, last)));
    let ports = [host_port, 22, 49983, PORT];
    let mut targets = vec![(INTERNET, PORT), (PRIVATE, PORT), (METADATA, PORT)];
    targets.extend(addresses.iter().flat_map(|to| ports.map(|port| (*to, port))));
    let steps = json!([run(&scan(&targets))]);
    let built = client.build(&over_app(&workshop, "scan", &steps)).await;
    assert_eq!(built.count("[stdout]: scanned"), 1, "{:?}", built.lines);
    // The internet answers, and sees the host's address.
    let lines = built.lines.iter().filter_map(|line| line.split_once("[stdout]: REACHED "));
    let reached: Vec<_> = lines.map(|(_, line)| line.trim_end()).collect();
    assert_eq!(reached, [format!("{INTERNET}:{PORT} hello {HOST}")]);
    delete(client, &bystander).await;
    workshop.finish();
}

#[tokio::test]
async fn first_create_with_rules_saves_a_machine_that_began_without_them() {
    let _internet = Internet::make();
    let workshop = workshop().await;
    let client = &workshop.client;
    let ask = format!("echo | nc -w 5 {INTERNET} {PORT} 2>/dev/null");
    let start = format!("{ask} > /asked; mv /asked /answer; exec sleep 100000");
    let commands = json!({ "start": start, "ready": "test -e /answer" });
    client.build(&with(over_app(&workshop, "web", &json!([])), commands)).await;
    // No machine of this size was saved before, so this create runs the start command.
    let denied = json!({ "template": "web", "memory_mib": 320, "network": { "internet": false } });
    let denied = client.create(&denied).await;
    let hello = format!("hello {HOST}");
    assert_eq!(client.out(&denied, "cat /answer").await.trim(), hello);
    assert_eq!(client.out(&denied, &format!("{ask}; echo tried")).await, "tried\n");
    let open = json!({ "template": "web", "memory_mib": 320 });
    let open = client.create(&open).await;
    assert_eq!(client.out(&open, "cat /answer").await.trim(), hello);
    assert_eq!(client.out(&open, &ask).await.trim(), hello);
    for id in [&denied, &open] {
        delete(client, id).await;
    }
    workshop.finish();
}
