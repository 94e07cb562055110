//! The bytes of a guest's connection to port 80: no request but for the allowed host gets through.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| host_agent::fuzzing::requests(data));
