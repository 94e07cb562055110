//! A check that a program is a static ELF executable, so that it runs in a root without other
//! files.

use anyhow::Context;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Size of the header of a 64-bit file, and of each of its program headers (`elf(5)`).
const HEADER: usize = 64;
const SEGMENT: usize = 56;
/// Type of the segment that names the loader of a dynamically linked program.
const PT_INTERP: u32 = 3;

/// Checks that a program needs no other file.
///
/// # Errors
/// Fails when the program needs another file, or is no 64-bit little-endian ELF file.
pub(super) fn check_static(program: &Path) -> anyhow::Result<()> {
    let name = program.display();
    let file = File::open(program).with_context(|| format!("cannot open {name}"))?;
    match is_static(&file) {
        Ok(true) => Ok(()),
        Ok(false) => anyhow::bail!(
            "{name} is dynamically linked, and its jail has no libraries; install an official, \
             static release"
        ),
        Err(error) => Err(error).with_context(|| {
            format!("{name} must be a static ELF executable, such as an official release")
        }),
    }
}

/// Reports whether an ELF executable names no loader.
fn is_static(file: &File) -> io::Result<bool> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    // The bytes stand for ELF, 64 bits, little-endian.
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the file is not a 64-bit ELF file",
        ));
    }
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (size, count) = (half(54), half(56));
    let mut at = header[32..40].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    for _ in 0..count {
        let mut segment = [0; SEGMENT];
        file.read_exact_at(&mut segment, at)?;
        if segment.starts_with(&PT_INTERP.to_le_bytes()) {
            return Ok(false);
        }
        at = at.saturating_add(u64::from(size));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Makes an ELF file with a segment of each of these types.
    fn elf(types: &[u32]) -> File {
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        bytes.resize(HEADER, 0);
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&u16::try_from(types.len()).unwrap().to_le_bytes());
        for kind in types {
            bytes.extend(kind.to_le_bytes());
            bytes.resize(bytes.len() + SEGMENT - 4, 0);
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn static_elf_is_distinguished_from_dynamic_and_non_elf() {
        assert!(is_static(&elf(&[1, 2, 1])).unwrap(), "a static one may relocate itself");
        assert!(!is_static(&elf(&[6, 3, 1])).unwrap());
        let own = File::open("/proc/self/exe").unwrap();
        assert!(!is_static(&own).unwrap(), "tests are dynamically linked");
        let mut script = tempfile::tempfile().unwrap();
        script.write_all(&[b'#'; 100]).unwrap();
        assert_eq!(is_static(&script).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(is_static(&tempfile::tempfile().unwrap()).is_err());
        let cut = elf(&[1, 3]);
        cut.set_len(80).unwrap();
        assert!(is_static(&cut).is_err());
    }
}
