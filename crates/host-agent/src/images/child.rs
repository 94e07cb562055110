//! The conversion child: a process that turns an image's layers into a root image. It opens no
//! file.
//!
//! ```text
//!  stdin: the agent's settings ─▶ jail ─▶ stdin: layers ─▶ stdout: root image ─▶ stderr: answer
//! ```

use super::protocol::{ANSWER_MAX, Answer, Begin, BeginLayer, DoneLayer, Kind, LayerBytes};
use super::protocol::{read_head, read_json};
use crate::sys::jail;
use rootfs::{Converter, Fault, Limits};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use types::hex;

/// Bytes that are read from the pipe at once.
const BUFFER: usize = 256 * 1024;
/// Most characters of a reason.
const TEXT_MAX: usize = 2000;

/// Runs the child to its end, for the program that [`super::Program`] names. The process must have
/// one thread, and must end with the code that this function returns.
#[must_use]
pub fn run_conversion_child() -> ExitCode {
    let answer = run().unwrap_or_else(|error| Answer::Failed { text: cut(&error.to_string()) });
    let text = serde_json::to_string(&answer).unwrap_or_default();
    let short = text.len() as u64 <= ANSWER_MAX;
    let written = io::stderr().write_all(text.as_bytes());
    if short && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run() -> io::Result<Answer> {
    let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    // The agent itself writes the first frame, so it is read outside of the jail.
    let mut from =
        BufReader::with_capacity(BUFFER, File::from(io::stdin().as_fd().try_clone_to_owned()?));
    let (Kind::Begin, length) = read_head(&mut from)? else { return Err(broken()) };
    let begin: Begin = read_json(&mut from, length)?;
    // The first frame may have brought bytes of a layer with it. Nothing has looked at them.
    jail::enter(begin.bytes)?;
    let digest = hex::decode(&begin.digest).ok_or_else(broken)?;
    let limits = Limits {
        bytes: begin.bytes,
        entries: begin.entries,
        layers: begin.layers,
        ..Limits::default()
    };
    match convert(out, digest, limits, &mut from)? {
        Ok(answer) => Ok(answer),
        Err(error) => Ok(told(&error)),
    }
}

type Converted = Result<Answer, rootfs::Error>;

/// Feeds all layers to the converter. The outer error is a broken stream from the agent.
fn convert(
    out: File,
    digest: [u8; 32],
    limits: Limits,
    from: &mut BufReader<File>,
) -> io::Result<Converted> {
    let mut converter = match Converter::new(out, digest, limits) {
        Ok(converter) => converter,
        Err(error) => return Ok(Err(error)),
    };
    loop {
        let length = match read_head(from)? {
            (Kind::Layer, length) => length,
            (Kind::Finish, 0) => break,
            _ => return Err(broken()),
        };
        let begin: BeginLayer = read_json(from, length)?;
        let diff_id = begin.diff_id.map(|digits| hex::decode(&digits).ok_or_else(broken));
        let mut bytes = LayerBytes::new(from);
        converter = match converter.layer(bytes.by_ref(), diff_id.transpose()?) {
            Ok(converter) => converter,
            Err(error) => return Ok(Err(error)),
        };
        // The converter reads to the end of the compressed stream, and the mark stands behind it.
        io::copy(&mut bytes, &mut io::sink())?;
    }
    Ok(converter.finish().map(|summary| Answer::Done {
        bytes: summary.bytes,
        inodes: summary.inodes,
        layers: summary.layers.iter().map(done).collect(),
    }))
}

fn done(layer: &rootfs::LayerSummary) -> DoneLayer {
    DoneLayer { diff_id: hex::encode(&layer.diff_id), bytes: layer.bytes, entries: layer.entries }
}

/// Converts a failure for the agent. A host that cannot write is no fault of the image.
fn told(error: &rootfs::Error) -> Answer {
    let mut text = error.to_string();
    if let Some(cause) = std::error::Error::source(&error.fault) {
        text = format!("{text}: {cause}");
    }
    let text = cut(&text);
    match &error.fault {
        Fault::Write(_) => Answer::Failed { text },
        Fault::TooLarge { .. } => Answer::Refused { text, too_large: true },
        Fault::Limit { .. }
        | Fault::Read(_)
        | Fault::Digest { .. }
        | Fault::Truncated
        | Fault::Malformed(_)
        | Fault::Refused(_) => Answer::Refused { text, too_large: false },
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the agent's stream is broken")
}
