//! Contents and places in the image, compressions, digests, and equal bytes.

use crate::archive::{Spec, file, folder, hard, link, pack};
use crate::{DIGEST, chain, convert, convert_with, read, reader};
use flate2::Compression;
use flate2::write::GzEncoder;
use rootfs::{Converter, Fault, Limits};
use sha2::{Digest, Sha256};
use std::io::Write;

/// Size of the store's chunks.
const PIECE: usize = 2 << 20;

/// Makes bytes that do not repeat.
pub(crate) fn noise(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..length).map(step).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn skippable(length: u32) -> Vec<u8> {
    [&b"\x5a\x2a\x4d\x18"[..], &length.to_le_bytes(), &vec![7; length as usize]].concat()
}

#[test]
fn files_of_all_sizes_come_out_as_they_went_in() {
    let sizes =
        [0, 1, 511, 512, 1023, 1024, 1025, 4095, 4096, 4097, 5120, 5121, 8192, 300_000, 700_001];
    let data: Vec<Vec<u8>> = sizes.iter().map(|size| noise(*size as u32 + 1, *size)).collect();
    let specs: Vec<Spec> =
        data.iter().enumerate().map(|(at, data)| file(format!("f{at:02}"), data)).collect();
    let tree = reader::read(&convert(&[pack(&specs)]).unwrap().bytes);
    for (at, data) in data.iter().enumerate() {
        assert!(tree[format!("f{at:02}").as_bytes()].data == *data, "file {at}");
    }
}

#[test]
fn large_folders_have_all_names_in_order() {
    let name = |at: usize| format!("d/{}{at}", "n".repeat(at % 200));
    let specs: Vec<Spec> = (0..3000).map(|at| file(name(at), at.to_string())).collect();
    let odd = [file("d/!", ""), file("d/-", ""), file("d/...", ""), file("d/..a", "")];
    let tree = reader::read(&convert(&[pack(&[&specs[..], &odd].concat())]).unwrap().bytes);
    assert_eq!(tree.len(), 3000 + 4 + 2);
    for at in 0..3000 {
        assert_eq!(tree[name(at).as_bytes()].data, at.to_string().into_bytes());
    }
}

#[test]
fn folders_of_every_size_near_a_block_are_read_again() {
    // 64 bytes of inode, 27 of `.` and `..`, and 12 for each name: the border is in this range.
    for length in 1..=255 {
        let specs: Vec<Spec> = (0..15)
            .map(|at| file(format!("d/{at:02}{}", "x".repeat(length.min(253))), ""))
            .collect();
        let tree = reader::read(&convert(&[pack(&specs)]).unwrap().bytes);
        assert_eq!(tree.len(), 17, "{length}");
    }
}

#[test]
fn attributes_of_an_entry_are_kept() {
    let acl = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff";
    let spec = file("a", noise(3, 5000))
        .pax("mtime", "1700000000.123456789")
        .pax("SCHILY.xattr.user.empty", "")
        .pax("SCHILY.xattr.user.two", "1")
        .pax("SCHILY.xattr.user.two", "a\0\n=b")
        .pax("SCHILY.xattr.security.capability", "\x01\0\0\x02caps")
        .pax("SCHILY.xattr.security.selinux", "label")
        .pax("SCHILY.xattr.trusted.overlay.opaque", "y")
        .pax("SCHILY.xattr.system.posix_acl_access", acl)
        .pax("LIBARCHIVE.xattr.user.other", "Zg==");
    let large = link("b", "x".repeat(3000)).pax("SCHILY.xattr.user.large", noise(4, 30_000));
    let dir = folder("c").pax("SCHILY.xattr.user.large", noise(5, 4000));
    let tree = reader::read(&convert(&[pack(&[spec, large, dir])]).unwrap().bytes);
    let found = &tree[&b"a"[..]];
    assert_eq!(found.mtime, 1_700_000_000);
    assert_eq!(found.data, noise(3, 5000));
    let expected = [
        ((1, b"empty".to_vec()), vec![]),
        ((1, b"two".to_vec()), b"a\0\n=b".to_vec()),
        ((2, vec![]), acl.to_vec()),
        ((6, b"capability".to_vec()), b"\x01\0\0\x02caps".to_vec()),
    ];
    assert_eq!(found.xattrs, expected.into());
    assert_eq!(tree[&b"b"[..]].data, vec![b'x'; 3000]);
    assert_eq!(tree[&b"b"[..]].xattrs[&(1, b"large".to_vec())], noise(4, 30_000));
    assert_eq!(tree[&b"c"[..]].xattrs[&(1, b"large".to_vec())], noise(5, 4000));
}

#[test]
fn all_compressions_give_equal_images() {
    let plain = pack(&[file("a", noise(1, 100_000)), folder("b"), hard("c", "a")]);
    let (front, back) = plain.split_at(50_000);
    let packed = [
        gzip(&plain),
        [gzip(front), gzip(back)].concat(),
        [gzip(&plain), gzip(b"")].concat(),
        zstd(&plain),
        [zstd(front), skippable(9), zstd(back), skippable(0)].concat(),
        [skippable(70_000), zstd(&plain)].concat(),
    ];
    let image = convert(std::slice::from_ref(&plain)).unwrap();
    let diff_id: [u8; 32] = Sha256::digest(&plain).into();
    for (at, packed) in packed.into_iter().enumerate() {
        let other = convert(&[packed]).unwrap_or_else(|error| panic!("{at}: {}", chain(&error)));
        assert!(image.bytes == other.bytes, "compression {at}");
        assert_eq!(other.summary.layers[0].diff_id, diff_id);
    }
}

#[test]
fn damaged_compressions_are_errors() {
    let plain = pack(&[file("a", noise(1, 100_000))]);
    let (gzip, zstd) = (gzip(&plain), zstd(&plain));
    let flipped = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let last = bytes.len() - 6;
        bytes[last] ^= 1;
        bytes
    };
    let cases = [
        ("gzip cut", gzip[..gzip.len() - 9].to_vec()),
        ("gzip without checksum", gzip[..gzip.len() - 8].to_vec()),
        ("gzip wrong checksum", flipped(&gzip)),
        ("gzip and garbage", [&gzip[..], b"garbage"].concat()),
        ("gzip head alone", gzip[..5].to_vec()),
        ("zstd cut", zstd[..zstd.len() - 9].to_vec()),
        ("zstd and garbage", [&zstd[..], b"garbage"].concat()),
        ("zstd head alone", zstd[..5].to_vec()),
        ("skippable frame cut", skippable(100)[..50].to_vec()),
        // A single segment of 2^40 bytes: no such window is allocated.
        ("zstd window", b"\x28\xb5\x2f\xfd\xe0\0\0\0\0\0\x01\0\0\0\0\0".to_vec()),
    ];
    for (name, bytes) in cases {
        let error = convert(&[bytes]).err().unwrap_or_else(|| panic!("{name} is taken"));
        assert!(matches!(error.fault, Fault::Read(_)), "{name}: {}", chain(&error));
    }
}

#[test]
fn wrong_digest_names_both() {
    let plain = pack(&[file("a", "1")]);
    let diff_id: [u8; 32] = Sha256::digest(&plain).into();
    let begin = || {
        let file = tempfile::tempfile().unwrap();
        Converter::new(file, DIGEST, Limits::default()).unwrap()
    };
    assert!(begin().layer(gzip(&plain).as_slice(), Some(diff_id)).is_ok());
    // Bytes behind the archive's end belong to the digest too.
    let longer = [&plain[..], b"x"].concat();
    let error = begin().layer(longer.as_slice(), Some(diff_id)).err().unwrap();
    assert!(matches!(error.fault, Fault::Digest { .. }));
    assert!(error.to_string().starts_with("layer 1: the contents have the digest sha256:"));
}

#[test]
fn images_over_one_base_share_its_pieces() {
    let many = |from: usize, count: usize| -> Vec<Spec> {
        (from..from + count)
            .map(|at| file(format!("f{at}"), noise(at as u32 + 1, 9000 + at * 7 % 5000)))
            .collect()
    };
    let base = pack(&many(0, 500));
    let one = convert(std::slice::from_ref(&base)).unwrap().bytes;
    let two = convert(&[base, pack(&many(480, 300))]).unwrap().bytes;
    let data = 500 * 9000 / PIECE;
    let shared = one.chunks(PIECE).zip(two.chunks(PIECE)).skip(1).take_while(|(a, b)| a == b);
    assert!(shared.count() > data, "pieces of the base");
}

#[test]
fn hidden_contents_are_given_back_beyond_a_tenth() {
    let layer = |hidden: usize| {
        let kept = file("kept", noise(1, 900_000));
        vec![pack(&[file("gone", noise(2, hidden)), kept]), pack(&[file("gone", "new")])]
    };
    let find = |image: &[u8], seed| image.windows(64).any(|part| part == &noise(seed, 64)[..]);
    let little = convert(&layer(50_000)).unwrap();
    assert_eq!(little.summary.dropped_bytes, 0);
    assert!(find(&little.bytes, 2));
    let much = convert(&layer(200_000)).unwrap();
    assert_eq!(much.summary.dropped_bytes, 200_704);
    assert!(!find(&much.bytes, 2));
    let tree = reader::read(&much.bytes);
    assert_eq!(tree[&b"kept"[..]].data, noise(1, 900_000));
}

#[test]
fn earlier_contents_of_the_file_are_lost() {
    let mut file_of_image = tempfile::tempfile().unwrap();
    file_of_image.write_all(&vec![0xff; 9 << 20]).unwrap();
    let out = file_of_image.try_clone().unwrap();
    let archive = pack(&[file("a", "1")]);
    let converter = Converter::new(out, DIGEST, Limits::default()).unwrap();
    converter.layer(archive.as_slice(), None).unwrap().finish().unwrap();
    assert!(read(file_of_image) == convert(&[archive]).unwrap().bytes);
}

#[test]
fn digest_gives_the_uuid_alone() {
    let archive = pack(&[file("a", "1")]);
    let make = |digest| {
        let out = tempfile::tempfile().unwrap();
        let converter =
            Converter::new(out.try_clone().unwrap(), digest, Limits::default()).unwrap();
        converter.layer(archive.as_slice(), None).unwrap().finish().unwrap();
        read(out)
    };
    let (one, two) = (make([1; 32]), make([2; 32]));
    assert_ne!(one[1024 + 48..1024 + 64], two[1024 + 48..1024 + 64]);
    assert!(one[4096..] == two[4096..]);
}

#[test]
fn layers_beyond_the_limit_are_refused() {
    let limits = Limits { layers: 2, ..Limits::default() };
    let error = convert_with(&vec![pack(&[]); 3], limits).err().unwrap();
    assert_eq!(error.to_string(), "more than 2 layers");
}
