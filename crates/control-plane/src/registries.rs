//! Logins of a team to registries. They are write-only: only builds read them.

use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::db;
use crate::db::builds::Build;
use crate::db::registry_logins::{Login, LoginKind};
use crate::error::{Error, Result};
use recipe::Source;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeSet;
use time::OffsetDateTime;
use types::TeamId;

/// Registry of references without a host.
const DOCKER_HUB: &str = "docker.io";
/// Most logins of a team.
const LOGINS_MAX: i64 = 64;
/// Longest host, user name and secret, in bytes.
const HOST_MAX: usize = 300;
const USERNAME_MAX: usize = 1000;
const SECRET_MAX: usize = 32 * 1024;

/// A login as it is sealed.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct SealedLogin {
    pub registry: String,
    pub login: api::PutRegistryLogin,
}

/// Reads the host of a registry. Docker Hub's other names become `docker.io`.
pub(crate) fn read_host(field: &'static str, text: &str) -> Result<String> {
    let host = text.to_ascii_lowercase();
    let authority = host.parse::<http::uri::Authority>().ok();
    let fits = authority.is_some_and(|authority| {
        !authority.host().is_empty() && !host.contains('@') && host.len() <= HOST_MAX
    });
    if !fits {
        return Err(Error::invalid(field, "must be a host name, optionally with a port"));
    }
    Ok(match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => {
            DOCKER_HUB.to_owned()
        }
        _ => host,
    })
}

/// Returns the registry that an image's reference names.
pub(crate) fn registry_of(reference: &str) -> String {
    let (host, _) = split_host(reference);
    read_host("image", host).unwrap_or_else(|_| host.to_owned())
}

fn split_host(reference: &str) -> (&str, &str) {
    match reference.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        _ => (DOCKER_HUB, reference),
    }
}

/// Checks that an image's reference names a repository that can exist. The host checks the rest.
pub(crate) fn check_image(reference: &str) -> Result<()> {
    let (_, path) = split_host(reference);
    let path = path.split_once('@').map_or(path, |(path, _)| path);
    // A repository has no colon, so the first one begins the tag.
    let repository = path.split_once(':').map_or(path, |(repository, _)| repository);
    let is_legal = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
    };
    if repository.split('/').all(|part| !part.is_empty() && part.bytes().all(is_legal)) {
        return Ok(());
    }
    let message = "is no reference: a repository has parts of lower-case letters and digits, such \
                   as `library/python`";
    Err(Error::invalid(format!("image '{reference}'"), message))
}

/// Checks a login. Returns its kind, and the user name that people may see.
pub(crate) fn check(login: &api::PutRegistryLogin) -> Result<(LoginKind, String)> {
    let short = |field: &str, text: &str, most: usize| match (1..=most).contains(&text.len()) {
        true if !text.contains(['\0', '\r', '\n']) || most == SECRET_MAX => Ok(()),
        _ => Err(Error::invalid(field, format!("must have 1 to {most} bytes"))),
    };
    match login {
        api::PutRegistryLogin::Basic { username, password } => {
            short("basic.username", username, USERNAME_MAX)?;
            short("basic.password", password, SECRET_MAX)?;
            if username.contains(':') {
                return Err(Error::invalid("basic.username", "must not contain a colon"));
            }
            Ok((LoginKind::Basic, username.clone()))
        }
        api::PutRegistryLogin::Aws { access_key_id, secret_access_key, region } => {
            short("aws.access_key_id", access_key_id, USERNAME_MAX)?;
            short("aws.secret_access_key", secret_access_key, SECRET_MAX)?;
            short("aws.region", region, 64)?;
            let plain =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            match region.bytes().all(plain) {
                true => Ok((LoginKind::Aws, access_key_id.clone())),
                false => Err(Error::invalid("aws.region", "must have a-z, 0-9 and `-` alone")),
            }
        }
        api::PutRegistryLogin::Gcp { service_account_json } => {
            short("gcp.service_account_json", service_account_json, SECRET_MAX)?;
            let wrong = |_| Error::invalid("gcp.service_account_json", "must be a JSON object");
            let key: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(service_account_json).map_err(wrong)?;
            let account = key.get("client_email").and_then(serde_json::Value::as_str);
            let account = account.unwrap_or("_json_key").chars().take(USERNAME_MAX);
            Ok((LoginKind::Gcp, account.collect()))
        }
    }
}

/// Stores a login of the team in place of an earlier one of the same registry.
pub(crate) async fn set(
    app: &App,
    caller: Caller,
    host: &str,
    login: api::PutRegistryLogin,
) -> Result<Login> {
    let registry = read_host("host", host)?;
    let (kind, username) = check(&login)?;
    let owner = owner_of_team(caller.team, &registry);
    let sealed = seal(app, &owner, &SealedLogin { registry: registry.clone(), login })?;
    let row = Login { registry, kind, username, updated_at: OffsetDateTime::now_utc() };
    let mut tx = app.db.begin().await?;
    if !db::teams::hold(&mut *tx, caller.team).await? {
        return Err(Error::NotFound("team"));
    }
    db::limits::hold(&mut tx, caller.team, &caller.by).await?;
    let others = db::registry_logins::count_others(&mut *tx, caller.team, &row.registry).await?;
    if others >= LOGINS_MAX {
        return Err(Error::LimitReached("the team", format!("{LOGINS_MAX} registry logins")));
    }
    db::registry_logins::set(&mut *tx, caller.team, &row, &sealed).await?;
    let what = json!({ "kind": row.kind, "username": row.username });
    let entry = Entry::new(caller.team, caller.by, "registry.login", &row.registry).with(what);
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    Ok(row)
}

/// Lists the logins of the team, by registry.
pub(crate) async fn list(app: &App, caller: Caller) -> Result<Vec<Login>> {
    Ok(db::registry_logins::list(&app.db, caller.team).await?)
}

/// Removes a login of the team.
pub(crate) async fn delete(app: &App, caller: Caller, host: &str) -> Result<()> {
    let registry = read_host("host", host)?;
    let mut tx = app.db.begin().await?;
    db::actor::act_as(&mut tx, &caller.by).await?;
    if !db::registry_logins::delete(&mut *tx, caller.team, &registry).await? {
        return Err(Error::NotFound("registry login"));
    }
    let entry = Entry::new(caller.team, caller.by, "registry.logout", &registry);
    db::audit::write(&mut *tx, &entry).await?;
    Ok(tx.commit().await?)
}

/// Encrypts a build's own login, which only that build can use.
pub(crate) fn seal_for_build(
    app: &App,
    build: types::BuildId,
    image: &str,
    login: api::PutRegistryLogin,
) -> Result<Vec<u8>> {
    check(&login)?;
    let login = SealedLogin { registry: registry_of(image), login };
    seal(app, &build.to_string(), &login)
}

/// Returns the logins that a build may use: the team's for the registries of its images, and its
/// own in place of the team's.
pub(crate) async fn of_build(app: &App, build: &Build) -> Result<Vec<SealedLogin>> {
    let mut images = BTreeSet::new();
    for stage in build.spec.iter().flat_map(|spec| &spec.recipe.stages) {
        images.extend(stage.sources().filter_map(|source| match source {
            Source::Image(image) => Some(registry_of(image)),
            Source::Template(_) | Source::Capsule(_) | Source::Stage(_) | Source::Scratch => None,
        }));
    }
    let registries: Vec<String> = images.into_iter().collect();
    let mut logins = Vec::new();
    if let Some(sealed) = db::builds::sealed_logins(&app.db, build.id).await? {
        logins.push(open(app, &build.id.to_string(), &sealed)?);
    }
    for (registry, sealed) in
        db::registry_logins::sealed(&app.db, build.team_id, &registries).await?
    {
        if logins.iter().all(|login| login.registry != registry) {
            logins.push(open(app, &owner_of_team(build.team_id, &registry), &sealed)?);
        }
    }
    Ok(logins)
}

fn owner_of_team(team: TeamId, registry: &str) -> String {
    format!("{team} {registry}")
}

fn seal(app: &App, owner: &str, login: &SealedLogin) -> Result<Vec<u8>> {
    let text = serde_json::to_vec(login).map_err(|e| Error::Internal(e.into()))?;
    let failed = || Error::Internal(anyhow::anyhow!("cannot encrypt a login"));
    app.sealer.seal(owner, &text).ok_or_else(failed)
}

fn open(app: &App, owner: &str, sealed: &[u8]) -> Result<SealedLogin> {
    let failed = || Error::Internal(anyhow::anyhow!("cannot decrypt a login"));
    let text = app.sealer.open(owner, sealed).ok_or_else(failed)?;
    serde_json::from_slice(&text).map_err(|_| failed())
}

/// Converts a login to the API's form, which has no secret.
pub(crate) fn to_api(row: Login) -> api::RegistryLogin {
    api::RegistryLogin {
        registry: row.registry,
        kind: row.kind.to_string(),
        username: row.username,
        updated_at: row.updated_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_is_the_host_of_a_reference() {
        for (image, wanted) in [
            ("ubuntu", "docker.io"),
            ("library/ubuntu:22.04", "docker.io"),
            ("index.docker.io/a/b", "docker.io"),
            ("ghcr.io/a/b:1", "ghcr.io"),
            ("localhost:5000/a", "localhost:5000"),
            ("localhost/a", "localhost"),
            ("a.b:1/c@sha256:0", "a.b:1"),
        ] {
            assert_eq!(registry_of(image), wanted, "{image}");
        }
        for bad in ["", "a/b", "u@h", "a b", "a\n"] {
            assert!(read_host("host", bad).is_err(), "{bad}");
        }
        assert_eq!(read_host("host", "GHCR.io").unwrap(), "ghcr.io");
    }

    #[test]
    fn image_of_an_impossible_repository_is_refused() {
        let digest = format!("a/b:1@sha256:{}", "0".repeat(64));
        for good in ["debian", "debian:12", "GHCR.io/a/b_c:V1", "localhost:5000/a", &digest] {
            assert!(check_image(good).is_ok(), "{good}");
        }
        for bad in ["UP/Case", "Debian", "ghcr.io/", "a//b", "ghcr.io/a b", ":1", "https://a.b/c"] {
            let error = check_image(bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("image '{bad}' is no reference")), "{error}");
        }
    }

    #[test]
    fn login_shows_user_and_kind_and_refuses_broken_fields() {
        let gcp = |text: &str| api::PutRegistryLogin::Gcp { service_account_json: text.to_owned() };
        let shown = check(&gcp(r#"{"client_email":"a@b"}"#)).unwrap();
        assert_eq!(shown, (LoginKind::Gcp, "a@b".to_owned()));
        assert!(check(&gcp("[]")).is_err() && check(&gcp("")).is_err());
        let basic = |username: &str, password: &str| {
            check(&api::PutRegistryLogin::Basic {
                username: username.to_owned(),
                password: password.to_owned(),
            })
        };
        assert!(basic("u", "p").is_ok());
        assert!(basic("", "p").is_err() && basic("u:v", "p").is_err() && basic("u", "").is_err());
        let aws = |region: &str| {
            check(&api::PutRegistryLogin::Aws {
                access_key_id: "A".to_owned(),
                secret_access_key: "s".to_owned(),
                region: region.to_owned(),
            })
        };
        assert!(aws("eu-west-1").is_ok() && aws("eu/../x").is_err());
    }
}
