//! Container images from registries and archives. The host's side of template builds calls this
//! crate. The crate checks images, passes their layers on as streams, and never unpacks one.
//!
//! Nobody else is trusted: the registry, its token server, its redirects and the image's author are
//! hostile. All bytes and times are bounded. Contents count by their digests alone. Requests go to
//! public addresses unless the operator named the host, and a login goes to its registry alone.
//! Errors name the image, the place, and the setting that helps, and hold no credentials.
//!
//! ```no_run
//! # async fn pull() -> registry::Result<()> {
//! let client = registry::Client::new(registry::Settings::default())?;
//! let resolved = client.resolve(&"ubuntu:22.04".parse()?, None).await?;
//! let image = client.image(&resolved).await?;
//! let mut layer = image.layer(0)?;
//! while let Some(_bytes) = layer.chunk().await? {}
//! # Ok(())
//! # }
//! ```
//!
//! Interfaces: Docker Registry HTTP API V2 and the OCI distribution and image specifications 1.1,
//! as far as a pull needs them.

mod access;
mod blob;
mod challenge;
mod config;
mod digest;
mod ecr;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod guard;
mod image;
mod login;
mod manifest;
mod platform;
mod pull;
mod reference;
mod secret;
mod settings;
mod sigv4;
mod tarball;
mod transport;

pub use access::Proof;
pub use blob::Blob;
pub use config::Config;
pub use digest::{Algorithm, Digest, InvalidDigest};
pub use error::{Error, Result, from_io};
pub use image::{Image, Layer};
pub use login::Login;
pub use manifest::{Compression, Refusal};
pub use platform::Platform;
pub use pull::{Client, Resolved};
pub use reference::{DOCKER_HUB, Reference};
pub use secret::Secret;
pub use settings::{AccessList, Limits, RegistrySettings, Rewrite, Settings};
pub use tarball::Archive;
