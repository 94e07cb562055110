//! `wrenn team`: commands about the current team and the list of teams.

use super::render;
use crate::cli::{Limits, Team};
use crate::client::Client;
use crate::client_file::ClientFile;
use crate::output::{self, Form};
use anyhow::Context;
use std::path::Path;

pub(crate) async fn team(
    command: Team,
    client: &Client,
    file: &Path,
    form: Form,
) -> anyhow::Result<()> {
    match command {
        Team::List => list(client, form).await,
        Team::Create { name } => {
            let made: api::Team = client.post("/v1/teams", &api::NameTeam { name }).await?;
            render(&made, &made.id, form)
        }
        Team::Use { team } => use_team(&team, client, file).await,
        Team::Rename { name } => {
            let path = path(client, "").await?;
            let change = api::ChangeTeam { name: Some(name), ..Default::default() };
            let named: api::Team = client.patch(&path, &change).await?;
            render(&named, &named.name, form)
        }
        Team::Require { tier } => {
            let path = path(client, "").await?;
            let change = api::ChangeTeam { isolation: Some(tier), ..Default::default() };
            let changed: api::Team = client.patch(&path, &change).await?;
            render(&changed, &changed.isolation, form)
        }
        Team::Logs { keep } => {
            let path = path(client, "").await?;
            let change = api::ChangeTeam { logs: Some(keep), ..Default::default() };
            let changed: api::Team = client.patch(&path, &change).await?;
            render(&changed, &changed.logs, form)
        }
        Team::Members => members(client, form).await,
        Team::Invite(invite) => {
            let body = api::InviteMember { email: invite.email, role: invite.role };
            let path = path(client, "/invitations").await?;
            let made: api::Invitation = client.post(&path, &body).await?;
            render(&made, &made.id, form)
        }
        Team::Invitations => invitations(client, form).await,
        Team::Uninvite { invitation } => {
            client.delete(&path(client, &format!("/invitations/{invitation}")).await?).await
        }
        Team::Accept { token } => {
            let body = api::AcceptInvitation { token };
            let joined: api::Team = client.post("/v1/invitations/accept", &body).await?;
            render(&joined, &format!("{} of {}", joined.role, joined.name), form)
        }
        Team::Role { member, role } => {
            let path = path(client, &format!("/members/{}", id_of(client, &member).await?)).await?;
            client.patch_nothing(&path, &api::ChangeMember { role }).await
        }
        Team::Remove { member } => {
            let path = path(client, &format!("/members/{}", id_of(client, &member).await?)).await?;
            client.delete(&path).await
        }
        Team::Leave => client.post_empty(&path(client, "/leave").await?).await,
        Team::Transfer { member } => {
            let body = api::TransferTeam { user_id: id_of(client, &member).await? };
            client.post_nothing(&path(client, "/transfer").await?, &body).await
        }
        Team::Delete { name } => {
            let current = current(client).await?;
            anyhow::ensure!(current.name == name, "the team is {}, not {name}", current.name);
            client.delete(&format!("/v1/teams/{}", current.id)).await
        }
        Team::Limits(limits) => show_limits(limits, client, form).await,
        Team::Usage { from, to } => usage(from, to, client, form).await,
    }
}

async fn teams(client: &Client) -> anyhow::Result<Vec<api::Team>> {
    Ok(client.get::<api::TeamList>("/v1/teams").await?.items)
}

/// Returns the team that the commands act for.
async fn current(client: &Client) -> anyhow::Result<api::Team> {
    let named = client.team();
    let mut teams = teams(client).await?.into_iter();
    let of = |team: &api::Team| named.map_or(team.default, |id| id == team.id);
    teams.find(of).context("you are not in the selected team; see `wrenn team list`")
}

/// Returns an API path below the current team.
async fn path(client: &Client, rest: &str) -> anyhow::Result<String> {
    let id = match client.team() {
        Some(id) => id.to_owned(),
        None => current(client).await?.id,
    };
    Ok(format!("/v1/teams/{id}{rest}"))
}

/// Returns a member's user id, given the id or the member's e-mail address.
async fn id_of(client: &Client, member: &str) -> anyhow::Result<String> {
    if !member.contains('@') {
        return Ok(member.to_owned());
    }
    let list: api::MemberList = client.get(&path(client, "/members").await?).await?;
    let mut members = list.items.into_iter();
    let found = members.find(|known| known.email.eq_ignore_ascii_case(member));
    let found =
        found.ok_or_else(|| output::not_found(format!("{member} is not a member of the team")));
    Ok(found?.user_id)
}

async fn list(client: &Client, form: Form) -> anyhow::Result<()> {
    let teams = teams(client).await?;
    if form == Form::Json {
        return output::json(&teams);
    }
    let named = client.team();
    let row = |team: api::Team| {
        let used = named.map_or(team.default, |id| id == team.id);
        vec![if used { "*" } else { "" }.to_owned(), team.name, team.role, team.id]
    };
    output::table(&["", "NAME", "ROLE", "ID"], teams.into_iter().map(row).collect());
    Ok(())
}

async fn use_team(wanted: &str, client: &Client, file: &Path) -> anyhow::Result<()> {
    let teams = teams(client).await?;
    let mut found = teams.iter().filter(|team| team.id == wanted || team.name == wanted);
    let none =
        || output::not_found(format!("you are not in a team {wanted}; see `wrenn team list`"));
    let team = found.next().ok_or_else(none)?;
    anyhow::ensure!(found.next().is_none(), "several teams have this name; use the team's id");
    let kept = ClientFile::load(file).context("sign in first with `wrenn login`")?;
    ClientFile { team: Some(team.id.clone()), ..kept }.save(file)?;
    output::line(&format!("Commands on this machine now use the team {}", team.name));
    Ok(())
}

async fn members(client: &Client, form: Form) -> anyhow::Result<()> {
    let list: api::MemberList = client.get(&path(client, "/members").await?).await?;
    if form == Form::Json {
        return output::json(&list.items);
    }
    let row = |m: api::Member| vec![m.name, m.email, m.role, output::ago(m.joined_at), m.user_id];
    let rows = list.items.into_iter().map(row).collect();
    output::table(&["NAME", "E-MAIL", "ROLE", "JOINED", "ID"], rows);
    Ok(())
}

async fn invitations(client: &Client, form: Form) -> anyhow::Result<()> {
    let list: api::InvitationList = client.get(&path(client, "/invitations").await?).await?;
    if form == Form::Json {
        return output::json(&list.items);
    }
    let row = |i: api::Invitation| vec![i.email, i.role, output::ago(i.created_at), i.id];
    output::table(&["E-MAIL", "ROLE", "INVITED", "ID"], list.items.into_iter().map(row).collect());
    Ok(())
}

async fn show_limits(wanted: Limits, client: &Client, form: Form) -> anyhow::Result<()> {
    let of = wanted.of.as_deref().map(|of| match of {
        "default" => "team-0000000000000000000000000",
        id => id,
    });
    let set = api::Limits {
        capsules: wanted.capsules,
        vcpus: wanted.vcpus,
        memory_mib: wanted.memory,
        creates_per_sec: wanted.creates_per_sec,
        requests_per_sec: wanted.requests_per_sec,
        snapshots: wanted.snapshots,
        storage_mib: wanted.storage,
        templates: wanted.templates,
        builds: wanted.builds,
        template_mib: wanted.template_storage,
    };
    let limits: api::TeamLimits = match of {
        None => client.get(&path(client, "/limits").await?).await?,
        Some(id) if wanted.reset || set != api::Limits::default() => {
            client.put(&format!("/v1/admin/teams/{id}/limits"), &set).await?
        }
        Some(id) => client.get(&format!("/v1/admin/teams/{id}/limits")).await?,
    };
    if form == Form::Json {
        return output::json(&limits);
    }
    let text = |limit: u64| if limit == 0 { "none".to_owned() } else { limit.to_string() };
    let held = limits.limits;
    let small = |limit: Option<u32>| text(limit.unwrap_or(0).into());
    let rows = [
        ("capsules", small(held.capsules), limits.capsules.to_string()),
        ("vcpus", small(held.vcpus), limits.vcpus.to_string()),
        ("memory, MiB", text(held.memory_mib.unwrap_or(0)), limits.memory_mib.to_string()),
        ("snapshots", small(held.snapshots), limits.snapshots.to_string()),
        ("storage, MiB", text(held.storage_mib.unwrap_or(0)), limits.storage_mib.to_string()),
        ("templates", small(held.templates), limits.templates.to_string()),
        ("builds at once", small(held.builds), limits.builds.to_string()),
        (
            "template storage, MiB",
            text(held.template_mib.unwrap_or(0)),
            limits.template_mib.to_string(),
        ),
        ("creates per second", small(held.creates_per_sec), String::new()),
        ("requests per second", small(held.requests_per_sec), String::new()),
    ];
    let rows = rows.into_iter().map(|(name, limit, used)| vec![name.to_owned(), limit, used]);
    output::table(&["", "LIMIT", "USED"], rows.collect());
    Ok(())
}

async fn usage(
    from: Option<String>,
    to: Option<String>,
    client: &Client,
    form: Form,
) -> anyhow::Result<()> {
    let asked = [("from", from), ("to", to)];
    let usage: api::Usage = client.get(&super::query("/v1/usage", &asked)).await?;
    if form == Form::Json {
        return output::json(&usage.items);
    }
    let row = |day: api::DailyUsage| {
        vec![
            day.day.to_string(),
            format!("{:.2}", day.vcpu_seconds / 3600.0),
            format!("{:.2}", day.memory_mib_seconds / 3600.0 / 1024.0),
            format!("{:.2}", day.storage_mib_seconds / 3600.0 / 1024.0),
        ]
    };
    let used = |day: &api::DailyUsage| day.vcpu_seconds + day.storage_mib_seconds > 0.0;
    let rows = usage.items.into_iter().filter(used).map(row).collect();
    output::table(&["DAY", "VCPU HOURS", "GIB HOURS", "STORED GIB HOURS"], rows);
    Ok(())
}
