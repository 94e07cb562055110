//! Bodies of requests for code. Programs in the guest, and any holder of the traffic token, may send
//! anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| interpreter::fuzzing::execute(data));
