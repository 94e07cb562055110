//! A layer of an image, as a registry may send it. The first byte chooses the number of layers: the
//! same bytes again exercise merging. The image goes to an anonymous file.
#![no_main]

use rootfs::{Converter, Limits};
use std::fs::File;

const LIMITS: Limits = Limits { bytes: 8 << 20, entries: 1000, memory: 1 << 20, layers: 3 };

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, layer)) = data.split_first() else { return };
    let Ok(memory) = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC) else {
        return;
    };
    let Ok(mut converter) = Converter::new(File::from(memory), [0; 32], LIMITS) else { return };
    for _ in 0..=first % 3 {
        match converter.layer(layer, None) {
            Ok(next) => converter = next,
            Err(_) => return,
        }
    }
    let Ok(summary) = converter.finish() else { return };
    assert_eq!(summary.bytes % 4096, 0);
    assert!(summary.bytes <= LIMITS.bytes);
});
