//! Conversions between the messages about builds and the agent's own types. All are pure.

use super::wire::parse;
use crate::build::engine::BeginRequest;
use crate::build::events::{Event, Kind};
use crate::build::files::Archive;
use crate::build::parts::BaseVersion;
use crate::build::versions::Listed;
use crate::capsule::Error;
use protocol::host;
use protocol::host::__buffa::oneof::{build_event as wire_event, registry_login};
use recipe::BuildSpec;
use registry::Login;
use types::BuildId;

pub(super) fn build_id(text: &str) -> Result<BuildId, Error> {
    parse("build_id", text)
}

pub(super) fn version_id(text: &str) -> Result<BuildId, Error> {
    parse("version_id", text)
}

impl TryFrom<host::BeginBuildRequest> for BeginRequest {
    type Error = Error;

    fn try_from(request: host::BeginBuildRequest) -> Result<Self, Error> {
        let spec: BuildSpec = serde_json::from_slice(&request.spec)
            .map_err(|error| Error::Invalid(format!("spec: {error}")))?;
        let templates = request.templates.into_iter();
        let templates = templates.map(|(name, base)| Ok((name, BaseVersion::try_from(base)?)));
        Ok(Self {
            id: build_id(&request.build_id)?,
            team: parse("team_id", &request.team_id)?,
            template: request.template,
            spec,
            templates: templates.collect::<Result<_, Error>>()?,
            logins: request.logins.into_iter().map(login).collect::<Result<_, Error>>()?,
            most_bytes: request.most_bytes,
        })
    }
}

impl TryFrom<host::BaseVersion> for BaseVersion {
    type Error = Error;

    fn try_from(base: host::BaseVersion) -> Result<Self, Error> {
        let version = base.version_id.as_deref().map(version_id).transpose()?;
        // The name is a folder's, so it must not lead elsewhere.
        types::names::check_name("template", &base.template)
            .map_err(|error| Error::Invalid(error.to_string()))?;
        Ok(Self { version, template: base.template, team: base.team_id })
    }
}

fn login(login: host::RegistryLogin) -> Result<(String, Login), Error> {
    let registry = login.registry;
    let login = match login.login {
        Some(registry_login::Login::Basic(basic)) => {
            Login::Password { username: basic.username, password: basic.password.into() }
        }
        Some(registry_login::Login::Aws(aws)) => Login::Aws {
            access_key_id: aws.access_key_id.into(),
            secret_access_key: aws.secret_access_key.into(),
            region: aws.region,
            session_token: None,
        },
        Some(registry_login::Login::Gcp(gcp)) => {
            Login::Gcp { service_account_json: gcp.service_account_json.into() }
        }
        None => return Err(Error::Invalid(format!("logins: `{registry}` has no login"))),
    };
    Ok((registry, login))
}

impl From<Event> for host::BuildEvent {
    fn from(event: Event) -> Self {
        let kind = match event.kind {
            Kind::Line { level, step, text } => {
                let level = level.as_str().to_owned();
                host::build_event::Line { level, step, text, ..Default::default() }.into()
            }
            Kind::Phase { name } => host::build_event::Phase { name, ..Default::default() }.into(),
            Kind::Step { number, cached, took_ms } => {
                host::build_event::Step { number, cached, took_ms, ..Default::default() }.into()
            }
            Kind::Prepared { needs_capsule, steps } => {
                host::build_event::Prepared { needs_capsule, steps, ..Default::default() }.into()
            }
            Kind::Built { provenance, bytes, starts } => {
                let provenance = provenance.into_bytes();
                host::build_event::Built { provenance, bytes, starts, ..Default::default() }.into()
            }
            Kind::Failed { step, message, output } => {
                host::build_event::Failed { step, message, output, ..Default::default() }.into()
            }
        };
        let kind: wire_event::Event = kind;
        let (number, at_ms) = (event.number, event.at_ms);
        Self { number, at_ms, event: Some(kind), ..Default::default() }
    }
}

impl From<Listed> for host::list_builds_response::VersionInfo {
    fn from(listed: Listed) -> Self {
        Self {
            version_id: listed.id.to_string(),
            team_id: listed.team,
            bytes: listed.bytes,
            stored: listed.stored,
            ..Default::default()
        }
    }
}

impl From<Archive> for host::list_builds_response::FilesInfo {
    fn from(archive: Archive) -> Self {
        Self {
            team_id: archive.team.to_string(),
            hash: archive.hash,
            bytes: archive.bytes,
            ..Default::default()
        }
    }
}
