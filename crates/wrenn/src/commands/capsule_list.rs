//! `wrenn capsule list`, `get`, `rename` and `set`.

use super::capsule::path;
use super::lifecycle;
use crate::cli;
use crate::client::Client;
use crate::output::{self, Form};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// Returns the API's path of a list.
fn query(list: &cli::ListCapsules) -> String {
    let status = Some(list.status.join(",")).filter(|states| !states.is_empty());
    let ended = list.ended.then(|| "true".to_owned());
    let fields = [
        ("status", status),
        ("template", list.template.clone()),
        ("snapshot", list.snapshot.clone()),
        ("host", list.host.clone()),
        ("created_by", list.created_by.clone()),
        ("q", list.name.clone()),
        ("ended", ended),
        ("sort", list.sort.clone()),
    ];
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let mut path = super::query("/v1/capsules", &fields);
    for (key, value) in &list.metadata {
        let mark = if path.contains('?') { '&' } else { '?' };
        path += &format!("{mark}metadata%5B{}%5D={}", encoded(key), encoded(value));
    }
    path
}

pub(super) async fn list(
    list: &cli::ListCapsules,
    client: &Client,
    form: Form,
) -> anyhow::Result<()> {
    let items: Vec<api::Capsule> = client.list(&query(list)).await?;
    if form == Form::Json {
        return output::json(&items);
    }
    let ended = list.ended;
    let row = |c: api::Capsule| {
        vec![
            c.id,
            c.name.unwrap_or_default(),
            status(c.status, c.disk_full),
            c.template,
            c.vcpus.to_string(),
            format!("{} MiB", c.memory_mib),
            output::ago(c.created_at),
            c.ended_at.filter(|_| ended).map(output::ago).unwrap_or_default(),
        ]
    };
    let mut rows: Vec<Vec<String>> = items.into_iter().map(row).collect();
    let mut header = vec!["ID", "NAME", "STATUS", "TEMPLATE", "VCPUS", "MEMORY", "CREATED"];
    match ended {
        true => header.push("ENDED"),
        false => rows.iter_mut().for_each(|row| row.truncate(header.len())),
    }
    output::table(&header, rows);
    Ok(())
}

/// Returns a capsule's status as text for people.
fn status(status: String, disk_full: bool) -> String {
    if disk_full { format!("{status} (disk full)") } else { status }
}

pub(super) async fn get(capsule: &str, client: &Client, form: Form) -> anyhow::Result<()> {
    let found: api::Capsule = client.get(&path(capsule, "?ended=true")?).await?;
    if form == Form::Json {
        return output::json(&found);
    }
    let rows = rows(found).into_iter();
    output::table(&["", ""], rows.map(|(name, value)| vec![name.to_owned(), value]).collect());
    Ok(())
}

/// Describes a capsule, one property a row.
fn rows(found: api::Capsule) -> Vec<(&'static str, String)> {
    let mut rows = vec![("id", found.id)];
    rows.extend(found.name.map(|name| ("name", name)));
    rows.extend([
        ("status", status(found.status, found.disk_full)),
        ("template", found.template),
        ("vcpus", found.vcpus.to_string()),
        ("memory", format!("{} MiB", found.memory_mib)),
        ("disk", format!("{} MiB", found.disk_mib)),
        ("host", found.host_id.unwrap_or_default()),
    ]);
    rows.extend(found.isolation.map(|tier| ("isolation", tier)));
    rows.push(("created", output::ago(found.created_at)));
    rows.extend(found.created_by.map(|by| ("created by", creator(by))));
    rows.extend(found.parent.map(|parent| ("parent", format!("{} {}", parent.r#type, parent.id))));
    rows.extend(found.state_since.map(|at| ("in this state", output::ago(at))));
    if let Some(at) = found.ends_at.filter(|_| found.ended_at.is_none()) {
        let end = humantime::format_rfc3339_seconds(at.into());
        rows.push(("ends", format!("{end} ({})", found.on_timeout)));
    }
    rows.extend(found.ended_at.map(|at| ("ended", output::ago(at))));
    rows.extend(found.snapshot.map(|id| ("started from", id)));
    rows.extend(found.public_ports.iter().map(|port| ("public port", port.to_string())));
    rows.extend(found.error.map(|why| ("error", why)));
    let metadata = found.metadata.into_iter().map(|(name, value)| format!("{name}={value}"));
    rows.extend(metadata.map(|pair| ("metadata", pair)));
    rows
}

fn creator(by: api::Creator) -> String {
    let words = [by.label, by.id, Some(by.r#type)];
    words.into_iter().flatten().next().unwrap_or_default()
}

pub(super) async fn rename(
    capsule: &str,
    name: String,
    client: &Client,
    form: Form,
) -> anyhow::Result<()> {
    let body = api::ChangeCapsule { name: Some(name), ..Default::default() };
    change(capsule, &body, client, form).await
}

pub(super) async fn set(set: cli::SetCapsule, client: &Client, form: Form) -> anyhow::Result<()> {
    let metadata = match set.metadata.is_empty() {
        true => None,
        false => Some(set.metadata.into_iter().collect()),
    };
    let body = api::ChangeCapsule {
        name: set.name.or_else(|| set.no_name.then(String::new)),
        metadata,
        auto_resume: set.auto_resume,
        logs: set.logs,
        idle_timeout: set.idle_timeout.map(lifecycle::seconds),
    };
    change(&set.capsule, &body, client, form).await
}

async fn change(
    capsule: &str,
    body: &api::ChangeCapsule,
    client: &Client,
    form: Form,
) -> anyhow::Result<()> {
    let changed: api::Capsule = client.patch(&path(capsule, "")?, body).await?;
    if form == Form::Json { output::json(&changed) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_become_an_encoded_query() {
        assert_eq!(query(&cli::ListCapsules::default()), "/v1/capsules");
        let list = cli::ListCapsules {
            status: vec!["paused".to_owned(), "error".to_owned()],
            metadata: vec![("a b".to_owned(), "c&d".to_owned())],
            name: Some("we".to_owned()),
            ended: true,
            ..cli::ListCapsules::default()
        };
        let wanted = "/v1/capsules?status=paused%2Cerror&q=we&ended=true\
                      &metadata%5Ba%20b%5D=c%26d";
        assert_eq!(query(&list), wanted);
    }
}
