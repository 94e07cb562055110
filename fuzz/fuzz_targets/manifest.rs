//! A snapshot's manifest, as it may come from the store.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| host_agent::fuzzing::manifest(data));
