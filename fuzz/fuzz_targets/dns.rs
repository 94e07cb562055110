//! A guest's question for a name, and a name server's answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| host_agent::fuzzing::dns(data));
