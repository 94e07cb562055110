//! Allocator settings for the long-lived roles. This file has the only unsafe code of the crate.
#![expect(unsafe_code, reason = "the allocator's settings have no safe form")]

/// Size from which the allocator maps a block of memory alone, in bytes.
const MAPPED: libc::c_int = 256 * 1024;

/// Has the allocator map large blocks alone, so that they return to the system when freed. Without
/// a fixed size, glibc raises the size to the largest block that was freed. Then the memory of each
/// password check (19 MiB) stays with its thread for good (`mallopt(3)`).
pub(crate) fn map_large_blocks() {
    // SAFETY: the call sets a number inside the allocator, under the allocator's own lock.
    let set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED) };
    if set != 1 {
        tracing::debug!("cannot set the allocator's threshold for large blocks");
    }
}
