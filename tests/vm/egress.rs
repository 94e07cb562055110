//! A capsule's own rules for connections outside, by address and by name. Rules change while it
//! runs. They last through pauses, forks and the platform's death.

use crate::internet::{INTERNET, Internet, OTHER, PORT};
use crate::small;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::{Client, Driver, Platform, eventually};

async fn platform() -> (Platform, Client) {
    let vars = [("WRENN_DNS", INTERNET.to_string())];
    let vars = vars.each_ref().map(|(name, value)| (*name, value.as_str()));
    let platform = Platform::start(Driver::Guests, &vars).await;
    let client = platform.client();
    (platform, client)
}

/// Fetches a URL by `curl` in a capsule. Returns the body, the HTTP status and curl's exit code.
pub(crate) async fn curl(client: &Client, id: &str, args: &str) -> String {
    let curl = format!("curl -sk --noproxy '*' -m 6 -w '%{{http_code}}' {args}");
    let script = format!("got=$({curl}); code=$?; echo $got $code");
    client.out(id, &script).await.trim().to_owned()
}

pub(crate) async fn set(client: &Client, id: &str, rules: Value) {
    let set = client.put(&format!("/v1/capsules/{id}/network"), &rules).await.expect(200);
    assert_eq!(set["network"]["internet"], rules["internet"] != false, "{set}");
}

pub(crate) fn plain(host: &str, at: std::net::Ipv4Addr) -> String {
    format!("{host} at {at} 200 0")
}

/// Checks a capsule for which only `*.wild.test` is allowed.
async fn reaches(client: &Client, id: &str) {
    let wanted = plain("b.wild.test", INTERNET);
    eventually("it reaches what is allowed", || async {
        (curl(client, id, "https://b.wild.test/").await == wanted).then_some(())
    })
    .await;
    assert_eq!(curl(client, id, "http://ok.test/").await, "000 6");
}

/// The firewall alone enforces rules by address. A denial also ends connections under way.
#[tokio::test]
async fn egress_address_rules_change_while_capsule_runs() {
    let _internet = Internet::make().with_names();
    let (mut platform, client) = platform().await;
    let id = client.create(&small()).await;
    assert_eq!(curl(&client, &id, "http://any.test/").await, plain("any.test", INTERNET));
    let slow = "curl -sN http://11.22.33.44/slow >/tmp/slow & sleep 1; wc -c </tmp/slow";
    assert_ne!(client.out(&id, slow).await.trim(), "0");
    set(&client, &id, json!({ "internet": false })).await;
    let then = Instant::now();
    let size = "sleep 0.3; a=$(wc -c </tmp/slow); sleep 1; echo $(($(wc -c </tmp/slow) - a))";
    assert_eq!(client.out(&id, size).await.trim(), "0", "it goes on after {:?}", then.elapsed());
    // The name server refuses as well.
    assert!(curl(&client, &id, "http://any.test/").await.starts_with("000"));
    let direct = format!("http://{INTERNET}/ http://{OTHER}:{PORT}/");
    assert_eq!(curl(&client, &id, &direct).await, "000000 28");
    set(&client, &id, json!({ "internet": false, "allow": ["11.22.33.45/32", "192.168.0.0/16"] }))
        .await;
    let other = format!("http://{OTHER}/");
    assert_eq!(curl(&client, &id, &other).await, plain("11.22.33.45", OTHER));
    assert!(curl(&client, &id, &format!("http://{INTERNET}/")).await.starts_with("000"));
    // An allowed private range stays out of reach.
    assert!(curl(&client, &id, "http://192.168.77.7:8080/").await.starts_with("000"));
    set(&client, &id, json!({ "deny": ["11.22.33.45"] })).await;
    assert!(curl(&client, &id, &other).await.starts_with("000"));
    assert_eq!(curl(&client, &id, "http://any.test/").await, plain("any.test", INTERNET));
    for wrong in ["300.1.1.1", "::1", "a b", "http://x.test"] {
        let rules = json!({ "deny": [wrong] });
        let refused = client.put(&format!("/v1/capsules/{id}/network"), &rules).await;
        refused.refuses(400, "invalid_request", "network.deny");
    }
    // A platform that dies between the change and the host carries the change out after its start.
    platform.kill();
    platform.set_var("WRENN_DIE_AT", Some("control.network"));
    platform.resume().await;
    let path = format!("/v1/capsules/{id}/network");
    let denied = json!({ "deny": ["11.22.33.44"] });
    let _ = platform.client().request(reqwest::Method::PUT, &path).json(&denied).send().await;
    platform.wait_dead();
    platform.set_var("WRENN_DIE_AT", None);
    platform.resume().await;
    let client = platform.client();
    eventually("the change has reached the host", || async {
        curl(&client, &id, "http://11.22.33.44/").await.starts_with("000").then_some(())
    })
    .await;
    assert_eq!(curl(&client, &id, &other).await, plain("11.22.33.45", OTHER));
    let useless = json!({ "allow": ["x.test"] });
    let refused = client.put(&format!("/v1/capsules/{id}/network"), &useless).await;
    refused.refuses(400, "invalid_request", "network.allow");
    platform.finish();
}

/// Rules by name compare the name in TLS and HTTP, and the addresses that the name server gave.
#[tokio::test]
async fn egress_name_rules_cannot_be_bypassed() {
    let _internet = Internet::make().with_names();
    let (mut platform, client) = platform().await;
    let rules = json!({ "internet": false, "allow": ["ok.test", "*.wild.test"] });
    let body = json!({ "memory_mib": 256, "disk_mib": 256, "network": rules });
    let id = client.create(&body).await;
    for host in ["ok.test", "a.wild.test"] {
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{host}/");
            assert_eq!(curl(&client, &id, &url).await, plain(host, INTERNET), "{url}");
        }
    }
    // Exit codes of curl: 6 for an unknown name, 35 for a refusal of TLS, 28, 52 and 56 for no
    // answer. Status 403: a refusal by HTTP.
    let refused = [
        ("http://bad.test/".to_owned(), "000 6"),
        ("http://wild.test/".to_owned(), "000 6"),
        (format!("--resolve bad.test:80:{INTERNET} http://bad.test/"), "403 0"),
        (format!("--resolve bad.test:443:{INTERNET} https://bad.test/"), "000 35"),
        // The name is allowed, but the address is not one of its own.
        (format!("--resolve ok.test:80:{OTHER} http://ok.test/"), "403 0"),
        (format!("--resolve ok.test:443:{OTHER} https://ok.test/"), "000 35"),
        (format!("http://{INTERNET}/"), "403 0"),
        (format!("https://{INTERNET}/"), "000 35"),
        ("http://ok.test:8080/".to_owned(), "000 28"),
        ("-H 'Host: bad.test' http://ok.test/".to_owned(), "403 0"),
    ];
    for (args, wanted) in refused {
        let got = curl(&client, &id, &args).await;
        let tail: Vec<&str> = got.rsplitn(3, ' ').collect();
        assert_eq!(format!("{} {}", tail[1], tail[0]), wanted, "{args}: {got}");
    }
    // Questions to any name server reach the capsule's own, which refuses names that are not
    // allowed.
    let ask = "import socket,sys\n\
        def ask(name, to):\n  \
          q=b'\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0'+b''.join(bytes([len(p)])+p.encode() for p in name.split('.'))+b'\\0\\0\\1\\0\\1'\n  \
          s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(3); s.sendto(q,(to,53)); return s.recv(512)[3]&15\n\
        print(ask('ok.test','11.22.33.45'), ask('leak.evil.test','11.22.33.44'))";
    let script = format!("python3 -c \"{ask}\"");
    assert_eq!(client.out(&id, &script).await, "0 5\n");
    // The rules do not cover the metadata service.
    let metadata = "curl -s -o /dev/null -w '%{http_code}' http://169.254.169.254/";
    assert_eq!(client.out(&id, metadata).await, "401");

    // A change that removes a name ends connections by that name.
    let slow = "curl -skN https://ok.test/slow >/tmp/slow & sleep 1.5; wc -c </tmp/slow";
    assert_ne!(client.out(&id, slow).await.trim(), "0");
    set(&client, &id, json!({ "internet": false, "allow": ["*.wild.test"] })).await;
    let size = "sleep 0.3; a=$(wc -c </tmp/slow); sleep 1; echo $(($(wc -c </tmp/slow) - a))";
    assert_eq!(client.out(&id, size).await.trim(), "0");
    assert_eq!(curl(&client, &id, "http://ok.test/").await, "000 6");

    // The rules follow the capsule through a new agent, a pause and a fork.
    platform.kill();
    platform.resume().await;
    let client = platform.client();
    reaches(&client, &id).await;
    client.pause(&id).await;
    client.resume(&id).await;
    reaches(&client, &id).await;
    let forked = client.post(&format!("/v1/capsules/{id}/fork"), &json!({})).await.expect(201);
    let fork = forked["items"][0]["id"].as_str().unwrap().to_owned();
    reaches(&client, &fork).await;

    // With one name denied, everything else is open.
    set(&client, &id, json!({ "deny": ["bad.test"] })).await;
    assert_eq!(curl(&client, &id, "http://other.test/").await, plain("other.test", OTHER));
    assert_eq!(curl(&client, &id, "http://bad.test/").await, "000 6");
    let direct = format!("--resolve bad.test:443:{INTERNET} https://bad.test/");
    assert_eq!(curl(&client, &id, &direct).await, "000 35");
    assert_eq!(
        curl(&client, &id, &format!("http://{INTERNET}/")).await,
        plain("11.22.33.44", INTERNET)
    );
    // Without rules, nothing filters any more.
    set(&client, &id, json!({})).await;
    let took = Instant::now();
    assert_eq!(curl(&client, &id, "http://bad.test/").await, plain("bad.test", INTERNET));
    assert!(took.elapsed() < Duration::from_secs(20));
    platform.finish();
}

/// Speaks to `INTERNET` in ways that a usual client does not. Prints for each case whether the web
/// server there answered for `bad.test`.
/// server there answered for `bad.test`.
const TRICKS: &str = r#"
import socket, ssl, sys, time
at = sys.argv[1]
def say(*parts, port=80, wait=0):
    s = socket.create_connection((at, port), timeout=20)
    try:
        for part in parts:
            s.sendall(part); time.sleep(wait)
        s.settimeout(5); got = b""
        while more := s.recv(4096): got += more
    except OSError: pass
    return got
GOOD = b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n"
BAD = b"GET / HTTP/1.1\r\nHost: bad.test\r\nConnection: close\r\n\r\n"
cases = {
  "plain": [BAD],
  "two hosts": [b"GET / HTTP/1.1\r\nHost: bad.test\r\nHost: good.test\r\nConnection: close\r\n\r\n"],
  "large head": [b"GET / HTTP/1.1\r\nX: " + b"y" * 17000 + b"\r\nHost: bad.test\r\nConnection: close\r\n\r\n"],
  "no host": [b"GET http://bad.test/ HTTP/1.0\r\n\r\n"],
  "absolute form": [b"GET http://good.test/ HTTP/1.1\r\nHost: bad.test\r\nConnection: close\r\n\r\n"],
  "second request": [GOOD + BAD],
  "second request, later": [GOOD, BAD],
  "hidden in a length": [b"POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + BAD],
}
for name, parts in cases.items():
    got = say(*parts, wait=0.5 if "later" in name else 0)
    print(name, b"bad.test at" in got or b"None at" in got, b" at " in got)
got = say(BAD[:20], BAD[20:], wait=11)
print("slow head", b"bad.test at" in got, b" at " in got)
print("no TLS", b" at " in say(BAD, port=443), False)
def tls(name):
    context = ssl._create_unverified_context()
    try:
        with socket.create_connection((at, 443), timeout=20) as s:
            with context.wrap_socket(s, server_hostname=name) as t:
                t.sendall(BAD); got = b""
                while more := t.recv(4096): got += more
                return got
    except OSError: return b""
print("no server name", b" at " in tls(None), False)
print("good server name False", b" at " in tls("good.test"))
"#;

/// While a name is denied, nothing with an unreadable host reaches ports 80 and 443. Connections
/// from before the change do not continue either.
#[tokio::test]
async fn denied_name_is_unreachable_by_unusual_requests_and_open_connections() {
    let _internet = Internet::make().with_names();
    let (platform, client) = platform().await;
    let id = client.create(&small()).await;
    // Connections were opened before the change, so the filter has never seen them.
    let open = format!(
        "for s in http https; do curl -skN --resolve bad.test:80:{INTERNET} \
         --resolve bad.test:443:{INTERNET} $s://bad.test/slow >/tmp/$s & done; sleep 3; \
         wc -c </tmp/http; wc -c </tmp/https"
    );
    let before = client.out(&id, &open).await;
    assert!(before.lines().all(|size| size.trim() != "0"), "{before}");
    set(&client, &id, json!({ "deny": ["bad.test"] })).await;
    let size = "sleep 0.3; a=$(cat /tmp/http /tmp/https | wc -c); sleep 1; \
        echo $(($(cat /tmp/http /tmp/https | wc -c) - a))";
    assert_eq!(client.out(&id, size).await.trim(), "0", "they go on");

    let script = format!("cat >/tmp/t.py <<'END'\n{TRICKS}\nEND\npython3 /tmp/t.py {INTERNET}");
    let exec = json!({ "cmd": "bash", "args": ["-c", script], "timeout": 120 });
    let told = client.post(&format!("/v1/capsules/{id}/exec"), &exec).await.expect(200);
    let told = told["stdout"].as_str().unwrap().to_owned();
    assert_eq!(told.lines().count(), 12, "{told}");
    for line in told.lines() {
        let allowed = line.starts_with("second request") || line.starts_with("good");
        let wanted = if allowed { " False True" } else { " False False" };
        assert!(line.ends_with(wanted), "{line} in\n{told}");
    }
    // QUIC would hide the name, so UDP port 443 is closed. Other ports are filtered by address.
    let udp = "import socket,sys\n\
        s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(3)\n\
        s.connect((sys.argv[1],443)); s.send(b'x')\n\
        try: s.recv(9)\n\
        except OSError as e: print(type(e).__name__)";
    let quic = format!("python3 -c \"{udp}\" {INTERNET}");
    assert_eq!(client.out(&id, &quic).await.trim(), "ConnectionRefusedError");
    let other = format!("curl -s -m 6 -o /dev/null --http0.9 http://{INTERNET}:{PORT}/; echo $?");
    assert_ne!(client.out(&id, &other).await.trim(), "28", "a port of no name is open");
    // A kept connection stays usable, request by request.
    let kept = format!(
        "curl -s -m 9 --resolve good.test:80:{INTERNET} http://good.test/ http://good.test/ \
         -w '%{{num_connects}}'"
    );
    let kept = client.out(&id, &kept).await;
    assert_eq!(kept, "good.test at 11.22.33.44\n1good.test at 11.22.33.44\n0");
    platform.finish();
}

/// Opens more connections than a capsule may have, in a way that costs the guest nothing.
const FLOOD: &str = r#"
import socket, sys
kept = []
for i in range(10000):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try: s.sendto(b"x", (sys.argv[1], 1024 + i % 60000))
    except OSError: pass
    s.close()
print("sent")
"#;

/// Asks the name server as many questions at once as a busy program does. All must be answered.
const BUSY: &str = r#"
import socket, sys
q = b"\0\1\1\0\0\1\0\0\0\0\0\0\1a\4test\0\0\1\0\1"
def answered(s):
    # A datagram may be lost on a busy machine; one that is always dropped never gets an answer.
    for _ in range(5):
        s.sendto(q, (sys.argv[1], 53))
        try: return len(s.recv(512)) > 12
        except TimeoutError: pass
    return False
all = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(400)]
for s in all: s.settimeout(3)
print(sum(answered(s) for s in all))
"#;

/// Counts the entries of the host's connection-tracking table that lead to the tests' internet.
fn entries() -> usize {
    let table = std::fs::read_to_string("/proc/net/nf_conntrack").unwrap();
    table.lines().filter(|line| line.contains(&format!("dst={OTHER}"))).count()
}

#[tokio::test]
async fn connection_flood_of_one_guest_does_not_fill_host_conntrack() {
    let _internet = Internet::make().with_names();
    let (platform, client) = platform().await;
    let id = client.create(&small()).await;
    let python = |script: &str, at: std::net::Ipv4Addr| {
        format!("cat >/tmp/s.py <<'END'\n{script}\nEND\npython3 /tmp/s.py {at}")
    };
    assert_eq!(client.out(&id, &python(BUSY, INTERNET)).await.trim(), "400");
    assert_eq!(client.out(&id, &python(FLOOD, OTHER)).await.trim(), "sent");
    let count = entries();
    assert!((1..=2100).contains(&count), "{count} entries of one capsule");
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    eventually("the entries go with their capsule", async || (entries() == 0).then_some(())).await;
    // Another capsule has the address by now, or soon will.
    let next = client.create(&small()).await;
    assert_eq!(client.out(&next, &python(BUSY, INTERNET)).await.trim(), "400");
    platform.finish();
}
