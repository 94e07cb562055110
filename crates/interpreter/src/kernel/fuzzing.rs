//! Bytes that kernels send, read to events as drivers read them, and the code around a run. Only
//! the feature `fuzzing` compiles this module.

use super::jupyter::events::{self, Published};
use super::message::{Incoming, Signer};
use super::node::event::{self, Line};
use super::zmtp::{Decoder, Item};
use super::{Kind, Setup, bash, jupyter};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Kinds of messages that a kernel publishes.
const KINDS: [&str; 6] =
    ["stream", "display_data", "execute_result", "execute_input", "error", "status"];

/// Reads the stream of a socket after its handshake.
pub(crate) fn socket(data: &[u8]) -> Vec<Kind> {
    let mut decoder = Decoder::default();
    decoder.buffer.extend_from_slice(data);
    let signer = Signer::new("");
    let mut kinds = Vec::new();
    while let Ok(Some(item)) = decoder.next() {
        let Item::Message(frames) = item else { continue };
        kinds.extend(signer.read(&frames).as_ref().map(published).into_iter().flatten());
    }
    kinds
}

/// Reads a content, whose first byte chooses the kind of the message.
pub(crate) fn content(data: &[u8]) -> Vec<Kind> {
    let Some((first, content)) = data.split_first() else { return Vec::new() };
    let kind = KINDS[usize::from(*first) % KINDS.len()];
    let header = format!(r#"{{"msg_type":"{kind}"}}"#);
    let parts: [&[u8]; 6] = [b"<IDS|MSG>", b"", header.as_bytes(), b"{}", b"{}", content];
    let message = Signer::new("").read(&parts.map(Bytes::copy_from_slice));
    message.as_ref().map(published).unwrap_or_default()
}

/// Reads lines of a Node host.
pub(crate) fn host(data: &[u8]) -> Vec<Kind> {
    let lines = data.split(|byte| *byte == b'\n').filter_map(event::read);
    let kind = |line| match line {
        Line::Event(_, kind) => Some(kind),
        Line::Ended(_) | Line::Answer(..) => None,
    };
    lines.filter_map(kind).collect()
}

/// Prepares a run with variables for each kind of kernel.
///
/// # Panics
/// Panics when a script of bash has a NUL, which separates cells, or when silent code is not ASCII.
pub(crate) fn run(envs: BTreeMap<String, String>) {
    assert!(!bash::script_of(&envs).contains('\0'), "a script has a NUL");
    let setup = Setup { envs, ..Setup::default() };
    for code in jupyter::silent_code(&setup) {
        assert!(code.is_ascii(), "silent code is not ASCII");
    }
}

fn published(message: &Incoming) -> Vec<Kind> {
    match events::read(message) {
        Published::Events(kinds) => kinds,
        Published::Busy | Published::Idle => Vec::new(),
    }
}
