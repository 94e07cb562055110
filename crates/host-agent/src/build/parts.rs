//! The traits by which builds reach images and guests, and the values that cross them.

use super::events::Level;
use crate::builders::StartLog;
use crate::version::Version;
use futures::future::BoxFuture;
use protocol::lower::Lower;
use recipe::resolve::{CopyWork, RunWork};
use recipe::spec::ImageRecord;
use recipe::{Config, Dialect, Pull};
use registry::Login;
use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use types::{BuildId, CapsuleId, TeamId};

/// An image that lies on this host, ready for guests.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The image's file, which never changes.
    pub path: PathBuf,
    pub config: Config,
    pub record: ImageRecord,
}

/// Origin of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ImageSource<'a> {
    /// Reference, as the recipe has it.
    Reference(&'a str),
    /// An uploaded archive: of `docker save`, or an OCI layout.
    Archive { hash: &'a str, path: &'a Path },
    /// An image without files.
    Scratch,
}

/// Circumstances of a pull.
pub(crate) struct PullOptions {
    pub pull: Pull,
    /// Team of the build.
    pub team: TeamId,
    /// Logins by host.
    pub logins: Vec<(String, Login)>,
    /// Ends the pull early.
    pub cancel: CancellationToken,
}

/// A line about the progress of a pull.
pub(crate) type Progress<'a> = &'a (dyn Fn(String) + Send + Sync);

/// The images of this host.
pub(crate) trait Images: Send + Sync {
    /// Pulls and converts an image, unless this host has it. The error is for the build's owner.
    fn prepare<'a>(
        &'a self,
        source: ImageSource<'a>,
        options: &'a PullOptions,
        progress: Progress<'a>,
    ) -> BoxFuture<'a, Result<Image, String>>;
}

/// A template that a recipe names, as the control plane resolved it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseVersion {
    /// `None` for a template of the operator's, whose folder is `template`.
    pub version: Option<BuildId>,
    pub template: String,
    /// Team that owns the version.
    pub team: String,
}

/// Drives of a builder, beside its own disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Drives {
    /// Image of the template's stage.
    pub image: PathBuf,
    /// Read-only drives in their order, from 1: disks of steps, and further images.
    pub read_only: Vec<PathBuf>,
}

/// The capsules that run builds.
pub(crate) trait Guests: Send + Sync {
    /// Announces the drives of the capsule that will be created for a build.
    fn offer(&self, build: BuildId, drives: Drives);

    /// Withdraws the drives of a build, whose capsule may exist or not.
    fn withdraw(&self, build: BuildId);

    /// Passes the lines of start and ready commands to `log`, until the build is withdrawn.
    fn listen(&self, _build: BuildId, _log: Arc<dyn StartLog>) {}

    /// Opens the running capsule of a build.
    fn open(&self, build: BuildId, capsule: CapsuleId) -> Result<Box<dyn Builder>, String>;

    /// Fetches a template from the store, if this host lacks it. A template that nobody has is no
    /// error here.
    fn fetch_template<'a>(&'a self, base: &'a BaseVersion) -> BoxFuture<'a, Result<(), String>>;

    /// Lists the versions that the store has too.
    fn stored(&self) -> HashSet<BuildId> {
        HashSet::new()
    }

    /// Returns the image of an operator's template whose folder has none.
    fn default_image(&self, _dir: &Path) -> Option<PathBuf> {
        None
    }

    /// Copies the disk of a capsule to `disk.ext4` in a folder, with the capsule's writes in the
    /// disk's folder `upper`. Links the files below beside it, by their names in a capsule's folder.
    fn copy_upper<'a>(
        &'a self,
        capsule: CapsuleId,
        to: &'a Path,
    ) -> BoxFuture<'a, Result<Origin, String>>;
}

/// Owner and template of a capsule whose disk was copied.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Origin {
    /// Team of the capsule; `None` under drivers that copy no capsule.
    pub team: Option<String>,
    /// Version below the disk; `None` for a template of the operator's.
    pub version: Option<Version>,
}

/// The root of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Root {
    /// Number of the folder that the step writes to.
    pub folder: u32,
    /// Folders below.
    pub lower: Lower,
    /// Drive of the image below; 0 is the template's.
    pub image: u8,
    /// `PATH` of the step, which login shells get too.
    pub path: Option<String>,
}

/// Origin of the files of a COPY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CopySource {
    /// Files stand in the recipe alone.
    Inline,
    /// Uploaded archive.
    Archive(PathBuf),
    /// Folders of another stage or image.
    Stack { lower: Lower, image: u8 },
}

/// Stream of a program's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(super) fn level(self) -> Level {
        match self {
            Self::Stdout => Level::Info,
            Self::Stderr => Level::Warn,
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}

/// Receiver of a program's output.
pub(crate) type Output<'a> = &'a mut (dyn FnMut(Stream, &[u8]) + Send);

/// Reason why a guest could not do the work of a step.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The work itself is at fault. The text is for the build's owner.
    #[error("{0}")]
    Work(String),
    /// The user of the step does not exist.
    #[error("unauthenticated: {0}")]
    User(String),
    /// The guest does not answer as it should.
    #[error("{0}")]
    Guest(String),
}

/// A guest that runs the steps of one build.
pub(crate) trait Builder: Send + Sync {
    /// Ends every program, and begins the root of the next step.
    fn begin<'a>(&'a self, root: &'a Root) -> BoxFuture<'a, Result<(), Refused>>;

    /// Runs a program. Returns its exit status.
    fn run<'a>(
        &'a self,
        work: &'a RunWork,
        output: Output<'a>,
    ) -> BoxFuture<'a, Result<i32, Refused>>;

    /// Places files.
    fn copy<'a>(
        &'a self,
        work: &'a CopyWork,
        dialect: Dialect,
        source: CopySource,
    ) -> BoxFuture<'a, Result<(), Refused>>;

    /// Makes a folder with those above it.
    fn make_folder<'a>(
        &'a self,
        path: &'a str,
        owner: &'a str,
    ) -> BoxFuture<'a, Result<(), Refused>>;

    /// Makes a user, if it is missing.
    fn make_user<'a>(
        &'a self,
        name: &'a str,
        dialect: Dialect,
    ) -> BoxFuture<'a, Result<(), Refused>>;

    /// Ends every program, removes the folder of a step that did not finish, closes the disk, ends
    /// the machine, and moves the disk to `to`.
    fn close<'a>(&'a self, remove: Option<u32>, to: &'a Path) -> BoxFuture<'a, io::Result<()>>;

    /// Ends the machine at once, with whatever it does. A machine that has ended stays so.
    fn kill(&self) -> BoxFuture<'_, ()>;
}
