//! Output of QEMU and Firecracker on their sockets.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    host_agent::fuzzing::qmp(data);
    host_agent::fuzzing::firecracker(data);
});
