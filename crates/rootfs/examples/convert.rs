//! Converts layers named on the command line into an image, and prints time, sizes and memory.
//! The digest is zero, so that runs can be compared.
#![allow(clippy::print_stdout, reason = "a developer's tool")]

use rootfs::{Converter, Limits};
use std::error::Error;
use std::fs::{self, File};
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let out = arguments.next().ok_or("usage: convert IMAGE LAYER…")?;
    let begin = Instant::now();
    let mut converter = Converter::new(File::create(&out)?, [0; 32], Limits::default())?;
    for layer in arguments {
        converter = converter.layer(File::open(layer)?, None)?;
    }
    let summary = converter.finish()?;
    let seconds = begin.elapsed().as_secs_f64();
    let plain: u64 = summary.layers.iter().map(|layer| layer.bytes).sum();
    let entries: u64 = summary.layers.iter().map(|layer| layer.entries).sum();
    println!(
        "{seconds:.2} s, {entries} entries, {plain} plain bytes, image of {} bytes with {} inodes, \
         {} dropped, {}",
        summary.bytes,
        summary.inodes,
        summary.dropped_bytes,
        peak()?
    );
    Ok(())
}

/// Returns the most memory that was resident so far, as the kernel states it.
fn peak() -> Result<String, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    Ok(line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" "))
}
