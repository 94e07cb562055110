//! `wrenn login` and the other commands for the caller's own account and session.

use crate::cli::{Account, Activate, Login, ResetPassword, SignUp};
use crate::client::Client;
use crate::client_file::ClientFile;
use crate::output::{self, Form};
use anyhow::Context;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

pub(crate) async fn account(
    command: Account,
    client: &Client,
    file: &Path,
    form: Form,
) -> anyhow::Result<()> {
    match command {
        Account::Login(wanted) => login(wanted, client, file, form).await,
        Account::Logout => logout(client, file).await,
        Account::Signup(wanted) => sign_up(wanted, client).await,
        Account::Activate(wanted) => activate(wanted, client, file, form).await,
        Account::ResetPassword(wanted) => reset_password(wanted, client).await,
        Account::Whoami => whoami(client, form).await,
    }
}

/// Asks for a line of text.
pub(super) fn ask(what: &str) -> anyhow::Result<String> {
    if std::io::stdin().is_terminal() {
        let mut out = std::io::stderr();
        write!(out, "{what}: ")?;
        out.flush()?;
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    anyhow::ensure!(!line.trim().is_empty(), "no {} was given", what.to_lowercase());
    Ok(line.trim().to_owned())
}

/// Asks for a password or a code, hidden on a terminal. Secrets are never arguments, which every
/// user of the machine could see.
pub(super) fn ask_password(what: &str) -> anyhow::Result<String> {
    if std::io::stdin().is_terminal() {
        return rpassword::prompt_password(format!("{what}: ")).context("cannot read the password");
    }
    ask(what)
}

fn store_session(
    client: &Client,
    file: &Path,
    came: api::LoggedIn,
    form: Form,
) -> anyhow::Result<()> {
    let session = came.session_token.context("the platform returned no session")?;
    let before = ClientFile::load(file);
    // A key belongs to the platform that made it, so a key of another platform is dropped.
    let api_key = before.filter(|kept| kept.url == client.base()).and_then(|kept| kept.api_key);
    let url = client.base().to_owned();
    ClientFile { url, api_key, session: Some(session), team: None }.save(file)?;
    match form {
        Form::Json => output::json(&serde_json::json!({ "user_id": came.user_id,
            "email": came.email, "team_id": came.team_id })),
        Form::Human => {
            output::line(&format!("Signed in to {} as {}", client.base(), came.email));
            Ok(())
        }
    }
}

/// Runs `wrenn login`.
async fn login(wanted: Login, client: &Client, file: &Path, form: Form) -> anyhow::Result<()> {
    let email = wanted.email.map_or_else(|| ask("E-mail"), Ok)?;
    let password = ask_password("Password")?;
    let body = api::LogIn { email, password, program: true };
    let came: api::LoggedIn = client.post("/v1/auth/login", &body).await?;
    store_session(client, file, came, form)
}

/// Runs `wrenn logout`.
async fn logout(client: &Client, file: &Path) -> anyhow::Result<()> {
    let kept = ClientFile::load(file).filter(|kept| kept.session.is_some());
    let kept = kept.context("no user is signed in on this machine")?;
    // A session that the platform no longer accepts has ended already.
    match client.post_empty("/v1/auth/logout").await {
        Err(error) if !output::is_refused(&error, "unauthorized") => return Err(error),
        _ => {}
    }
    match kept.api_key {
        Some(_) => ClientFile { session: None, team: None, ..kept }.save(file),
        None => {
            std::fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))
        }
    }
}

/// Runs `wrenn signup`.
async fn sign_up(wanted: SignUp, client: &Client) -> anyhow::Result<()> {
    let password = ask_password("Password for the new account")?;
    let body = api::SignUp { email: wanted.email, name: wanted.name, password };
    let told: api::Message = client.post("/v1/auth/signup", &body).await?;
    output::line(&told.message);
    Ok(())
}

/// Runs `wrenn activate`.
async fn activate(
    wanted: Activate,
    client: &Client,
    file: &Path,
    form: Form,
) -> anyhow::Result<()> {
    let token = ask_password("Code from the mail")?;
    let password = Some(ask_password("Password of the account, or a new password if it has none")?);
    let body = api::Activate { token, password, name: wanted.name, program: true };
    let came: api::LoggedIn = client.post("/v1/auth/activate", &body).await?;
    store_session(client, file, came, form)
}

/// Runs `wrenn reset-password`.
async fn reset_password(wanted: ResetPassword, client: &Client) -> anyhow::Result<()> {
    match wanted.email {
        None => {
            let token = ask_password("Code from the mail")?;
            let new_password = ask_password("New password")?;
            let body = api::ConfirmPassword { token, new_password };
            client.post_nothing("/v1/auth/password/confirm", &body).await?;
            output::line("The password is set. Sign in with `wrenn login`.");
        }
        Some(email) => {
            let body = api::ResetPassword { email };
            let told: api::Message = client.post("/v1/auth/password/reset", &body).await?;
            output::line(&told.message);
        }
    }
    Ok(())
}

/// Runs `wrenn whoami`.
async fn whoami(client: &Client, form: Form) -> anyhow::Result<()> {
    let teams: api::TeamList = client.get("/v1/teams").await?;
    let me: Option<api::Me> = match client.is_user() {
        true => Some(client.get("/v1/me").await?),
        false => None,
    };
    if form == Form::Json {
        return output::json(&serde_json::json!({ "user": me, "teams": teams.items }));
    }
    match me {
        Some(me) => {
            let admin = if me.admin { ", admin of the platform" } else { "" };
            output::line(&format!("{} <{}>{admin}", me.name, me.email));
        }
        None => output::line("an API key"),
    }
    for team in teams.items {
        let default = if team.default { " (default)" } else { "" };
        output::line(&format!("  {} of {} {}{default}", team.role, team.name, team.id));
    }
    Ok(())
}
