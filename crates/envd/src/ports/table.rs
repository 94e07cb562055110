//! The guest's listening TCP sockets, from `/proc/net/tcp` and `/proc/net/tcp6` (proc(5)), and the
//! programs that hold them. The programs are hostile, so every read is bounded.

use crate::open::open_regular;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Take};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// The kernel's tables, a table per address family.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// State of a listening socket (`TCP_LISTEN`).
const LISTENS: &str = "0A";
/// Most servers that are listed.
const MOST: usize = 1024;
/// Most lines of a table that are read. The kernel lists listening sockets before all others.
const LINES: usize = 4 * MOST;
/// Most bytes of a table that are read. A guest may cover a table with a file of its own.
const BYTES: u64 = 1 << 20;
/// Most bytes of a program's name that are read.
const NAME: u64 = 64;
/// Most descriptors that are looked at in search of the programs.
const DESCRIPTORS: usize = 65_536;

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Listener {
    pub port: u16,
    pub address: IpAddr,
    /// Name of the program that holds the socket, as the kernel knows it: at most 15 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Process id of the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(skip)]
    inode: u64,
}

/// Lists the listening sockets by port and address, except for envd's `own` port. Reads many files
/// of `/proc`, so it belongs on a thread of its own.
pub(crate) fn listeners(own: u16) -> Vec<Listener> {
    let mut found = Vec::new();
    for table in TABLES {
        let Some(file) = open(Path::new(table), BYTES) else { continue };
        let lines = BufReader::new(file).lines().map_while(Result::ok).take(LINES);
        found.extend(lines.filter_map(|line| parse(&line)));
    }
    found.retain(|listener| listener.port != own && listener.port != protocol::ENVD_PORT);
    found.sort_by_key(|listener| (listener.port, listener.address));
    // Several sockets may share an address (`SO_REUSEPORT`).
    found.dedup_by_key(|listener| (listener.port, listener.address));
    found.truncate(MOST);
    let inodes = found.iter().map(|listener| listener.inode).collect();
    let mut programs = programs(&inodes);
    for listener in &mut found {
        (listener.pid, listener.program) = programs.remove(&listener.inode).unzip();
    }
    found
}

/// Opens a file of `/proc` and limits it to `most` bytes. Root in the guest may have covered it
/// with a file without end. A named pipe in its place is not opened.
fn open(path: &Path, most: u64) -> Option<Take<File>> {
    open_regular(path).ok().map(|file| file.take(most))
}

/// Reads a line of a table. Returns `None` when its socket does not listen.
fn parse(line: &str) -> Option<Listener> {
    let mut fields = line.split_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    if state != LISTENS {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    Some(Listener {
        port: u16::from_str_radix(port, 16).ok()?,
        address: parse_address(address)?,
        program: None,
        pid: None,
        inode: inode.parse().ok()?,
    })
}

/// Reads an address. The kernel writes it as words of 32 bits in its own byte order.
fn parse_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16);
        Some(word.ok()?.to_ne_bytes())
    };
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0_u8; 16];
            for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(at)?);
            }
            Some(IpAddr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

/// Finds the programs that hold the sockets. Returns the process id and the name of each.
fn programs(sockets: &HashSet<u64>) -> HashMap<u64, (u32, String)> {
    let mut found = HashMap::new();
    let mut left = DESCRIPTORS;
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if found.len() == sockets.len() || left == 0 {
            break;
        }
        let pid = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let Some(pid) = pid else { continue };
        let folder = process.path();
        // Processes end at any time, so unreadable entries are skipped.
        let descriptors = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
        let mut looked = 0;
        let held = descriptors.take(left).inspect(|_| looked += 1);
        let held = held.filter_map(|fd| inode(&fs::read_link(fd.path()).ok()?));
        let held: Vec<u64> = held.filter(|inode| sockets.contains(inode)).collect();
        left -= looked;
        if !held.is_empty() {
            let name = name(&folder);
            for inode in held {
                found.entry(inode).or_insert_with(|| (pid, name.clone()));
            }
        }
    }
    found
}

/// Reads the number of a socket from the target of a descriptor's link.
fn inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Reads the name of a process. Unlike the command line, the name is in the kernel's memory, so the
/// process cannot make the read wait.
fn name(folder: &Path) -> String {
    let mut name = Vec::new();
    if let Some(mut file) = open(&folder.join("comm"), NAME) {
        let _ = file.read_to_end(&mut name);
    }
    String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv6Addr, TcpListener};

    /// Writes an address as this machine's kernel does.
    fn written(bytes: &[u8]) -> String {
        let word = |word: &[u8]| u32::from_ne_bytes(word.try_into().unwrap());
        bytes.chunks_exact(4).map(|part| format!("{:08X}", word(part))).collect()
    }

    #[test]
    fn listening_sockets_are_parsed_and_others_skipped() {
        let rest = "00000000:00000000 00:00000000 00000000  1000        0 4242 1 0000 100 0 0 10 0";
        let line = |local: &str, state: &str| format!("   0: {local} 0:0 {state} {rest}");
        let own = written(&[127, 0, 0, 1]);
        let read = parse(&line(&format!("{own}:1F90"), LISTENS)).unwrap();
        let wanted = (8080, IpAddr::from(Ipv4Addr::LOCALHOST), 4242);
        assert_eq!((read.port, read.address, read.inode), wanted);
        let six = written(&Ipv6Addr::LOCALHOST.octets());
        let read = parse(&line(&format!("{six}:0050"), LISTENS)).unwrap();
        assert_eq!((read.port, read.address), (80, IpAddr::from(Ipv6Addr::LOCALHOST)));
        let mapped = written(&Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets());
        let read = parse(&line(&format!("{mapped}:0050"), LISTENS)).unwrap();
        assert_eq!(read.address, IpAddr::from(Ipv4Addr::LOCALHOST));
        for other in [
            line(&format!("{own}:1F90"), "01"),
            line("0:1F90", LISTENS),
            line("00000000:10000", LISTENS),
            line("ü000000:0050", LISTENS),
            "  sl  local_address rem_address   st tx_queue".to_owned(),
            String::new(),
        ] {
            assert_eq!(parse(&other), None, "{other}");
        }
    }

    #[test]
    fn program_name_behind_pipe_is_empty_and_endless_name_is_truncated() {
        let dir = tempfile::tempdir().unwrap();
        let comm = dir.path().join("comm");
        rustix::fs::mkfifoat(rustix::fs::CWD, &comm, rustix::fs::Mode::RWXU).unwrap();
        assert_eq!(name(dir.path()), "");
        fs::remove_file(&comm).unwrap();
        fs::write(&comm, "x".repeat(1 << 20)).unwrap();
        assert_eq!(name(dir.path()), "x".repeat(64));
    }

    #[test]
    fn listeners_are_listed_with_program_name_except_envds_own() {
        let bound: Vec<TcpListener> =
            ["127.0.0.1:0", "[::1]:0"].iter().map(|at| TcpListener::bind(at).unwrap()).collect();
        let found = listeners(1);
        for listener in &bound {
            let at = listener.local_addr().unwrap();
            let shown = found.iter().find(|l| (l.address, l.port) == (at.ip(), at.port()));
            let shown = shown.unwrap_or_else(|| panic!("{at} is not in {found:?}"));
            let comm = fs::read_to_string("/proc/self/comm").unwrap();
            assert_eq!(shown.program.as_deref(), Some(comm.trim()));
            assert_eq!(shown.pid, Some(std::process::id()));
        }
        let own = bound[0].local_addr().unwrap().port();
        assert!(listeners(own).iter().all(|listener| listener.port != own));
    }
}
