//! What an object's bytes are: compressed, then, where there is a key, encrypted
//! (AES-256-GCM, a key for each space, the object's name as what it is bound to).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// What keys of spaces are derived for.
const ENCRYPT: &str = "wrenn 2026-11 store: encryption key of a space";
const NAME: &str = "wrenn 2026-11 store: naming key of a space";

/// First byte of an object: what it is.
const PLAIN: u8 = 0;
const ENCRYPTED: u8 = 1;

/// Seals and opens the objects of one space.
pub(crate) struct Sealer {
    key: Option<Keys>,
}

struct Keys {
    encrypt: LessSafeKey,
    /// Names are of no use to whoever guesses contents.
    name: [u8; 32],
}

impl Sealer {
    pub(crate) fn new(master: Option<&[u8; 32]>, space: &str) -> Self {
        let keys = |master: &[u8; 32]| {
            let material = [master.as_slice(), space.as_bytes()].concat();
            let encrypt = blake3::derive_key(ENCRYPT, &material);
            // A key of this length is one for this cipher.
            let encrypt = UnboundKey::new(&AES_256_GCM, &encrypt).ok()?;
            let name = blake3::derive_key(NAME, &material);
            Some(Keys { encrypt: LessSafeKey::new(encrypt), name })
        };
        Self { key: master.and_then(keys) }
    }

    /// What some contents are named by.
    pub(crate) fn name(&self, contents: &[u8]) -> String {
        let hash = match &self.key {
            Some(keys) => blake3::keyed_hash(&keys.name, contents),
            None => blake3::hash(contents),
        };
        hash.to_hex().to_string()
    }

    /// The bytes of an object; none when there is no randomness, or too much of it.
    pub(crate) fn seal(&self, name: &str, contents: &[u8]) -> Option<Vec<u8>> {
        let packed = lz4_flex::compress_prepend_size(contents);
        let Some(keys) = &self.key else { return Some([&[PLAIN], packed.as_slice()].concat()) };
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = packed;
        let at = Nonce::assume_unique_for_key(nonce);
        keys.encrypt.seal_in_place_append_tag(at, Aad::from(name), &mut sealed).ok()?;
        Some([&[ENCRYPTED], nonce.as_slice(), &sealed].concat())
    }

    /// The contents of an object; none when it is not one that was sealed under this name with
    /// this key. At most `most` bytes of contents are made of it.
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
    fn what_is_sealed_for_one_space_opens_in_no_other() {
        let key = [7; 32];
        let (one, two) = (Sealer::new(Some(&key), "one"), Sealer::new(Some(&key), "two"));
        let plain = Sealer::new(None, "one");
        let sealed = one.seal("n", b"secret secret secret").unwrap();
        assert_eq!(one.open("n", &sealed, 100).as_deref(), Some(&b"secret secret secret"[..]));
        assert_eq!(one.open("m", &sealed, 100), None);
        assert_eq!(one.open("n", &sealed, 10), None);
        assert_eq!(two.open("n", &sealed, 100), None);
        assert_eq!(plain.open("n", &sealed, 100), None);
        assert_ne!(one.name(b"x"), two.name(b"x"));
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        // One that is not encrypted does not pass for one that is.
        assert_eq!(one.open("n", &plain.seal("n", b"x").unwrap(), 100), None);
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_and_what_was_changed_does_not(
            contents in proptest::collection::vec(any::<u8>(), 0..2000), at: usize, bit in 0_u8..8,
        ) {
            for sealer in [Sealer::new(None, "s"), Sealer::new(Some(&[1; 32]), "s")] {
                let mut sealed = sealer.seal("n", &contents).unwrap();
                prop_assert_eq!(sealer.open("n", &sealed, 2000), Some(contents.clone()));
                let at = at % sealed.len();
                sealed[at] ^= 1 << bit;
                let opened = sealer.open("n", &sealed, 2000);
                prop_assert!(opened.is_none_or(|o| sealer.name(&o) != sealer.name(&contents)
                    || o == contents));
            }
        }
    }
}
