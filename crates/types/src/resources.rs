//! Sizes that a capsule may ask for. The API checks them, and the host agent checks them again.

/// A value outside its range, with its field and the allowed range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {message}")]
pub struct OutOfRange {
    /// Name of the field, as on the wire.
    pub field: &'static str,
    /// Allowed values, for people.
    pub message: String,
}

/// Size of a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Resources {
    /// Virtual processors, 1 to 32.
    pub vcpus: u32,
    /// Memory of the guest, 128 to 65,536 MiB.
    pub memory_mib: u32,
    /// The capsule's own writable disk, 64 to 102,400 MiB. It is sparse: only written parts use
    /// space.
    pub disk_mib: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self { vcpus: 1, memory_mib: 512, disk_mib: 5120 }
    }
}

/// Longest lifetime or idle time that may be asked for: 30 days.
pub const MAX_TIMEOUT_SEC: u32 = 30 * 24 * 3600;

impl Resources {
    /// Smallest sizes that may be asked for.
    pub const MIN: Self = Self { vcpus: 1, memory_mib: 128, disk_mib: 64 };
    /// Largest sizes that may be asked for.
    pub const MAX: Self = Self { vcpus: 32, memory_mib: 65_536, disk_mib: 102_400 };

    /// Checks each size against its range.
    ///
    /// # Errors
    /// Returns the first field that is out of range.
    pub fn check(&self) -> Result<(), OutOfRange> {
        let (min, max) = (Self::MIN, Self::MAX);
        in_range("vcpus", self.vcpus, min.vcpus, max.vcpus)?;
        in_range("memory_mib", self.memory_mib, min.memory_mib, max.memory_mib)?;
        in_range("disk_mib", self.disk_mib, min.disk_mib, max.disk_mib)
    }
}

/// Checks that `value` lies in `min..=max`.
///
/// # Errors
/// Names `field` and the range.
pub fn in_range(field: &'static str, value: u32, min: u32, max: u32) -> Result<(), OutOfRange> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let message = format!("must be between {min} and {max}, not {value}");
    Err(OutOfRange { field, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_resources_are_valid_and_invalid_field_is_named() {
        assert_eq!(Resources::default().check(), Ok(()));
        let absurd = Resources { vcpus: 0, ..Resources::default() };
        assert_eq!(absurd.check().unwrap_err().field, "vcpus");
        let absurd = Resources { memory_mib: u32::MAX, ..Resources::default() };
        assert_eq!(absurd.check().unwrap_err().field, "memory_mib");
    }
}
