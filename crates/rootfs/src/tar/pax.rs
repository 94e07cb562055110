//! Records of POSIX's extension headers, and the attributes that they give to an entry.

use super::{number, sparse};
use crate::error::Fault;
use std::collections::BTreeMap;

/// Begin of the key of an extended attribute, as `star`, GNU and Go write it.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// Begin of the keys of a sparse file.
const SPARSE: &[u8] = b"GNU.sparse.";
/// Estimate of the memory that one attribute needs beside its bytes.
const ATTRIBUTE: usize = 64;

const MALFORMED: Fault = Fault::Malformed("an extension header has a wrong record");

/// Attributes that replace those of a header.
#[derive(Debug, Clone, Default)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    /// Seconds since 1970.
    pub mtime: Option<i64>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sparse: Sparse,
}

/// The keys of a sparse file.
#[derive(Debug, Clone, Default)]
pub(super) struct Sparse {
    major: Option<u64>,
    pub name: Option<Vec<u8>>,
    /// Size with holes. Its presence makes a file sparse.
    pub size: Option<u64>,
    /// Offset and length of each piece.
    pub pairs: Vec<u64>,
}

impl Sparse {
    /// Reports a map that stands before the contents, and not in the header.
    pub(super) fn is_version_1(&self) -> bool {
        self.major == Some(1)
    }
}

impl Pax {
    /// Reads the records of a header. A later record wins, and an empty value removes an earlier
    /// one. A global header has no keys of a single file.
    ///
    /// # Errors
    /// Fails for wrong records and wrong values.
    pub(super) fn read(&mut self, mut body: &[u8], of_file: bool) -> Result<(), Fault> {
        while !body.is_empty() {
            let (record, rest) = split(body)?;
            let (key, value) = halves(record)?;
            body = rest;
            if let Some(key) = key.strip_prefix(SPARSE) {
                if of_file {
                    self.sparse.set(key, value)?;
                }
            } else if let Some(name) = key.strip_prefix(XATTR) {
                self.set_xattr(name, value)?;
            } else {
                self.set(key, value)?;
            }
        }
        Ok(())
    }

    /// Estimates the memory that these attributes need.
    pub(super) fn held(&self) -> usize {
        let texts = [&self.path, &self.link].into_iter().flatten().map(Vec::len);
        let xattrs = self
            .xattrs
            .iter()
            .map(|(name, value)| name.len().saturating_add(value.len()).saturating_add(ATTRIBUTE));
        texts.chain(xattrs).fold(0, usize::saturating_add)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let present = !value.is_empty();
        match key {
            b"path" => self.path = present.then(|| text(value)).transpose()?,
            b"linkpath" => self.link = present.then(|| text(value)).transpose()?,
            b"size" => self.size = present.then(|| number::decimal(value)).transpose()?,
            b"uid" => self.uid = present.then(|| number::decimal(value)).transpose()?,
            b"gid" => self.gid = present.then(|| number::decimal(value)).transpose()?,
            b"mtime" => self.mtime = present.then(|| number::seconds(value)).transpose()?,
            // Other keys, such as times and comments, change nothing in an image.
            _ => {}
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        if name.contains(&0) {
            return Err(Fault::Refused("the name of an extended attribute has a zero"));
        }
        self.xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }
}

impl Sparse {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        match key {
            b"major" => {
                self.major = Some(version(value)?);
            }
            b"minor" => {
                version(value)?;
            }
            b"name" => self.name = Some(text(value)?),
            b"size" | b"realsize" => self.size = Some(number::decimal(value)?),
            b"offset" | b"numbytes" => {
                if (key == b"offset") != self.pairs.len().is_multiple_of(2) {
                    return Err(Fault::Malformed("a sparse file's map is out of order"));
                }
                sparse::check_count(self.pairs.len())?;
                self.pairs.push(number::decimal(value)?);
            }
            b"map" => {
                self.pairs.clear();
                for number in value.split(|byte| *byte == b',').filter(|_| !value.is_empty()) {
                    sparse::check_count(self.pairs.len())?;
                    self.pairs.push(number::decimal(number)?);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Splits the first record off, and takes its length away: `LENGTH KEY=VALUE\n`.
fn split(body: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let space = body.iter().take(8).position(|byte| *byte == b' ').ok_or(MALFORMED)?;
    let (digits, _) = body.split_at_checked(space).ok_or(MALFORMED)?;
    let length = usize::try_from(number::decimal(digits)?).map_err(|_| MALFORMED)?;
    let (record, rest) = body.split_at_checked(length).ok_or(MALFORMED)?;
    let record = record.get(space.saturating_add(1)..).ok_or(MALFORMED)?;
    Ok((record.strip_suffix(b"\n").ok_or(MALFORMED)?, rest))
}

/// Splits `KEY=VALUE` at its first `=`.
fn halves(record: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let equals = record.iter().position(|byte| *byte == b'=').filter(|at| *at > 0);
    let (key, value) = record.split_at_checked(equals.ok_or(MALFORMED)?).ok_or(MALFORMED)?;
    Ok((key, value.get(1..).unwrap_or_default()))
}

fn version(value: &[u8]) -> Result<u64, Fault> {
    let unknown = Fault::Refused("the version of its sparse form is unknown");
    Some(number::decimal(value)?).filter(|version| *version <= 1).ok_or(unknown)
}

fn text(value: &[u8]) -> Result<Vec<u8>, Fault> {
    if value.contains(&0) {
        return Err(Fault::Refused("its path or link has a zero"));
    }
    Ok(value.to_vec())
}
