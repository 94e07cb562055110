//! A manifest, an index or a configuration of an image, as a hostile registry may send it; and a
//! reference.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| registry::fuzzing::image(data));
