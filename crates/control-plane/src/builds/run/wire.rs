//! Makes the host's message for a build that begins. Pure.

use crate::db::builds::{Base, Build};
use crate::error::{Error, Result};
use crate::registries::SealedLogin;
use protocol::host::__buffa::oneof::registry_login::Login;
use protocol::host::{BaseVersion, BeginBuildRequest, RegistryLogin, registry_login};

/// Makes the message. `most_bytes` bounds the team's files on the host.
pub(super) fn begin(
    build: &Build,
    template: &str,
    logins: Vec<SealedLogin>,
    most_bytes: Option<u64>,
) -> Result<BeginBuildRequest> {
    let spec = build.spec.as_ref().map(|spec| serde_json::to_vec(&spec.0)).transpose();
    let bases = build.bases.0.iter().map(|(name, base)| (name.clone(), version(base)));
    Ok(BeginBuildRequest {
        build_id: build.id.to_string(),
        team_id: build.team_id.to_string(),
        template: template.to_owned(),
        spec: spec.map_err(|error| Error::Internal(error.into()))?.unwrap_or_default(),
        templates: bases.collect(),
        logins: logins.into_iter().map(login).collect(),
        most_bytes,
        ..Default::default()
    })
}

fn version(base: &Base) -> BaseVersion {
    BaseVersion {
        version_id: base.version.map(|id| id.to_string()),
        template: base.template.clone(),
        team_id: base.team.to_string(),
        ..Default::default()
    }
}

fn login(sealed: SealedLogin) -> RegistryLogin {
    let login = match sealed.login {
        api::PutRegistryLogin::Basic { username, password } => {
            Login::Basic(Box::new(registry_login::Basic {
                username,
                password,
                ..Default::default()
            }))
        }
        api::PutRegistryLogin::Aws { access_key_id, secret_access_key, region } => {
            Login::Aws(Box::new(registry_login::Aws {
                access_key_id,
                secret_access_key,
                region,
                ..Default::default()
            }))
        }
        api::PutRegistryLogin::Gcp { service_account_json } => {
            Login::Gcp(Box::new(registry_login::Gcp { service_account_json, ..Default::default() }))
        }
    };
    RegistryLogin { registry: sealed.registry, login: Some(login), ..Default::default() }
}
