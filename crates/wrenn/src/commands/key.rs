//! `wrenn key` and `wrenn audit`.

use crate::cli::{Audit, CreateKey, Key};
use crate::client::Client;
use crate::output::{self, Form};
use futures::StreamExt;

/// Runs `wrenn key`.
pub(crate) async fn key(command: Key, client: &Client, form: Form) -> anyhow::Result<()> {
    match command {
        Key::Create(create) => made(create, client, form).await,
        Key::List => list(client, form).await,
        Key::Revoke { keys } => {
            for key in keys {
                client.delete(&format!("/v1/api-keys/{key}")).await?;
            }
            Ok(())
        }
    }
}

async fn made(wanted: CreateKey, client: &Client, form: Form) -> anyhow::Result<()> {
    let limits = wanted
        .capsules
        .map(|capsules| api::Limits { capsules: Some(capsules), ..api::Limits::default() });
    let body = api::NewKey {
        name: wanted.name,
        form: Some(wanted.form),
        scopes: wanted.scopes,
        template: wanted.template,
        capsule: wanted.capsule,
        expires_in: wanted.expires.map(|life| life.as_secs()),
        operator: wanted.operator,
        limits,
    };
    let made: api::ApiKey = client.post("/v1/api-keys", &body).await?;
    match (form, made.key.as_deref()) {
        (Form::Human, Some(key)) => output::line(key),
        _ => output::json(&made)?,
    }
    Ok(())
}

async fn list(client: &Client, form: Form) -> anyhow::Result<()> {
    let keys: Vec<api::ApiKey> = client.list("/v1/api-keys").await?;
    if form == Form::Json {
        return output::json(&keys);
    }
    let row = |key: api::ApiKey| {
        let operator = key.operator.then(|| "operator".to_owned());
        let only = [key.template_id, key.capsule_id].into_iter().flatten();
        let scopes: Vec<String> = key.scopes.into_iter().chain(operator).chain(only).collect();
        vec![
            key.name,
            format!("{}…", key.key_prefix),
            if scopes.is_empty() { "capsules:admin".to_owned() } else { scopes.join(" ") },
            key.last_used_at.map_or_else(|| "never".to_owned(), output::ago),
            key.expires_at.map_or_else(
                || "never".to_owned(),
                |at| humantime::format_rfc3339_seconds(at.into()).to_string(),
            ),
            key.id,
        ]
    };
    let header = ["NAME", "KEY", "MAY", "USED", "EXPIRES", "ID"];
    output::table(&header, keys.into_iter().map(row).collect());
    Ok(())
}

/// Runs `wrenn audit`.
pub(crate) async fn audit(wanted: Audit, client: &Client, form: Form) -> anyhow::Result<()> {
    let asked = [
        ("actor", wanted.actor),
        ("resource", wanted.resource),
        ("action", wanted.action),
        ("status", wanted.refused.then(|| "refused".to_owned())),
        ("from", wanted.from),
        ("to", wanted.to),
    ];
    if wanted.export {
        let path = super::query("/v1/audit-logs/export", &asked);
        let answer = client.send(client.request(reqwest::Method::GET, &path)).await?;
        let mut bytes = answer.bytes_stream();
        while let Some(part) = bytes.next().await {
            output::raw(&part?)?;
        }
        return Ok(());
    }
    let path = if wanted.all { "/v1/admin/audit-logs" } else { "/v1/audit-logs" };
    let mut entries: Vec<api::AuditLog> = Vec::new();
    let mut before = None;
    while entries.len() < wanted.count {
        let limit = (wanted.count - entries.len()).min(100).to_string();
        let page = [("limit", Some(limit)), ("before", before)];
        let asked: Vec<_> = asked.iter().cloned().chain(page).collect();
        let page: api::AuditLogPage = client.get(&super::query(path, &asked)).await?;
        entries.extend(page.items);
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    if form == Form::Json {
        return output::json(&entries);
    }
    let row = |entry: api::AuditLog| {
        vec![
            humantime::format_rfc3339_seconds(entry.created_at.into()).to_string(),
            entry.action,
            entry.status,
            entry.actor_id,
            entry.address.unwrap_or_default(),
            entry.resource_id,
        ]
    };
    let header = ["TIME", "ACTION", "STATUS", "BY", "FROM", "WHAT"];
    output::table(&header, entries.into_iter().map(row).collect());
    Ok(())
}
