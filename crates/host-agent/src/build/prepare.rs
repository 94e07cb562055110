//! From a request to a schedule: gathers images and templates, resolves the recipe, looks its steps
//! up, and links everything that the build lies on.

use super::engine::{BeginRequest, Shared};
use super::folders;
use super::layer::{self, Layer};
use super::log::Log;
use super::parts::{Drives, Image, ImageSource, Origin, PullOptions};
use super::schedule::{self, BaseSize, Known, Schedule};
use super::{Failure, pins};
use crate::capsule::chain;
use crate::storage::{self, LAYERS_MAX};
use crate::version::{self, Version};
use daemon::lock;
use protocol::lower::{DRIVES_MAX, Folders};
use recipe::resolve::{Prepared, Work};
use recipe::spec::{BaseRecord, ImageRecord};
use recipe::start::Commands;
use recipe::steps::{self, ARCHIVE};
use recipe::{Base, BuildSpec, Config, Dialect, Plan, Source};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use types::{BuildId, CapsuleId};

/// Longest time without a line while an image is pulled.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// A base with its files on this host.
#[derive(Debug, Clone, Default)]
pub(super) struct Loaded {
    pub base: Base,
    pub image: PathBuf,
    /// Disks of steps above the image, lowest first.
    pub layers: Vec<(PathBuf, Folders)>,
    /// Start and ready commands of a template.
    pub commands: Option<Commands>,
    /// Version that the base is, with its commands' circumstances.
    pub version: Option<Version>,
    pub image_record: Option<ImageRecord>,
    pub base_record: Option<BaseRecord>,
}

/// A file below the build's guest or version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Drive {
    Image(Source),
    /// Disk of a base's steps, by its position.
    BaseLayer(Source, usize),
    /// Disk of the cache.
    Layer(BuildId),
}

/// A build whose steps can run.
pub(super) struct Ready {
    pub plan: Plan,
    pub schedule: Schedule,
    pub bases: BTreeMap<Source, Loaded>,
    /// Files below the build. The first one is the template's image.
    pub drives: Vec<Drive>,
    /// Links to those files, in the same order.
    pub pins: Vec<PathBuf>,
}

impl Ready {
    /// Returns the number of a drive in the guest: 0 for the template's image.
    pub(super) fn number(&self, drive: &Drive) -> Option<u8> {
        self.drives.iter().position(|known| known == drive)?.try_into().ok()
    }

    pub(super) fn pin(&self, drive: &Drive) -> Option<&Path> {
        let at = self.drives.iter().position(|known| known == drive)?;
        self.pins.get(at).map(PathBuf::as_path)
    }

    /// Returns the source of a stage's base.
    pub(super) fn root(&self, stage: usize) -> Option<&Source> {
        self.plan.stages.get(schedule::root(&self.plan, stage)).map(|stage| &stage.source)
    }

    /// Returns the drives of the builder.
    pub(super) fn builder_drives(&self) -> Drives {
        let (image, read_only) = self.pins.split_first().map_or_else(
            || (PathBuf::new(), Vec::new()),
            |(image, rest)| (image.clone(), rest.to_vec()),
        );
        Drives { image, read_only }
    }
}

/// Prepares a build.
pub(super) async fn prepare(
    shared: &Shared,
    request: &BeginRequest,
    options: &PullOptions,
    log: &Log,
) -> Result<Ready, Failure> {
    check_bytes(shared, request)?;
    let bases = gather(shared, request, options, log).await?;
    check_bytes(shared, request)?;
    let lookup = |source: &Source| bases.get(source).map(|loaded| &loaded.base);
    let plan = recipe::resolve(&request.spec.recipe, architecture(), &lookup).map_err(|error| {
        let last = request.spec.recipe.stages.len().saturating_sub(1);
        Failure::step(error.number, error.stage == last, error.to_string())
    })?;
    let plan = forced(with_workdir(plan, &request.spec), request.spec.force);
    let schedule = decide(shared, request, &plan, &bases).map_err(Failure::base)?;
    link_files(shared, request, &plan, &schedule)?;
    let drives = drives(&plan, &schedule, &bases);
    let pins = pin(shared, request, &drives, &bases)
        .map_err(|error| Failure::base(format!("cannot link the files of the base: {error}")))?;
    let layers = schedule.layers.iter();
    layers.for_each(|id| layer::touch(&shared.folders.layer(request.team, *id)));
    Ok(Ready { plan, schedule, bases, drives, pins })
}

/// Returns Docker's name of this machine's architecture.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Adds a step that makes the default working directory, if no step has made it.
fn with_workdir(mut plan: Plan, spec: &BuildSpec) -> Plan {
    let Some(config) = plan.stages.last().map(|stage| stage.config.clone()) else { return plan };
    let wanted = spec.workdir.as_ref().filter(|path| config.workdir.as_ref() != Some(*path));
    if let Some(path) = wanted {
        let owner = match spec.recipe.dialect {
            Dialect::E2b => spec.user.clone().or(config.user),
            Dialect::Steps | Dialect::Dockerfile => None,
        };
        let owner = owner.unwrap_or_else(|| "0:0".to_owned());
        plan.make_folder(path, &owner);
    }
    plan
}

fn forced(mut plan: Plan, force: bool) -> Plan {
    if force {
        let steps = plan.stages.iter_mut().flat_map(|stage| &mut stage.steps);
        steps.for_each(|step| step.force = true);
    }
    plan
}

/// Refuses a build of a team that is at its limit of bytes, even without the layers that nothing uses.
fn check_bytes(shared: &Shared, request: &BeginRequest) -> Result<(), Failure> {
    let Some(most) = request.most_bytes else { return Ok(()) };
    let used = shared.make_room(request.team, most);
    if used < most {
        return Ok(());
    }
    Err(Failure::base(format!(
        "the team's layers and images take {} MiB on this host, and at most {} MiB are allowed; \
         delete templates that are no longer needed",
        used >> 20,
        most >> 20
    )))
}

/// Lists all origins of files in a recipe, except stages.
fn sources(request: &BeginRequest) -> Vec<Source> {
    let mut all: Vec<Source> = Vec::new();
    for stage in &request.spec.recipe.stages {
        for source in stage.sources() {
            if !matches!(source, Source::Stage(_)) && !all.contains(source) {
                all.push(source.clone());
            }
        }
    }
    all
}

async fn gather(
    shared: &Shared,
    request: &BeginRequest,
    options: &PullOptions,
    log: &Log,
) -> Result<BTreeMap<Source, Loaded>, Failure> {
    let mut bases = BTreeMap::new();
    for source in sources(request) {
        let loaded = match &source {
            Source::Image(name) => {
                log.info(&format!("FROM {name}"));
                image(shared, request, (name, options), log).await
            }
            Source::Scratch => {
                let made = shared.images.prepare(ImageSource::Scratch, options, &|_| {}).await;
                made.map(of_image)
            }
            Source::Template(name) => {
                log.info(&format!("FROM {name}"));
                template(shared, request, name).await
            }
            Source::Capsule(id) => {
                log.info(&format!("FROM {id}"));
                capsule(shared, request, id).await
            }
            Source::Stage(_) => continue,
        };
        bases.insert(source, loaded.map_err(Failure::base)?);
    }
    Ok(bases)
}

fn of_image(image: Image) -> Loaded {
    let identity = image.record.digest.clone();
    Loaded {
        base: Base { identity, config: image.config },
        image: image.path,
        image_record: Some(image.record),
        ..Loaded::default()
    }
}

/// Pulls an image. Writes its progress, and a line at least every five seconds.
async fn image(
    shared: &Shared,
    request: &BeginRequest,
    (name, options): (&str, &PullOptions),
    log: &Log,
) -> Result<Loaded, String> {
    let path;
    let source = match name.strip_prefix(ARCHIVE) {
        Some(hash) => {
            path = shared.files.path(request.team, hash);
            if !steps::is_hash(hash) || !path.exists() {
                return Err(format!("image '{name}' not found: no such file was uploaded"));
            }
            ImageSource::Archive { hash, path: &path }
        }
        None => ImageSource::Reference(name),
    };
    let newest: Mutex<(Instant, String)> = Mutex::new((Instant::now(), format!("pulling {name}")));
    let progress = |text: String| *lock(&newest) = (Instant::now(), text);
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(HEARTBEAT);
    ticks.tick().await;
    let mut pulling = shared.images.prepare(source, options, &progress);
    loop {
        tokio::select! {
            pulled = &mut pulling => return pulled.map(of_image),
            _ = ticks.tick() => {
                let text = lock(&newest).1.clone();
                log.info(&format!("{text} ({} s)", begun.elapsed().as_secs()));
            }
        }
    }
}

async fn template(shared: &Shared, request: &BeginRequest, name: &str) -> Result<Loaded, String> {
    let base = request.templates.get(name).ok_or(format!("template '{name}' not found"))?;
    let operators = || base.template.clone();
    let folder = base.version.map_or_else(operators, |version| version.to_string());
    shared.guests.fetch_template(base).await?;
    let mut loaded = load(shared, &folder, request.spec.recipe.dialect)
        .map_err(|error| format!("template '{name}' cannot be read: {error}"))?
        .ok_or_else(|| format!("template '{name}' not found"))?;
    let (name, version) = (name.to_owned(), base.version);
    loaded.base_record = Some(BaseRecord { name, version });
    Ok(loaded)
}

/// Loads a template of this host by its folder. `None` if there is no such template.
fn load(shared: &Shared, folder: &str, dialect: Dialect) -> io::Result<Option<Loaded>> {
    let dir = shared.folders.versions().join(folder);
    let image = match shared.template_image(&dir) {
        Some(image) => image,
        None => return Ok(None),
    };
    Ok(Some(match Version::load(&dir)? {
        Some(version) => of_version(version, image, &dir),
        None => operators(image, dialect)?,
    }))
}

/// Returns a template of the operator's, which has no configuration.
fn operators(image: PathBuf, dialect: Dialect) -> io::Result<Loaded> {
    let found = image.metadata()?;
    let path = image.canonicalize()?;
    // The path names the contents. The other figures are for files that are not links.
    let identity = format!("{} {} {}", path.display(), found.len(), found.mtime());
    let mut config = Config::default();
    if dialect == Dialect::E2b {
        config.user = Some(recipe::e2b::USER.to_owned());
    }
    Ok(Loaded { base: Base { identity, config }, image, ..Loaded::default() })
}

/// Returns a version whose disks lie in `dir`.
fn of_version(version: Version, image: PathBuf, dir: &Path) -> Loaded {
    let layers = (1..).zip(&version.layers);
    let layers = layers.map(|(n, folders)| (version::layer(dir, n), folders.clone())).collect();
    let base = Base { identity: version.id.to_string(), config: version.config.clone() };
    let commands = Commands { start: version.start.clone(), ready: version.ready.clone() };
    let (commands, version) = (Some(commands), Some(version));
    Loaded { base, image, layers, commands, version, ..Loaded::default() }
}

/// Copies a capsule's disk to a new layer, above the files that the capsule lies on.
async fn capsule(shared: &Shared, request: &BeginRequest, id: &str) -> Result<Loaded, String> {
    let unknown = || format!("capsule '{id}' not found");
    let capsule: CapsuleId = id.parse().map_err(|_| unknown())?;
    let copied = shared.folders.build(request.id).join("upper");
    let io = |error: io::Error| format!("cannot copy the disk of the capsule: {error}");
    folders::empty(&copied).map_err(io)?;
    let Origin { team, version } = shared.guests.copy_upper(capsule, &copied).await?;
    if team.is_some_and(|team| team != request.team.to_string()) {
        return Err(unknown());
    }
    let (image, made) = (copied.join(storage::OWN_IMAGE), BuildId::new());
    let mut loaded = match version {
        Some(version) => of_version(version, image, &copied),
        None => operators(image, request.spec.recipe.dialect).map_err(io)?,
    };
    let staged = shared.folders.build(request.id).join("layer");
    let install = || {
        folders::empty(&staged)?;
        fs::rename(copied.join(storage::DISK), layer::disk(&staged))?;
        shared.install_layer(request.team, &staged, Layer::new(made, Vec::new()))
    };
    install().map_err(io)?;
    let disk = layer::disk(&shared.folders.layer(request.team, made));
    loaded.layers.push((disk, Folders::Upper));
    loaded.base.identity = made.to_string();
    let version = loaded.version.as_ref().map(|version| version.id);
    loaded.base_record = Some(BaseRecord { name: id.to_owned(), version });
    Ok(loaded)
}

fn decide(
    shared: &Shared,
    request: &BeginRequest,
    plan: &Plan,
    bases: &BTreeMap<Source, Loaded>,
) -> Result<Schedule, String> {
    let index = lock(&shared.index);
    let size = |source: &Source| {
        let layers = bases.get(source).map_or(&[][..], |loaded| &loaded.layers[..]);
        let folders = layers.iter().map(|(_, folders)| match folders {
            Folders::Upper => 1,
            Folders::Steps(numbers) => numbers.len(),
        });
        BaseSize { disks: layers.len(), folders: folders.sum() }
    };
    let fits = |schedule: &Schedule| {
        !schedule.needs_guest || drives(plan, schedule, bases).len() <= DRIVES_MAX + 1
    };
    schedule::schedule(
        plan,
        &Known {
            base: &size,
            find: &|key| index.find(request.team, key).map(<[_]>::to_vec),
            most_disks: LAYERS_MAX,
            fits: &fits,
        },
    )
}

/// Lists the files below a build, with the template's image first.
fn drives(plan: &Plan, schedule: &Schedule, bases: &BTreeMap<Source, Loaded>) -> Vec<Drive> {
    let mut all: Vec<Drive> = Vec::new();
    let mut add = |source: &Source| {
        let layers = bases.get(source).map_or(0, |loaded| loaded.layers.len());
        let layers = (0..layers).map(|at| Drive::BaseLayer(source.clone(), at));
        for drive in std::iter::once(Drive::Image(source.clone())).chain(layers) {
            if !all.contains(&drive) {
                all.push(drive);
            }
        }
    };
    for stretch in schedule.stretches.iter().rev() {
        let root = schedule::root(plan, stretch.stage);
        if let Some(stage) = plan.stages.get(root) {
            add(&stage.source);
        }
        let origins = schedule::left(plan, stretch).filter_map(schedule::copied);
        origins.filter(|source| !matches!(source, Source::Stage(_))).for_each(&mut add);
    }
    all.extend(schedule.layers.iter().map(|id| Drive::Layer(*id)));
    all
}

fn pin(
    shared: &Shared,
    request: &BeginRequest,
    drives: &[Drive],
    bases: &BTreeMap<Source, Loaded>,
) -> std::io::Result<Vec<PathBuf>> {
    let path = |drive: &Drive| match drive {
        Drive::Image(source) => bases.get(source).map(|loaded| loaded.image.clone()),
        Drive::BaseLayer(source, at) => Some(bases.get(source)?.layers.get(*at)?.0.clone()),
        Drive::Layer(id) => Some(layer::disk(&shared.folders.layer(request.team, *id))),
    };
    let paths: Option<Vec<PathBuf>> = drives.iter().map(path).collect();
    let paths = paths.ok_or(std::io::ErrorKind::NotFound)?;
    pins::pin(&paths, &shared.folders.build(request.id).join("pins"))
}

/// Links the uploaded archives of all steps that run, so that they stay until the end.
fn link_files(
    shared: &Shared,
    request: &BeginRequest,
    plan: &Plan,
    schedule: &Schedule,
) -> Result<(), Failure> {
    let dir = shared.folders.build(request.id).join("files");
    folders::empty(&dir).map_err(|error| Failure::base(error.to_string()))?;
    let last = plan.stages.len().saturating_sub(1);
    let mut linked: HashMap<&str, ()> = HashMap::new();
    for stretch in &schedule.stretches {
        for step in schedule::left(plan, stretch) {
            let Work::Copy(copy) = &step.work else { continue };
            let fail = |why: String| Err(Failure::step(step.number, stretch.stage == last, why));
            if copy.lacks_files() {
                return fail(format!("{}: names no uploaded files", named(step)));
            }
            let Some(hash) = copy.files.as_deref() else { continue };
            if linked.insert(hash, ()).is_some() {
                continue;
            }
            if let Err(error) = shared.files.link(request.team, hash, &dir.join(hash)) {
                tracing::debug!(error = chain(&error), hash, "a build lacks its files");
                return fail(format!(
                    "{}: the files {hash} are not on this host; upload them and build again",
                    named(step)
                ));
            }
        }
    }
    Ok(())
}

fn named(step: &Prepared) -> String {
    format!("step {} ({})", step.number, step.text)
}

impl Shared {
    /// Returns the image in a template's folder, if there is one.
    fn template_image(&self, dir: &Path) -> Option<PathBuf> {
        storage::existing_image(dir).or_else(|| self.guests.default_image(dir))
    }
}
