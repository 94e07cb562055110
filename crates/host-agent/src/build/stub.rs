//! Images and guests of drivers without machines, for tests of everything above. No step runs: its
//! text decides on its end. Files, layers and versions are real.
//!
//! A RUN of `exit N` fails, `sleep N` waits, and `lines N` writes N lines. Any other text is its own
//! output. Images of `missing/…` do not exist.

use super::parts::{
    BaseVersion, Builder, CopySource, Drives, Guests, Image, ImageSource, Images, Origin, Output,
    Progress, PullOptions, Refused, Root, Stream,
};
use crate::builders::{BuilderDisks, StartLog};
use crate::context::AgentContext;
use crate::storage;
use futures::FutureExt;
use futures::future::BoxFuture;
use recipe::resolve::{CopyWork, Program, RunWork};
use recipe::spec::ImageRecord;
use recipe::steps::ARCHIVE;
use recipe::{Config, Dialect};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use types::hex;
use types::{BuildId, CapsuleId};

/// User that no stub knows.
const UNKNOWN: &str = "root123";
/// Bytes of a stub's disk.
const DISK: &[u8] = b"the disk of a stub";

/// Images without contents.
pub(crate) struct StubImages {
    /// Folder of the images.
    pub store: PathBuf,
}

impl StubImages {
    fn make(&self, name: &str) -> io::Result<PathBuf> {
        let dir = self.store.join(format!("stub-{name}"));
        fs::create_dir_all(&dir)?;
        let path = dir.join("image.erofs");
        if !path.exists() {
            fs::write(&path, [])?;
        }
        Ok(path)
    }

    fn image(&self, source: ImageSource<'_>) -> Result<Image, String> {
        let name = match source {
            ImageSource::Reference(name) if name.starts_with("missing/") => {
                return Err(format!(
                    "image '{name}' not found: the image or tag does not exist in the registry"
                ));
            }
            ImageSource::Reference(name) => name.to_owned(),
            ImageSource::Archive { hash, .. } => format!("{ARCHIVE}{hash}"),
            ImageSource::Scratch => "scratch".to_owned(),
        };
        let digest = hex::encode(&Sha256::digest(&name));
        let path = self.make(&digest).map_err(|error| error.to_string())?;
        let digest = format!("sha256:{digest}");
        let record = ImageRecord {
            reference: name,
            asked_digest: digest.clone(),
            config_digest: digest.clone(),
            digest,
            from: "stub".to_owned(),
        };
        Ok(Image { path, config: Config::default(), record })
    }
}

impl Images for StubImages {
    fn prepare<'a>(
        &'a self,
        source: ImageSource<'a>,
        _options: &'a PullOptions,
        progress: Progress<'a>,
    ) -> BoxFuture<'a, Result<Image, String>> {
        progress("pulling".to_owned());
        std::future::ready(self.image(source)).boxed()
    }
}

/// Guests that run nothing.
pub(crate) struct StubGuests {
    pub context: Arc<AgentContext>,
    /// Folder of the images.
    pub store: PathBuf,
}

impl Guests for StubGuests {
    /// The capsule of a build is made by the driver, without these drives.
    fn offer(&self, build: BuildId, drives: Drives) {
        let Drives { image, read_only } = drives;
        self.context.builders.set_disks(build, BuilderDisks { image, read_only });
    }

    fn withdraw(&self, build: BuildId) {
        self.context.builders.forget(build);
    }

    fn listen(&self, build: BuildId, log: Arc<dyn StartLog>) {
        self.context.builders.set_log(build, log);
    }

    fn open(&self, _build: BuildId, _capsule: CapsuleId) -> Result<Box<dyn Builder>, String> {
        Ok(Box::new(StubBuilder))
    }

    fn fetch_template<'a>(&'a self, _base: &'a BaseVersion) -> BoxFuture<'a, Result<(), String>> {
        std::future::ready(Ok(())).boxed()
    }

    /// The operator's template `base` is always there, as the driver says.
    fn default_image(&self, dir: &Path) -> Option<PathBuf> {
        let images = StubImages { store: self.store.clone() };
        (dir.file_name()? == "base").then(|| images.make("base").ok()).flatten()
    }

    fn copy_upper<'a>(
        &'a self,
        _capsule: CapsuleId,
        to: &'a Path,
    ) -> BoxFuture<'a, Result<Origin, String>> {
        let disk = fs::write(to.join(storage::DISK), DISK);
        let copied = disk.and_then(|()| fs::write(to.join(storage::OWN_IMAGE), []));
        let copied = copied.map_err(|error| error.to_string());
        done(copied.map(|()| Origin { team: None, version: None }))
    }
}

struct StubBuilder;

impl StubBuilder {
    async fn program(work: &RunWork, output: Output<'_>) -> Result<i32, Refused> {
        if work.user == UNKNOWN {
            return Err(Refused::User(format!("invalid username: '{}'", work.user)));
        }
        let text = match &work.program {
            Program::Argv(argv) => argv.last().cloned().unwrap_or_default(),
            Program::Script(text) => text.clone(),
        };
        let (word, number) = text.split_once(' ').unwrap_or((&text, ""));
        match (word, number.trim().parse::<u32>()) {
            ("exit", Ok(status)) => {
                output(Stream::Stderr, format!("leaving with {status}\n").as_bytes());
                return Ok(i32::try_from(status).unwrap_or(1));
            }
            ("sleep", Ok(seconds)) => {
                tokio::time::sleep(Duration::from_secs(seconds.into())).await;
            }
            ("lines", Ok(count)) => {
                for number in 1..=count {
                    output(Stream::Stdout, format!("line {number}\n").as_bytes());
                }
            }
            _ => output(Stream::Stdout, format!("{text}\n").as_bytes()),
        }
        Ok(0)
    }
}

fn done<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, T> {
    std::future::ready(value).boxed()
}

impl Builder for StubBuilder {
    fn begin<'a>(&'a self, _root: &'a Root) -> BoxFuture<'a, Result<(), Refused>> {
        done(Ok(()))
    }

    fn run<'a>(
        &'a self,
        work: &'a RunWork,
        output: Output<'a>,
    ) -> BoxFuture<'a, Result<i32, Refused>> {
        Self::program(work, output).boxed()
    }

    fn copy<'a>(
        &'a self,
        _work: &'a CopyWork,
        _dialect: Dialect,
        source: CopySource,
    ) -> BoxFuture<'a, Result<(), Refused>> {
        done(match source {
            CopySource::Archive(path) if !path.exists() => {
                Err(Refused::Work("the archive of the files is missing".to_owned()))
            }
            CopySource::Archive(_) | CopySource::Inline | CopySource::Stack { .. } => Ok(()),
        })
    }

    fn make_folder<'a>(
        &'a self,
        _path: &'a str,
        _owner: &'a str,
    ) -> BoxFuture<'a, Result<(), Refused>> {
        done(Ok(()))
    }

    fn make_user<'a>(
        &'a self,
        _name: &'a str,
        _dialect: Dialect,
    ) -> BoxFuture<'a, Result<(), Refused>> {
        done(Ok(()))
    }

    fn close<'a>(&'a self, _remove: Option<u32>, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        done(fs::write(to, DISK))
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        done(())
    }
}
