//! The long-lived roles' way to get memory from the system. The only unsafe code of this crate.
#![expect(unsafe_code, reason = "the allocator's settings have no safe form")]

/// Size from which a block of memory is mapped alone, in bytes.
const MAPPED: libc::c_int = 256 * 1024;

/// Has large blocks of memory mapped alone, so that they go back to the system when they are freed.
/// Without a fixed size glibc raises it to the largest block that was freed, and each check of a
/// password (19 MiB) then stays with its thread for good (`mallopt(3)`).
pub(crate) fn map_large_blocks() {
    // SAFETY: the call sets a number inside the allocator, under the allocator's own lock.
    let set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED) };
    if set != 1 {
        tracing::debug!("the allocator keeps its own size of large blocks");
    }
}
