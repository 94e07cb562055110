//! What the client commands do: ask the API, show the answer.

mod capsule;
mod cp;
mod doctor;
mod exec;
mod host;
mod keep;
mod port;
mod shell;

pub(crate) use capsule::capsule;
pub(crate) use doctor::doctor;
pub(crate) use host::host;
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
