//! Form of an object's bytes: compressed and, if there is a key, encrypted with AES-256-GCM. Each
//! namespace has a key of its own, and the object's name is authenticated with its bytes.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Contexts for deriving a namespace's keys from the store's key.
const ENCRYPT: &str = "wrenn 2026-11 store: encryption key of a space";
const NAME: &str = "wrenn 2026-11 store: naming key of a space";

/// First byte of an object, which tells its form.
const PLAIN: u8 = 0;
const ENCRYPTED: u8 = 1;

/// Seals and opens the objects of a namespace.
pub(crate) struct ChunkCipher {
    key: Option<Keys>,
}

struct Keys {
    encrypt: LessSafeKey,
    /// Key of the hash that names contents. Without it, nobody can check a guess of the contents.
    name: [u8; 32],
}

impl ChunkCipher {
    pub(crate) fn new(master: Option<&[u8; 32]>, namespace: &str) -> Self {
        let keys = |master: &[u8; 32]| {
            let material = [master.as_slice(), namespace.as_bytes()].concat();
            let encrypt = blake3::derive_key(ENCRYPT, &material);
            // A key of this length always fits this cipher.
            let encrypt = UnboundKey::new(&AES_256_GCM, &encrypt).ok()?;
            let name = blake3::derive_key(NAME, &material);
            Some(Keys { encrypt: LessSafeKey::new(encrypt), name })
        };
        Self { key: master.and_then(keys) }
    }

    /// Returns the name of an object with these contents.
    pub(crate) fn name(&self, contents: &[u8]) -> String {
        let hash = match &self.key {
            Some(keys) => blake3::keyed_hash(&keys.name, contents),
            None => blake3::hash(contents),
        };
        hash.to_hex().to_string()
    }

    /// Returns the bytes of an object. Returns `None` when encrypting fails.
    pub(crate) fn seal(&self, name: &str, contents: &[u8]) -> Option<Vec<u8>> {
        let packed = lz4_flex::compress_prepend_size(contents);
        let Some(keys) = &self.key else { return Some([&[PLAIN], packed.as_slice()].concat()) };
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = packed;
        let at = Nonce::assume_unique_for_key(nonce);
        keys.encrypt.seal_in_place_append_tag(at, Aad::from(name), &mut sealed).ok()?;
        Some([&[ENCRYPTED], nonce.as_slice(), &sealed].concat())
    }

    /// Returns the contents of an object, which must be at most `most` bytes. Returns `None` when
    /// the object was not sealed under this name with this key.
    pub(crate) fn open(&self, name: &str, object: &[u8], most: usize) -> Option<Vec<u8>> {
        let (kind, rest) = object.split_first()?;
        let packed = match (*kind, &self.key) {
            (PLAIN, None) => rest.to_vec(),
            (ENCRYPTED, Some(keys)) => {
                let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
                let mut sealed = sealed.to_vec();
                let length =
                    keys.encrypt.open_in_place(nonce, Aad::from(name), &mut sealed).ok()?.len();
                sealed.truncate(length);
                sealed
            }
            _ => return None,
        };
        let size = u32::from_le_bytes(packed.get(..4)?.try_into().ok()?);
        if usize::try_from(size).ok()? > most {
            return None;
        }
        lz4_flex::decompress_size_prepended(&packed).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn chunk_sealed_for_one_namespace_opens_in_no_other() {
        let key = [7; 32];
        let (one, two) = (ChunkCipher::new(Some(&key), "one"), ChunkCipher::new(Some(&key), "two"));
        let plain = ChunkCipher::new(None, "one");
        let sealed = one.seal("n", b"secret secret secret").unwrap();
        assert_eq!(one.open("n", &sealed, 100).as_deref(), Some(&b"secret secret secret"[..]));
        assert_eq!(one.open("m", &sealed, 100), None);
        assert_eq!(one.open("n", &sealed, 10), None);
        assert_eq!(two.open("n", &sealed, 100), None);
        assert_eq!(plain.open("n", &sealed, 100), None);
        assert_ne!(one.name(b"x"), two.name(b"x"));
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        // An unencrypted object does not pass for an encrypted one.
        assert_eq!(one.open("n", &plain.seal("n", b"x").unwrap(), 100), None);
    }

    proptest! {
        #[test]
        fn sealed_chunk_round_trips_and_altered_chunk_is_detected(
            contents in proptest::collection::vec(any::<u8>(), 0..2000), at: usize, bit in 0_u8..8,
        ) {
            for cipher in [ChunkCipher::new(None, "s"), ChunkCipher::new(Some(&[1; 32]), "s")] {
                let mut sealed = cipher.seal("n", &contents).unwrap();
                prop_assert_eq!(cipher.open("n", &sealed, 2000), Some(contents.clone()));
                let at = at % sealed.len();
                sealed[at] ^= 1 << bit;
                let opened = cipher.open("n", &sealed, 2000);
                prop_assert!(opened.is_none_or(|o| cipher.name(&o) != cipher.name(&contents)
                    || o == contents));
            }
        }
    }
}
