//! The first bytes of a guest's connection to port 443, as the egress filter reads them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| host_agent::fuzzing::hello(data));
