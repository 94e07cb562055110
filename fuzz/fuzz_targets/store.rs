//! An object of the store: a piece of a file, or the list of a folder's files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| store::fuzzing::object(data));
