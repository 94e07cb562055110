//! The sandbox proxy's two hops, against two hops of nginx and of Caddy. All share an nginx as
//! their upstream. Equal clients (wrk, curl, h2load) run against each in turns.
//!
//! Our hops speak mutual TLS with each other. The rivals are measured with plain HTTP between their
//! hops, and with mutual TLS as ours. HTTP/2 on the public side is over TLS for all.

mod client;
mod memory;

use crate::rival::{self, Certificates, Rival};
use crate::stats::{NONE, Row, say};
use client::{Measured, Way};
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use tests::{Driver, Platform, free_port};

const ROUNDS: usize = 9;
/// Time between two runs of a client.
const PAUSE: Duration = Duration::from_millis(300);
/// Bytes of the large body.
const LARGE: usize = 1_000_000_000;
/// Domain of the public certificate.
const DOMAIN: &str = "localhost";

pub(crate) async fn measure() -> Vec<Row> {
    daemon::raise_open_files();
    let dir = tempfile::Builder::new().prefix("wrenn-rival-").tempdir().unwrap();
    let vars = [("WRENN_CAPSULE_CONNECTIONS", "20000")];
    let mut platform = Platform::start(Driver::Fake, &vars).await;
    let certificates = issue(&platform, dir.path());
    let tls = serve_tls(&mut platform, &certificates).await;
    let rival = Rival::start(dir.path(), &certificates, LARGE);
    let client = platform.client();
    let id = client.create(&json!({})).await;
    let name = format!("{}-{id}.{DOMAIN}", rival::UPSTREAM);
    let key = format!("X-API-Key: {}", client.key());
    let ours = Way::new(platform.url(), &[&format!("Host: {name}"), &key]);
    let ours_h2 =
        Way::new(&format!("https://127.0.0.1:{tls}"), &[&format!(":authority: {name}"), &key]);
    let mut rows = say(plain(&ours));
    rows.extend(say(h2(&ours_h2)));
    let direct = Way::http(rival::UPSTREAM);
    rows.extend(say(vec![latencies(&ours, &direct), large(&ours, &Way::http(rival::NGINX))]));
    drop(rival);
    rows.push(memory::sockets(&platform).await);
    rows.push(memory::routes(&platform, &client).await);
    platform.finish();
    rows
}

/// Writes certificates of the platform's authority for the rivals' hops and for the public side.
fn issue(platform: &Platform, dir: &Path) -> Certificates {
    let authority = platform.authority();
    let (server, client) = (authority.wildcard(DOMAIN), authority.control_plane());
    let (server, client) = (server.unwrap(), client.unwrap());
    Certificates::write(
        dir,
        authority.trust().pem(),
        (&server.cert_pem, &server.key_pem),
        (&client.cert_pem, &client.key_pem),
    )
}

/// Starts the platform again with a TLS listener. Returns its port.
async fn serve_tls(platform: &mut Platform, certificates: &Certificates) -> u16 {
    let port = free_port();
    platform.set_var("WRENN_TLS_LISTEN_ADDR", Some(&format!("127.0.0.1:{port}")));
    platform.set_var("WRENN_TLS_CERT", Some(&certificates.server.0));
    platform.set_var("WRENN_TLS_KEY", Some(&certificates.server.1));
    platform.stop();
    platform.resume().await;
    // Further control planes beside the platform's have no TLS listener.
    for name in ["WRENN_TLS_LISTEN_ADDR", "WRENN_TLS_CERT", "WRENN_TLS_KEY"] {
        platform.set_var(name, None);
    }
    port
}

/// Measures small answers by HTTP/1.1 on the public side.
fn plain(ours: &Way) -> Vec<Row> {
    let rivals = [
        ("nginx by two with mutual TLS", rival::NGINX_TLS, "≥ 1.1"),
        ("plain nginx by two", rival::NGINX, "≥ 0.9"),
        ("Caddy by two with mutual TLS", rival::CADDY_TLS, "≥ 3"),
        ("plain Caddy by two", rival::CADDY, "≥ 3"),
    ];
    let ways: Vec<Way> = rivals.iter().map(|(_, port, _)| Way::http(*port)).collect();
    let all: Vec<&Way> = std::iter::once(ours).chain(&ways).collect();
    all.iter().for_each(|way| way.check());
    let measured = in_turns(&all, Way::rate);
    let what = "requests/s by two hops, 64 connections, 1 KiB";
    rows(what, &measured, &rivals.map(|(name, _, goal)| (name, goal)))
}

/// Measures small answers by HTTP/2 on the public side.
fn h2(ours: &Way) -> Vec<Row> {
    let rivals = [
        ("nginx by two with mutual TLS", rival::NGINX_H2, "≥ 1.1"),
        ("Caddy by two with mutual TLS", rival::CADDY_H2, "≥ 3"),
    ];
    let ways: Vec<Way> = rivals.iter().map(|(_, port, _)| Way::https(DOMAIN, *port)).collect();
    let all: Vec<&Way> = std::iter::once(ours).chain(&ways).collect();
    let measured = in_turns(&all, Way::h2_rate);
    let what = "h2 requests/s by two hops, 4 connections of 16 streams, 1 KiB";
    rows(what, &measured, &rivals.map(|(name, _, goal)| (name, goal)))
}

/// Measures each way in each round. Each way comes first, and after each other way, about equally
/// often. A proxy's leftover work, such as closing its connections, slows the next one.
fn in_turns(ways: &[&Way], measure: fn(&Way) -> Measured) -> Vec<Vec<Measured>> {
    let count = ways.len();
    let mut all: Vec<Vec<Measured>> = ways.iter().map(|_| Vec::new()).collect();
    for round in 0..=ROUNDS {
        for turn in 0..count {
            let which = if round % 2 == 0 {
                (round + turn) % count
            } else {
                (round + (ROUNDS + 1) * count - turn) % count
            };
            std::thread::sleep(PAUSE);
            let measured = measure(ways[which]);
            // The first round only warms caches.
            if round > 0 {
                all[which].push(measured);
            }
        }
    }
    all
}

/// Makes a row for each rival. The first measurements are ours, the others the rivals'.
fn rows(what: &str, measured: &[Vec<Measured>], rivals: &[(&str, &str)]) -> Vec<Row> {
    let (ours, theirs) = measured.split_first().unwrap();
    let rate_of = |all: &[Measured]| middle(all.iter().map(|one| one.rate).collect());
    let failed: usize = ours.iter().map(|one| one.failed).sum();
    let p99s: Vec<Duration> = ours.iter().filter_map(|one| one.p99).collect();
    let p99 = if p99s.is_empty() {
        NONE.to_owned()
    } else {
        format!("a request {}", crate::stats::middle(&p99s))
    };
    let row = |((name, goal), theirs): (&(&str, &str), &Vec<Measured>)| {
        let (a, b) = (rate_of(ours), rate_of(theirs));
        let rate = |rate: f64| format!("{rate:.0}/s");
        let figure = format!("{:.2}", a / b);
        let row = Row::new(&format!("{what} ÷ {name}"), &rate(a), &rate(b), &figure, goal);
        row.p99(&p99).failures(failed)
    };
    rivals.iter().zip(theirs).map(row).collect()
}

fn middle(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn latencies(ours: &Way, direct: &Way) -> Row {
    let (mut a, mut b, mut p99) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (median, high) = ours.latency();
        a.push(median);
        p99.push(high);
        b.push(direct.latency().0);
    }
    let row = Row::less("latency of one request, both hops − none", &a, &b, "≤ 0.06 ms");
    row.p99(&crate::stats::middle(&p99))
}

fn large(ours: &Way, nginx: &Way) -> Row {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        a.push(ours.large());
        b.push(nginx.large());
    }
    Row::throughput("one body of 1 GB by two hops ÷ plain nginx by two", LARGE, &a, &b, "≥ 0.9")
}
