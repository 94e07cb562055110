//! Bytes that passed a capsule's tap, as the kernel of this host counts them.

use super::namespace::Namespace;
use super::plan::TAP;
use std::{fs, io};

/// Bytes on a tap since it was made, as the guest sees their direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub received: u64,
    pub sent: u64,
}

/// Reads the counters of the tap in a namespace. Blocks.
///
/// # Errors
/// Fails when the namespace is closed, or has no tap.
pub(crate) fn read(namespace: &Namespace) -> io::Result<Traffic> {
    let table = namespace.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
    parse(&table).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Finds the tap in the kernel's table of links. The host receives the bytes that the guest sends.
fn parse(table: &str) -> Option<Traffic> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(TAP));
    let mut fields = line?.strip_prefix(':')?.split_whitespace();
    let sent = fields.next()?.parse().ok()?;
    let received = fields.nth(7)?.parse().ok()?;
    Some(Traffic { received, sent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_the_tap_are_told_from_those_of_other_links() {
        let head = "Inter-|   Receive  |  Transmit\n face |bytes packets\n";
        let other = "    lo: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n";
        let tap = format!("  {TAP}: 500 6 0 0 0 0 0 0 700 8 0 0 0 0 0 0\n");
        let wanted = Traffic { received: 700, sent: 500 };
        assert_eq!(parse(&format!("{head}{other}{tap}")), Some(wanted));
        assert_eq!(parse(&format!("{head}{other}")), None);
        assert_eq!(parse(&format!("  {TAP}: 500 6\n")), None);
    }
}
