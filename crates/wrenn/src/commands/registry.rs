//! `wrenn registry`: the team's logins to registries. Secrets come from prompts, standard input,
//! files or the environment, and never from arguments.

mod docker;

use super::account::{ask, ask_password};
use super::render;
use super::template::segment;
use crate::cli::{self, Registry};
use crate::client::Client;
use crate::output::{self, Form};
use anyhow::Context;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Largest secret from a file or standard input, in bytes.
const SECRET_MAX: u64 = 64 * 1024;

/// Runs `wrenn registry`.
pub(crate) async fn registry(command: Registry, client: &Client, form: Form) -> anyhow::Result<()> {
    match command {
        Registry::Login(wanted) => {
            let path = path(&wanted.registry)?;
            let login = login(wanted)?;
            let kept: api::RegistryLogin = client.put(&path, &login).await?;
            render(&kept, &format!("stored the login to {}", kept.registry), form)
        }
        Registry::List => list(client, form).await,
        Registry::Logout { registries } => {
            for registry in &registries {
                let removed = client.delete(&path(registry)?).await;
                removed.map_err(|error| output::about(registry, error))?;
            }
            if form == Form::Json { output::json(&registries) } else { Ok(()) }
        }
    }
}

/// Returns the API's path of a registry's login.
fn path(registry: &str) -> anyhow::Result<String> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    if registry.is_empty() || !registry.bytes().all(is_part) {
        let rule = "must be a host, such as ghcr.io or registry.example.com:5000";
        return Err(output::usage(format!("`{registry}` {rule}")));
    }
    Ok(format!("/v1/registries/{}", segment(&registry.to_ascii_lowercase())))
}

fn login(wanted: cli::RegistryLogin) -> anyhow::Result<api::PutRegistryLogin> {
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if wanted.aws {
        return aws(&wanted.registry, var);
    }
    if let Some(file) = wanted.gcp {
        return Ok(api::PutRegistryLogin::Gcp { service_account_json: secret(&file)? });
    }
    let (username, password) = match wanted.username {
        _ if wanted.docker => docker::find(&wanted.registry, var)?,
        Some(username) if wanted.password_stdin => (username, secret(Path::new("-"))?),
        Some(username) => (username, ask_password("Password or access token")?),
        None => (ask("User name")?, ask_password("Password or access token")?),
    };
    Ok(api::PutRegistryLogin::Basic { username, password })
}

/// Reads a secret from a file, or from standard input for `-`. Blanks around it are dropped.
fn secret(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    if file == Path::new("-") {
        let read = std::io::stdin().take(SECRET_MAX).read_to_string(&mut text);
        read.context("cannot read standard input")?;
    } else {
        let what = || format!("cannot read {}", file.display());
        let read = File::open(file).with_context(what)?;
        read.take(SECRET_MAX).read_to_string(&mut text).with_context(what)?;
    }
    anyhow::ensure!(!text.trim().is_empty(), "the secret is empty");
    Ok(text.trim().to_owned())
}

/// Makes the login to Amazon's registry. `var` reads the environment.
fn aws(
    registry: &str,
    var: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<api::PutRegistryLogin> {
    let need = |name: &str| var(name).with_context(|| format!("the variable {name} is not set"));
    // Names are `ACCOUNT.dkr.ecr.REGION.amazonaws.com`, in China with `.cn`.
    let parts: Vec<&str> = registry.split('.').collect();
    let region = match parts[..] {
        [_, "dkr", "ecr" | "ecr-fips", region, "amazonaws", ..] => Some(region.to_owned()),
        _ => None,
    };
    let region = region.or_else(|| var("AWS_REGION")).or_else(|| var("AWS_DEFAULT_REGION"));
    Ok(api::PutRegistryLogin::Aws {
        access_key_id: need("AWS_ACCESS_KEY_ID")?,
        secret_access_key: need("AWS_SECRET_ACCESS_KEY")?,
        region: region.context("the registry's name has no region; set AWS_REGION")?,
    })
}

async fn list(client: &Client, form: Form) -> anyhow::Result<()> {
    let list: api::RegistryLogins = client.get("/v1/registries").await?;
    if form == Form::Json {
        return output::json(&list.items);
    }
    let row = |login: api::RegistryLogin| {
        vec![login.registry, login.kind, login.username, output::ago(login.updated_at)]
    };
    let rows = list.items.into_iter().map(row).collect();
    output::table(&["REGISTRY", "KIND", "USER", "STORED"], rows);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn region_of_amazons_registry_comes_from_its_name() {
        let var = |name: &str| name.starts_with("AWS_").then(|| name.to_lowercase());
        for (registry, expected) in [
            ("1.dkr.ecr.eu-west-1.amazonaws.com", "eu-west-1"),
            ("1.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1"),
            ("public.ecr.aws", "aws_region"),
        ] {
            let login = aws(registry, var).unwrap();
            let api::PutRegistryLogin::Aws { region, access_key_id, .. } = login else { panic!() };
            assert_eq!((region.as_str(), access_key_id.as_str()), (expected, "aws_access_key_id"));
        }
        let error = aws("1.dkr.ecr.eu-west-1.amazonaws.com", |_| None).unwrap_err();
        assert!(error.to_string().contains("AWS_ACCESS_KEY_ID"), "{error}");
    }

    #[test]
    fn registry_is_one_path_segment() {
        assert_eq!(path("Localhost:5000").unwrap(), "/v1/registries/localhost%3A5000");
        for wrong in ["", "https://ghcr.io", "ghcr.io/team", "a b", "a?b"] {
            assert!(path(wrong).is_err(), "{wrong}");
        }
    }
}
