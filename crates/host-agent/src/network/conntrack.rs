//! Removal of entries from the connection-tracking table of the current network namespace. The
//! table of a capsule's namespace goes with the namespace. The host's table has an entry for each
//! connection that left through the host. An entry stays for up to five days.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla,
};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, Tuple};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

/// Number of the attribute that tells an entry from a later one with the same addresses
/// (`CTA_ID` in `linux/netfilter/nfnetlink_conntrack.h`).
const CTA_ID: u16 = 12;
/// Passes over the table. A single pass may miss an entry while others move.
const PASSES: usize = 3;

/// Removes every entry whose connection was opened from an address that `of` picks. Blocks.
/// Returns the count of removed entries.
///
/// # Errors
/// Fails when the kernel has no such table, or forbids reading it or removing from it.
pub(super) fn forget(of: impl Fn(Ipv4Addr) -> bool) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut removed = 0;
    for _ in 0..PASSES {
        let entries = list(&socket, &of)?;
        if entries.is_empty() {
            break;
        }
        removed += entries.len();
        for entry in entries {
            remove(&socket, entry)?;
        }
    }
    Ok(removed)
}

/// Reads the identifying attributes of each entry that was opened from a picked address.
fn list(
    socket: &Socket,
    of: &impl Fn(Ipv4Addr) -> bool,
) -> io::Result<Vec<Vec<ConntrackAttribute>>> {
    ask(socket, NLM_F_DUMP, ConntrackMessage::Get(Vec::new()))?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while let Some((message, after)) = split(rest) {
            rest = after;
            // The library can read each kind of entry that a guest's connection has. Others are
            // skipped.
            let Ok(message) = NetlinkMessage::<NetfilterMessage>::deserialize(message) else {
                continue;
            };
            if let NetlinkPayload::InnerMessage(message) = message.payload {
                found.extend(name(message, of));
            } else if let NetlinkPayload::Error(error) = message.payload {
                return Err(error.to_io());
            } else if let NetlinkPayload::Done(_) = message.payload {
                return Ok(found);
            }
        }
    }
}

/// Splits off the first message.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk::<4>()?);
    let length = usize::try_from(length).ok().filter(|length| *length >= 16)?;
    let message = bytes.get(..length)?;
    Some((message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Returns the attributes that identify an entry, if it was opened from a picked address.
fn name(
    message: NetfilterMessage,
    of: &impl Fn(Ipv4Addr) -> bool,
) -> Option<Vec<ConntrackAttribute>> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else {
        return None;
    };
    let names = |attribute: &ConntrackAttribute| {
        matches!(attribute, ConntrackAttribute::CtaTupleOrig(_)) || attribute.kind() == CTA_ID
    };
    let named: Vec<_> = attributes.into_iter().filter(names).collect();
    named.iter().any(|attribute| source(attribute).is_some_and(of)).then_some(named)
}

/// Returns the address that a connection was opened from.
fn source(attribute: &ConntrackAttribute) -> Option<Ipv4Addr> {
    let ConntrackAttribute::CtaTupleOrig(tuples) = attribute else { return None };
    tuples.iter().find_map(|tuple| {
        let Tuple::Ip(addresses) = tuple else { return None };
        addresses.iter().find_map(|address| {
            let IPTuple::SourceAddress(IpAddr::V4(address)) = address else { return None };
            Some(*address)
        })
    })
}

/// Removes one entry. An entry that is gone already is success.
fn remove(socket: &Socket, named: Vec<ConntrackAttribute>) -> io::Result<()> {
    ask(socket, NLM_F_ACK, ConntrackMessage::Delete(named))?;
    let (bytes, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&bytes);
    let NetlinkPayload::Error(answer) = answer.map_err(io::Error::other)?.payload else {
        return Ok(());
    };
    // An answer without an error code reports success.
    let failed = answer.code.map(|_| answer.to_io());
    failed.filter(|error| error.kind() != io::ErrorKind::NotFound).map_or(Ok(()), Err)
}

fn ask(socket: &Socket, flags: u16, message: ConntrackMessage) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let family = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
    let message = NetfilterMessage::new(family, message);
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0).map(|_| ())
}
