//! Flags of a control plane about users: sign-up, sign-in, mail and the audit log.

use anyhow::Context;
use clap::Args;
use control_plane::{Accounts as AccountSettings, MailSettings, Provider, SignUp};
use std::path::{Path, PathBuf};

/// Flags about users and the audit log.
#[derive(Args, Debug, Clone)]
pub(crate) struct Accounts {
    /// People who may sign up: anybody (`open`), people invited to a team or by an admin
    /// (`invited`), or people whom an admin invited (`off`).
    #[arg(long, env = "WRENN_SIGNUP", default_value = "invited",
        value_parser = ["open", "invited", "off"])]
    pub signup: String,
    /// URL of the API for browsers, to which sign-in providers redirect. Default: the public URL.
    #[arg(long, env = "WRENN_API_URL")]
    pub api_url: Option<String>,
    /// URL of the mail server, such as smtps://user:password@host or smtp://host:25.
    #[arg(long, env = "WRENN_SMTP_URL", hide_env_values = true)]
    pub smtp_url: Option<String>,
    /// Sender address of mails.
    #[arg(long, env = "WRENN_MAIL_FROM", default_value = "Wrenn <wrenn@localhost>")]
    pub mail_from: String,
    /// Folder to write mail to when no mail server is set. Default with `wrenn up`: `outbox` in the
    /// platform's folder.
    #[arg(long, env = "WRENN_MAIL_OUTBOX")]
    pub mail_outbox: Option<PathBuf>,
    /// Client id of the OAuth app for sign-in with GitHub.
    #[arg(long, env = "OAUTH_GITHUB_CLIENT_ID")]
    pub github_client_id: Option<String>,
    /// Client secret of the OAuth app for sign-in with GitHub.
    #[arg(long, env = "OAUTH_GITHUB_CLIENT_SECRET", hide_env_values = true)]
    pub github_client_secret: Option<String>,
    /// URL of GitHub, or of a GitHub Enterprise Server.
    #[arg(long, env = "OAUTH_GITHUB_URL", default_value = "https://github.com")]
    pub github_url: String,
    /// Issuer URL of an OpenID Connect provider for sign-in.
    #[arg(long, env = "OIDC_ISSUER")]
    pub oidc_issuer: Option<String>,
    /// Client id at the OpenID Connect provider.
    #[arg(long, env = "OIDC_CLIENT_ID")]
    pub oidc_client_id: Option<String>,
    /// Client secret at the OpenID Connect provider.
    #[arg(long, env = "OIDC_CLIENT_SECRET", hide_env_values = true)]
    pub oidc_client_secret: Option<String>,
    /// Name of the OpenID Connect provider in URL paths.
    #[arg(long, env = "OIDC_NAME", default_value = "oidc")]
    pub oidc_name: String,
    /// Allow webhooks to private addresses, for example to a service beside the platform.
    #[arg(long, env = "WRENN_WEBHOOK_PRIVATE", value_parser = super::flag(),
        default_value = "false", default_missing_value = "true", num_args = 0..=1)]
    pub webhook_private: bool,
    /// Record commands, file accesses and traffic in the audit log too.
    #[arg(long, env = "WRENN_AUDIT_ACCESS", value_parser = super::flag(),
        default_value = "false", default_missing_value = "true", num_args = 0..=1)]
    pub audit_access: bool,
    /// Days to keep entries of the audit log. 0 means forever.
    #[arg(long, env = "WRENN_AUDIT_DAYS", default_value_t = 365)]
    pub audit_days: u32,
}

/// Returns a setting's text, or `None` for a variable that is set to nothing.
fn given(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

impl Accounts {
    /// Builds the control plane's settings of users. `url` is the API's URL unless another was
    /// given.
    pub(super) fn to_settings(&self, url: &str) -> anyhow::Result<AccountSettings> {
        let sign_up = match self.signup.as_str() {
            "open" => SignUp::Open,
            "off" => SignUp::Off,
            _ => SignUp::Invited,
        };
        let url = given(self.api_url.as_ref()).unwrap_or_else(|| url.to_owned());
        let url = url.trim_end_matches('/').to_owned();
        Ok(AccountSettings::new(sign_up, self.providers()?, url, self.webhook_private))
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
            anyhow::ensure!(
                own,
                "OIDC_NAME must consist of letters, digits and `-`, and must not be `github`"
            );
            let id = given(self.oidc_client_id.as_ref()).context("OIDC_CLIENT_ID is not set")?;
            let secret = given(self.oidc_client_secret.as_ref());
            provider(&self.oidc_name, &issuer, id, secret).context("OIDC_CLIENT_SECRET is not set")
        });
        [github, oidc].into_iter().flatten().collect()
    }

    /// Builds the settings of mail, given the platform's folder, if there is one.
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
