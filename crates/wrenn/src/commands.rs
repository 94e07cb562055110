//! What the client commands do: ask the API, show the answer.

mod capsule;
mod cp;
mod doctor;
mod exec;
mod keep;
mod port;
mod shell;

pub(crate) use capsule::capsule;
pub(crate) use doctor::doctor;
pub(crate) use keep::snapshots;

use crate::client::Client;
use crate::output::{self, Form};

/// `wrenn template list`.
pub(crate) async fn templates(client: &Client, form: Form) -> anyhow::Result<()> {
    let list: api::TemplateList = client.get("/v1/templates").await?;
    if form == Form::Json {
        return output::json(&list.items);
    }
    let row = |t: api::Template| {
        let shared = if t.shared { "all teams" } else { "this team" };
        vec![
            t.name,
            t.vcpus.to_string(),
            format!("{} MiB", t.memory_mb),
            format!("{} MiB", t.disk_mb),
            shared.to_owned(),
            t.id,
        ]
    };
    let header = ["NAME", "VCPUS", "MEMORY", "DISK", "FOR", "ID"];
    output::table(&header, list.items.into_iter().map(row).collect());
    Ok(())
}

/// `wrenn host list`.
pub(crate) async fn hosts(client: &Client, form: Form) -> anyhow::Result<()> {
    let list: api::HostList = client.get("/v1/hosts").await?;
    if form == Form::Json {
        return output::json(&list.items);
    }
    let row = |h: api::Host| {
        vec![
            h.name,
            h.status,
            format!("{}/{}", h.driver, h.accelerator),
            h.capsules.to_string(),
            h.cpu_cores.to_string(),
            format!("{} MiB", h.memory_mb),
            format!("{} GiB", h.disk_mb >> 10),
            h.id,
        ]
    };
    let header = ["NAME", "STATUS", "DRIVER", "CAPSULES", "CORES", "MEMORY", "DISK", "ID"];
    output::table(&header, list.items.into_iter().map(row).collect());
    Ok(())
}
