//! Messages of Jupyter's protocol: requests as they are sent, and what kernels send. Kernels may
//! omit fields, and send texts that are no JSON. No message is lost for that.

mod formats;
mod lossy;

pub(crate) use formats::Formats;

use super::zmtp;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::Sha256;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Frame between identities and the message.
const DELIMITER: &[u8] = b"<IDS|MSG>";
/// Version of the protocol.
const VERSION: &str = "5.3";
/// Most bytes of a header.
const HEADER_MAX: usize = 64 << 10;
/// Most bytes of a content that is read into a tree of values, which needs up to 16 times as many.
const TREE_MAX: usize = 16 << 20;

/// Names and signs the messages of one client.
#[derive(Debug, Clone)]
pub(crate) struct Signer {
    session: String,
    /// Key of the signatures. Without one, messages have none.
    key: Option<String>,
}

/// A message of a kernel. Its content is not read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Incoming {
    pub kind: String,
    /// Id of the request that caused the message, or empty.
    pub parent: String,
    content: Bytes,
}

impl Signer {
    /// Makes a signer with a session of its own. An empty key means no signatures.
    pub(crate) fn new(key: &str) -> Self {
        let key = Some(key.to_owned()).filter(|key| !key.is_empty());
        Self { session: uuid::Uuid::new_v4().simple().to_string(), key }
    }

    /// Name of the session, which is also the identity of its sockets.
    pub(crate) fn session(&self) -> &str {
        &self.session
    }

    /// Encodes a request.
    pub(crate) fn request(&self, id: &str, kind: &str, content: &Value) -> Vec<u8> {
        let date = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let header = json!({
            "msg_id": id, "msg_type": kind, "session": self.session, "username": "wrenn",
            "date": date, "version": VERSION,
        });
        let (header, content) = (header.to_string(), content.to_string());
        let parts = [header.as_bytes(), b"{}", b"{}", content.as_bytes()];
        let signature = self.mac(&parts).map(|mac| hex(mac.finalize().into_bytes().as_slice()));
        let signature = signature.unwrap_or_default();
        let [header, parent, metadata, content] = parts;
        zmtp::encode(&[DELIMITER, signature.as_bytes(), header, parent, metadata, content])
    }

    /// Reads a message. Returns `None` if it is no message of Jupyter's, or its signature is wrong.
    pub(crate) fn read(&self, frames: &[Bytes]) -> Option<Incoming> {
        let start = frames.iter().position(|frame| frame == DELIMITER)?;
        let [signature, header, parent, metadata, content, ..] = frames.get(start + 1..)? else {
            return None;
        };
        if let Some(mac) = self.mac(&[header, parent, metadata, content]) {
            mac.verify_slice(&unhex(signature)?).ok()?;
        }
        let kind = word(&tree(header, HEADER_MAX).ok()?, "msg_type")?;
        let parent = tree(parent, HEADER_MAX).ok().and_then(|parent| word(&parent, "msg_id"));
        Some(Incoming { kind, parent: parent.unwrap_or_default(), content: content.clone() })
    }

    fn mac(&self, parts: &[&[u8]]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.as_ref()?.as_bytes()).ok()?;
        parts.iter().for_each(|part| mac.update(part));
        Some(mac)
    }
}

impl Incoming {
    /// Reads the content into a tree of values.
    ///
    /// # Errors
    /// Returns an error if the content is no JSON, or too large for a tree.
    pub(crate) fn tree(&self) -> Result<Value, String> {
        tree(&self.content, TREE_MAX)
    }

    /// Reads the content into a type that bounds its own memory.
    ///
    /// # Errors
    /// Returns an error if the content does not fit the type.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, String> {
        parse(&self.content)
    }
}

fn tree(bytes: &[u8], max: usize) -> Result<Value, String> {
    if bytes.len() > max {
        return Err(format!("it has {} bytes", bytes.len()));
    }
    parse(bytes)
}

/// Reads JSON, and repairs a text that is no JSON for a strict reader.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes)
        .or_else(|_| serde_json::from_str(&lossy::repair(bytes)))
        .map_err(|error| error.to_string())
}

/// Returns a field that is a text.
pub(crate) fn word(value: &Value, name: &str) -> Option<String> {
    value.get(name)?.as_str().map(str::to_owned)
}

/// Writes bytes as hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let pairs = text.chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits an encoded message of short and long frames.
    fn frames(mut message: &[u8]) -> Vec<Bytes> {
        let mut frames = Vec::new();
        while let [flags, rest @ ..] = message {
            let (length, rest) = match flags & 2 {
                0 => (usize::from(rest[0]), &rest[1..]),
                _ => (usize::from(u16::from_be_bytes([rest[6], rest[7]])), &rest[8..]),
            };
            frames.push(Bytes::copy_from_slice(&rest[..length]));
            message = &rest[length..];
        }
        frames
    }

    fn incoming(content: &'static [u8]) -> Incoming {
        let content = Bytes::from_static(content);
        Incoming { kind: "stream".into(), parent: String::new(), content }
    }

    #[test]
    fn signed_request_is_read_with_its_key_alone() {
        let signer = Signer::new("secret");
        let mut sent = frames(&signer.request("a:1", "execute_request", &json!({"code": "é"})));
        sent.insert(0, Bytes::from_static(b"identity"));
        let read = signer.read(&sent).unwrap();
        assert_eq!((read.kind.as_str(), read.parent.as_str()), ("execute_request", ""));
        assert_eq!(read.tree().unwrap(), json!({"code": "é"}));
        assert!(Signer::new("other").read(&sent).is_none());
        assert!(Signer::new("").read(&sent).is_some(), "without a key nothing is checked");
        *sent.last_mut().unwrap() = Bytes::from_static(b"{}");
        assert!(signer.read(&sent).is_none(), "the content was changed");
    }

    #[test]
    fn signature_is_hmac_sha256_of_the_four_parts() {
        let signer = Signer::new("Jefe");
        let mac = signer.mac(&[b"what do ya ", b"want ", b"for ", b"nothing?"]).unwrap();
        let wanted = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex(mac.finalize().into_bytes().as_slice()), wanted, "RFC 4231, test case 2");
        assert_eq!(unhex(b"0aff"), Some(vec![10, 255]));
        assert_eq!((unhex(b"0"), unhex(b"zz")), (Some(vec![0]), None));
    }

    #[test]
    fn message_without_optional_fields_is_read() {
        let part = |text: &'static str| Bytes::from_static(text.as_bytes());
        let message = |header, parent| {
            [part("<IDS|MSG>"), part(""), part(header), part(parent), part("{}"), part("{}")]
        };
        let signer = Signer::new("");
        let read = signer.read(&message(r#"{"msg_type":"status"}"#, "")).unwrap();
        assert_eq!((read.kind.as_str(), read.parent.as_str()), ("status", ""));
        let read = signer.read(&message(r#"{"msg_type":"x"}"#, r#"{"msg_id":"p"}"#)).unwrap();
        assert_eq!(read.parent, "p");
        assert!(signer.read(&message("{}", "{}")).is_none());
        assert!(signer.read(&message("", "{}")[..4]).is_none());
        assert!(signer.read(&[]).is_none());
    }

    #[test]
    fn content_that_is_no_json_is_repaired_or_refused() {
        let text = incoming(b"{\"text\":\"a\xff\\ud800b\",\"n\":NaN}").tree().unwrap();
        assert_eq!(text, json!({"text": "a\u{fffd}\u{fffd}b", "n": null}));
        assert!(incoming(b"{\"text\":").tree().is_err());
        let deep: &'static [u8] = Vec::leak(b"[".repeat(10_000));
        assert!(incoming(deep).tree().is_err());
        let large: &'static [u8] = Vec::leak(vec![b' '; TREE_MAX + 1]);
        assert!(incoming(large).tree().unwrap_err().contains("bytes"));
    }
}
