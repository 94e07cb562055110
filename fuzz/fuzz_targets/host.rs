//! Lines of the host that runs JavaScript. Code of users runs in the same process.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| interpreter::fuzzing::host(data));
