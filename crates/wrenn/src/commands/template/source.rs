//! The local half of a build: the Dockerfile, the files that its COPY steps name, and archives of
//! images. Nothing here asks the platform. All of it may block.

use crate::cli;
use crate::output;
use anyhow::Context as _;
use recipe::context::{Context, Limits, Selection};
use recipe::dockerfile::{self, Dockerfile, Options};
use recipe::ignore::{self, Ignore};
use recipe::{Base, Recipe};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Processor architecture of the platform's hosts.
const ARCHITECTURE: &str = "amd64";
/// Bytes that are hashed at once.
const BUFFER: usize = 256 * 1024;
/// Prefixes of `--image` for a file.
const ARCHIVES: [&str; 2] = ["oci-archive:", "docker-archive:"];

/// Files that the platform needs for a build, named by their hash.
pub(super) struct Upload {
    pub hash: String,
    /// Name for people.
    pub name: String,
    pub contents: Contents,
}

/// Contents of an upload.
pub(super) enum Contents {
    /// Files of a COPY.
    Files { root: PathBuf, selection: Selection, stamp: u64 },
    /// A file as it is.
    File { path: PathBuf, bytes: u64, stamp: u64 },
}

/// Origin of a template, with all that the platform needs for it.
pub(super) struct Source {
    pub from: Option<api::BuildSource>,
    pub recipe: Option<Recipe>,
    pub uploads: Vec<Upload>,
    /// Remarks for people.
    pub notes: Vec<String>,
}

/// Reads the origin of a template.
///
/// # Errors
/// Names the line of the Dockerfile, or the file that cannot be read.
pub(super) fn read(from: cli::BuildFrom) -> anyhow::Result<Source> {
    let given = |from| Source { from: Some(from), recipe: None, uploads: vec![], notes: vec![] };
    if let Some(id) = from.from_capsule {
        return Ok(given(api::BuildSource::Capsule { id, memory: from.with_memory }));
    }
    if let Some(template) = from.from {
        return Ok(given(api::BuildSource::Template(template)));
    }
    let Some(image) = from.image else { return of_dockerfile(&from) };
    let Some(path) = ARCHIVES.iter().find_map(|prefix| image.strip_prefix(prefix)) else {
        return Ok(given(api::BuildSource::Image(image)));
    };
    let upload = archive(Path::new(path))?;
    let source = given(api::BuildSource::Archive(upload.hash.clone()));
    Ok(Source { uploads: vec![upload], ..source })
}

/// Reads a recipe of this executable, whose files are in `dir`. Its FROM names templates, and not
/// images.
///
/// # Errors
/// Names the line of the Dockerfile, or the file that cannot be read.
pub(super) fn read_builtin(dir: PathBuf, file: PathBuf) -> anyhow::Result<Source> {
    let from = cli::BuildFrom { dir: Some(dir), file: Some(file), ..cli::BuildFrom::default() };
    let mut source = of_dockerfile(&from)?;
    for stage in source.recipe.iter_mut().flat_map(|recipe| &mut recipe.stages) {
        if let recipe::Source::Image(name) = &mut stage.source {
            stage.source = recipe::Source::Template(std::mem::take(name));
        }
    }
    Ok(source)
}

fn archive(path: &Path) -> anyhow::Result<Upload> {
    let what = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(what)?;
    let found = file.metadata().with_context(what)?;
    if !found.is_file() {
        return Err(output::usage(format!("{} is not a file", path.display())));
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = file.read(&mut buffer).with_context(what)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    let hash: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let (bytes, stamp) = (found.len(), stamp(path, [""])?);
    let contents = Contents::File { path: path.to_owned(), bytes, stamp };
    Ok(Upload { hash, name: path.display().to_string(), contents })
}

fn of_dockerfile(from: &cli::BuildFrom) -> anyhow::Result<Source> {
    let dir = from.dir.as_deref().unwrap_or(Path::new("."));
    let file = from.file.clone().unwrap_or_else(|| dir.join("Dockerfile"));
    let shown = file.display().to_string();
    let text = dockerfile_text(&file, from.file.is_some())?;
    let parsed = Dockerfile::parse(&text).with_context(|| shown.clone())?;
    let options = Options {
        target: from.target.clone(),
        args: from.args.iter().cloned().collect(),
        ..Options::default()
    };
    let mut recipe = parsed.recipe(&options).with_context(|| shown.clone())?;
    recipe.check().with_context(|| shown.clone())?;
    let undeclared = parsed.undeclared_args(&options);
    let notes = undeclared
        .iter()
        .map(|name| format!("warning: no ARG of {shown} declares the build argument {name}"))
        .collect();
    let uploads = files(&mut recipe, dir, &file)?;
    Ok(Source { from: None, recipe: Some(recipe), uploads, notes })
}

fn dockerfile_text(file: &Path, is_chosen: bool) -> anyhow::Result<String> {
    let most = dockerfile::BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin()
            .take(most)
            .read_to_end(&mut bytes)
            .context("cannot read the Dockerfile")?;
    } else {
        let opened = File::open(file);
        if !is_chosen && opened.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            return Err(output::usage(format!(
                "there is no {}; name a Dockerfile with --file, or an image with --image",
                file.display()
            )));
        }
        let what = || format!("cannot read {}", file.display());
        opened.with_context(what)?.take(most).read_to_end(&mut bytes).with_context(what)?;
    }
    String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", file.display()))
}

/// Finds and hashes the files of each COPY, and writes the hashes into the recipe.
fn files(recipe: &mut Recipe, dir: &Path, dockerfile: &Path) -> anyhow::Result<Vec<Upload>> {
    // Bases are not known here. Their variables can change the sources of a COPY, which the
    // platform then refuses.
    let base = Base::default();
    let plan = recipe::resolve(recipe, ARCHITECTURE, &|_| Some(&base))
        .with_context(|| dockerfile.display().to_string())?;
    let missing: Vec<(usize, usize, Vec<String>)> = plan
        .missing_files()
        .map(|(stage, number, sources)| (stage, number, sources.to_vec()))
        .collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let context = Context::open(dir, ignore(dir, dockerfile)?, Limits::default())?;
    let mut uploads: Vec<Upload> = Vec::new();
    for (stage, number, sources) in missing {
        let steps = recipe.stages.get(stage).map(|stage| &stage.steps[..]).unwrap_or_default();
        let line = steps.get(number.saturating_sub(1)).and_then(|step| step.line);
        let line = line.map_or_else(String::new, |line| format!("line {line}: "));
        let what = || format!("{}: {line}COPY", dockerfile.display());
        let selection = context.select(&sources).with_context(what)?;
        let paths = || selection.entries().iter().map(|entry| entry.path.as_str());
        let stamp = stamp(dir, paths()).with_context(what)?;
        let hash = selection.hash().with_context(what)?;
        recipe.set_files(stage, number, hash.clone());
        if uploads.iter().all(|upload| upload.hash != hash) {
            let name = sources.join(" ");
            let contents = Contents::Files { root: dir.to_owned(), selection, stamp };
            uploads.push(Upload { hash, name, contents });
        }
    }
    Ok(uploads)
}

/// Reads the ignore file beside the Dockerfile or, failing that, the folder's own.
fn ignore(dir: &Path, dockerfile: &Path) -> anyhow::Result<Ignore> {
    let [own, shared] = ignore::file_names(&dockerfile.display().to_string());
    for path in [PathBuf::from(own), dir.join(shared)] {
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => file.take(ignore::BYTES_MAX as u64 + 1).read_to_end(&mut bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => Err(error),
        }
        .with_context(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8(bytes);
        let text = text.with_context(|| format!("{} is not UTF-8", path.display()))?;
        return Ok(Ignore::parse(&text)?);
    }
    Ok(Ignore::default())
}

/// Digests sizes and times of files. It changes when a file changes, so that no archive is sent
/// under the hash of other contents.
fn stamp<'a>(root: &Path, paths: impl IntoIterator<Item = &'a str>) -> std::io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    for path in paths {
        let full = if path.is_empty() { root.to_owned() } else { root.join(path) };
        let found = fs::symlink_metadata(full)?;
        // A folder's times change with entries that nobody chose.
        let times = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
        let facts = (!found.is_dir()).then_some((found.len(), times));
        (found.mode(), facts).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

impl Contents {
    /// Returns the bytes of the upload. For files, this is close and not exact.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::File { bytes, .. } => *bytes,
            Self::Files { selection, .. } => {
                let padding = 1024 * selection.entries().len() as u64;
                selection.bytes() + padding
            }
        }
    }

    /// Writes the contents.
    ///
    /// # Errors
    /// When a file cannot be read, or changed after it was hashed. The stream must then break off.
    pub(super) fn write(&self, to: &mut impl std::io::Write) -> anyhow::Result<()> {
        let (before, now) = match self {
            Self::Files { root, selection, stamp: before } => {
                selection.pack(to)?;
                let paths = selection.entries().iter().map(|entry| entry.path.as_str());
                (before, stamp(root, paths)?)
            }
            Self::File { path, bytes, stamp: before } => {
                // An archive that grows changes its stamp, so nothing is lost by the limit.
                std::io::copy(&mut File::open(path)?.take(*bytes), to)?;
                (before, stamp(path, [""])?)
            }
        };
        anyhow::ensure!(*before == now, "a file changed while it was sent; build again");
        Ok(())
    }
}

#[cfg(test)]
mod tests;
