//! Texts and numbers in the fields of headers.

use crate::error::Fault;

const MALFORMED: Fault = Fault::Malformed("a field is no number");

/// Returns a field's text: the bytes before the first zero.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Reads a number of a header: octal digits, or base 256 when the first bit is set.
///
/// # Errors
/// Fails for other bytes and for numbers beyond 63 bits.
pub(super) fn field(field: &[u8]) -> Result<i64, Fault> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(field),
        _ => octal(field),
    }
}

/// Reads a number that may not be negative.
///
/// # Errors
/// As [`field`].
pub(super) fn natural(bytes: &[u8]) -> Result<u64, Fault> {
    u64::try_from(field(bytes)?).map_err(|_| Fault::Malformed("a number is negative"))
}

/// Reads decimal digits.
///
/// # Errors
/// Fails for other bytes, for no digits, and for numbers beyond 63 bits.
pub(super) fn decimal(digits: &[u8]) -> Result<u64, Fault> {
    if digits.is_empty() {
        return Err(MALFORMED);
    }
    let mut sum: i64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(MALFORMED);
        }
        let digit = i64::from(digit.wrapping_sub(b'0'));
        sum = sum.checked_mul(10).and_then(|sum| sum.checked_add(digit)).ok_or(MALFORMED)?;
    }
    u64::try_from(sum).map_err(|_| MALFORMED)
}

/// Reads decimal seconds, which may have a sign and a fraction. The fraction is dropped.
///
/// # Errors
/// As [`decimal`].
pub(super) fn seconds(text: &[u8]) -> Result<i64, Fault> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let whole = decimal(parts.next().unwrap_or_default())?;
    if parts.next().is_some_and(|fraction| !fraction.iter().all(u8::is_ascii_digit)) {
        return Err(MALFORMED);
    }
    let whole = i64::try_from(whole).map_err(|_| MALFORMED)?;
    Ok(if negative { whole.saturating_neg() } else { whole })
}

/// Checks the number of a user or group. The largest 32-bit number means "none" to Linux.
///
/// # Errors
/// Refuses numbers that Linux does not have.
pub(super) fn id(number: u64) -> Result<u32, Fault> {
    u32::try_from(number)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or(Fault::Refused("its user or group is beyond 4294967294"))
}

fn octal(field: &[u8]) -> Result<i64, Fault> {
    let is_space = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_space(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    let mut sum: i64 = 0;
    for digit in field.get(start..end).unwrap_or_default() {
        if !(b'0'..=b'7').contains(digit) {
            return Err(MALFORMED);
        }
        let digit = i64::from(digit.wrapping_sub(b'0'));
        sum = sum.checked_mul(8).and_then(|sum| sum.checked_add(digit)).ok_or(MALFORMED)?;
    }
    Ok(sum)
}

/// Reads a two's complement number whose first bit is a mark and whose second bit is the sign.
fn base_256(field: &[u8]) -> Result<i64, Fault> {
    let mut bytes = field.iter();
    let first = bytes.next().copied().unwrap_or_default();
    let negative = first & 0x40 != 0;
    let low = i64::from(first & 0x3f);
    let mut sum = if negative { low - 64 } else { low };
    for byte in bytes {
        sum = sum
            .checked_mul(256)
            .and_then(|sum| sum.checked_add((*byte).into()))
            .ok_or(MALFORMED)?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256_and_nothing_else() {
        let cases: [(&[u8], Option<i64>); 14] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"", Some(0)),
            (b"\0\0\0\0", Some(0)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"64 4\0", None),
            (b"8", None),
            (b"-1", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\x00", Some(-256)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (bytes, number) in cases {
            assert_eq!(field(bytes).ok(), number, "{bytes:?}");
        }
        assert!(natural(b"\xff\xff\xff\xff").is_err());
    }

    #[test]
    fn decimal_numbers_have_digits_alone() {
        assert_eq!(decimal(b"0123").ok(), Some(123));
        for wrong in [&b""[..], b"+1", b"-1", b"1 ", b"1\n", b"9223372036854775808"] {
            assert!(decimal(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(seconds(b"12.999").ok(), Some(12));
        assert_eq!(seconds(b"-12.5").ok(), Some(-12));
        assert_eq!(seconds(b"12.").ok(), Some(12));
        for wrong in [&b"."[..], b"1.x", b"1.2.3", b"--1", b"1e3"] {
            assert!(seconds(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn ids_end_before_the_number_that_means_none() {
        assert_eq!(id(4_294_967_294).ok(), Some(u32::MAX - 1));
        assert!(id(4_294_967_295).is_err());
        assert!(id(4_294_967_296).is_err());
    }
}
