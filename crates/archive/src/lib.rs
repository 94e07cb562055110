//! Tar archives of files and folders, as streams. Both envd and `wrenn capsule cp` call this crate
//! on a thread that may block.
//!
//! Neither side trusts the archive. A guest sends it to a person's machine, and a caller sends it
//! to a guest. So unpacking never leaves its folder, follows no link, makes no device, and holds
//! nothing whole in memory. Existing tar libraries keep long names without a limit, which is why
//! the format is read here.
//!
//! The crate `registry` asks only for the places of members (`members.rs`), and reads them itself.
//! The COPY of a build reads entries (`Reader`) and places them by rules of its own.
//!
//! Packing skips FIFOs, sockets and devices, and takes links as links.

mod format;
mod members;
mod pack;
pub mod stream;
mod unpack;

pub use format::{Entry, Kind, Reader, Time};
pub use members::{Contents, Member, members};
pub use pack::{Builder, Packed, pack};
pub use unpack::{Options, Top, unpack};

use std::io;

/// Deepest nesting of folders that an archive may have.
const DEPTH_MAX: usize = 256;
/// Bytes per read or write.
const CHUNK: usize = 256 * 1024;

/// Reasons why an archive was not packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source or the archive is of a kind that is not taken.
    #[error("{0}")]
    Refused(String),
    /// A call to the file system failed.
    #[error("{doing}")]
    File {
        doing: String,
        #[source]
        source: io::Error,
    },
    /// The archive did not pass whole: its stream ended early, or a read or write of it failed.
    #[error("the archive ended early")]
    Stream(#[source] io::Error),
}

/// Result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn file(doing: String, source: impl Into<io::Error>) -> Self {
        Self::File { doing, source: source.into() }
    }
}
