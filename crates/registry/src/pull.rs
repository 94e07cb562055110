//! The client of registries: resolves references, and reads manifests and configurations.

use crate::access::{Endpoint, Proof, endpoints};
use crate::blob::{Place, Pull};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::{Image, Parts, assemble, config_blob};
use crate::login::Login;
use crate::manifest::{self, ACCEPT, Bounds, Document, MANIFEST_MAX, Manifest, Refusal};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::settings::Settings;
use crate::transport::{Transport, media_type};
use bytes::Bytes;
use reqwest::{Method, Response};
use std::fmt;
use std::sync::Arc;
use tokio::time::Instant;

/// Header by which registries name a manifest's digest without its contents.
const DIGEST_HEADER: &str = "docker-content-digest";
/// Most tries of a request to a mirror, since another registry can be asked.
const MIRROR_TRIES: u32 = 2;

/// Client of all registries. A clone shares connections.
#[derive(Clone)]
pub struct Client {
    transport: Arc<Transport>,
    platform: Platform,
    bounds: Bounds,
}

/// A reference with the digest that its registry has for it now. Holds the login of its pull.
#[derive(Clone)]
pub struct Resolved {
    reference: Reference,
    digest: Digest,
    pull: Arc<Pull>,
    /// Endpoint that gave the digest.
    endpoint: usize,
}

impl Resolved {
    /// Returns the reference that was resolved.
    #[must_use]
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Returns the digest of the manifest or index. The registry says it, and only
    /// [`Client::image`] checks it.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the credentials that gave access. An image with `Caller` must not be given to
    /// another caller who has not resolved it too.
    #[must_use]
    pub fn proof(&self) -> Proof {
        self.pull.endpoints.get(self.endpoint).map_or(Proof::Caller, Endpoint::proof)
    }

    /// Returns the host that gave the digest: the registry, or a mirror.
    #[must_use]
    pub fn from(&self) -> &str {
        self.pull.endpoints.get(self.endpoint).map_or("", Endpoint::registry)
    }
}

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolved")
            .field("reference", &self.reference)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client. Reads the files that the settings name.
    ///
    /// # Errors
    /// Returns `Settings` or `Login` with the field at fault.
    pub fn new(settings: Settings) -> Result<Self> {
        let settings = settings.normalized()?;
        let platform = settings.platform.clone().unwrap_or_else(Platform::current);
        let limits = &settings.limits;
        let bounds = Bounds { layers: limits.layers, image_bytes: limits.image_bytes };
        let transport = Arc::new(Transport::new(Arc::new(settings))?);
        Ok(Self { transport, platform, bounds })
    }

    /// Returns a client with a lower limit for the compressed bytes of an image, such as a team's.
    /// The limit of the settings holds too. Both clients share connections.
    #[must_use]
    pub fn with_image_bytes(&self, limit: u64) -> Self {
        let image_bytes = self.bounds.image_bytes.min(limit);
        Self { bounds: Bounds { image_bytes, ..self.bounds }, ..self.clone() }
    }

    /// Finds the digest that a reference has now, by one HEAD where the registry asks for no
    /// credentials. Also proves that the login may read the manifest. A digest in the reference
    /// stays, and is proved too.
    ///
    /// # Errors
    /// Returns `ImageNotFound`, `RepositoryNotFound`, `AccessDenied`, `NotAllowed`, and errors of
    /// the connection. With mirrors the error is in `Mirrors`.
    pub async fn resolve(&self, reference: &Reference, login: Option<Login>) -> Result<Resolved> {
        let settings = self.transport.settings();
        settings.access.check(reference)?;
        let deadline = Instant::now() + settings.limits.pull();
        let endpoints = endpoints(settings, reference, login)?;
        let image = reference.to_string();
        let pull = Pull { transport: self.transport.clone(), image, endpoints };
        let mut failures = Failures::default();
        for at in 0..pull.endpoints.len() {
            match self.digest_at(&pull, at, reference, deadline).await {
                Ok(digest) => {
                    let (reference, pull) = (reference.clone(), Arc::new(pull));
                    return Ok(Resolved { reference, digest, pull, endpoint: at });
                }
                Err(error) => failures.add(&pull, at, error)?,
            }
        }
        Err(failures.into_error())
    }

    /// Reads manifest and configuration of an image. Its time limit begins here, and holds for its
    /// layers too.
    ///
    /// # Errors
    /// Returns `Manifest` for images of a kind that is not taken, `WrongDigest`, `WrongSize`,
    /// `TooLarge`, and the errors of `resolve`.
    pub async fn image(&self, resolved: &Resolved) -> Result<Image> {
        let deadline = Instant::now() + self.transport.settings().limits.pull();
        let mut failures = Failures::default();
        let pull = &resolved.pull;
        for at in resolved.endpoint..pull.endpoints.len() {
            match self.image_at(pull, at, &resolved.digest, deadline).await {
                Ok(image) => return Ok(image),
                Err(error) => failures.add(pull, at, error)?,
            }
        }
        Err(failures.into_error())
    }

    async fn digest_at(
        &self,
        pull: &Pull,
        at: usize,
        reference: &Reference,
        deadline: Instant,
    ) -> Result<Digest> {
        let endpoint = endpoint(pull, at)?;
        let by = endpoint.sender(&pull.image, deadline);
        let asked = reference.digest();
        let name = asked.map(Digest::to_string);
        let name = name.as_deref().or(reference.tag()).unwrap_or("latest");
        let request = endpoint.request(Method::HEAD, "manifests", name)?.accept(ACCEPT);
        let response = endpoint.ask(&self.transport, request, self.tries(pull, at), &by).await?;
        if response.status() == 200 {
            no_page(endpoint, &response)?;
            let value = response.headers().get(DIGEST_HEADER).and_then(|value| value.to_str().ok());
            let found: Option<Digest> = value.and_then(|value| value.parse().ok());
            match (asked, found) {
                (Some(asked), Some(found)) if *asked != found => {
                    let why = format!("it answers with {found} to {asked}");
                    return Err(Error::Protocol { registry: endpoint.registry().to_owned(), why });
                }
                (Some(digest), Some(_)) => return Ok(digest.clone()),
                (None, Some(digest)) => return Ok(digest),
                (_, None) => {}
            }
        }
        // Some registries answer no HEAD, or without a digest. A failure's text needs a GET, too.
        let (bytes, kind) = self.manifest_bytes(pull, at, (name, 1), deadline).await?;
        manifest::parse(&bytes, kind.as_deref(), self.bounds).map_err(|why| refused(pull, why))?;
        match asked {
            Some(asked) => checked(&bytes, asked).map(|()| asked.clone()),
            None => Ok(Digest::sha256(&bytes)),
        }
    }

    async fn image_at(
        &self,
        pull: &Arc<Pull>,
        at: usize,
        asked: &Digest,
        deadline: Instant,
    ) -> Result<Image> {
        let (digest, manifest) = self.manifest_at(pull, at, asked, deadline).await?;
        let place = Place::Registry { pull: pull.clone(), endpoint: at, deadline };
        let from = Some(endpoint(pull, at)?.registry().to_owned());
        let parts = Parts { asked: asked.clone(), digest, manifest, from };
        let config = config_blob(&parts.manifest, place.clone())?.whole().await?;
        let places = vec![place; parts.manifest.layers.len()];
        assemble(parts, &config, places, &self.platform).map_err(|why| refused(pull, why))
    }

    /// Reads the manifest for the platform, through an index if the digest is one's.
    async fn manifest_at(
        &self,
        pull: &Pull,
        at: usize,
        asked: &Digest,
        deadline: Instant,
    ) -> Result<(Digest, Manifest)> {
        let refused = |why| refused(pull, why);
        let index = match self.document(pull, at, asked, deadline).await?.1 {
            Document::Manifest(manifest) => return Ok((asked.clone(), manifest)),
            Document::Index(index) => index,
        };
        let chosen = index.choose(&self.platform).map_err(refused)?;
        let (size, document) = self.document(pull, at, &chosen.digest, deadline).await?;
        if size != chosen.size {
            let what = format!("manifest {}", chosen.digest);
            return Err(Error::WrongSize { what, expected: chosen.size, found: size });
        }
        match document {
            Document::Manifest(manifest) => Ok((chosen.digest, manifest)),
            Document::Index(_) => Err(refused(Refusal::NestedIndex)),
        }
    }

    /// Reads and checks the contents behind a digest. Returns their size, too.
    async fn document(
        &self,
        pull: &Pull,
        at: usize,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<(u64, Document)> {
        let tries = self.tries(pull, at);
        let name = digest.to_string();
        let (bytes, kind) = self.manifest_bytes(pull, at, (&name, tries), deadline).await?;
        checked(&bytes, digest)?;
        let parsed = manifest::parse(&bytes, kind.as_deref(), self.bounds);
        Ok((bytes.len() as u64, parsed.map_err(|why| refused(pull, why))?))
    }

    async fn manifest_bytes(
        &self,
        pull: &Pull,
        at: usize,
        (name, tries): (&str, u32),
        deadline: Instant,
    ) -> Result<(Bytes, Option<String>)> {
        let endpoint = endpoint(pull, at)?;
        let by = endpoint.sender(&pull.image, deadline);
        let request = endpoint.request(Method::GET, "manifests", name)?.accept(ACCEPT);
        let response = endpoint.ask(&self.transport, request, tries, &by).await?;
        if response.status() != 200 {
            return Err(endpoint.status(&self.transport, response, &by).await);
        }
        no_page(endpoint, &response)?;
        let kind = media_type(&response);
        let what = format!("the manifest of '{}'", pull.image);
        Ok((self.transport.body(response, (&what, MANIFEST_MAX), &by).await?, kind))
    }

    fn tries(&self, pull: &Pull, at: usize) -> u32 {
        let tries = self.transport.settings().limits.tries;
        if at + 1 < pull.endpoints.len() { tries.min(MIRROR_TRIES) } else { tries }
    }
}

/// Failures of a pull's endpoints, in order.
#[derive(Default)]
struct Failures {
    mirrors: Vec<String>,
    last: Option<Error>,
}

impl Failures {
    /// Adds a failure.
    ///
    /// # Errors
    /// Returns the failure itself if no other endpoint could help.
    fn add(&mut self, pull: &Pull, at: usize, error: Error) -> Result<()> {
        if error.is_final() {
            return Err(error);
        }
        if at + 1 < pull.endpoints.len() {
            tracing::warn!(image = pull.image, %error, "a mirror fails");
            let mirror = pull.endpoints.get(at).map_or("", Endpoint::registry);
            self.mirrors.push(format!("{mirror}: {error}"));
        }
        self.last = Some(error);
        Ok(())
    }

    fn into_error(self) -> Error {
        // Each image has at least the endpoint of its registry.
        let nobody = || Error::Protocol { registry: String::new(), why: "nobody was asked".into() };
        let last = self.last.unwrap_or_else(nobody);
        if self.mirrors.is_empty() {
            return last;
        }
        Error::Mirrors { last: Box::new(last), mirrors: self.mirrors.join("; ") }
    }
}

fn endpoint(pull: &Pull, at: usize) -> Result<&Endpoint> {
    pull.endpoints.get(at).ok_or_else(|| Error::Protocol {
        registry: String::new(),
        why: "nobody is left to be asked".to_owned(),
    })
}

/// Compares contents with their digest.
fn checked(bytes: &[u8], digest: &Digest) -> Result<()> {
    if digest.fits(bytes) {
        return Ok(());
    }
    let (expected, found) = (digest.clone(), Digest::sha256(bytes));
    Err(Error::WrongDigest { what: "the manifest".to_owned(), expected, found })
}

/// Refuses a web page, which portals and proxies give in place of a registry's answer.
fn no_page(endpoint: &Endpoint, response: &Response) -> Result<()> {
    if media_type(response).is_none_or(|kind| kind != "text/html") {
        return Ok(());
    }
    let registry = endpoint.registry().to_owned();
    Err(Error::NotARegistry { registry, why: "it answers with a page (text/html)".to_owned() })
}

fn refused(pull: &Pull, why: Refusal) -> Error {
    Error::Manifest { image: pull.image.clone(), why }
}
