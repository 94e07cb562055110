//! The superblock and its checksum.

use super::BLOCK_BYTES;

const MAGIC: u32 = 0xe0f5_e1e2;
/// Binary logarithm of the block's size.
const BLOCK_BITS: u8 = 12;
/// Offset of the superblock in the first block.
const OFFSET: usize = 1024;
/// Compatible features: a checksum of the superblock, and times of change of each inode.
const FEATURES: u32 = 0x1 | 0x2;
/// Offset of the checksum in the superblock.
const CHECKSUM: std::ops::Range<usize> = 4..8;

/// Places of the metadata.
#[derive(Debug, Clone, Copy)]
pub(super) struct Metadata {
    /// First block of the inodes.
    pub block: u32,
    /// Number of the root's inode.
    pub root: u16,
    /// Number of inodes.
    pub inodes: u64,
}

/// Makes the bytes from the superblock's offset to the end of the first block. The UUID is made
/// of the digest (RFC 9562, version 8).
pub(super) fn encode(metadata: &Metadata, blocks: u32, digest: &[u8; 32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    bytes.extend(MAGIC.to_le_bytes());
    bytes.extend([0; 4]); // checksum
    bytes.extend(FEATURES.to_le_bytes());
    bytes.extend([BLOCK_BITS, 0]);
    bytes.extend(metadata.root.to_le_bytes());
    bytes.extend(metadata.inodes.to_le_bytes());
    bytes.extend([0; 12]); // time of the build
    bytes.extend(blocks.to_le_bytes());
    bytes.extend(metadata.block.to_le_bytes());
    bytes.extend([0; 4]); // shared attributes: none
    bytes.extend(uuid(digest));
    bytes.resize(BLOCK_BYTES.saturating_sub(OFFSET), 0);
    let checksum = crc32c(&bytes).to_le_bytes();
    bytes.splice(CHECKSUM, checksum);
    bytes
}

fn uuid(digest: &[u8; 32]) -> impl Iterator<Item = u8> {
    digest.iter().take(16).enumerate().map(|(at, byte)| match at {
        6 => byte & 0x0f | 0x80,
        8 => byte & 0x3f | 0x80,
        _ => *byte,
    })
}

/// Sums as Linux does: CRC-32C whose result is not inverted.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            if sum & 1 == 1 { sum >> 1 ^ POLYNOMIAL } else { sum >> 1 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_crc32c() {
        // The check value of CRC-32C in the catalogue of parametrised CRC algorithms.
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn superblock_ends_with_the_first_block() {
        let metadata = Metadata { block: 7, root: 1, inodes: 3 };
        let bytes = encode(&metadata, 9, &[0xff; 32]);
        assert_eq!(bytes.len(), 3072);
        assert_eq!(bytes[40..44], [7, 0, 0, 0]);
        assert_eq!(bytes[54], 0x8f);
        assert_eq!(bytes[56], 0xbf);
        assert_eq!(bytes[64..80], [0; 16]);
    }
}
