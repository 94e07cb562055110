//! `ss -Htuln sport = :PORT`: lists the sockets that wait on a port, by the kernel's tables. Older
//! SDKs call `ss -tuln`, which lists all that wait, and search its lines for the port.

use super::print;
use std::fs;

/// Tables of the kernel (proc(5)): path, name of the protocol, and state of a socket that waits.
const TABLES: [(&str, &str, &str); 4] = [
    ("/proc/net/udp", "udp", "07"),
    ("/proc/net/udp6", "udp", "07"),
    ("/proc/net/tcp", "tcp", "0A"),
    ("/proc/net/tcp6", "tcp", "0A"),
];

pub(super) fn run(args: &[String]) -> i32 {
    let Some(wanted) = wanted(args) else {
        print("ss: this helper knows only: ss -tuln, ss -Htuln sport = :PORT\n", true);
        return 255;
    };
    for (path, protocol, state) in TABLES {
        let table = fs::read_to_string(path).unwrap_or_default();
        for line in table.lines().filter_map(|line| row(line, protocol, state, wanted)) {
            print(&line, false);
        }
    }
    0
}

/// Sockets that a command line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    Port(u16),
}

/// Reads a command line, whose words may be joined in several ways.
fn wanted(args: &[String]) -> Option<Wanted> {
    let (options, filter) = args.split_first()?;
    let mut letters: Vec<char> = options.strip_prefix('-')?.chars().collect();
    letters.sort_unstable();
    let filter: String = filter.concat().chars().filter(|c| !c.is_whitespace()).collect();
    if filter.is_empty() {
        return (letters == ['l', 'n', 't', 'u']).then_some(Wanted::All);
    }
    let port = filter.strip_prefix("sport=:")?.parse().ok()?;
    (letters == ['H', 'l', 'n', 't', 'u']).then_some(Wanted::Port(port))
}

/// Renders a line of a table if its socket waits on a port that is asked for.
fn row(line: &str, protocol: &str, state: &str, wanted: Wanted) -> Option<String> {
    let mut fields = line.split_whitespace();
    let (address, own) = fields.nth(1)?.rsplit_once(':')?;
    let found = fields.nth(1)?;
    let port = u16::from_str_radix(own, 16).ok()?;
    if found != state || !matches!(wanted, Wanted::All) && wanted != Wanted::Port(port) {
        return None;
    }
    let any = if address.bytes().all(|byte| byte == b'0') { "*" } else { address };
    let shown = if protocol == "tcp" { "LISTEN" } else { "UNCONN" };
    Some(format!("{protocol}   {shown} 0      0      {any}:{port}      *:*\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn port_is_read_from_the_form_of_sdks_alone() {
        for good in ["-Htuln sport = :80", "-tulnH sport=:80", "-Htuln sport = :80 "] {
            assert_eq!(wanted(&words(good)), Some(Wanted::Port(80)), "{good}");
        }
        assert_eq!(wanted(&words("-tuln")), Some(Wanted::All));
        for bad in ["-Htuln", "-tuln sport = :80", "-Htuln dport = :80", "-Htuln sport = :x", ""] {
            assert_eq!(wanted(&words(bad)), None, "{bad}");
        }
    }

    #[test]
    fn waiting_sockets_of_the_port_are_listed() {
        let line = "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00 0 0 0 1";
        assert!(row(line, "tcp", "0A", Wanted::Port(8080)).unwrap().contains("LISTEN"));
        assert!(row(line, "tcp", "0A", Wanted::All).unwrap().contains(":8080 "));
        assert_eq!(row(line, "tcp", "0A", Wanted::Port(80)), None);
        assert_eq!(row(&line.replace(" 0A ", " 01 "), "tcp", "0A", Wanted::Port(8080)), None);
        assert_eq!(row("  sl  local_address rem_address   st", "tcp", "0A", Wanted::All), None);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        assert!(table.lines().any(|line| row(line, "tcp", "0A", Wanted::Port(port)).is_some()));
    }
}
