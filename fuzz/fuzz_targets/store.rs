//! An object of the store: a chunk of a file, or the manifest of a folder.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| store::fuzzing::object(data));
