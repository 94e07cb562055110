//! Limits of a conversion, and the counts that are held against them.

use crate::error::Fault;
use std::cell::Cell;

/// Longest path of an entry, in bytes, as in Linux.
pub(crate) const PATH_MAX: usize = 4096;
/// Longest component of a path, in bytes, as in Linux.
pub(crate) const NAME_MAX: usize = 255;
/// Longest text of a symbolic link, in bytes, as in Linux.
pub(crate) const LINK_MAX: usize = 4095;
/// Deepest nesting of folders.
pub(crate) const DEPTH_MAX: usize = 256;
/// Most symbolic links that one path may pass, as in Linux.
pub(crate) const FOLLOW_MAX: u32 = 40;
/// Most bytes of one inode's extended attributes in the image.
pub(crate) const XATTRS_MAX: usize = 64 * 1024;

/// Figures that a conversion never passes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most plain bytes of all layers together, and most bytes of the image.
    pub bytes: u64,
    /// Most entries of all layers together. Whiteouts count too.
    pub entries: u32,
    /// Most memory of the tree and of a layer's changes, in bytes. The count is an estimate from
    /// above: half of it is resident for a tree of empty files. Buffers and the window of a zstd
    /// frame (at most 128 MiB) are not in it.
    pub memory: u64,
    /// Most layers.
    pub layers: u32,
}

impl Default for Limits {
    /// 10 GiB, 2,000,000 entries, 512 MiB of memory, 128 layers.
    fn default() -> Self {
        Self { bytes: 10 << 30, entries: 2_000_000, memory: 512 << 20, layers: 128 }
    }
}

/// Counts of one conversion. Its readers and its tree share them, hence the cells.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    plain: Cell<u64>,
    packed: Cell<u64>,
    entries: Cell<u64>,
    memory: Cell<u64>,
    layers: Cell<u64>,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        let zero = || Cell::new(0);
        Self {
            limits,
            plain: zero(),
            packed: zero(),
            entries: zero(),
            memory: zero(),
            layers: zero(),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Counts plain bytes of a layer.
    pub(crate) fn plain(&self, bytes: usize) -> Result<(), Fault> {
        self.layer_bytes(&self.plain, bytes, "bytes in the layers")
    }

    /// Counts compressed bytes of a layer. A stream of empty frames has no plain bytes.
    pub(crate) fn packed(&self, bytes: usize) -> Result<(), Fault> {
        self.layer_bytes(&self.packed, bytes, "compressed bytes in the layers")
    }

    fn layer_bytes(&self, sum: &Cell<u64>, bytes: usize, unit: &'static str) -> Result<(), Fault> {
        let limit = self.limits.bytes;
        if add(sum, bytes as u64) > limit { Err(Fault::TooLarge { limit, unit }) } else { Ok(()) }
    }

    /// Counts bytes that stay in memory.
    pub(crate) fn hold(&self, bytes: usize) -> Result<(), Fault> {
        let unit = "bytes of memory for the tree";
        count(&self.memory, bytes as u64, self.limits.memory, unit)
    }

    /// Takes bytes off the count of those in memory.
    pub(crate) fn release(&self, bytes: usize) {
        self.memory.set(self.memory.get().saturating_sub(bytes as u64));
    }

    /// Counts an entry of an archive.
    pub(crate) fn entry(&self) -> Result<(), Fault> {
        count(&self.entries, 1, self.limits.entries.into(), "entries in the layers")
    }

    /// Counts a layer and returns its number, from 1.
    pub(crate) fn layer(&self) -> Result<u32, Fault> {
        count(&self.layers, 1, self.limits.layers.into(), "layers")?;
        Ok(u32::try_from(self.layers.get()).unwrap_or(u32::MAX))
    }
}

fn count(sum: &Cell<u64>, more: u64, limit: u64, unit: &'static str) -> Result<(), Fault> {
    if add(sum, more) > limit { Err(Fault::Limit { limit, unit }) } else { Ok(()) }
}

/// Adds to a sum, and returns the new sum.
fn add(sum: &Cell<u64>, more: u64) -> u64 {
    sum.set(sum.get().saturating_add(more));
    sum.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_stops_at_each_limit_and_never_wraps() {
        let limits = Limits { bytes: 10, entries: 2, memory: 5, layers: 1 };
        let budget = Budget::new(limits);
        assert!(budget.plain(10).is_ok());
        assert!(matches!(budget.plain(1), Err(Fault::TooLarge { limit: 10, .. })));
        assert!(budget.plain(usize::MAX).is_err());
        assert!(matches!(budget.packed(11), Err(Fault::TooLarge { limit: 10, .. })));
        assert!(budget.entry().is_ok() && budget.entry().is_ok());
        assert!(matches!(budget.entry(), Err(Fault::Limit { limit: 2, .. })));
        assert!(budget.hold(5).is_ok());
        budget.release(2);
        assert!(budget.hold(2).is_ok());
        assert!(budget.hold(1).is_err());
        assert_eq!(budget.layer().ok(), Some(1));
        let error = budget.layer().err().map(|fault| fault.to_string());
        assert_eq!(error.as_deref(), Some("more than 1 layers"));
    }
}
