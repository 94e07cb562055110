//! Random secrets, such as keys and tokens, and the hashes that the database stores of them.

use rand::RngCore;
use sha2::{Digest, Sha256};
use types::{CapsuleId, hex};

/// Makes a key: `e2b_` and 40 hexadecimal digits, a form that every SDK takes.
#[must_use]
pub fn new_api_key() -> String {
    format!("e2b_{}", random_hex(20))
}

/// Reports whether a text has the form of the platform's keys.
pub(crate) fn is_api_key(text: &[u8]) -> bool {
    text.starts_with(b"e2b_") || text.starts_with(b"wrn_")
}

/// Makes a capsule's envd token. It begins with the capsule's id, by which `proxy::target` finds
/// the capsule where nothing else names it.
pub(crate) fn new_envd_token(capsule: CapsuleId) -> String {
    format!("{capsule}-{}", random_hex(32))
}

/// Returns random bytes as hexadecimal digits.
pub(crate) fn random_hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    rand::rng().fill_bytes(&mut random);
    hex::encode(&random)
}

/// Returns the hash of a key or token, the form that is stored. Keys are random, so a plain hash
/// gives nothing away.
pub(crate) fn hash(key: &str) -> [u8; 32] {
    hash_bytes(key.as_bytes())
}

pub(crate) fn hash_bytes(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
