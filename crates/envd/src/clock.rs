//! The guest's wall clock, and waits for deadlines.

use rustix::time::{ClockId, Timespec, clock_settime};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Returns the time in seconds since 1970.
pub(crate) fn unix_seconds() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// Returns the time in milliseconds since 1970.
pub(crate) fn unix_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// Sets the wall clock.
///
/// # Errors
/// Returns the kernel's error, for example when the process lacks the right.
pub(crate) fn set(to: time::OffsetDateTime) -> std::io::Result<()> {
    let at = Timespec { tv_sec: to.unix_timestamp(), tv_nsec: i64::from(to.nanosecond()) };
    Ok(clock_settime(ClockId::Realtime, at)?)
}

/// Waits for a deadline. Without a deadline, never returns.
pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
