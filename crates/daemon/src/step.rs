//! Named points of an operation at which a test can end the process or make it fail: built into
//! debug builds alone. `WRENN_DIE_AT=name` kills the process there as `kill -9` does, at the
//! first time; `WRENN_FAIL_AT=name` makes the step fail each time.

use std::io;

/// Passes a point of this name.
///
/// # Errors
/// Where a test asked for it.
#[cfg(debug_assertions)]
pub fn step(name: &str) -> io::Result<()> {
    use std::sync::LazyLock;
    static DIE: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("WRENN_DIE_AT").ok());
    static FAIL: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("WRENN_FAIL_AT").ok());
    if DIE.as_deref() == Some(name) {
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
    }
    if FAIL.as_deref() == Some(name) {
        return Err(io::Error::other(format!("a test let `{name}` fail")));
    }
    Ok(())
}

/// Passes a point of this name.
///
/// # Errors
/// None in this build.
#[cfg(not(debug_assertions))]
#[inline]
pub fn step(_name: &str) -> io::Result<()> {
    Ok(())
}
