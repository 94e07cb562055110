//! Tests of the framing, over byte strings and Unix sockets.

use super::*;
use tokio::net::UnixListener;

fn decode(decoder: &mut Decoder, bytes: &[u8]) -> io::Result<Vec<Item>> {
    decoder.buffer.extend_from_slice(bytes);
    std::iter::from_fn(|| decoder.next().transpose()).collect()
}

fn message(frames: &[&[u8]]) -> Item {
    Item::Message(frames.iter().map(|frame| Bytes::copy_from_slice(frame)).collect())
}

#[test]
fn frames_split_at_every_byte_decode_alike() {
    let long = vec![7_u8; 300];
    let frames: [&[u8]; 4] = [b"", b"short", &long, b"end"];
    let mut stream = encode(&frames);
    push_frame(&mut stream, COMMAND, b"\x04PING");
    stream.extend_from_slice(&encode(&[b"next"]));
    let wanted =
        [message(&frames), Item::Command(Bytes::from_static(b"\x04PING")), message(&[b"next"])];
    for at in 0..=stream.len() {
        let mut decoder = Decoder::default();
        let (head, tail) = stream.split_at(at);
        let mut items = decode(&mut decoder, head).unwrap();
        items.extend(decode(&mut decoder, tail).unwrap());
        assert_eq!(items, wanted, "split at {at}");
    }
}

#[test]
fn frame_of_255_bytes_is_short_and_of_256_long() {
    assert_eq!(encode(&[vec![0_u8; 255]])[..2], [0, 255]);
    assert_eq!(encode(&[vec![0_u8; 256]])[..9], [LONG, 0, 0, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn declared_length_above_the_limit_is_refused_before_the_content() {
    let head = |flags: u8, length: u64| [&[flags][..], &length.to_be_bytes()].concat();
    let max = u64::try_from(MESSAGE_MAX).unwrap();
    let refused = |bytes: &[u8]| decode(&mut Decoder::default(), bytes).is_err();
    assert!(!refused(&head(LONG, max)));
    assert!(refused(&head(LONG, max + 1)));
    assert!(refused(&head(LONG, u64::MAX)));
    assert!(refused(&head(LONG | COMMAND, 1 << 20)));
    assert!(refused(&[8, 0]), "unknown flag");
    let mut decoder = Decoder::default();
    assert!(decode(&mut decoder, &[MORE, 1, b'a']).unwrap().is_empty());
    assert!(decode(&mut decoder, &head(LONG, max)).is_err(), "the sum counts");
}

#[test]
fn message_of_endless_frames_is_refused() {
    let frames = [MORE, 0].repeat(FRAMES_MAX + 1);
    assert!(decode(&mut Decoder::default(), &frames).is_err());
}

#[test]
fn greeting_of_another_protocol_is_refused() {
    assert!(check_greeting(&greeting()).is_ok());
    let mut newer = greeting();
    newer[11] = 1;
    assert!(check_greeting(&newer).is_ok(), "version 3.1");
    for (at, byte) in [(0, 0), (9, 0), (10, 2), (12, b'P'), (16, b'X')] {
        let mut other = greeting();
        other[at] = byte;
        assert!(check_greeting(&other).is_err(), "byte {at}");
    }
}

/// Plays a kernel's publisher: the handshake, then one message, byte by byte.
async fn publish(listener: UnixListener) -> Vec<u8> {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut peer = [0_u8; GREETING];
    stream.read_exact(&mut peer).await.unwrap();
    stream.write_all(&greeting()).await.unwrap();
    let mut ready = [0_u8; 27];
    stream.read_exact(&mut ready).await.unwrap();
    let mut frame = Vec::new();
    push_frame(&mut frame, COMMAND, b"\x05READY\x0bSocket-Type\0\0\0\x03PUB");
    stream.write_all(&frame).await.unwrap();
    let mut subscription = [0_u8; 3];
    stream.read_exact(&mut subscription).await.unwrap();
    for byte in encode(&[&b"topic"[..], b"body"]) {
        stream.write_all(&[byte]).await.unwrap();
    }
    [&ready[..], &subscription].concat()
}

#[tokio::test]
async fn subscriber_makes_the_handshake_and_subscribes_to_all() {
    let dir = tempfile::tempdir().unwrap();
    let address = Address::Unix(dir.path().join("s"));
    let Address::Unix(path) = &address else { unreachable!() };
    let peer = tokio::spawn(publish(UnixListener::bind(path).unwrap()));
    let (mut receiver, _sender) = connect(&address, Kind::Subscriber).await.unwrap();
    let frames = receiver.receive().await.unwrap().unwrap();
    assert_eq!(frames, [Bytes::from_static(b"topic"), Bytes::from_static(b"body")]);
    assert!(receiver.receive().await.unwrap().is_none(), "the peer has closed");
    let sent = peer.await.unwrap();
    assert_eq!(sent[..27], *b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB");
    assert_eq!(sent[27..], [0, 1, 1]);
}

#[tokio::test]
async fn missing_socket_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let address = Address::Unix(dir.path().join("none"));
    let error = connect(&address, Kind::Dealer { identity: "a" }).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
