//! Sources that a recipe names. It is pure: it reads the recipe alone and resolves nothing.

use recipe::{Source, Stage};

/// Begin of the reference of an uploaded archive of an image. The hash of the upload follows.
pub(crate) const ARCHIVE: &str = "oci-archive:";

/// Lists the sources that a stage names: its own, and those of its COPY steps.
pub(crate) fn of_stage(stage: &Stage) -> impl Iterator<Item = Source> {
    let copies = stage.steps.iter().filter_map(|step| step.action.as_copy()?.from.clone());
    std::iter::once(stage.source.clone()).chain(copies)
}
