//! A control plane's settings of users: how they come in, how they are written to, what is noted.

use anyhow::Context;
use clap::Args;
use control_plane::{Accounts as Told, MailSettings, Provider, SignUp};
use std::path::{Path, PathBuf};

/// Users and what is noted of them.
#[derive(Args, Debug, Clone)]
pub(crate) struct Accounts {
    /// Who may sign up: `open`, `invited` (to a team, or by an admin) or `off` (by an admin alone).
    #[arg(long, env = "WRENN_SIGNUP", default_value = "invited",
        value_parser = ["open", "invited", "off"])]
    pub signup: String,
    /// URL of the API as browsers reach it, for sign-ins elsewhere to come back to; by default
    /// that of the public URL.
    #[arg(long, env = "WRENN_API_URL")]
    pub api_url: Option<String>,
    /// Where mail is sent by, as smtps://user:password@host or smtp://host:25.
    #[arg(long, env = "WRENN_SMTP_URL", hide_env_values = true)]
    pub smtp_url: Option<String>,
    /// Whom mail comes from.
    #[arg(long, env = "WRENN_MAIL_FROM", default_value = "Wrenn <wrenn@localhost>")]
    pub mail_from: String,
    /// Folder that mail is written to where no server is set; with `wrenn up`, by default `outbox`
    /// in its folder.
    #[arg(long, env = "WRENN_MAIL_OUTBOX")]
    pub mail_outbox: Option<PathBuf>,
    /// Sign-in with GitHub: an OAuth app's.
    #[arg(long, env = "OAUTH_GITHUB_CLIENT_ID")]
    pub github_client_id: Option<String>,
    #[arg(long, env = "OAUTH_GITHUB_CLIENT_SECRET", hide_env_values = true)]
    pub github_client_secret: Option<String>,
    /// GitHub's URL; another for GitHub Enterprise Server.
    #[arg(long, env = "OAUTH_GITHUB_URL", default_value = "https://github.com")]
    pub github_url: String,
    /// Sign-in with any provider of OpenID Connect: its issuer's URL.
    #[arg(long, env = "OIDC_ISSUER")]
    pub oidc_issuer: Option<String>,
    #[arg(long, env = "OIDC_CLIENT_ID")]
    pub oidc_client_id: Option<String>,
    #[arg(long, env = "OIDC_CLIENT_SECRET", hide_env_values = true)]
    pub oidc_client_secret: Option<String>,
    /// What the provider is called in paths.
    #[arg(long, env = "OIDC_NAME", default_value = "oidc")]
    pub oidc_name: String,
    /// Let events be sent to private addresses, as to a service beside the platform.
    #[arg(long, env = "WRENN_WEBHOOK_PRIVATE", value_parser = super::flag(),
        default_value = "false", default_missing_value = "true", num_args = 0..=1)]
    pub webhook_private: bool,
    /// Note commands, files and traffic in the audit log, too.
    #[arg(long, env = "WRENN_AUDIT_ACCESS", value_parser = super::flag(),
        default_value = "false", default_missing_value = "true", num_args = 0..=1)]
    pub audit_access: bool,
    /// Days that the audit log is kept; 0 is for ever.
    #[arg(long, env = "WRENN_AUDIT_DAYS", default_value_t = 365)]
    pub audit_days: u32,
}

/// A variable that is set to nothing is not set.
fn given(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

impl Accounts {
    /// How people come in, where the API is reached by `url` unless another was given.
    pub(super) fn told(&self, url: &str) -> anyhow::Result<Told> {
        let sign_up = match self.signup.as_str() {
            "open" => SignUp::Open,
            "off" => SignUp::Off,
            _ => SignUp::Invited,
        };
        let url = given(self.api_url.as_ref()).unwrap_or_else(|| url.to_owned());
        let url = url.trim_end_matches('/').to_owned();
        Ok(Told::new(sign_up, self.providers()?, url, self.webhook_private))
    }

    fn providers(&self) -> anyhow::Result<Vec<Provider>> {
        let github = given(self.github_client_id.as_ref()).map(|client_id| {
            let secret = given(self.github_client_secret.as_ref());
            provider("github", &self.github_url, client_id, secret)
                .context("OAUTH_GITHUB_CLIENT_SECRET is not set")
        });
        let oidc = given(self.oidc_issuer.as_ref()).map(|issuer| {
            let ok = self.oidc_name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            let own = ok && !self.oidc_name.is_empty() && self.oidc_name != "github";
            anyhow::ensure!(own, "OIDC_NAME must be letters, digits and `-`, and not `github`");
            let id = given(self.oidc_client_id.as_ref()).context("OIDC_CLIENT_ID is not set")?;
            let secret = given(self.oidc_client_secret.as_ref());
            provider(&self.oidc_name, &issuer, id, secret).context("OIDC_CLIENT_SECRET is not set")
        });
        [github, oidc].into_iter().flatten().collect()
    }

    /// Where mail goes, given the platform's folder, if it has one.
    pub(super) fn mail(&self, dir: Option<&Path>) -> MailSettings {
        MailSettings {
            smtp: given(self.smtp_url.as_ref()),
            outbox: self.mail_outbox.clone().or_else(|| Some(dir?.join("outbox"))),
            from: self.mail_from.clone(),
        }
    }
}

fn provider(
    name: &str,
    url: &str,
    client_id: String,
    client_secret: Option<String>,
) -> Option<Provider> {
    let (name, url) = (name.to_owned(), url.trim_end_matches('/').to_owned());
    Some(Provider { name, url, client_id, client_secret: client_secret? })
}
