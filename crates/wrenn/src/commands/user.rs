//! `wrenn user`: the admins' commands about the platform's users.

use super::{agreed, render};
use crate::cli::User;
use crate::client::Client;
use crate::output::{self, Form};
use anyhow::Context;

/// Runs `wrenn user`.
pub(crate) async fn user(command: User, client: &Client, form: Form) -> anyhow::Result<()> {
    let change = |admin: Option<bool>, status: Option<&str>| api::ChangeUser {
        admin,
        status: status.map(str::to_owned),
    };
    let (user, changed) = match command {
        User::List => return users(client, form).await,
        User::Teams => return all_teams(client, form).await,
        User::Invite { email, name } => {
            let body = api::InviteUser { email, name };
            let made: api::User = client.post("/v1/admin/users", &body).await?;
            output::note(
                "A mail with a code for `wrenn activate` was sent. Without a mail server, it is in \
                 `outbox` in WRENN_DIR.",
            );
            return render(&made, &made.id, form);
        }
        User::Erase { user, yes } => {
            let id = user_id(client, &user).await?;
            let sure = yes || agreed(&format!("Erase {user} for good?"))?;
            anyhow::ensure!(sure, "the user was not erased");
            return client.delete(&format!("/v1/admin/users/{id}")).await;
        }
        User::Promote { user } => (user, change(Some(true), None)),
        User::Demote { user } => (user, change(Some(false), None)),
        User::Disable { user } => (user, change(None, Some("disabled"))),
        User::Enable { user } => (user, change(None, Some("active"))),
    };
    let path = format!("/v1/admin/users/{}", user_id(client, &user).await?);
    let user: api::User = client.patch(&path, &changed).await?;
    render(&user, &user.id, form)
}

/// Returns a user's id, given the id or the user's e-mail address.
async fn user_id(client: &Client, user: &str) -> anyhow::Result<String> {
    if !user.contains('@') {
        return Ok(user.to_owned());
    }
    let mut users = client.list::<api::User>("/v1/admin/users").await?.into_iter();
    let found = users.find(|known| known.email.eq_ignore_ascii_case(user));
    Ok(found.with_context(|| format!("no user has the e-mail address {user}"))?.id)
}

async fn users(client: &Client, form: Form) -> anyhow::Result<()> {
    let users: Vec<api::User> = client.list("/v1/admin/users").await?;
    if form == Form::Json {
        return output::json(&users);
    }
    let row = |user: api::User| {
        let admin = if user.admin { "admin" } else { "" };
        vec![user.email, user.name, user.status, admin.to_owned(), user.id]
    };
    let rows = users.into_iter().map(row).collect();
    output::table(&["E-MAIL", "NAME", "STATUS", "", "ID"], rows);
    Ok(())
}

async fn all_teams(client: &Client, form: Form) -> anyhow::Result<()> {
    let teams: Vec<api::AdminTeam> = client.list("/v1/admin/teams").await?;
    if form == Form::Json {
        return output::json(&teams);
    }
    let row = |team: api::AdminTeam| {
        let (members, capsules) = (team.members.to_string(), team.capsules.to_string());
        vec![team.name, members, capsules, output::ago(team.created_at), team.id]
    };
    let rows = teams.into_iter().map(row).collect();
    output::table(&["NAME", "MEMBERS", "CAPSULES", "CREATED", "ID"], rows);
    Ok(())
}
