//! The bytes of a guest's connection to port 80. Only requests for the allowed host may get
//! through.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| host_agent::fuzzing::requests(data));
