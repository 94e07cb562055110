//! Metrics that envd reports about its guest. Root in the guest can falsify all of them. Each
//! metric is read on its own, and is absent if it is no plain number.

use super::sample::percent;
use serde_json::Value;

/// Metrics that the guest reports. Sizes are in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct GuestStats {
    /// Use of all of the guest's processors, from 0 to 100.
    pub cpu_percent: Option<f64>,
    pub memory: Option<u64>,
    /// Memory with contents of files, which the guest can drop.
    pub cache: Option<u64>,
    pub disk: Option<u64>,
    /// Processes that the guest's kernel killed for want of memory, since its boot.
    pub oom_kills: Option<u64>,
}

impl GuestStats {
    /// Reads an answer of envd's `/metrics`; `None` when the answer is no JSON object.
    pub(super) fn read(answer: &[u8]) -> Option<Self> {
        let told: Value = serde_json::from_slice(answer).ok()?;
        let told = told.as_object()?;
        let number = |name: &str| told.get(name).and_then(Value::as_u64);
        Some(Self {
            cpu_percent: told.get("cpu_used_pct").and_then(Value::as_f64).map(percent),
            memory: number("mem_used"),
            cache: number("mem_cache"),
            disk: number("disk_used"),
            oom_kills: number("oom_kills"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_figures_are_read() {
        let told =
            br#"{"cpu_used_pct":12.5,"mem_used":5,"mem_cache":6,"disk_used":7,"oom_kills":1}"#;
        let wanted = GuestStats {
            cpu_percent: Some(12.5),
            memory: Some(5),
            cache: Some(6),
            disk: Some(7),
            oom_kills: Some(1),
        };
        assert_eq!(GuestStats::read(told), Some(wanted));
    }

    #[test]
    fn hostile_figures_are_absent_or_within_their_range() {
        let told =
            br#"{"cpu_used_pct":1e300,"mem_used":-5,"mem_cache":1.5,"disk_used":"x","x":[]}"#;
        let wanted = GuestStats { cpu_percent: Some(100.0), ..GuestStats::default() };
        assert_eq!(GuestStats::read(told), Some(wanted));
        let told = GuestStats::read(br#"{"cpu_used_pct":-3,"oom_kills":99999999999999999999}"#);
        assert_eq!(told.unwrap().cpu_percent, Some(0.0));
        assert_eq!(told.unwrap().oom_kills, None);
        for garbage in [&b""[..], b"NaN", b"[1]", b"{", b"\xff", b"null"] {
            assert_eq!(GuestStats::read(garbage), None, "{garbage:?}");
        }
    }
}
