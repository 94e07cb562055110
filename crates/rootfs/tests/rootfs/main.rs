//! Tests of whole conversions: layers in, an image out, and the image read by other code.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "tests")]
#![allow(clippy::cast_possible_truncation, reason = "sizes of tests are small")]

mod archive;
mod bombs;
mod contents;
mod distributions;
mod merge;
mod odd;
mod oracles;
mod random;
mod reader;

use archive::Spec;
use reader::Found;
use rootfs::{Converter, Error, Limits, Summary};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

/// Digest that tests give their images.
const DIGEST: [u8; 32] = [0x5a; 32];

/// A finished image in memory.
struct Image {
    bytes: Vec<u8>,
    summary: Summary,
}

/// Converts archives.
fn convert_with(layers: &[Vec<u8>], limits: Limits) -> Result<Image, Error> {
    let file = tempfile::tempfile().unwrap();
    let mut converter = Converter::new(file.try_clone().unwrap(), DIGEST, limits)?;
    for layer in layers {
        converter = converter.layer(layer.as_slice(), None)?;
    }
    let summary = converter.finish()?;
    let bytes = read(file);
    assert_eq!(bytes.len() as u64, summary.bytes);
    Ok(Image { bytes, summary })
}

fn convert(layers: &[Vec<u8>]) -> Result<Image, Error> {
    convert_with(layers, Limits::default())
}

fn read(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Converts entries and reads the image's tree.
fn tree(layers: &[Vec<Spec>]) -> Result<BTreeMap<Vec<u8>, Found>, Error> {
    let layers: Vec<Vec<u8>> = layers.iter().map(|layer| archive::pack(layer)).collect();
    Ok(reader::read(&convert(&layers)?.bytes))
}

/// Describes a tree in one line, without its root.
fn describe(tree: &BTreeMap<Vec<u8>, Found>) -> String {
    let lines: Vec<String> = tree
        .iter()
        .filter(|(path, _)| !path.is_empty())
        .map(|(path, found)| format!("{}{}", path.escape_ascii(), found.describe()))
        .collect();
    lines.join(" ")
}

/// Returns an error with all that it is caused by.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
