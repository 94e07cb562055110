//! A Jupyter kernel's side of its socket, and the contents of its messages. Code of users runs there.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| interpreter::fuzzing::kernel(data));
