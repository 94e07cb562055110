//! Connect's frames and messages, which envd's server takes from anyone with its token.
#![no_main]

use buffa::Message;
use bytes::{Bytes, BytesMut};
use connectrpc::compression::CompressionRegistry;
use connectrpc::envelope::Envelope;
use libfuzzer_sys::fuzz_target;
use protocol::{filesystem, process};

/// Largest message that this target takes, in bytes.
const MESSAGE_MAX: usize = 1 << 20;

fn message<M: Message + serde::de::DeserializeOwned>(data: &[u8]) {
    if let Ok(read) = M::decode_from_slice(data) {
        assert!(M::decode_from_slice(&read.encode_to_vec()).is_ok(), "it cannot be read again");
    }
    let _ = serde_json::from_slice::<M>(data);
}

fn messages(data: &[u8]) {
    message::<process::StartRequest>(data);
    message::<process::SendInputRequest>(data);
    message::<process::StreamInputRequest>(data);
    message::<process::UpdateRequest>(data);
    message::<filesystem::ListDirRequest>(data);
    message::<filesystem::WatchDirRequest>(data);
}

fuzz_target!(|data: &[u8]| {
    messages(data);
    let compression = CompressionRegistry::default();
    let mut frames = BytesMut::from(data);
    while let Ok(Some(frame)) = Envelope::decode_with_limit(&mut frames, MESSAGE_MAX) {
        if frame.is_end_stream() {
            return;
        }
        let compressed = frame.is_compressed();
        let contents: Bytes = frame.data;
        let read = if compressed {
            compression.decompress_with_limit("gzip", contents, MESSAGE_MAX)
        } else {
            Ok(contents)
        };
        let Ok(read) = read else { return };
        assert!(read.len() <= MESSAGE_MAX, "a message is too large");
        messages(&read);
    }
});
