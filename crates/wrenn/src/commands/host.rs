//! `wrenn host`: commands about the machines that run capsules.

use crate::cli::Host;
use crate::client::Client;
use crate::output::{self, Form};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

pub(crate) async fn host(command: Host, client: &Client, form: Form) -> anyhow::Result<()> {
    match command {
        Host::Add(add) => {
            let wanted = api::NewHost { name: add.name, team_id: add.team, tags: add.tags };
            invited(&client.post("/v1/hosts", &wanted).await?, form)
        }
        Host::Token { host } => {
            let path = path(client, &host, "/token").await?;
            invited(&client.post(&path, &serde_json::json!({})).await?, form)
        }
        Host::List => list(client, form).await,
        Host::Show { host } => show(&client.get(&path(client, &host, "").await?).await?, form),
        Host::Drain(drain) => {
            let path = path(client, &drain.host, "/drain").await?;
            show(&client.post(&path, &api::DrainHost { drain: !drain.undo }).await?, form)
        }
        Host::Tag { host, tags } => {
            let path = path(client, &host, "/tags").await?;
            show(&client.put(&path, &api::HostTags { tags }).await?, form)
        }
        Host::Delete(delete) => {
            let path = path(client, &delete.host, "").await?;
            if delete.force {
                let loss: api::HostLoss = client.get(&format!("{path}/delete-preview")).await?;
                if !delete.yes && !agreed(&loss)? {
                    anyhow::bail!("the host was not deleted");
                }
            }
            let force = if delete.force { "?force=true" } else { "" };
            client.delete(&format!("{path}{force}")).await
        }
    }
}

/// Returns a host's API path, given the host's id or name. `rest` is appended.
async fn path(client: &Client, host: &str, rest: &str) -> anyhow::Result<String> {
    if host.starts_with(types::HostId::PREFIX) {
        let id = utf8_percent_encode(host, NON_ALPHANUMERIC);
        return Ok(format!("/v1/hosts/{id}{rest}"));
    }
    let list: api::HostList = client.get("/v1/hosts").await?;
    match list.items.into_iter().find(|known| known.name == host) {
        Some(known) => Ok(format!("/v1/hosts/{}{rest}", known.id)),
        None => Err(output::not_found(format!("no host has the name {host}"))),
    }
}

fn invited(invited: &api::HostToken, form: Form) -> anyhow::Result<()> {
    if form == Form::Json {
        return output::json(invited);
    }
    output::line(&invited.registration_token);
    output::note(&format!(
        "On that machine, within one hour, run: wrenn agent --register TOKEN --address IP:PORT \
         --control-plane URL\nUntil then, host {} is pending.",
        invited.host.id
    ));
    Ok(())
}

/// Shows the capsules, snapshots and versions that would be lost, and asks for confirmation.
fn agreed(loss: &api::HostLoss) -> anyhow::Result<bool> {
    if loss.capsules.is_empty() && loss.snapshots == 0 && loss.versions == 0 {
        return Ok(true);
    }
    for capsule in &loss.capsules {
        output::note(&format!("{} of {}: {}", capsule.id, capsule.team_id, capsule.status));
    }
    output::note(&format!(
        "{} capsules, {} snapshots and {} versions of templates would be lost.",
        loss.capsules.len(),
        loss.snapshots,
        loss.versions
    ));
    super::agreed("Delete the host?")
}

fn state(host: &api::Host) -> String {
    let draining = if host.draining { ", draining" } else { "" };
    format!("{}{draining}", host.status)
}

async fn list(client: &Client, form: Form) -> anyhow::Result<()> {
    let list: api::HostList = client.get("/v1/hosts").await?;
    if form == Form::Json {
        return output::json(&list.items);
    }
    let row = |h: api::Host| {
        vec![
            state(&h),
            format!("{}/{}", h.driver, h.accelerator),
            h.isolation,
            h.capsules.to_string(),
            format!("{}/{}", h.used_vcpus, h.vcpus),
            format!("{}/{} MiB", h.used_memory_mib, h.memory_mib),
            format!("{}/{} GiB", h.used_disk_mib >> 10, h.disk_mib >> 10),
            h.tags.join(" "),
            h.id,
            h.name,
        ]
    };
    let mut rows = Vec::new();
    for host in list.items {
        let mut row = row(host);
        row.rotate_right(1);
        rows.push(row);
    }
    let header = [
        "NAME",
        "STATUS",
        "DRIVER",
        "ISOLATION",
        "CAPSULES",
        "VCPUS",
        "MEMORY",
        "DISK",
        "TAGS",
        "ID",
    ];
    output::table(&header, rows);
    Ok(())
}

fn show(host: &api::Host, form: Form) -> anyhow::Result<()> {
    if form == Form::Json {
        return output::json(host);
    }
    let time = |at: Option<time::OffsetDateTime>| {
        at.map_or_else(
            || "never".to_owned(),
            |at| humantime::format_rfc3339_seconds(at.into()).to_string(),
        )
    };
    let rows = [
        ("id", host.id.clone()),
        ("name", host.name.clone()),
        ("status", state(host)),
        ("address", host.address.clone()),
        ("machine", format!("{}, {} cores, wrenn {}", host.arch, host.cpu_cores, host.version)),
        ("driver", format!("{}/{}", host.driver, host.accelerator)),
        ("isolation", host.isolation.clone()),
        ("team", host.team_id.clone().unwrap_or_else(|| "anyone's".to_owned())),
        ("tags", host.tags.join(" ")),
        ("templates", host.templates.join(" ")),
        ("capsules", host.capsules.to_string()),
        ("vcpus", format!("{} of {}", host.used_vcpus, host.vcpus)),
        ("memory", format!("{} of {} MiB", host.used_memory_mib, host.memory_mib)),
        ("disk", format!("{} of {} MiB", host.used_disk_mib, host.disk_mib)),
        ("load", format!("{} %", host.load.cpu_load_percent)),
        (
            "free",
            format!("{} MiB, {} MiB of disk", host.load.free_memory_mib, host.load.free_disk_mib),
        ),
        ("certificate", host.cert_fingerprint.clone().unwrap_or_else(|| "none".to_owned())),
        ("expires", time(host.cert_expires_at)),
        ("last heartbeat", time(host.last_heartbeat_at)),
    ];
    let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    output::table(&["", ""], rows);
    Ok(())
}
