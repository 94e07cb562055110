//! The effect of a prepared step in the guest. All texts are final.

use crate::steps::{Mount, Source};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Effect of a step in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Runs a program.
    Run(RunWork),
    /// Places files.
    Copy(CopyWork),
    /// Makes a folder, and the folders above it, where they are missing.
    Workdir {
        /// Absolute path.
        path: String,
        /// Owner of folders that are made.
        owner: String,
    },
    /// Changes the user of later steps.
    User {
        /// User, as the step names it.
        name: String,
        /// Tells that a missing user is made.
        create: bool,
    },
    /// Changes no file.
    Nothing,
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunWork {
    /// Program with its arguments.
    pub program: Program,
    /// Whole environment, with the build's arguments. The guest adds `HOME` and the like.
    pub env: BTreeMap<String, String>,
    /// User of the program.
    pub user: String,
    /// Absolute path.
    pub workdir: String,
    /// Mounts for this program alone. Targets are absolute.
    pub mounts: Vec<Mount>,
}

/// A program in one of its forms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// Arguments, with the program first.
    Argv(Vec<String>),
    /// File with its own interpreter in the first line. The file is no part of the template.
    Script(String),
}

/// Files to place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyWork {
    /// Origin; the context if absent.
    pub from: Option<Source>,
    /// Hash of the context's files.
    pub files: Option<String>,
    /// Paths in the origin, with wildcards. `placement` says which member goes where.
    pub sources: Vec<String>,
    /// Files whose contents stand here: name and contents.
    pub inline: Vec<(String, String)>,
    /// Absolute path.
    pub dest: String,
    /// Tells that the destination is a folder, although it may be missing. The engine also assumes a
    /// folder where wildcards match several files.
    pub into: bool,
    /// Owner of all that is placed.
    pub owner: String,
    /// Permission bits of all that is placed; those of the source if absent.
    pub mode: Option<u32>,
    /// Tells that tar archives are unpacked.
    pub unpack: bool,
}

impl CopyWork {
    /// Reports whether the step needs files of the context that nobody uploaded.
    #[must_use]
    pub fn lacks_files(&self) -> bool {
        self.from.is_none() && self.files.is_none() && !self.sources.is_empty()
    }
}
