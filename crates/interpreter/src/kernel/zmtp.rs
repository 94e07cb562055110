//! A client of ZMTP 3.0 (the wire protocol of ZeroMQ) without security, as far as Jupyter's kernels
//! need it: a DEALER and a SUB socket, each over one connection.
//!
//! ```text
//! greeting  64 bytes each way: signature, version, mechanism NULL
//! READY     command each way: socket type, identity
//! frames    flags (1 more, 2 long, 4 command), length of 1 or 8 bytes, content
//! ```
//! The peer is hostile: a message has limits, and memory grows only with bytes that arrived.

use bytes::{Buf, Bytes, BytesMut};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Most bytes of a message, all frames together.
const MESSAGE_MAX: usize = 256 << 20;
/// Most frames of a message.
const FRAMES_MAX: usize = 256;
/// Most bytes of a command. Commands hold names and short values.
const COMMAND_MAX: usize = 64 << 10;
/// Bytes for which a read makes room.
const READ: usize = 64 << 10;
/// Time for a connection and its handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

const GREETING: usize = 64;
/// Body of the message by which a SUB socket asks for every topic.
const SUBSCRIBE_ALL: &[u8] = &[1];

/// Address of a socket of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// Type of a socket at the client's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// Sends requests and gets replies. The peer sends replies to the identity.
    Dealer { identity: &'a str },
    /// Gets all that the peer publishes.
    Subscriber,
}

/// Receiving half of a connection.
pub(crate) struct Receiver {
    stream: Box<dyn AsyncRead + Send + Unpin>,
    decoder: Decoder,
}

/// Sending half of a connection.
pub(crate) struct Sender {
    stream: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Receiver {
    /// Waits for a whole message. Returns `None` at the end of the stream. A caller may drop the
    /// future, and loses nothing.
    ///
    /// # Errors
    /// Returns an error if the peer breaks the protocol or a limit.
    pub(crate) async fn receive(&mut self) -> io::Result<Option<Vec<Bytes>>> {
        loop {
            while let Some(item) = self.decoder.next()? {
                if let Item::Message(frames) = item {
                    return Ok(Some(frames));
                }
            }
            self.decoder.buffer.reserve(READ);
            if self.stream.read_buf(&mut self.decoder.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

impl Sender {
    /// Sends messages that [`encode`] has made.
    pub(crate) async fn send(&mut self, messages: &[u8]) -> io::Result<()> {
        self.stream.write_all(messages).await
    }
}

/// Connects to a socket of a kernel.
///
/// # Errors
/// Returns an error if nothing listens, or if the handshake fails or takes too long.
pub(crate) async fn connect(address: &Address, kind: Kind<'_>) -> io::Result<(Receiver, Sender)> {
    let connected = async {
        match address {
            Address::Unix(path) => {
                let (reader, writer) = UnixStream::connect(path).await?.into_split();
                open(Box::new(reader), Box::new(writer), kind).await
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let (reader, writer) = stream.into_split();
                open(Box::new(reader), Box::new(writer), kind).await
            }
        }
    };
    let late = |_| io::Error::new(ErrorKind::TimedOut, "the kernel's socket does not answer");
    tokio::time::timeout(HANDSHAKE_TIME, connected).await.map_err(late)?
}

/// Makes the handshake. A subscriber also asks for every topic.
async fn open(
    mut reader: Box<dyn AsyncRead + Send + Unpin>,
    mut writer: Box<dyn AsyncWrite + Send + Unpin>,
    kind: Kind<'_>,
) -> io::Result<(Receiver, Sender)> {
    writer.write_all(&greeting()).await?;
    let mut peer = [0_u8; GREETING];
    reader.read_exact(&mut peer).await?;
    check_greeting(&peer)?;
    writer.write_all(&ready(kind)).await?;
    let mut receiver = Receiver { stream: reader, decoder: Decoder::default() };
    await_ready(&mut receiver).await?;
    if kind == Kind::Subscriber {
        writer.write_all(&encode(&[SUBSCRIBE_ALL])).await?;
    }
    Ok((receiver, Sender { stream: writer }))
}

async fn await_ready(receiver: &mut Receiver) -> io::Result<()> {
    loop {
        match receiver.decoder.next()? {
            Some(Item::Command(body)) if body.starts_with(b"\x05READY") => return Ok(()),
            Some(Item::Command(_) | Item::Message(_)) => {
                return Err(violation("the kernel's socket refuses the handshake"));
            }
            None => {}
        }
        receiver.decoder.buffer.reserve(COMMAND_MAX);
        if receiver.stream.read_buf(&mut receiver.decoder.buffer).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Returns our greeting: version 3.0, mechanism NULL, no server.
fn greeting() -> [u8; GREETING] {
    let mut greeting = [0_u8; GREETING];
    greeting[0] = 0xFF;
    greeting[9] = 0x7F;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// Checks the signature, the version and the mechanism of a peer's greeting.
fn check_greeting(peer: &[u8; GREETING]) -> io::Result<()> {
    if peer[0] != 0xFF || peer[9] & 1 != 1 || peer[10] < 3 {
        return Err(violation("the kernel's socket does not speak ZMTP 3"));
    }
    if &peer[12..17] != b"NULL\0" {
        return Err(violation("the kernel's socket asks for a security mechanism"));
    }
    Ok(())
}

/// Makes the READY command.
fn ready(kind: Kind<'_>) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    match kind {
        Kind::Dealer { identity } => {
            property(&mut body, "Socket-Type", "DEALER");
            property(&mut body, "Identity", identity);
        }
        Kind::Subscriber => property(&mut body, "Socket-Type", "SUB"),
    }
    let mut frame = Vec::new();
    push_frame(&mut frame, COMMAND, &body);
    frame
}

/// Appends a property: a short name, and a value with a length of four bytes.
fn property(body: &mut Vec<u8>, name: &str, value: &str) {
    body.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    body.extend_from_slice(name.as_bytes());
    body.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
    body.extend_from_slice(value.as_bytes());
}

/// Encodes a message of at least one frame.
pub(crate) fn encode<T: AsRef<[u8]>>(frames: &[T]) -> Vec<u8> {
    let bytes = frames.iter().map(|frame| frame.as_ref().len() + 9).sum();
    let mut message = Vec::with_capacity(bytes);
    for (index, frame) in frames.iter().enumerate() {
        let more = if index + 1 < frames.len() { MORE } else { 0 };
        push_frame(&mut message, more, frame.as_ref());
    }
    message
}

fn push_frame(message: &mut Vec<u8>, flags: u8, content: &[u8]) {
    match u8::try_from(content.len()) {
        Ok(length) => message.extend_from_slice(&[flags, length]),
        Err(_) => {
            message.push(flags | LONG);
            let length = u64::try_from(content.len()).unwrap_or(u64::MAX);
            message.extend_from_slice(&length.to_be_bytes());
        }
    }
    message.extend_from_slice(content);
}

/// Unit of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    Message(Vec<Bytes>),
    Command(Bytes),
}

/// Decoder of the frames that follow the greeting.
#[derive(Default)]
pub(super) struct Decoder {
    pub(super) buffer: BytesMut,
    /// Frames of the message that is not whole yet, and their bytes.
    frames: Vec<Bytes>,
    bytes: usize,
}

/// Head of a frame.
struct Head {
    flags: u8,
    /// Bytes of the head itself.
    size: usize,
    length: usize,
}

impl Decoder {
    /// Takes the next item out of the buffer, if it is whole.
    pub(super) fn next(&mut self) -> io::Result<Option<Item>> {
        while let Some(head) = self.head()? {
            self.check(&head)?;
            if self.buffer.len() - head.size < head.length {
                return Ok(None);
            }
            self.buffer.advance(head.size);
            let content = self.buffer.split_to(head.length).freeze();
            if head.flags & COMMAND != 0 {
                return Ok(Some(Item::Command(content)));
            }
            self.bytes += content.len();
            self.frames.push(content);
            if head.flags & MORE == 0 {
                self.bytes = 0;
                return Ok(Some(Item::Message(std::mem::take(&mut self.frames))));
            }
        }
        Ok(None)
    }

    /// Reads the head of the next frame, if it is whole.
    fn head(&self) -> io::Result<Option<Head>> {
        let Some((&flags, rest)) = self.buffer.split_first() else { return Ok(None) };
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(violation("the kernel sent a frame with unknown flags"));
        }
        let (size, length) = match (flags & LONG != 0, rest.first_chunk::<8>(), rest.first()) {
            (true, Some(length), _) => (9, u64::from_be_bytes(*length)),
            (false, _, Some(length)) => (2, u64::from(*length)),
            _ => return Ok(None),
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        Ok(Some(Head { flags, size, length }))
    }

    /// Checks a frame against the limits, before its content arrives.
    fn check(&self, head: &Head) -> io::Result<()> {
        let max = if head.flags & COMMAND != 0 { COMMAND_MAX } else { MESSAGE_MAX - self.bytes };
        if head.length > max || self.frames.len() >= FRAMES_MAX {
            return Err(violation("the kernel sent a message that is too large"));
        }
        Ok(())
    }
}

fn violation(why: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests;
