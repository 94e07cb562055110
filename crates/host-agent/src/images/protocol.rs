//! The language between the agent and its conversion child: frames on the child's standard input,
//! one JSON text on its standard error. The image is the child's standard output.
//!
//! ```text
//!  frame   kind (1 byte), length (4 bytes, little endian), so many bytes
//!  B       `Begin` as JSON, first of all
//!  L       `BeginLayer` as JSON; then any number of
//!  D         bytes of the layer as it is stored; and
//!  E         the layer's end, which has no length that anybody told before
//!  F       no further layer: the image is to be completed
//! ```

use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Read};

/// Most bytes of a frame. Larger ones are a broken stream.
pub(super) const FRAME_MAX: usize = 1 << 20;
/// Most bytes of an answer that the agent reads.
pub(super) const ANSWER_MAX: u64 = 64 * 1024;

/// First frame of a conversion.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Begin {
    /// SHA-256 that gives the image its UUID, in hexadecimal digits.
    pub digest: String,
    /// Most plain bytes of the layers, and of the image.
    pub bytes: u64,
    /// Most entries of the layers.
    pub entries: u32,
    /// Most layers.
    pub layers: u32,
}

/// First frame of a layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct BeginLayer {
    /// SHA-256 of the plain archive, in hexadecimal digits.
    pub diff_id: Option<String>,
}

/// The child's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// The image is complete.
    Done { bytes: u64, inodes: u64, layers: Vec<DoneLayer> },
    /// The layers make no image.
    Refused { text: String, too_large: bool },
    /// The image could not be written, or the child could not lock itself in.
    Failed { text: String },
}

/// A layer that the child read to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DoneLayer {
    pub diff_id: String,
    pub bytes: u64,
    pub entries: u64,
}

/// Kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Begin = b'B',
    Layer = b'L',
    Data = b'D',
    End = b'E',
    Finish = b'F',
}

impl Kind {
    const ALL: [Self; 5] = [Self::Begin, Self::Layer, Self::Data, Self::End, Self::Finish];

    fn of(byte: u8) -> io::Result<Self> {
        let known = Self::ALL.into_iter().find(|kind| *kind as u8 == byte);
        known.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a frame of unknown kind"))
    }
}

/// Returns the head of a frame. Longer contents than [`FRAME_MAX`] are the caller's mistake.
pub(super) fn head(kind: Kind, length: usize) -> [u8; 5] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    [kind as u8, a, b, c, d]
}

/// Reads the head of the next frame.
pub(super) fn read_head(from: &mut impl Read) -> io::Result<(Kind, usize)> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let [kind, a, b, c, d] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that is too long"));
    }
    Ok((Kind::of(kind)?, length))
}

/// Reads the contents of a frame as JSON.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(
    from: &mut impl Read,
    length: usize,
) -> io::Result<T> {
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(io::Error::from)
}

/// Reads the bytes of one layer out of its frames, up to the mark of its end.
pub(super) struct LayerBytes<'a, R> {
    from: &'a mut R,
    /// Bytes of the current frame that are not read yet.
    left: usize,
    ended: bool,
}

impl<'a, R: BufRead> LayerBytes<'a, R> {
    pub(super) fn new(from: &'a mut R) -> Self {
        Self { from, left: 0, ended: false }
    }
}

impl<R: BufRead> Read for LayerBytes<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 && !self.ended {
            match read_head(self.from)? {
                (Kind::Data, length) => self.left = length,
                (Kind::End, 0) => self.ended = true,
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame in a layer")),
            }
        }
        let most = into.len().min(self.left);
        let read = self.from.read(into.get_mut(..most).unwrap_or_default())?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind, bytes: &[u8]) -> Vec<u8> {
        [&head(kind, bytes.len())[..], bytes].concat()
    }

    #[test]
    fn layer_ends_at_its_mark_and_leaves_the_next_frame() {
        let parts = [
            frame(Kind::Data, b"one"),
            frame(Kind::Data, b""),
            frame(Kind::Data, b"two"),
            frame(Kind::End, b""),
            frame(Kind::Finish, b""),
        ];
        let bytes = parts.concat();
        let mut from = bytes.as_slice();
        let mut layer = Vec::new();
        LayerBytes::new(&mut from).read_to_end(&mut layer).unwrap();
        assert_eq!(layer, b"onetwo");
        assert_eq!(read_head(&mut from).unwrap(), (Kind::Finish, 0));
    }

    #[test]
    fn broken_stream_is_an_error_and_no_end_of_a_layer() {
        for bytes in [
            frame(Kind::Data, b"one"),
            frame(Kind::Data, b"one")[..6].to_vec(),
            frame(Kind::Begin, b"{}"),
            vec![b'D', 0xff, 0xff, 0xff, 0xff],
            vec![b'?', 0, 0, 0, 0],
        ] {
            let mut from = bytes.as_slice();
            assert!(LayerBytes::new(&mut from).read_to_end(&mut Vec::new()).is_err(), "{bytes:?}");
        }
    }
}
