//! A writer of archives for tests. It writes wrong ones too.

/// An entry.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub flag: u8,
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub device: (u32, u32),
    pub data: Vec<u8>,
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Spec {
    pub(crate) fn new(flag: u8, path: impl AsRef<[u8]>, mode: u32) -> Self {
        Self {
            flag,
            path: path.as_ref().to_vec(),
            link: Vec::new(),
            mode,
            uid: 0,
            gid: 0,
            mtime: 1,
            device: (0, 0),
            data: Vec::new(),
            pax: Vec::new(),
        }
    }

    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub(crate) fn device(mut self, major: u32, minor: u32) -> Self {
        self.device = (major, minor);
        self
    }

    pub(crate) fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }
}

pub(crate) fn file(path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Spec {
    Spec { data: data.as_ref().to_vec(), ..Spec::new(b'0', path, 0o644) }
}

pub(crate) fn folder(path: impl AsRef<[u8]>) -> Spec {
    Spec::new(b'5', path, 0o755)
}

pub(crate) fn link(path: impl AsRef<[u8]>, text: impl AsRef<[u8]>) -> Spec {
    Spec { link: text.as_ref().to_vec(), ..Spec::new(b'2', path, 0o777) }
}

pub(crate) fn hard(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Spec {
    Spec { link: target.as_ref().to_vec(), ..Spec::new(b'1', path, 0o644) }
}

/// Packs entries, with the two zero blocks at the end.
pub(crate) fn pack(specs: &[Spec]) -> Vec<u8> {
    let mut bytes: Vec<u8> = specs.iter().flat_map(entry).collect();
    bytes.extend([0; 1024]);
    bytes
}

/// Packs an entry with the extension header that it needs.
pub(crate) fn entry(spec: &Spec) -> Vec<u8> {
    let mut pax = spec.pax.clone();
    for (key, text) in [("path", &spec.path), ("linkpath", &spec.link)] {
        if text.len() > 100 {
            pax.push((key.into(), text.clone()));
        }
    }
    let mut bytes = Vec::new();
    if !pax.is_empty() {
        let body: Vec<u8> = pax.iter().flat_map(|(key, value)| record(key, value)).collect();
        bytes.extend(extension(b'x', &body));
    }
    bytes.extend(header(spec, spec.data.len() as u64));
    bytes.extend(padded(&spec.data));
    bytes
}

/// Packs an extension header with any body.
pub(crate) fn extension(flag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = header(&Spec::new(flag, "extension", 0o644), body.len() as u64).to_vec();
    bytes.extend(padded(body));
    bytes
}

pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest..).find(|length| length.to_string().len() + rest == *length).unwrap();
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

pub(crate) fn padded(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes.resize(data.len().next_multiple_of(512), 0);
    bytes
}

/// Makes a header of POSIX's form.
pub(crate) fn header(spec: &Spec, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    let short = |text: &[u8]| text[..text.len().min(100)].to_vec();
    put(&mut block, 0, &short(&spec.path));
    number(&mut block, 100, 8, spec.mode.into());
    number(&mut block, 108, 8, spec.uid);
    number(&mut block, 116, 8, spec.gid);
    number(&mut block, 124, 12, size);
    number(&mut block, 136, 12, spec.mtime);
    block[156] = spec.flag;
    put(&mut block, 157, &short(&spec.link));
    put(&mut block, 257, b"ustar\x0000");
    number(&mut block, 329, 8, spec.device.0.into());
    number(&mut block, 337, 8, spec.device.1.into());
    sum(&mut block);
    block
}

/// Writes a header's checksum anew.
pub(crate) fn sum(block: &mut [u8]) {
    put(block, 148, b"        ");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    put(block, 148, format!("{sum:06o}\0 ").as_bytes());
}

pub(crate) fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes octal digits, or base 256 where they do not fit.
pub(crate) fn number(block: &mut [u8], at: usize, length: usize, number: u64) {
    let digits = format!("{number:0width$o}\0", width = length - 1);
    if digits.len() == length {
        return put(block, at, digits.as_bytes());
    }
    let bytes = u128::from(number).to_be_bytes();
    put(block, at, &bytes[bytes.len() - length..]);
    block[at] |= 0x80;
}
