//! The agent's side of a conversion: starts the jailed child, passes the layers on, and checks the
//! answer. The registry's client checks each layer's digest on the way.
//!
//! The child is hostile from its first byte of a layer on. It may die, hang or lie. Its image is
//! kept under the digest of the manifest that it came from, so it can deceive nobody else.

use super::error::Error;
use super::protocol::{ANSWER_MAX, Answer, Begin, BeginLayer, FRAME_MAX, Kind, head};
use super::{Limits, Progress};
use registry::{Algorithm, Digest};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::time::timeout;

/// Longest time that the child may take for one chunk of a layer.
const IDLE: Duration = Duration::from_secs(60);
/// Longest time from the last layer to the answer. 2,000,000 files take 12 s on an idle machine.
const FINISH: Duration = Duration::from_secs(300);
/// Bytes of the pipe of layers. The kernel's default wakes both sides too often.
const PIPE: usize = 1 << 20;
/// Magic number of EROFS, at this offset of an image.
const MAGIC: [u8; 4] = [0xe2, 0xe1, 0xf5, 0xe0];
const MAGIC_AT: u64 = 1024;
/// Most characters of the child's last words in an error.
const WORDS_MAX: usize = 400;

/// Program that converts images, and its arguments. It calls [`super::run_conversion_child`].
#[derive(Debug, Clone)]
pub struct Program {
    pub path: PathBuf,
    pub args: Vec<OsString>,
}

impl Default for Program {
    /// The program that runs now, with the hidden command `convert-image`.
    fn default() -> Self {
        Self { path: "/proc/self/exe".into(), args: vec![super::COMMAND.into()] }
    }
}

/// A running child. It is killed when this value goes.
struct Converter<'a> {
    child: Child,
    layers: ChildStdin,
    answer: ChildStderr,
    image: &'a str,
}

/// Converts an image's layers into the empty file `out`. Returns the size of the root image.
///
/// # Errors
/// Fails with the registry's error, the child's reason, or the way in which the child failed.
pub(super) async fn convert(
    program: &Program,
    name: &str,
    image: &registry::Image,
    (out, limits): (File, Limits),
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<u64, Error> {
    let written = out.try_clone().map_err(Error::files("cannot open the image's file"))?;
    let mut converter = Converter::start(program, name, out)?;
    let fed = converter.feed(image, limits, progress).await;
    if let Err(Fed::Source(error)) = fed {
        return Err(error.into());
    }
    progress(Progress::Finishing);
    let answer = converter.answer(fed).await?;
    let expected: Vec<&str> = image.layers.iter().map(|layer| layer.diff_id.digits()).collect();
    let bytes = checked(answer, name, &expected, limits)?;
    let lie = |why: &str| Error::Conversion { image: name.to_owned(), why: why.to_owned() };
    let mut magic = [0; MAGIC.len()];
    let read = written.read_exact_at(&mut magic, MAGIC_AT);
    let size = written.metadata().map_err(Error::files("cannot read the image's file"))?.len();
    if read.is_err() || magic != MAGIC || size != bytes {
        return Err(lie("the child's image is not as it says"));
    }
    Ok(bytes)
}

/// Reason why not all layers were passed on.
enum Fed {
    Source(registry::Error),
    /// The child takes no more bytes. Its answer tells the reason.
    Closed,
    Stalled,
    Image(String),
}

impl From<registry::Error> for Fed {
    fn from(error: registry::Error) -> Self {
        Self::Source(error)
    }
}

impl<'a> Converter<'a> {
    fn start(program: &Program, image: &'a str, out: File) -> Result<Self, Error> {
        let mut command = Command::new(&program.path);
        command.args(&program.args).env_clear().current_dir("/").kill_on_drop(true);
        // A group of its own keeps a terminal's signals away.
        command.process_group(0).stdin(Stdio::piped()).stdout(out).stderr(Stdio::piped());
        let failed = |why: &str| Error::Conversion { image: image.to_owned(), why: why.to_owned() };
        let started = command.spawn();
        let mut child = started.map_err(|e| failed(&format!("its process cannot start: {e}")))?;
        let (layers, answer) = (child.stdin.take(), child.stderr.take());
        let (Some(layers), Some(answer)) = (layers, answer) else {
            return Err(failed("its process has no pipes"));
        };
        // A small pipe works too. The kernel refuses larger ones to users with many.
        let _ = rustix::pipe::fcntl_setpipe_size(&layers, PIPE);
        Ok(Self { child, layers, answer, image })
    }

    /// Passes all layers on.
    async fn feed(
        &mut self,
        image: &registry::Image,
        limits: Limits,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<(), Fed> {
        let begin = Begin {
            digest: uuid_source(&image.digest),
            bytes: limits.bytes,
            entries: limits.entries,
            layers: u32::try_from(image.layers.len()).unwrap_or(u32::MAX),
        };
        self.send_json(Kind::Begin, &begin).await?;
        let (mut done, all) = (0, image.layer_bytes());
        for (index, layer) in image.layers.iter().enumerate() {
            if layer.diff_id.algorithm() != Algorithm::Sha256 {
                return Err(Fed::Image(format!(
                    "layer {}: its plain digest is no sha256",
                    index + 1
                )));
            }
            let diff_id = Some(layer.diff_id.digits().to_owned());
            self.send_json(Kind::Layer, &BeginLayer { diff_id }).await?;
            let mut blob = image.layer(index)?;
            while let Some(bytes) = blob.chunk().await? {
                for part in bytes.chunks(FRAME_MAX) {
                    self.send(Kind::Data, part).await?;
                }
                done += bytes.len() as u64;
                let layers = image.layers.len();
                progress(Progress::Pulling { layer: index + 1, layers, done, all });
            }
            self.send(Kind::End, b"").await?;
        }
        self.send(Kind::Finish, b"").await
    }

    async fn send_json(&mut self, kind: Kind, value: &impl serde::Serialize) -> Result<(), Fed> {
        let text = serde_json::to_vec(value).map_err(|_| Fed::Closed)?;
        self.send(kind, &text).await
    }

    async fn send(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), Fed> {
        let head = head(kind, bytes.len());
        let sent = async {
            self.layers.write_all(&head).await?;
            self.layers.write_all(bytes).await
        };
        match timeout(IDLE, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Fed::Closed),
            Err(_) => Err(Fed::Stalled),
        }
    }

    /// Reads the child's answer, and waits for its end.
    async fn answer(mut self, fed: Result<(), Fed>) -> Result<Answer, Error> {
        let failed = |why: String| Error::Conversion { image: self.image.to_owned(), why };
        match fed {
            Err(Fed::Stalled) => {
                let limit = IDLE.as_secs();
                return Err(failed(format!("its process took no byte for {limit} s")));
            }
            Err(Fed::Image(why)) => {
                return Err(Error::Refused { image: self.image.to_owned(), why });
            }
            Ok(()) | Err(Fed::Closed | Fed::Source(_)) => {}
        }
        drop(self.layers);
        let mut said = Vec::new();
        let ended = async {
            (&mut self.answer).take(ANSWER_MAX).read_to_end(&mut said).await?;
            self.child.wait().await
        };
        let ended = timeout(FINISH, ended).await;
        let status = ended
            .map_err(|_| failed(format!("its process gave no answer for {} s", FINISH.as_secs())))?
            .map_err(|e: io::Error| failed(format!("its process cannot be watched: {e}")))?;
        match serde_json::from_slice(&said) {
            Ok(answer) if status.success() => Ok(answer),
            Ok(_) | Err(_) => {
                let words = String::from_utf8_lossy(&said);
                let words: String =
                    words.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect();
                Err(failed(format!("its process ended with {status}: {words}")))
            }
        }
    }
}

/// Checks the child's answer against the image's configuration. Returns the image's size.
fn checked(answer: Answer, name: &str, expected: &[&str], limits: Limits) -> Result<u64, Error> {
    let image = name.to_owned();
    let (bytes, layers) = match answer {
        Answer::Done { bytes, layers, .. } => (bytes, layers),
        Answer::Refused { text, too_large: true } => {
            return Err(Error::TooLarge { image, limit: limits.bytes, why: printable(&text) });
        }
        Answer::Refused { text, too_large: false } => {
            return Err(Error::Refused { image, why: printable(&text) });
        }
        Answer::Failed { text } => {
            return Err(Error::Conversion { image, why: printable(&text) });
        }
    };
    let found = layers.iter().map(|layer| layer.diff_id.as_str());
    if bytes > limits.bytes || bytes % 4096 != 0 || !found.eq(expected.iter().copied()) {
        let why = "the child's figures are not those of the image".to_owned();
        return Err(Error::Conversion { image, why });
    }
    Ok(bytes)
}

/// Removes control characters from the child's text.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// Returns the digits that an image's UUID comes from.
fn uuid_source(digest: &Digest) -> String {
    match digest.algorithm() {
        Algorithm::Sha256 => digest.digits().to_owned(),
        Algorithm::Sha512 => Digest::sha256(digest.to_string().as_bytes()).digits().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::DoneLayer;
    use super::*;

    fn done(bytes: u64, diff_ids: &[&str]) -> Answer {
        let layer = |id: &&str| DoneLayer { diff_id: (*id).to_owned(), bytes: 1, entries: 1 };
        Answer::Done { bytes, inodes: 1, layers: diff_ids.iter().map(layer).collect() }
    }

    #[test]
    fn answer_that_does_not_fit_the_image_is_a_failure() {
        let limits = Limits { bytes: 8192, ..Limits::default() };
        let check = |answer| checked(answer, "x", &["a", "b"], limits);
        assert_eq!(check(done(4096, &["a", "b"])).unwrap(), 4096);
        for lie in [done(4096, &["a"]), done(4096, &["b", "a"]), done(4097, &["a", "b"])] {
            assert!(matches!(check(lie), Err(Error::Conversion { .. })));
        }
        assert!(check(done(12288, &["a", "b"])).is_err());
    }

    #[test]
    fn refusal_of_the_child_names_image_and_reason_without_control_characters() {
        let answer = Answer::Refused { text: "layer 1: \u{1b}[2Jbad".to_owned(), too_large: false };
        let error = checked(answer, "x", &[], Limits::default()).unwrap_err().to_string();
        assert_eq!(error, "image 'x' cannot be used: layer 1: [2Jbad");
    }
}
