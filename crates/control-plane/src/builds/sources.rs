//! Sources that a recipe names. It is pure: it reads the recipe alone and resolves nothing.

use recipe::steps::Copy;
use recipe::{Action, Source, Stage};

/// Begin of the reference of an uploaded archive of an image. The hash of the upload follows.
pub(crate) const ARCHIVE: &str = "oci-archive:";

/// Lists the sources that a stage names: its own, and those of its COPY steps.
pub(crate) fn of_stage(stage: &Stage) -> impl Iterator<Item = Source> {
    let copies = stage.steps.iter().filter_map(|step| copy(&step.action)?.from.clone());
    std::iter::once(stage.source.clone()).chain(copies)
}

/// Returns the COPY of a step; `None` for a step of another kind.
pub(crate) fn copy(action: &Action) -> Option<&Copy> {
    match action {
        Action::Copy(copy) => Some(copy),
        Action::Run(_)
        | Action::Workdir(_)
        | Action::User(_)
        | Action::Env(_)
        | Action::Arg(_)
        | Action::Label(_)
        | Action::Expose(_)
        | Action::Volume(_)
        | Action::StopSignal(_)
        | Action::Healthcheck(_)
        | Action::Entrypoint(_)
        | Action::Cmd(_)
        | Action::Onbuild(_) => None,
    }
}
