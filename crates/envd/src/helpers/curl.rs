//! `curl -s -o FILE -w "%{http_code}" URL`: asks a server of this machine for a page, and prints the
//! status of the answer. `curl -fs URL` fails for a status of 400 or more. Only plain HTTP is spoken,
//! and names come from `/etc/hosts` alone.

use super::print;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Time for each step of a request.
const LIMIT: Duration = Duration::from_secs(10);
/// Most bytes of an answer that are read.
const ANSWER_MAX: u64 = 64 << 20;
/// Placeholder of the status in a format.
const CODE: &str = "%{http_code}";

/// Command line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Order {
    /// Set if a status of 400 or more is a failure.
    fail: bool,
    output: Option<String>,
    format: String,
    url: String,
}

/// Address of a page.
#[derive(Debug, PartialEq, Eq)]
struct Url {
    host: String,
    port: u16,
    path: String,
}

pub(super) fn run(args: &[String]) -> i32 {
    let Some(order) = parse(args) else {
        print("curl: this helper knows only: curl [-fsS] [-o FILE] [-w FORMAT] URL\n", true);
        return 2;
    };
    let (code, status) = match url(&order.url) {
        None => (0, 1),
        Some(url) => match addresses(&url) {
            found if found.is_empty() => (0, 6),
            found => match found.iter().find_map(|at| ask(*at, &url, &order).ok()) {
                Some(code) if order.fail && code >= 400 => (code, 22),
                Some(code) => (code, 0),
                None => (0, 7),
            },
        },
    };
    let text = order.format.replace(CODE, &format!("{code:03}")).replace("\\n", "\n");
    print(&text, false);
    status
}

fn parse(args: &[String]) -> Option<Order> {
    let mut order = Order::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--fail" => order.fail = true,
            "--silent" | "--show-error" => {}
            "-o" => order.output = Some(args.next()?.clone()),
            "-w" => order.format.clone_from(args.next()?),
            letters if is_flags(letters) => order.fail |= letters.contains('f'),
            url if !url.starts_with('-') && order.url.is_empty() => url.clone_into(&mut order.url),
            _ => return None,
        }
    }
    (!order.url.is_empty()).then_some(order)
}

/// Reports whether a word joins options without values.
fn is_flags(word: &str) -> bool {
    let letters = word.strip_prefix('-').unwrap_or_default();
    !letters.is_empty() && letters.chars().all(|letter| matches!(letter, 's' | 'S' | 'f'))
}

/// Reads an address. A missing scheme is `http`, as with curl.
fn url(text: &str) -> Option<Url> {
    let rest = match text.split_once("://") {
        Some((scheme, rest)) => scheme.eq_ignore_ascii_case("http").then_some(rest)?,
        None => text,
    };
    let rest = rest.split('#').next().unwrap_or_default();
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    if path.contains(|c: char| c.is_control() || c == ' ') {
        return None;
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, port.strip_prefix(':'))
        }
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = port.map_or(Some(80), |port| port.parse().ok())?;
    (!host.is_empty()).then(|| Url { host: host.to_owned(), port, path })
}

/// Finds the addresses of a host.
fn addresses(url: &Url) -> Vec<SocketAddr> {
    let mut found: Vec<IpAddr> = url.host.parse().into_iter().collect();
    if url.host.eq_ignore_ascii_case("localhost") {
        found = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    } else if found.is_empty() {
        let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
        found.extend(hosts.lines().filter_map(|line| named(line, &url.host)));
    }
    found.into_iter().map(|ip| SocketAddr::new(ip, url.port)).collect()
}

/// Returns the address that a line of a `hosts(5)` gives a name.
fn named(line: &str, name: &str) -> Option<IpAddr> {
    let mut words = line.split('#').next()?.split_whitespace();
    let address = words.next()?.parse().ok()?;
    words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
}

/// Asks for the page. Returns the status of the answer.
fn ask(at: SocketAddr, url: &Url, order: &Order) -> io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&at, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    let (port, path) = (url.port, &url.path);
    let request = format!(
        "GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nUser-Agent: curl\r\nAccept: */*\r\n\r\n"
    );
    // In one piece, since a server may answer and close after it has read the first.
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut limited = stream.take(ANSWER_MAX);
    let mut piece = [0; 4096];
    let head = loop {
        if let Some(end) = answer.windows(4).position(|end| end == b"\r\n\r\n") {
            break end;
        }
        match limited.read(&mut piece)? {
            0 => break answer.len(),
            read => answer.extend_from_slice(&piece[..read]),
        }
        if answer.len() > 1 << 20 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    };
    let code = code(&answer[..head]).ok_or(io::ErrorKind::InvalidData)?;
    let mut to: Box<dyn Write> = match &order.output {
        // As with curl, the page of a failure is not shown.
        _ if order.fail && code >= 400 => return Ok(code),
        Some(path) => Box::new(File::options().write(true).create(true).truncate(true).open(path)?),
        None => Box::new(io::stdout()),
    };
    to.write_all(answer.get(head + 4..).unwrap_or_default())?;
    // A server that never closes has answered all the same.
    let _ = io::copy(&mut limited, &mut to);
    Ok(code)
}

/// Reads the status of an answer's first line.
fn code(head: &[u8]) -> Option<u16> {
    let line = String::from_utf8_lossy(head);
    let mut words = line.lines().next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/"))?;
    words.next()?.parse().ok().filter(|code| (100..1000).contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn command_line_of_sdks_is_read_and_others_refused() {
        let order = parse(&words("-s -o /dev/null -w %{http_code} http://localhost:80/")).unwrap();
        assert_eq!(order.output.as_deref(), Some("/dev/null"));
        assert_eq!((order.format.as_str(), order.url.as_str()), (CODE, "http://localhost:80/"));
        let order = parse(&words("-fsS localhost:80")).unwrap();
        assert_eq!((order.fail, order.output, order.format.as_str()), (true, None, ""));
        assert!(parse(&words("--fail --silent localhost")).unwrap().fail);
        for bad in ["-L x", "-", "-s", "-fL x", "-o", "x y"] {
            assert_eq!(parse(&words(bad)), None, "{bad}");
        }
    }

    #[test]
    fn addresses_of_pages_are_read() {
        for (text, host, port, path) in [
            ("http://localhost:8080/a?b#c", "localhost", 8080, "/a?b"),
            ("127.0.0.1", "127.0.0.1", 80, "/"),
            ("HTTP://u:p@[::1]:3?x", "::1", 3, "/?x"),
        ] {
            let wanted = Url { host: host.to_owned(), port, path: path.to_owned() };
            assert_eq!(url(text), Some(wanted), "{text}");
        }
        for bad in ["https://localhost", "http://", "http://h:x/", "http://h/a b"] {
            assert_eq!(url(bad), None, "{bad}");
        }
        assert!(named("127.0.0.1 a capsule # x", "capsule").is_some());
        assert!(named("127.0.0.1 a # capsule", "capsule").is_none());
    }

    #[test]
    fn status_of_a_server_is_told_and_a_missing_server_fails() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno").unwrap();
        });
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("out");
        let url = url(&format!("http://{at}/x")).unwrap();
        let order = Order { output: Some(file.display().to_string()), ..Order::default() };
        assert_eq!(ask(at, &url, &order).unwrap(), 404);
        serving.join().unwrap();
        assert_eq!(fs::read(file).unwrap(), b"no");
        assert!(ask(at, &url, &order).is_err());
    }
}
