//! The plain part of a client's TLS stream: its hello, and a second hello if the server asks for
//! one (RFC 8446, 4.1.4). Pure.

use super::names::Asked;
use rustls::server::Acceptor;

/// Largest part of a hello that is examined, in bytes.
pub(super) const HELLO_MAX: usize = 16 * 1024;
/// Largest record, with its header: 2^14 bytes and the overhead of encryption (RFC 5246, 6.2.3).
const RECORD_MAX: usize = 5 + 16_384 + 2048;

/// Upper bound of the hellos that servers accept. OpenSSL's limit is 131,396 bytes.
const LONGEST_HELLO: usize = 0x3_0000;

/// Types of records.
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
/// Type of the message that is a client's hello.
const CLIENT_HELLO: u8 = 1;
/// Types of extensions: data before the handshake's end, and an encrypted hello (RFC 9849).
const EARLY_DATA: u16 = 42;
const ENCRYPTED_HELLO: u16 = 0xfe0d;

/// A client's first hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    pub asked: Asked,
    /// True when data may come before the server answers.
    early: bool,
    /// Bytes that the hello takes, including its record headers.
    pub length: usize,
}

const UNREADABLE: Hello = Hello { asked: Asked::Unreadable, early: false, length: 0 };

/// Reads a hello from the first bytes of a connection; `None` while more bytes are needed.
pub(super) fn hello(bytes: &[u8]) -> Option<Hello> {
    if bytes.first().is_some_and(|first| *first != HANDSHAKE) {
        return Some(UNREADABLE);
    }
    let (mut acceptor, mut left) = (Acceptor::default(), bytes);
    loop {
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                return Some(name.and_then(|name| read(name, bytes)).unwrap_or(UNREADABLE));
            }
            Ok(None) if left.is_empty() => return None,
            Ok(None) => match acceptor.read_tls(&mut left) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Some(UNREADABLE),
            },
            Err(_) => return Some(UNREADABLE),
        }
    }
}

/// Reads the extensions of a whole hello. The hello must end its record.
fn read(name: String, bytes: &[u8]) -> Option<Hello> {
    let (mut message, mut rest) = (Vec::new(), bytes);
    let whole = |message: &[u8]| {
        let length = message.get(1..4)?;
        Some(4 + length.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte)))
    };
    while whole(&message).is_none_or(|length| message.len() < length) {
        let (record, after) = split(rest)?;
        message.extend_from_slice(&record[5..]);
        rest = after;
    }
    if whole(&message) != Some(message.len()) {
        return None;
    }
    let extensions = extensions(&message)?;
    let hides = extensions.contains(&ENCRYPTED_HELLO);
    let asked = if hides { Asked::Cover(name) } else { Asked::Host(name) };
    let early = extensions.contains(&EARLY_DATA);
    Some(Hello { asked, early, length: bytes.len() - rest.len() })
}

/// Splits off the first record, including its header.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(u16::from_be_bytes([*bytes.get(3)?, *bytes.get(4)?]));
    bytes.split_at_checked(5 + length)
}

/// Returns the types of a hello's extensions (RFC 8446, 4.1.2).
fn extensions(message: &[u8]) -> Option<Vec<u16>> {
    // The message's type and length, a version, and 32 random bytes.
    let rest = message.get(4 + 2 + 32..)?;
    let (_session, rest) = vector::<1>(rest)?;
    let (_ciphers, rest) = vector::<2>(rest)?;
    let (_compressions, rest) = vector::<1>(rest)?;
    let (mut list, _) = vector::<2>(rest)?;
    let mut found = Vec::new();
    while let Some((kind, rest)) = list.split_first_chunk::<2>() {
        found.push(u16::from_be_bytes(*kind));
        (_, list) = vector::<2>(rest)?;
    }
    list.is_empty().then_some(found)
}

/// Splits off a vector whose length takes `N` bytes.
fn vector<const N: usize>(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<N>()?;
    let length = length.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
    rest.split_at_checked(length)
}

/// Search for a second hello in the bytes after a client's first, until none can follow.
#[derive(Debug)]
pub(super) struct Later {
    asked: Asked,
    early: bool,
    ciphers_changed: bool,
    /// Bytes still to come of a message that is no hello.
    skip: usize,
    /// Records of an incomplete hello.
    hello: Vec<u8>,
}

/// Decision on the bytes that a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The given number of first bytes may pass.
    Pass(usize),
    /// More bytes are needed.
    More,
    /// All further bytes are encrypted, and may pass.
    Encrypted,
    /// The bytes are no TLS, or contain a hello for another host.
    Refuse,
}

impl Later {
    pub(super) fn new(first: Hello) -> Self {
        let Hello { asked, early, length: _ } = first;
        Self { asked, early, ciphers_changed: false, skip: 0, hello: Vec::new() }
    }

    /// Looks at the first records of `bytes`.
    pub(super) fn look(&mut self, bytes: &[u8]) -> Step {
        let mut held = 0;
        let mut rest = bytes;
        while let Some((record, after)) = split(rest) {
            held += record.len();
            rest = after;
            match self.record(record) {
                Step::More => {}
                Step::Pass(_) => return Step::Pass(held),
                step @ (Step::Encrypted | Step::Refuse) => return step,
            }
        }
        let known = rest.first().is_none_or(|kind| (CHANGE_CIPHER_SPEC..=DATA).contains(kind));
        let lost = !known || rest.len() >= RECORD_MAX || held > HELLO_MAX + RECORD_MAX;
        self.hello.clear();
        if lost { Step::Refuse } else { Step::More }
    }

    fn record(&mut self, record: &[u8]) -> Step {
        let whole = self.hello.is_empty();
        match record[0] {
            HANDSHAKE => self.handshake(record),
            CHANGE_CIPHER_SPEC if whole => {
                self.ciphers_changed = true;
                Step::Pass(0)
            }
            ALERT if whole => Step::Pass(0),
            // A server that refuses early data may still ask for a second hello.
            DATA if whole && self.early => Step::Pass(0),
            DATA if whole => Step::Encrypted,
            _ => Step::Refuse,
        }
    }

    fn handshake(&mut self, record: &[u8]) -> Step {
        let mut payload = &record[5..];
        if !self.hello.is_empty() {
            return self.more_of_hello(record);
        }
        loop {
            let skipped = self.skip.min(payload.len());
            self.skip -= skipped;
            payload = &payload[skipped..];
            if payload.is_empty() {
                return Step::Pass(0);
            }
            // A message's head is whole in its first record, as all clients send it.
            let Some(([kind, length @ ..], _)) = payload.split_first_chunk::<4>() else {
                return Step::Refuse;
            };
            let length = length.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
            let hello = *kind == CLIENT_HELLO && length <= LONGEST_HELLO;
            if self.ciphers_changed && !(hello && matches!(payload.get(4), None | Some(3))) {
                // This message ends a handshake of TLS 1.2, and is encrypted.
                return Step::Encrypted;
            }
            if *kind == CLIENT_HELLO {
                // A hello must begin a record, so that the held bytes begin with a record.
                return if payload.len() + 5 == record.len() {
                    self.more_of_hello(record)
                } else {
                    Step::Refuse
                };
            }
            self.skip = 4 + length;
        }
    }

    fn more_of_hello(&mut self, record: &[u8]) -> Step {
        self.hello.extend_from_slice(record);
        match hello(&self.hello) {
            None if self.hello.len() > HELLO_MAX => Step::Refuse,
            None => Step::More,
            Some(hello) if hello.asked == self.asked => {
                self.hello.clear();
                Step::Pass(0)
            }
            Some(_) => Step::Refuse,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn client_hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(rustls::RootCertStore::empty());
        let name = name.to_owned().try_into().unwrap();
        let config = Arc::new(config.with_no_client_auth());
        let mut client = rustls::ClientConnection::new(config, name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// Splits a hello into records of `size` bytes each.
    fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
        let chunks = hello[5..].chunks(size);
        let record = |part: &[u8]| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[HANDSHAKE, 3, 1], &length[..], part].concat()
        };
        chunks.flat_map(record).collect()
    }

    /// Returns a hello with one more extension.
    fn with_extension(hello: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
        let mut message = hello[5..].to_vec();
        let session = 4 + 2 + 32;
        let ciphers = session + 1 + usize::from(message[session]);
        let length = |at: usize, message: &[u8]| {
            usize::from(u16::from_be_bytes([message[at], message[at + 1]]))
        };
        let compressions = ciphers + 2 + length(ciphers, &message);
        let list = compressions + 1 + usize::from(message[compressions]);
        let grown = u16::try_from(length(list, &message) + 4 + data.len()).unwrap();
        let size = u16::try_from(data.len()).unwrap().to_be_bytes();
        // A pre-shared key's extension must stay last, so this extension goes first.
        let extension = [&kind.to_be_bytes(), &size[..], data].concat();
        message.splice(list + 2..list + 2, extension);
        message[list..list + 2].copy_from_slice(&grown.to_be_bytes());
        let body = u32::try_from(message.len() - 4).unwrap().to_be_bytes();
        message[1..4].copy_from_slice(&body[1..]);
        in_records(&[&[0; 5], message.as_slice()].concat(), 16_000)
    }

    fn host(name: &str) -> Option<Asked> {
        Some(Asked::Host(name.to_owned()))
    }

    fn asked(bytes: &[u8]) -> Option<Asked> {
        hello(bytes).map(|hello| hello.asked)
    }

    #[test]
    fn server_name_is_read_from_fragmented_client_hello() {
        let bytes = client_hello("api.example.com");
        assert_eq!(asked(&bytes), host("api.example.com"));
        for cut in [0, 1, 5, 40, bytes.len() - 1] {
            assert_eq!(asked(&bytes[..cut]), None, "{cut}");
        }
        for size in [1, 7, 100] {
            assert_eq!(asked(&in_records(&bytes, size)), host("api.example.com"), "{size}");
        }
        let none = Some(Asked::Unreadable);
        assert_eq!(asked(&client_hello("1.2.3.4")), none, "an address is no name");
        assert_eq!(asked(b"GET / HTTP/1.1\r\n"), none);
        assert_eq!(asked(&[22, 3, 1, 0, 4, 9, 9, 9, 9]), none);
        // Bytes after a hello are not part of it. Servers disagree about bytes that follow it in
        // its record.
        let two = [bytes.clone(), client_hello("b.com")].concat();
        assert_eq!(hello(&two).unwrap().length, bytes.len());
        let joined = [&[0; 5], &bytes[5..], &bytes[5..]].concat();
        assert_eq!(asked(&in_records(&joined, 16_000)), none);
    }

    #[test]
    fn encrypted_client_hello_makes_outer_name_a_cover() {
        let outer = [0, 0, 1, 0, 1, 5, 0, 2, 9, 9, 0, 3, 7, 7, 7];
        let hidden = with_extension(&client_hello("a.com"), ENCRYPTED_HELLO, &outer);
        assert_eq!(asked(&hidden), Some(Asked::Cover("a.com".to_owned())));
        assert_eq!(asked(&in_records(&hidden, 20)), Some(Asked::Cover("a.com".to_owned())));
        assert_eq!(asked(&with_extension(&client_hello("a.com"), 0x1234, &[0])), host("a.com"));
    }

    /// Looks at bytes that follow a first hello for `a.com`.
    fn after(first: &[u8], parts: &[&[u8]]) -> Step {
        let mut later = Later::new(hello(first).unwrap());
        let mut bytes = parts.concat();
        loop {
            match later.look(&bytes) {
                Step::Pass(count) => drop(bytes.drain(..count)),
                step @ (Step::More | Step::Encrypted | Step::Refuse) => return step,
            }
        }
    }

    #[test]
    fn second_client_hello_must_name_the_same_host() {
        let (first, other) = (client_hello("a.com"), client_hello("b.com"));
        let change: &[u8] = &[20, 3, 3, 0, 1, 1];
        let data: &[u8] = &[23, 3, 3, 0, 3, 9, 9, 9];
        assert_eq!(after(&first, &[change, &first, data]), Step::Encrypted);
        assert_eq!(after(&first, &[&first]), Step::More);
        for size in [6, 50, 16_000] {
            let parts = in_records(&other, size);
            assert_eq!(after(&first, &[&parts]), Step::Refuse, "{size}");
            assert_eq!(after(&first, &[change, &parts]), Step::Refuse, "{size}");
        }
        // A hello that is too large to examine must not count as an encrypted message.
        let large = [vec![1, 1, 0, 0, 3, 3], vec![0; 65_530]].concat();
        let large = in_records(&[&[0; 5], large.as_slice()].concat(), 16_384);
        assert_eq!(after(&first, &[change, &large]), Step::Refuse);
        // Early data, which a server may refuse, must not change the result.
        let early = with_extension(&first, EARLY_DATA, &[]);
        assert!(hello(&early).is_some_and(|hello| hello.early));
        assert_eq!(after(&early, &[change, data, &other]), Step::Refuse);
        assert_eq!(after(&early, &[change, data, data]), Step::More);
        assert_eq!(after(&first, &[b"GET / HTTP/1.1\r\nHost: b.com\r\n\r\n"]), Step::Refuse);
    }

    #[test]
    fn tls_1_2_handshake_passes() {
        let first = client_hello("a.com");
        let exchange: &[u8] = &[22, 3, 3, 0, 6, 16, 0, 0, 2, 8, 8];
        let change: &[u8] = &[20, 3, 3, 0, 1, 1];
        for nonce in [0, 1, 200] {
            let end: &[u8] = &[22, 3, 3, 0, 8, nonce, 200, 1, 2, 3, 4, 5, 6];
            assert_eq!(after(&first, &[exchange, change, end]), Step::Encrypted, "{nonce}");
        }
        // A certificate may be split over two records.
        let parts: &[u8] = &[22, 3, 3, 0, 6, 11, 0, 0, 4, 1, 2, 22, 3, 3, 0, 2, 3, 4];
        assert_eq!(after(&first, &[parts, exchange]), Step::More);
    }
}
