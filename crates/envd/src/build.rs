//! The root of a build's step, as its server sees it. PID 1 makes a root for each step and starts a
//! server in it (`init/builder.rs`). The server asks PID 1 for the next root and ends, and with it
//! ends everything that the step has started.

pub(crate) mod accounts;
pub(crate) mod copy;
mod members;
mod origin;
mod place;
pub(crate) mod scratch;

use crate::error::{Error, Result};
use crate::lock::lock;
use crate::overlay;
use crate::root::Root;
use connectrpc::ErrorCode;
use protocol::lower::{DRIVES_MAX, FOLDERS_MAX, Folders, Lower, OWN_DISK};
use rustix::mount::{UnmountFlags, unmount};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit status of a server that asked for the next root.
pub(crate) const NEXT: i32 = 10;
/// Longest text of folders, in bytes. A request has to fit into PID 1's pipe, which nobody reads
/// before the server's end.
const LOWER_MAX: usize = 16 << 10;
/// Exit status of a process that could not make its root.
pub(crate) const FAILED: i32 = 11;

/// Request for a root. Folder 0 is a neutral root, which has no programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Next {
    /// Number of the folder that takes the step's writes, on the own disk.
    pub folder: u32,
    /// Folders below, as the text of `protocol::lower`.
    #[serde(default)]
    pub lower: String,
    /// Drive of the image below all folders.
    #[serde(default)]
    pub image: Option<u8>,
    /// Numbers of folders that are removed first, such as those of failed steps.
    #[serde(default)]
    pub remove: Vec<u32>,
}

/// Message of a root's process to PID 1.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) enum Told {
    /// The next root.
    Next(Next),
    /// Reason why the root could not be made.
    Failed(String),
}

impl Told {
    /// Writes the message into PID 1's pipe, which takes it whole.
    pub(crate) fn write(&self, mut to: &File) -> io::Result<()> {
        to.write_all(&serde_json::to_vec(self)?)
    }
}

/// Parts of a step's root that a neutral root lacks.
pub(crate) struct Step {
    /// The step's files alone, without the file systems that are mounted for its programs.
    pub files: Root,
    /// File that shows the template's `PATH` to login shells.
    pub profile: File,
    /// Files of the step that are covered for its programs.
    pub covered: Vec<PathBuf>,
}

/// The root of a build's step.
pub(crate) struct Build {
    /// Number of the step's folder. 0 for a neutral root.
    pub folder: u32,
    /// Reason why the root that was asked for is not there.
    pub error: Option<String>,
    /// The root of PID 1, with all drives.
    pub outside: Root,
    step: Option<Step>,
    /// Pipe to PID 1.
    tell: File,
    leaving: AtomicBool,
    /// Mounts for the step's program, in the order in which they were made.
    pub(crate) mounts: Mutex<Vec<PathBuf>>,
}

impl Build {
    pub(crate) fn new(
        folder: u32,
        outside: Root,
        tell: File,
        step: Option<Step>,
        error: Option<String>,
    ) -> Self {
        let (leaving, mounts) = (AtomicBool::new(false), Mutex::default());
        Self { folder, error, outside, step, tell, leaving, mounts }
    }

    /// Returns the parts of a step's root.
    ///
    /// # Errors
    /// Returns `failed_precondition` in a neutral root.
    pub(crate) fn step(&self) -> Result<&Step> {
        let missing = "this is the neutral root; ask for a step's root with POST /build/root";
        let step = self.step.as_ref();
        step.ok_or_else(|| Error::new(ErrorCode::FailedPrecondition, missing))
    }

    /// Reports whether the server is about to end.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Checks a request for the next root.
    ///
    /// # Errors
    /// Names the wrong field.
    pub(crate) fn check(&self, next: &Next) -> Result<()> {
        let invalid = |text: String| Err(Error::invalid(text));
        if next.lower.len() > LOWER_MAX {
            return invalid(format!("lower has more than {LOWER_MAX} bytes"));
        }
        let lower = lower(&next.lower)?;
        if next.folder == 0 && (!lower.0.is_empty() || next.image.is_some()) {
            return invalid(
                "folder 0 is the neutral root, which takes no lower and no image".into(),
            );
        }
        if next.remove.len() > FOLDERS_MAX {
            return invalid(format!("remove has more than {FOLDERS_MAX} folders"));
        }
        for (drive, folders) in &lower.0 {
            let Folders::Steps(numbers) = folders else { continue };
            let is_gone = |number: &&u32| **number == next.folder || next.remove.contains(*number);
            if *drive == OWN_DISK
                && let Some(gone) = numbers.iter().find(is_gone)
            {
                return invalid(format!("lower names folder {gone}, which is removed"));
            }
        }
        self.exist(&lower, next.image)
    }

    /// Checks that the drives hold an image and folders.
    fn exist(&self, lower: &Lower, image: Option<u8>) -> Result<()> {
        if let Some(drive) = image.filter(|drive| usize::from(*drive) > DRIVES_MAX) {
            return Err(Error::invalid(format!("image: there is no drive {drive}")));
        }
        let folders = overlay::folders(lower, image);
        overlay::check(&self.outside, &folders).map_err(|e| Error::invalid(format!("lower: {e:#}")))
    }

    /// Hands a request for the next root to PID 1. The caller then ends the process.
    ///
    /// # Errors
    /// Returns `aborted` after an earlier request.
    pub(crate) fn leave(&self, next: Next) -> Result<()> {
        if self.leaving.swap(true, Ordering::Relaxed) {
            return Err(Error::new(ErrorCode::Aborted, "the server of this root is about to end"));
        }
        let told = Told::Next(next).write(&self.tell);
        told.map_err(|e| Error::internal(format!("cannot reach the first process: {e}")))
    }

    /// Shows the template's `PATH` to login shells of the step. Does nothing in a neutral root.
    pub(crate) fn show_path(&self, script: &str) -> io::Result<()> {
        let Some(step) = &self.step else { return Ok(()) };
        step.profile.write_all_at(script.as_bytes(), 0)?;
        step.profile.set_len(script.len() as u64)
    }

    /// Uncovers the step's own files, so that a COPY can replace them.
    pub(crate) fn uncover(&self) {
        let covered = self.step.as_ref().map(|step| step.covered.as_slice()).unwrap_or_default();
        for path in covered {
            // A second call finds nothing to unmount.
            let _ = unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }

    /// Remembers a mount for the step's program.
    pub(crate) fn remember(&self, path: PathBuf) {
        lock(&self.mounts).push(path);
    }
}

/// Reads a text of `protocol::lower`.
fn lower(text: &str) -> Result<Lower> {
    text.parse().map_err(|e| Error::invalid(format!("lower: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn build(dir: &std::path::Path) -> (Build, File) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let outside = Root::open(dir).unwrap();
        (Build::new(0, outside, writer.into(), None, None), reader.into())
    }

    fn next(folder: u32, lower: &str, image: Option<u8>, remove: &[u32]) -> Next {
        Next { folder, lower: lower.to_owned(), image, remove: remove.to_vec() }
    }

    #[test]
    fn request_for_a_root_names_its_wrong_field() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["r/1/1", "r/1/2", "disk/1", "disk/2", "image"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let (build, _) = build(dir.path());
        for good in [
            next(0, "", None, &[1]),
            next(3, "1/1-2,0/1-2", Some(0), &[]),
            next(2, "0/1", Some(1), &[4]),
            next(1, "", None, &[]),
        ] {
            build.check(&good).unwrap();
        }
        for (bad, told) in [
            (next(3, "x", None, &[]), "lower: `x`"),
            (next(0, "", Some(0), &[]), "neutral root"),
            (next(2, "0/1-2", None, &[]), "lower names folder 2"),
            (next(3, "0/1-2", None, &[1]), "lower names folder 1"),
            (next(3, "1/9", None, &[]), "no folder /r/1/9"),
            (next(3, "", Some(2), &[]), "no folder /r/2"),
            (next(3, "", Some(200), &[]), "no drive 200"),
        ] {
            let error = build.check(&bad).unwrap_err();
            assert!(error.message.contains(told), "{}", error.message);
        }
        assert_eq!(build.step().err().unwrap().code, ErrorCode::FailedPrecondition);
    }

    #[test]
    fn only_the_first_request_for_a_root_reaches_the_first_process() {
        let dir = tempfile::tempdir().unwrap();
        let (build, mut reader) = build(dir.path());
        assert!(!build.is_leaving());
        build.leave(next(3, "", Some(0), &[])).unwrap();
        assert!(build.is_leaving());
        assert_eq!(build.leave(Next::default()).unwrap_err().code, ErrorCode::Aborted);
        drop(build);
        let mut told = Vec::new();
        reader.read_to_end(&mut told).unwrap();
        let Told::Next(told) = serde_json::from_slice(&told).unwrap() else { panic!("no request") };
        assert_eq!(told, next(3, "", Some(0), &[]));
    }
}
