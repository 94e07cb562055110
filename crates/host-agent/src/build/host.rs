//! Images and guests of this host, as builds reach them: thin adapters to the store of images and to
//! the manager of capsules.

use super::engine::Builds;
use super::guest::HostBuilder;
use super::parts::{
    BaseVersion, Builder, Drives, Guests, Image, ImageSource, Images, Origin, Progress, PullOptions,
};
use crate::builders::{BuilderDisks, StartLog};
use crate::capsule::create::VersionRef;
use crate::capsule::manager::Manager;
use crate::capsule::{Error, chain};
use crate::context::AgentContext;
use crate::images::{self, ImageRequest, KeptImage};
use crate::storage;
use futures::FutureExt;
use futures::future::BoxFuture;
use recipe::spec::ImageRecord;
use recipe::steps::ARCHIVE;
use registry::{Login, Reference};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use types::{BuildId, CapsuleId};

/// Opens the builds of this host, by stubs where the driver boots no images.
///
/// # Errors
/// Fails when the folders of builds cannot be made or read.
pub(crate) fn open(context: &Arc<AgentContext>, manager: &Manager) -> io::Result<Builds> {
    #[cfg(any(test, feature = "test-drivers"))]
    if !context.driver.boots_images() {
        use super::stub::{StubGuests, StubImages};
        let store = context.config.dir.join("images/store");
        let images = StubImages { store: store.clone() };
        let guests = StubGuests { context: Arc::clone(context), store };
        return Builds::open(Arc::clone(context), Box::new(images), Box::new(guests));
    }
    let images = HostImages { context: Arc::clone(context) };
    let guests = HostGuests { context: Arc::clone(context), manager: manager.clone() };
    Builds::open(Arc::clone(context), Box::new(images), Box::new(guests))
}

struct HostImages {
    context: Arc<AgentContext>,
}

impl HostImages {
    async fn get(
        &self,
        source: ImageSource<'_>,
        options: &PullOptions,
        progress: Progress<'_>,
    ) -> Result<Image, String> {
        let (name, source) = match source {
            ImageSource::Scratch => return self.scratch().await,
            ImageSource::Archive { hash, path } => {
                let path = path.to_owned();
                let source = images::ImageSource::Archive { path, name: None };
                (format!("{ARCHIVE}{hash}"), source)
            }
            ImageSource::Reference(name) => {
                let reference: Reference =
                    name.parse().map_err(|error| format!("image '{name}': {error}"))?;
                let login = login(&options.logins, reference.registry());
                (name.to_owned(), images::ImageSource::Reference { reference, login })
            }
        };
        let team = options.team.to_string();
        let (pull, limits) = (options.pull, self.context.container_images.limits());
        let request = ImageRequest { source, pull, team, limits };
        let tell = |step: images::Progress| progress(text(&name, &step));
        let kept = self.context.container_images.prepare(request, tell, &options.cancel).await;
        let kept = kept.map_err(|error| {
            tracing::info!(image = name, error = chain(&error), "cannot get an image");
            match error.is_callers() {
                true => chain(&error),
                false => error.to_string(),
            }
        })?;
        Ok(image(name, kept))
    }

    /// Makes the image without files, which each template from `scratch` lies on.
    async fn scratch(&self) -> Result<Image, String> {
        let dir = self.context.config.dir.join("images/store");
        let made = daemon::blocking(move || make_scratch(&dir)).await;
        let path = made.map_err(|error| format!("cannot make an empty image: {error}"))?;
        let name = "scratch".to_owned();
        let record =
            ImageRecord { reference: name.clone(), digest: name, ..ImageRecord::default() };
        Ok(Image { path, config: recipe::Config::default(), record })
    }
}

fn make_scratch(store: &Path) -> io::Result<PathBuf> {
    let path = store.join(format!("scratch-{}/image.erofs", rootfs::FORMAT));
    if path.exists() {
        return Ok(path);
    }
    let staged = store.join(format!(".scratch-{}", uuid::Uuid::new_v4()));
    fs::create_dir_all(&staged)?;
    let file =
        File::options().read(true).write(true).create_new(true).open(staged.join("image.erofs"))?;
    let converter = rootfs::Converter::new(file, [0; 32], rootfs::Limits::default());
    converter.and_then(rootfs::Converter::finish).map_err(io::Error::other)?;
    // VMMs of all capsules open this file, each as a user of its own.
    fs::set_permissions(staged.join("image.erofs"), fs::Permissions::from_mode(0o444))?;
    match super::folders::install(&staged, path.parent().unwrap_or(store)) {
        // Another build was faster.
        Err(_) if path.exists() => storage::remove_all(&staged)?,
        installed => installed?,
    }
    Ok(path)
}

/// Returns the login for a registry.
fn login(logins: &[(String, Login)], registry: &str) -> Option<Login> {
    let found = logins.iter().find(|(host, _)| host.eq_ignore_ascii_case(registry));
    found.map(|(_, login)| login.clone())
}

fn image(reference: String, kept: KeptImage) -> Image {
    let record = ImageRecord {
        reference,
        digest: kept.digest.to_string(),
        asked_digest: kept.asked_digest.to_string(),
        config_digest: kept.config_digest.to_string(),
        from: kept.from.unwrap_or_default(),
    };
    Image { path: kept.path, config: kept.config, record }
}

/// Returns a line about an import.
fn text(name: &str, step: &images::Progress) -> String {
    match step {
        images::Progress::Resolved { digest } => format!("resolved {name} to {digest}"),
        images::Progress::Kept => format!("{name} is on this host"),
        images::Progress::Waiting => format!("waiting for another import of {name}"),
        images::Progress::Pulling { layer, layers, done, all } => {
            let (done, all) = (done >> 20, all >> 20);
            format!("pulling {name}: layer {layer} of {layers}, {done} of {all} MiB")
        }
        images::Progress::Finishing => format!("finishing {name}"),
    }
}

impl Images for HostImages {
    fn prepare<'a>(
        &'a self,
        source: ImageSource<'a>,
        options: &'a PullOptions,
        progress: Progress<'a>,
    ) -> BoxFuture<'a, Result<Image, String>> {
        self.get(source, options, progress).boxed()
    }
}

struct HostGuests {
    context: Arc<AgentContext>,
    manager: Manager,
}

impl Guests for HostGuests {
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

    fn open(&self, build: BuildId, capsule: CapsuleId) -> Result<Box<dyn Builder>, String> {
        let found = self.manager.builder(capsule, build);
        let (guest, token) = found.map_err(|error| format!("the build's capsule: {error}"))?;
        let manager = self.manager.clone();
        Ok(Box::new(HostBuilder { manager, capsule, guest, token }))
    }

    fn fetch_template<'a>(&'a self, base: &'a BaseVersion) -> BoxFuture<'a, Result<(), String>> {
        async move {
            let fetched = match base.version {
                Some(id) => {
                    let wanted = VersionRef { id, team: base.team.clone() };
                    self.manager.fetch_version(&wanted).await
                }
                None => self.manager.fetch_template(&base.template).await,
            };
            match fetched {
                Ok(()) | Err(Error::NoTemplate(_)) => Ok(()),
                Err(error) => Err(format!("cannot fetch the base template: {}", chain(&error))),
            }
        }
        .boxed()
    }

    fn stored(&self) -> HashSet<BuildId> {
        self.manager.stored_versions()
    }

    fn copy_upper<'a>(
        &'a self,
        capsule: CapsuleId,
        to: &'a Path,
    ) -> BoxFuture<'a, Result<Origin, String>> {
        async move {
            let copied = self.manager.copy_upper(capsule, to.to_owned()).await;
            let copied = copied.map_err(|error| not_copied(capsule, &error))?;
            Ok(Origin { team: Some(copied.team), version: copied.version })
        }
        .boxed()
    }
}

/// Tells why the disk of a capsule is no source of a build.
fn not_copied(capsule: CapsuleId, error: &Error) -> String {
    if matches!(error, Error::NotFound(_)) {
        return format!("capsule '{capsule}' not found");
    }
    if matches!(error, Error::Unsaved(_)) {
        return format!(
            "the newest files of capsule '{capsule}' are only in its memory; resume the capsule \
             and build again"
        );
    }
    format!("cannot copy the disk of the capsule: {}", chain(error))
}
