//! The layers of an OCI image, flattened into one read-only EROFS image.
//!
//! [`Converter`] takes the layers in their order, as streams, and writes a single file. Contents go
//! straight into that file while a layer is read; the tree of names stays in memory until the end.
//! No path of the host is ever opened, so no layer can reach one, and no root is needed for owners
//! or devices. Equal layers and an equal digest give equal bytes on every host.
//!
//! The crate runs on plain `std::io` and knows neither registries nor capsules. Layers are hostile:
//! [`Limits`] bound bytes, entries and memory, and every [`Error`] names its place.

mod convert;
mod erofs;
mod error;
mod layer;
mod limits;
mod source;
mod tar;
mod tree;

pub use convert::{Converter, LayerSummary, Summary};
pub use erofs::FORMAT;
pub use error::{Error, Fault};
pub use limits::Limits;
