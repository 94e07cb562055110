//! Encryption of secrets that the database holds, by a key of the platform. Pure but for randomness.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use sha2::{Digest, Sha256};

/// Key that encrypts, derived from one of the platform's secrets.
pub(crate) struct Sealer(RandomizedNonceKey);

impl Sealer {
    /// Makes the key; `None` if the library refuses it, which no secret causes.
    pub(crate) fn new(secret: &[u8]) -> Option<Self> {
        let key: [u8; 32] = Sha256::digest(secret).into();
        RandomizedNonceKey::new(&AES_256_GCM, &key).ok().map(Self)
    }

    /// Encrypts a text. Only `open` with the same `owner` returns it, so no row can be swapped.
    pub(crate) fn seal(&self, owner: &str, text: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = text.to_vec();
        let nonce = self.0.seal_in_place_append_tag(Aad::from(owner), &mut sealed).ok()?;
        let nonce: &[u8] = nonce.as_ref();
        Some([nonce, &sealed].concat())
    }

    /// Decrypts a text; `None` if it was changed, or sealed for another owner.
    pub(crate) fn open(&self, owner: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = rest.to_vec();
        let length = self.0.open_in_place(nonce, Aad::from(owner), &mut text).ok()?.len();
        text.truncate(length);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_text_opens_only_unchanged_and_for_its_owner() {
        let sealer = Sealer::new(b"secret").unwrap();
        let sealed = sealer.seal("a", b"password").unwrap();
        assert!(!sealed.windows(8).any(|part| part == b"password"));
        assert_ne!(sealed, sealer.seal("a", b"password").unwrap());
        assert_eq!(sealer.open("a", &sealed).unwrap(), b"password");
        assert_eq!(sealer.open("b", &sealed), None);
        assert_eq!(Sealer::new(b"other").unwrap().open("a", &sealed), None);
        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert_eq!(sealer.open("a", &changed), None, "{i}");
        }
        assert_eq!(sealer.open("a", &sealed[..5]), None);
    }
}
