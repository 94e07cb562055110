//! Mail to users: by SMTP or, for development, as files in an outbox folder.

use crate::error::{Error, Result};
use anyhow::Context;
use lettre::message::{Mailbox, header::ContentType};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

/// Time limit of an SMTP command.
const PATIENCE: Duration = Duration::from_secs(20);

/// Destination and sender of mail.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// SMTP server, as smtps://user:password@host or smtp://host:25. It takes precedence over the
    /// outbox.
    pub smtp: Option<String>,
    /// Folder that mails are written to.
    pub outbox: Option<PathBuf>,
    /// Sender, as `Wrenn <wrenn@example.com>`.
    pub from: String,
}

enum MailTransport {
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    Outbox(PathBuf),
    Nowhere,
}

/// Sends mail.
pub(crate) struct Mailer {
    transport: MailTransport,
    from: Mailbox,
}

impl Mailer {
    pub(crate) fn new(settings: Settings) -> anyhow::Result<Self> {
        let from = settings.from.parse().context("WRENN_MAIL_FROM is not a valid mailbox")?;
        let transport = match (settings.smtp, settings.outbox) {
            (Some(url), _) => {
                // The URL may hold a password, so the error does not repeat it.
                let smtp = AsyncSmtpTransport::<Tokio1Executor>::from_url(&url).ok();
                let smtp =
                    smtp.context("WRENN_SMTP_URL must have the form smtps://user:password@host")?;
                MailTransport::Smtp(smtp.timeout(Some(PATIENCE)).build())
            }
            (None, Some(folder)) => {
                let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
                made.with_context(|| {
                    format!("cannot create WRENN_MAIL_OUTBOX {}", folder.display())
                })?;
                MailTransport::Outbox(folder)
            }
            (None, None) => MailTransport::Nowhere,
        };
        Ok(Self { transport, from })
    }

    /// Checks that mail can be sent.
    ///
    /// # Errors
    /// [`Error::NoMail`] when neither a server nor an outbox is configured.
    pub(crate) fn check(&self) -> Result<()> {
        if matches!(self.transport, MailTransport::Nowhere) { Err(Error::NoMail) } else { Ok(()) }
    }

    /// Sends a mail. A failure is logged without the mail's text.
    pub(crate) async fn send(&self, to: &str, text: Text) -> Result<()> {
        self.check()?;
        self.deliver(to, text).await.map_err(|error| {
            tracing::warn!(error = format!("{error:#}"), "cannot send a mail");
            Error::MailFailed
        })
    }

    async fn deliver(&self, to: &str, text: Text) -> anyhow::Result<()> {
        let message = Message::builder()
            .from(self.from.clone())
            .to(to.parse()?)
            .subject(text.subject)
            .header(ContentType::TEXT_PLAIN)
            .body(text.body)?;
        match &self.transport {
            MailTransport::Smtp(smtp) => smtp.send(message).await.map(|_| ())?,
            MailTransport::Outbox(folder) => {
                let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
                let path = folder.join(format!("{now}-{}.eml", crate::secret::random_hex(4)));
                daemon::write_private(&path, &message.formatted())?;
                tracing::info!(path = %path.display(), "wrote a mail to the outbox");
            }
            MailTransport::Nowhere => anyhow::bail!("sending mail is not configured"),
        }
        Ok(())
    }
}

/// Subject and body of a mail.
pub(crate) struct Text {
    subject: String,
    body: String,
}

pub(super) fn activation(token: &str) -> Text {
    text(
        "Activate your Wrenn account".to_owned(),
        &[
            "Someone has requested a Wrenn account with this address.",
            "To activate the account, run `wrenn activate` and give this code:",
            &format!("    {token}"),
            "Then give the account's password. If you were invited, choose one.",
            "The code is valid for one day.",
            "If you did not request an account, ignore this mail.",
        ],
    )
}

pub(super) fn there_already() -> Text {
    text(
        "Your Wrenn account".to_owned(),
        &[
            "Someone has requested a Wrenn account with this address.",
            "The address already has an account.",
            "If you have forgotten the password, run",
            "    wrenn reset-password YOUR-ADDRESS",
            "If you did not request an account, ignore this mail.",
        ],
    )
}

pub(super) fn reset(token: &str) -> Text {
    text(
        "A new password for Wrenn".to_owned(),
        &[
            "Someone has requested a new password for your Wrenn account.",
            "To set a new password, run `wrenn reset-password` and give the code",
            &format!("    {token}"),
            "The code is valid for 30 minutes.",
            "If you did not request a password, ignore this mail.",
        ],
    )
}

pub(crate) fn invitation(team: &str, token: &str) -> Text {
    text(
        // A team's name has no control characters, so it ends no header.
        format!("You are invited to the Wrenn team {team}"),
        &[
            "You are invited to this team on Wrenn:",
            &format!("    {team}"),
            "To join the team, sign in with this address and run",
            &format!("    wrenn team accept {token}"),
            "If you have no account, sign up with this address first.",
            "The code is valid for one week.",
        ],
    )
}

/// Joins short lines to a text that the format of a mail cannot break.
fn text(subject: String, lines: &[&str]) -> Text {
    Text { subject, body: lines.join("\n\n") + "\n" }
}
