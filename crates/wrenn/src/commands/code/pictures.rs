//! Pictures of results: on the terminal, or as files of the current folder.

use crate::cli::Pictures;
use crate::output;
use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Bytes of base64 in one command of kitty's protocol, as the protocol prescribes.
const KITTY_CHUNK: usize = 4096;
/// Most pictures of one kind in a folder.
const FILES_MAX: u32 = 10_000;

/// A picture.
pub(super) struct Picture {
    /// Ending of a file's name: `png`, `jpeg`, `svg` or `pdf`.
    pub kind: &'static str,
    pub bytes: Vec<u8>,
}

impl Picture {
    /// Decodes a picture that came as base64, perhaps in several lines. Returns `None` for any
    /// other text.
    pub(super) fn decode(kind: &'static str, text: &str) -> Option<Self> {
        let packed: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        STANDARD.decode(packed).ok().map(|bytes| Self { kind, bytes })
    }

    /// Shows the picture on the terminal, or saves it and prints the file's path. A picture that
    /// cannot be saved does not end the view of its execution.
    pub(super) fn show(&self, way: Option<Pictures>) -> anyhow::Result<()> {
        if let Some(commands) = way.and_then(|way| self.commands(way)) {
            return output::raw(&commands);
        }
        match self.save(Path::new(".")) {
            Ok(path) => output::raw(format!("[saved as {}]\n", path.display()).as_bytes()),
            Err(error) => {
                output::note(&format!("the picture is not saved: {error:#}"));
                Ok(())
            }
        }
    }

    /// Returns the commands that show the picture, for terminals that know its format.
    fn commands(&self, way: Pictures) -> Option<Vec<u8>> {
        let data = STANDARD.encode(&self.bytes);
        match (way, self.kind) {
            (Pictures::Kitty, "png") => Some(kitty(&data)),
            (Pictures::Iterm, "png" | "jpeg") => {
                let size = self.bytes.len();
                let command = format!("\u{1b}]1337;File=inline=1;size={size}:{data}\u{7}\n");
                Some(command.into_bytes())
            }
            _ => None,
        }
    }

    /// Writes the picture to a file with a new name. Returns its path.
    fn save(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        for number in 1..=FILES_MAX {
            let path = folder.join(format!("result-{number}.{}", self.kind));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    file.write_all(&self.bytes)
                        .with_context(|| format!("cannot write {}", path.display()))?;
                    return Ok(path);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot write {}", path.display()));
                }
            }
        }
        anyhow::bail!("the current folder has {FILES_MAX} pictures named result-N already")
    }
}

/// Returns the commands of kitty's protocol for a PNG in base64. All but the last say that more
/// follows.
fn kitty(data: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + data.len() / 100 + 64);
    let mut chunks = data.as_bytes().chunks(KITTY_CHUNK).peekable();
    let mut head = "a=T,f=100,";
    while let Some(chunk) = chunks.next() {
        let more = u8::from(chunks.peek().is_some());
        out.extend_from_slice(format!("\u{1b}_G{head}m={more};").as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\x1b\\");
        head = "";
    }
    out.push(b'\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kitty_commands_carry_the_whole_picture_in_chunks() {
        let picture = Picture { kind: "png", bytes: vec![7; 10_000] };
        let commands = String::from_utf8(picture.commands(Pictures::Kitty).unwrap()).unwrap();
        let commands = commands.strip_suffix("\u{1b}\\\n").unwrap();
        let parts: Vec<&str> = commands.split("\u{1b}\\").collect();
        assert_eq!(parts.len(), 4);
        assert!(parts[0].starts_with("\u{1b}_Ga=T,f=100,m=1;"));
        assert!(parts[1].starts_with("\u{1b}_Gm=1;") && parts[3].starts_with("\u{1b}_Gm=0;"));
        let data: String = parts.iter().map(|part| part.split_once(';').unwrap().1).collect();
        assert_eq!(STANDARD.decode(data).unwrap(), picture.bytes);
    }

    #[test]
    fn only_known_formats_are_shown_on_a_terminal() {
        let picture = |kind| Picture { kind, bytes: vec![1, 2, 3] };
        assert!(picture("jpeg").commands(Pictures::Kitty).is_none());
        assert!(picture("svg").commands(Pictures::Iterm).is_none());
        let shown = picture("jpeg").commands(Pictures::Iterm).unwrap();
        assert_eq!(shown, b"\x1b]1337;File=inline=1;size=3:AQID\x07\n");
    }

    #[test]
    fn saved_pictures_overwrite_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("result-1.png"), "mine").unwrap();
        let picture = Picture::decode("png", "AQ\nID\n").unwrap();
        let paths = [picture.save(folder.path()).unwrap(), picture.save(folder.path()).unwrap()];
        assert!(paths[0].ends_with("result-2.png") && paths[1].ends_with("result-3.png"));
        assert_eq!(std::fs::read(&paths[1]).unwrap(), [1, 2, 3]);
        assert_eq!(std::fs::read(folder.path().join("result-1.png")).unwrap(), b"mine");
        assert!(Picture::decode("png", "\u{1b}[2J").is_none());
    }
}
