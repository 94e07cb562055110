//! Fuzz targets for the output of VMMs.

pub use super::firecracker::fuzz as firecracker;

/// Feeds `data` as QEMU's output on its socket, and reads it to its end.
pub fn qmp(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let Ok(runtime) = runtime {
        runtime.block_on(super::qmp::fuzz(data));
    }
}
