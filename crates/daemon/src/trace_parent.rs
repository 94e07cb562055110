//! A trace's ids in the form of W3C's Trace Context, as a header carries them.

use std::fmt;

/// Target of all spans: the module `trace`, which makes them. Filters know the spans by it.
pub(crate) const TARGET: &str = "daemon::trace";
/// Length of a header's value in version 0 of the form.
const LENGTH: usize = 55;
/// Flag that a caller sets if it records the trace.
const SAMPLED: u8 = 1;

/// A trace, and the span of it that the next spans belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace: u128,
    span: u64,
    flags: u8,
}

impl TraceParent {
    /// Makes a value of its parts. Returns `None` for an id that is zero.
    pub(crate) fn new(trace: u128, span: u64, sampled: bool) -> Option<Self> {
        let flags = if sampled { SAMPLED } else { 0 };
        (trace != 0 && span != 0).then_some(Self { trace, span, flags })
    }

    /// Reads the value of a header. Returns `None` for a value that the form does not allow.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fields = text.get(..LENGTH)?;
        let rest = &text[LENGTH..];
        let mut fields = fields.split('-');
        let version = digits(fields.next()?, 2)?;
        let (trace, span) = (digits(fields.next()?, 32)?, digits(fields.next()?, 16)?);
        let flags = u8::try_from(digits(fields.next()?, 2)?).ok()?;
        // Later versions may append fields.
        let is_known = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        if !is_known || fields.next().is_some() {
            return None;
        }
        Self::new(trace, u64::try_from(span).ok()?, flags & SAMPLED != 0)
    }

    /// Makes a trace that nobody knows yet.
    #[must_use]
    pub fn random() -> Self {
        let (trace, span) = (rand::random::<u128>().max(1), rand::random::<u64>().max(1));
        Self { trace, span, flags: SAMPLED }
    }

    /// Returns the trace's id, as 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    pub(crate) fn parts(self) -> (u128, u64, bool) {
        (self.trace, self.span, self.flags & SAMPLED != 0)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// Reads `length` lower-case hexadecimal digits.
fn digits(text: &str, length: usize) -> Option<u128> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != length || !text.bytes().all(is_digit) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}
