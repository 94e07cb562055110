//! Bytes as hexadecimal digits.

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Writes bytes as lower-case hexadecimal digits, two for each byte.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let halves = bytes.iter().flat_map(|&byte| [byte >> 4, byte & 15]);
    halves.map(|half| char::from(DIGITS[usize::from(half)])).collect()
}

/// Reads exactly `2 * N` hexadecimal digits, of either case. Returns `None` for any other text.
#[must_use]
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut out = [0; N];
    for (byte, [high, low]) in out.iter_mut().zip(pairs) {
        *byte = (half(*high)? << 4) | half(*low)?;
    }
    Some(out)
}

/// Returns the value of one digit.
fn half(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_encoding_and_decoding() {
        let bytes: [u8; 256] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        assert_eq!(decode(&encode(&bytes)), Some(bytes));
        assert_eq!(encode(&[0, 0x1f, 0xa0]), "001fa0");
        assert_eq!(decode("001FA0"), Some([0, 0x1f, 0xa0]));
    }

    #[test]
    fn decoding_refuses_other_lengths_and_characters() {
        for wrong in ["", "0", "00f", "00ff0", "00ff00", "+1ff", "0xff", " 0ff", "00fg", "00é"] {
            assert_eq!(decode::<2>(wrong), None, "{wrong}");
        }
    }
}
