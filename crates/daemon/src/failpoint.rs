//! Failpoints: named points of an operation at which a test can end the process or make it fail.
//! Only debug builds have them.
//!
//! `WRENN_DIE_AT=name` kills the process at its first pass, as `kill -9` does. `WRENN_FAIL_AT=name`
//! makes every pass fail.

use std::io;

/// Passes the failpoint `name`.
///
/// # Errors
/// Returns an error when `WRENN_FAIL_AT` names the failpoint.
#[cfg(debug_assertions)]
pub fn failpoint(name: &str) -> io::Result<()> {
    use std::sync::LazyLock;
    static DIE: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("WRENN_DIE_AT").ok());
    static FAIL: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("WRENN_FAIL_AT").ok());
    if DIE.as_deref() == Some(name) {
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
    }
    if FAIL.as_deref() == Some(name) {
        return Err(io::Error::other(format!("a test made the failpoint `{name}` fail")));
    }
    Ok(())
}

/// Passes a failpoint. Does nothing in this build.
///
/// # Errors
/// Never fails in this build.
#[cfg(not(debug_assertions))]
#[inline]
pub fn failpoint(_name: &str) -> io::Result<()> {
    Ok(())
}
