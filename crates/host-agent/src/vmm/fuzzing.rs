//! Faults that fuzzing looks for in what VMMs say.

pub use super::firecracker::fuzz as firecracker;

/// What QEMU says on its socket. Whatever it is, it is heard to its end.
pub fn qmp(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let Ok(runtime) = runtime {
        runtime.block_on(super::qmp::fuzz(data));
    }
}
