//! `wrenn image import`: a container image as a template of this host. The agent's own store pulls,
//! converts and keeps the image.

use crate::cli::Import;
use crate::output::{self, Progress};
use anyhow::Context;
use host_agent::images::{self, ImageRequest, ImageSource, ImageStore, Program};
use recipe::Pull;
use std::path::Path;
use std::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Beginnings of names of archives. Both kinds are read, whichever the beginning says.
const ARCHIVES: [&str; 2] = ["oci-archive:", "docker-archive:"];
/// Templates that the program itself builds.
const OWN: &str = "base";

/// Imports an image as a template. Returns the digest of the image's manifest.
///
/// # Errors
/// When the image cannot be had, or makes no template.
pub(crate) async fn import(import: &Import) -> anyhow::Result<String> {
    let name = import.name.as_str();
    types::names::check_name("template", name).map_err(|e| output::usage(e.to_string()))?;
    if name == OWN {
        return Err(output::usage(
            "`wrenn image build` makes the template `base`; use another name",
        ));
    }
    let store = ImageStore::new(&import.folder.dir, import.registries.read()?, Program::default());
    let request = ImageRequest {
        source: source(&import.image)?,
        pull: Pull::Always,
        team: "operator".to_owned(),
        limits: store.limits(),
    };
    let cancel = CancellationToken::new();
    let shown = Shown::start(format!("the image {}", import.image));
    let interrupted = async {
        let _ = tokio::signal::ctrl_c().await;
        cancel.cancel();
        std::future::pending::<()>().await;
    };
    let prepared = tokio::select! {
        done = store.prepare(request, |step| shown.show(&step), &cancel) => done?,
        () = interrupted => anyhow::bail!("interrupted"),
    };
    store.publish(&prepared.digest, name)?;
    shown.done();
    Ok(prepared.digest.to_string())
}

/// Reads the place of an image from its text.
fn source(text: &str) -> anyhow::Result<ImageSource> {
    let file = ARCHIVES.iter().find_map(|kind| text.strip_prefix(kind));
    Ok(match file {
        Some(file) => ImageSource::Archive { path: Path::new(file).to_owned(), name: None },
        None => {
            let reference = text.parse().with_context(|| format!("cannot read `{text}`"))?;
            ImageSource::Reference { reference, login: None }
        }
    })
}

/// Progress of an import.
struct Shown(Mutex<Option<Progress>>);

impl Shown {
    fn start(what: String) -> Self {
        Self(Mutex::new(Some(Progress::start(&what))))
    }

    fn show(&self, step: &images::Progress) {
        if let Some(progress) = &*daemon::lock(&self.0) {
            progress.step(&told(step));
        }
    }

    fn done(&self) {
        if let Some(progress) = daemon::lock(&self.0).take() {
            progress.done();
        }
    }
}

fn told(step: &images::Progress) -> String {
    match step {
        images::Progress::Resolved { digest } => format!("found {digest}"),
        images::Progress::Kept => "kept already".to_owned(),
        images::Progress::Waiting => "waiting for another import of the image".to_owned(),
        images::Progress::Pulling { layer, layers, done, all } => format!(
            "layer {layer} of {layers}, {} of {}",
            output::bytes(*done),
            output::bytes(*all)
        ),
        images::Progress::Finishing => "writing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_told_from_references() {
        let archive = source("oci-archive:/tmp/a.tar").unwrap();
        assert!(
            matches!(archive, ImageSource::Archive { path, .. } if path == Path::new("/tmp/a.tar"))
        );
        assert!(matches!(source("ubuntu:24.04").unwrap(), ImageSource::Reference { .. }));
        assert!(source("no such image!").is_err());
    }

    #[test]
    fn steps_of_an_import_are_told_in_bytes() {
        let step = images::Progress::Pulling { layer: 1, layers: 2, done: 1 << 20, all: 3 << 20 };
        assert!(told(&step).starts_with("layer 1 of 2, "), "{}", told(&step));
    }
}
