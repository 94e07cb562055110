//! The end of a build: the finished disk becomes a layer, and the template becomes a version. Both
//! are staged, synced, and renamed to their places.

use super::Failure;
use super::engine::{BeginRequest, Shared};
use super::folders;
use super::layer::{self, Layer, Part};
use super::prepare::{Drive, Loaded, Ready, architecture};
use super::run::Stack;
use crate::version::{self, Version};
use daemon::lock;
use protocol::lower;
use recipe::resolve::{CopyWork, Work};
use recipe::spec::{ImageRecord, Provenance, StepRecord};
use recipe::start::{self, Commands, READY_WITHIN, READY_WITHIN_MAX};
use recipe::{Command, Config, Dialect, Source};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use types::{BuildId, TeamId};

/// A version that is there.
pub(super) struct Finished {
    pub provenance: Provenance,
    pub bytes: u64,
    /// Tells that a machine of the version is still to be saved.
    pub starts: bool,
}

impl Shared {
    /// Puts a staged disk among the team's layers.
    pub(super) fn install_layer(
        &self,
        team: TeamId,
        staged: &Path,
        layer: Layer,
    ) -> io::Result<()> {
        let disk = layer::disk(staged);
        fs::set_permissions(&disk, fs::Permissions::from_mode(0o444))?;
        layer.save(staged)?;
        daemon::failpoint("build.layer.staged")?;
        folders::install(staged, &self.folders.layer(team, layer.id))?;
        lock(&self.index).add(team, layer);
        daemon::failpoint("build.layer.installed")
    }

    /// Puts a finished build among the versions.
    pub(super) fn install_version(
        &self,
        request: &BeginRequest,
        ready: &Ready,
        stack: &Stack,
    ) -> Result<Finished, Failure> {
        let fail = |error: io::Error| {
            Failure::finalize(format!("cannot make the template's version: {error}"))
        };
        let made = Made::of(request, ready)?;
        let staged = self.folders.build(request.id).join("version");
        let layers = self.link(request, (ready, stack), &staged).map_err(fail)?;
        let commands = Commands { start: made.start.clone(), ready: made.ready.clone() };
        let version = Version {
            id: request.id,
            team: request.team.to_string(),
            template: request.template.clone(),
            layers,
            config: made.config.clone(),
            dialect: made.dialect,
            env_at_run: request.spec.env_at_run,
            start: made.start,
            ready: made.ready,
            commands_config: made.commands_config,
            start_each: made.start_each,
            ready_within_sec: made.ready_within_sec,
        };
        let write = || {
            fs::write(staged.join(version::FILE), serde_json::to_vec(&version)?)?;
            daemon::failpoint("build.version.staged")?;
            let place = self.folders.version(request.id);
            // An earlier build of this id was forgotten.
            self.folders.remove(&place)?;
            folders::install(&staged, &place)?;
            daemon::failpoint("build.version.installed")
        };
        write().map_err(fail)?;
        let starts = version.has_commands() && !version.start_each;
        let bytes = self.version_bytes().get(&request.id).copied().unwrap_or_default();
        let provenance = provenance(request, ready, made.config, commands, self.built_by());
        let provenance = Provenance { start_each: version.start_each, ..provenance };
        Ok(Finished { provenance, bytes, starts })
    }

    /// Links image and disks into a staged version. Returns the folders of each disk.
    fn link(
        &self,
        request: &BeginRequest,
        (ready, stack): (&Ready, &Stack),
        staged: &Path,
    ) -> io::Result<Vec<lower::Folders>> {
        folders::empty(staged)?;
        let missing = || io::Error::new(io::ErrorKind::NotFound, "a file of the base is missing");
        let source = ready.plan.stages.len().checked_sub(1).and_then(|last| ready.root(last));
        let source = source.ok_or_else(missing)?;
        let image = ready.pin(&Drive::Image(source.clone())).ok_or_else(missing)?;
        link(image, &staged.join(image_name(image)?))?;
        let base = ready.bases.get(source).map_or(&[][..], |loaded: &Loaded| &loaded.layers);
        let base = base.iter().enumerate().map(|(at, (_, folders))| {
            let path = ready.pin(&Drive::BaseLayer(source.clone(), at));
            (path.map(Path::to_owned), folders.clone())
        });
        let own = stack.parts(request.id).into_iter().map(|Part { layer, folders }| {
            let path = match ready.pin(&Drive::Layer(layer)) {
                Some(path) => path.to_owned(),
                None => layer::disk(&self.folders.layer(request.team, layer)),
            };
            (Some(path), lower::Folders::Steps(folders))
        });
        let all: Vec<(Option<PathBuf>, lower::Folders)> = base.chain(own).collect();
        for ((path, _), number) in all.iter().zip(1..) {
            link(path.as_ref().ok_or_else(missing)?, &version::layer(staged, number))?;
        }
        Ok(all.into_iter().map(|(_, folders)| folders).collect())
    }

    fn built_by(&self) -> BTreeMap<String, String> {
        let system = &self.system;
        let versions = [
            ("agent", env!("CARGO_PKG_VERSION")),
            ("kernel", &system.kernel),
            ("envd", &system.envd),
        ];
        versions.map(|(name, version)| (name.to_owned(), version.to_owned())).into()
    }
}

/// Links a file. A file of another file system is copied.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            crate::storage::copy_sparse(&fs::File::open(from)?, to).map(drop)
        }
        linked => linked,
    }
}

/// Returns the name of an image in a template's folder, by its kind.
fn image_name(image: &Path) -> io::Result<&'static str> {
    const MAGIC: u64 = 1080;
    let mut magic = [0; 2];
    match fs::File::open(image)?.read_exact_at(&mut magic, MAGIC) {
        Ok(()) if magic == [0x53, 0xEF] => Ok("rootfs.ext4"),
        Ok(()) => Ok("rootfs.erofs"),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok("rootfs.erofs"),
        Err(error) => Err(error),
    }
}

/// Configuration and commands of a version.
struct Made {
    config: Config,
    dialect: Dialect,
    start: Option<Command>,
    ready: Option<Command>,
    /// Configuration of commands that came from the base.
    commands_config: Option<Config>,
    start_each: bool,
    ready_within_sec: u32,
}

impl Made {
    fn of(request: &BeginRequest, ready: &Ready) -> Result<Self, Failure> {
        let spec = &request.spec;
        let stage = ready.plan.stages.last();
        let stage = stage.ok_or_else(|| Failure::finalize("the build has no stage"))?;
        let mut config = stage.config.clone();
        config.env.extend(spec.env.clone());
        config.user = spec.user.clone().or(config.user);
        config.workdir = spec.workdir.clone().or(config.workdir);
        let mut own = spec.commands.clone();
        if own.start.is_none() && spec.start_from_image {
            own.start = start::of_image(&config);
        }
        let root = ready.plan.stages.len().checked_sub(1).and_then(|last| ready.root(last));
        let base = root.and_then(|source| ready.bases.get(source));
        let chosen = start::resolve(&own, base.and_then(|base| base.commands.as_ref()));
        let below = base.and_then(|base| base.version.as_ref()).filter(|_| chosen.is_inherited);
        let within = spec.ready_within_sec.or(below.map(|version| version.ready_within_sec));
        let seconds =
            |duration: std::time::Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
        Ok(Self {
            config,
            dialect: below.map_or(spec.recipe.dialect, |version| version.dialect),
            start: chosen.start,
            ready: chosen.ready,
            commands_config: below.map(|version| {
                version.commands_config.clone().unwrap_or_else(|| version.config.clone())
            }),
            start_each: spec.start_each || below.is_some_and(|version| version.start_each),
            ready_within_sec: within
                .unwrap_or(seconds(READY_WITHIN))
                .clamp(1, seconds(READY_WITHIN_MAX)),
        })
    }
}

fn provenance(
    request: &BeginRequest,
    ready: &Ready,
    config: Config,
    commands: Commands,
    built_by: BTreeMap<String, String>,
) -> Provenance {
    let images: Vec<ImageRecord> =
        ready.bases.values().filter_map(|base| base.image_record.clone()).collect();
    let last = ready.plan.stages.len().saturating_sub(1);
    let root = ready.root(last);
    let base = root.and_then(|source: &Source| ready.bases.get(source)?.base_record.clone());
    let from = ready.schedule.stretches.last().map_or(0, |stretch| stretch.from);
    let steps = ready.plan.stages.last().map_or(&[][..], |stage| &stage.steps);
    let steps = steps.iter().enumerate().map(|(at, step)| StepRecord {
        text: step.text.clone(),
        key: step.key,
        files: match &step.work {
            Work::Copy(CopyWork { files, .. }) => files.clone(),
            Work::Run(_) | Work::Workdir { .. } | Work::User { .. } | Work::Nothing => None,
        },
        cached: at < from,
    });
    Provenance {
        images,
        base,
        steps: steps.collect(),
        config,
        commands,
        start_each: request.spec.start_each,
        architecture: architecture().to_owned(),
        built_by,
    }
}

/// Returns the layer of a build whose disk is kept. `None` if no step of it has finished.
pub(super) fn layer_of(id: BuildId, steps: Vec<layer::Done>) -> Option<Layer> {
    let is_own = |done: &layer::Done| done.chain.last().is_some_and(|part| part.layer == id);
    steps.iter().any(is_own).then(|| Layer::new(id, steps))
}
