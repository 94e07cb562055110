//! Layers that are small and grow: each stops at its limit, with little memory.

use crate::archive::{Spec, entry, extension, file, folder, header, record};
use crate::{DIGEST, chain};
use flate2::Compression;
use flate2::read::GzEncoder;
use rootfs::{Converter, Error, Limits};
use std::io::{self, Read, repeat};

/// Reads entries that are made as they are wanted.
struct Endless<F> {
    make: F,
    next: u64,
    held: Vec<u8>,
    start: usize,
}

fn endless(make: impl FnMut(u64) -> Vec<u8>) -> impl Read {
    Endless { make, next: 0, held: Vec::new(), start: 0 }
}

impl<F: FnMut(u64) -> Vec<u8>> Read for Endless<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.start == self.held.len() {
            self.held.clear();
            for _ in 0..100 {
                self.held.extend((self.make)(self.next));
                self.next += 1;
            }
            self.start = 0;
        }
        let bytes = (&self.held[self.start..]).read(into)?;
        self.start += bytes;
        Ok(bytes)
    }
}

/// Converts a layer that never ends, and returns the error.
fn stop(reader: impl Read, limits: Limits) -> Error {
    let out = tempfile::tempfile().unwrap();
    let converter = Converter::new(out.try_clone().unwrap(), DIGEST, limits).unwrap();
    let error = converter.layer(reader, None).err().unwrap();
    let size = out.metadata().unwrap().len();
    assert!(size <= limits.bytes, "{size} bytes were written");
    error
}

fn limits() -> Limits {
    Limits { bytes: 20 << 20, entries: 10_000, memory: 4 << 20, layers: 1 }
}

#[test]
fn gzip_of_endless_zeros_stops_at_the_limit() {
    let head = header(&file("a", ""), 1 << 20);
    let plain = head.chain(repeat(0));
    let error = stop(GzEncoder::new(plain, Compression::fast()), limits());
    assert!(chain(&error).contains("more than 20971520 bytes in the layers"), "{error}");
}

#[test]
fn file_beyond_the_image_stops_before_its_contents() {
    let head = header(&file("a", ""), 20 << 30);
    let error = stop(head.chain(repeat(0)), limits());
    assert!(chain(&error).contains("more than 20971520 bytes in a file"), "{error}");
}

#[test]
fn many_files_stop_at_the_size_of_the_image() {
    let error = stop(endless(|at| entry(&file(format!("{at}"), vec![1; 1025]))), limits());
    assert!(chain(&error).contains("bytes in the "), "{error}");
}

#[test]
fn many_holes_stop_at_the_size_of_the_image() {
    let hole = |at| {
        let spec = file(at, "").pax("GNU.sparse.size", "10000000");
        entry(&spec.pax("GNU.sparse.map", "10000000,0"))
    };
    let error = stop(endless(|at| hole(at.to_string())), limits());
    assert!(chain(&error).contains("more than 20971520 bytes in the image"), "{error}");
}

#[test]
fn many_empty_files_stop_at_the_limit_of_entries() {
    let error = stop(endless(|at| entry(&file(format!("{at}"), ""))), limits());
    assert_eq!(
        error.to_string(),
        "layer 1, entry 10001, \"10000\": more than 10000 entries in the layers"
    );
}

#[test]
fn many_names_stop_at_the_limit_of_memory() {
    let name = "n".repeat(250);
    let make = |at| folder(format!("{name}/{at:0240}/{at}"));
    let error = stop(endless(|at| entry(&make(at))), limits());
    assert!(chain(&error).contains("more than 4194304 bytes"), "{error}");
}

#[test]
fn many_attributes_stop_at_the_limit_of_memory() {
    let spec = |at: u64| file(at.to_string(), "").pax("SCHILY.xattr.user.a", vec![b'x'; 60_000]);
    let error = stop(endless(|at| entry(&spec(at))), limits());
    assert!(chain(&error).contains("more than 4194304 bytes"), "{error}");
}

#[test]
fn many_whiteouts_stop_at_the_limit_of_entries() {
    let error = stop(endless(|at| entry(&file(format!(".wh.{at}"), ""))), limits());
    assert!(chain(&error).contains("more than 10000 entries"), "{error}");
}

#[test]
fn deep_path_is_refused() {
    let error = stop(endless(|_| entry(&folder("a/".repeat(50_000)))), limits());
    assert!(chain(&error).contains("more than 4096 bytes in its path"), "{error}");
}

#[test]
fn endless_headers_stop() {
    let error = stop(endless(|_| extension(b'x', &record(b"comment", b"x"))), limits());
    assert!(chain(&error).contains("more than 1048576 bytes in the headers"), "{error}");
    let error = stop(endless(|_| extension(b'g', &record(b"comment", b"x"))), limits());
    assert!(chain(&error).contains("more than 1048576 bytes in the headers"), "{error}");
}

#[test]
fn endless_empty_frames_stop_at_the_limit_of_compressed_bytes() {
    let error = stop(endless(|_| b"\x50\x2a\x4d\x18\0\0\0\0".to_vec()), limits());
    assert!(chain(&error).contains("more than 20971520 compressed bytes"), "{error}");
    let mut empty = Vec::new();
    GzEncoder::new(io::empty(), Compression::fast()).read_to_end(&mut empty).unwrap();
    let error = stop(endless(|_| empty.clone()), limits());
    assert!(chain(&error).contains("more than 20971520 compressed bytes"), "{error}");
}

#[test]
fn zeros_behind_the_end_stop_at_the_limit() {
    let error = stop(repeat(0), limits());
    assert!(chain(&error).contains("more than 20971520 "), "{error}");
}

#[test]
fn stream_that_fails_is_an_error_of_its_layer() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the line is cut"))
        }
    }
    let head = entry(&Spec::new(b'5', "a", 0o755));
    let error = stop(head.chain(Failing), limits());
    assert_eq!(chain(&error), "layer 1, entry 2: the layer cannot be read: the line is cut");
}
