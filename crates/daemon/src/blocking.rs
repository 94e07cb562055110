//! Work that blocks, away from the threads that run tasks.

use std::io;

/// Runs work that blocks, such as file operations, on a thread of its own.
///
/// # Errors
/// Returns the error of the work, or an error when the work panics.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(io::Error::other(e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_of_blocking_work_is_an_error() {
        let done: io::Result<()> = blocking(|| panic!("the work panics")).await;
        assert!(done.is_err());
    }
}
