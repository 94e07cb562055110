//! Recipes of this executable: templates that are built by name alone. A build writes the recipe's
//! files into a cache folder and runs its script `fetch`, which adds the packages. The platform is
//! not asked here. All of it may block.

use crate::cli;
use crate::output::{Form, Progress};
use crate::sys::Run;
use anyhow::Context;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use types::hex;

/// Files of the recipes, by their paths. The build script lists them.
static FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/recipe.rs"));
/// Name of the folder with the recipes' files, below the context.
const RECIPE: &str = "recipe";
/// Name of the file in it that holds the hash of all files.
const MADE: &str = ".made";
/// Command that succeeds once the contexts of a code interpreter are up.
const READY: &str = "curl -fs http://localhost:49999/health";
/// Time within which the contexts must be up, in seconds. Emulated machines need minutes.
const READY_WITHIN_SEC: u32 = 1800;

/// Template that this executable has a recipe for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Builtin {
    name: &'static str,
    /// Path of the Dockerfile below the recipe's files.
    dockerfile: &'static str,
    /// Arguments of `fetch`, before the folder.
    fetch: &'static [&'static str],
    disk_mib: u32,
}

const BUILTINS: [Builtin; 2] = [
    Builtin { name: "code-interpreter", dockerfile: "Dockerfile", fetch: &[], disk_mib: 5120 },
    Builtin {
        name: "code-interpreter-full",
        dockerfile: "full/Dockerfile",
        fetch: &["--full"],
        disk_mib: 10_240,
    },
];

/// Finds the recipe of a template's name. A build that names any source of its own uses no recipe.
pub(super) fn find(name: &str, from: &cli::BuildFrom) -> Option<&'static Builtin> {
    let has_source = from.dir.is_some()
        || from.file.is_some()
        || from.image.is_some()
        || from.from.is_some()
        || from.from_capsule.is_some()
        || from.target.is_some()
        || !from.args.is_empty();
    BUILTINS.iter().find(|builtin| builtin.name == name).filter(|_| !has_source)
}

/// Returns the folder for fetched packages: `WRENN_CACHE_DIR`, or `wrenn` in the user's cache
/// folder. `var` reads the environment.
pub(super) fn cache(var: impl Fn(&str) -> Option<String>) -> PathBuf {
    let var = |name: &str| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = var("WRENN_CACHE_DIR") {
        return dir;
    }
    let home = || var("HOME").unwrap_or_else(|| "/root".into());
    var("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache")).join("wrenn")
}

impl Builtin {
    /// Sets those settings of a build that the caller left out.
    pub(super) fn complete(&self, body: &mut api::CreateBuild) {
        body.vcpus.get_or_insert(2);
        body.memory_mib.get_or_insert(2048);
        body.disk_mib.get_or_insert(self.disk_mib);
        if body.start.is_none() && body.ready.is_none() {
            body.ready = Some(READY.to_owned());
            body.ready_within_sec.get_or_insert(READY_WITHIN_SEC);
        }
    }

    /// Makes the folder with everything that the Dockerfile copies. Returns the folder and the
    /// Dockerfile's path.
    ///
    /// # Errors
    /// When the folder cannot be written, or when `fetch` fails, with its message.
    pub(super) fn prepare(&self, cache: &Path, form: Form) -> anyhow::Result<(PathBuf, PathBuf)> {
        // Both templates have most files in common, and so have one folder.
        let context = cache.join("code-interpreter");
        let recipe = write(&context).with_context(|| format!("writing {}", context.display()))?;
        self.fetch(&recipe, &context, form)?;
        let dockerfile = recipe.join(self.dockerfile);
        Ok((context, dockerfile))
    }

    /// Runs `fetch`. Each line of its output is a step of the progress.
    fn fetch(&self, recipe: &Path, context: &Path, form: Form) -> anyhow::Result<()> {
        let what = format!("packages of {}", self.name);
        let progress = (form == Form::Human).then(|| Progress::start(&what));
        let script = recipe.join("fetch").display().to_string();
        // The cache folder may forbid executables, so the shell reads the script.
        let run = Run::new("bash", &[script.as_str()]);
        let run = self.fetch.iter().fold(run, |run, argument| run.arg(*argument));
        let fetched = run.arg(context.display().to_string()).stream(|out| {
            for line in BufReader::new(out).lines() {
                let line = line?;
                progress.iter().for_each(|progress| progress.step(&line));
            }
            Ok(())
        });
        match (progress, &fetched) {
            (Some(progress), Ok(())) => progress.done(),
            (Some(progress), Err(_)) => progress.clear(),
            (None, _) => {}
        }
        fetched.with_context(|| format!("cannot fetch the {what}"))
    }
}

/// Writes the recipes' files below `context`, unless they are there. Returns their folder, which is
/// replaced as a whole.
fn write(context: &Path) -> anyhow::Result<PathBuf> {
    let (folder, hash) = (context.join(RECIPE), hash());
    let is_current = || fs::read_to_string(folder.join(MADE)).is_ok_and(|made| made == hash);
    if is_current() {
        return Ok(folder);
    }
    fs::create_dir_all(context)?;
    let staged = tempfile::Builder::new().prefix(".recipe").tempdir_in(context)?;
    for &(name, contents) in FILES {
        let path = staged.path().join(name);
        fs::create_dir_all(path.parent().unwrap_or(context))?;
        fs::write(path, contents)?;
    }
    fs::write(staged.path().join(MADE), &hash)?;
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    match fs::rename(staged.path(), &folder) {
        // Another build may have written the same files meanwhile.
        Err(_) if is_current() => Ok(folder),
        renamed => {
            renamed?;
            Ok(folder)
        }
    }
}

/// Returns the hash of the recipes' files.
fn hash() -> String {
    let mut hash = Sha256::new();
    for &(name, contents) in FILES {
        for part in [name.as_bytes(), contents] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hex::encode(&hash.finalize()[..])
}

#[cfg(test)]
mod tests;
