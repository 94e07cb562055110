//! `wrenn events`: the last events of the team, and then the events as they happen.

use super::follow::{self, Retry};
use super::sse;
use super::template::printable;
use crate::cli::Events;
use crate::client::Client;
use crate::output::{self, Form};
use anyhow::Context;
use futures::StreamExt;

/// Largest page of the API.
const PAGE: usize = 100;
/// Heads of the columns of an event.
const HEAD: [&str; 5] = ["TIME", "EVENT", "RESOURCE", "BY", "DETAILS"];

/// Runs `wrenn events`.
pub(crate) async fn events(wanted: Events, client: &Client, form: Form) -> anyhow::Result<()> {
    match show(&wanted, client, form).await {
        Err(error) if output::reader_left(&error) => Ok(()),
        shown => shown,
    }
}

async fn show(wanted: &Events, client: &Client, form: Form) -> anyhow::Result<()> {
    let mut past = past(wanted, client).await?;
    // The oldest comes first, as in a log.
    past.reverse();
    if !wanted.follow {
        return table(&past, form);
    }
    if form == Form::Human {
        output::stream_line(&aligned(&HEAD.map(str::to_owned)))?;
    }
    let last = past.last().map(|event| event.id.clone());
    for event in past {
        print(&event, form)?;
    }
    follow(wanted, client, last, form).await
}

/// Fetches the last events, newest first.
async fn past(wanted: &Events, client: &Client) -> anyhow::Result<Vec<api::Event>> {
    let kinds = (!wanted.kinds.is_empty()).then(|| wanted.kinds.join(","));
    let mut events: Vec<api::Event> = Vec::new();
    let mut before = None;
    while events.len() < wanted.count {
        let limit = (wanted.count - events.len()).min(PAGE).to_string();
        let asked = [
            ("resource", wanted.resource.clone()),
            ("kind", kinds.clone()),
            ("limit", Some(limit)),
            ("before", before),
        ];
        let page: api::EventPage = client.get(&super::query("/v1/events", &asked)).await?;
        events.extend(page.items);
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    Ok(events)
}

fn table(events: &[api::Event], form: Form) -> anyhow::Result<()> {
    if form == Form::Json {
        return output::json(&events);
    }
    let rows = events.iter().map(|event| Vec::from(columns(event)));
    output::table(&HEAD, rows.collect());
    Ok(())
}

/// Returns the columns of an event: time, kind, resource, actor and details.
fn columns(event: &api::Event) -> [String; 5] {
    let actor = |actor: &api::EventActor| actor.label.clone().unwrap_or_else(|| actor.id.clone());
    let columns = [
        humantime::format_rfc3339_seconds(event.created_at.into()).to_string(),
        event.event.clone(),
        event.resource_id.clone(),
        event.actor.as_ref().map(actor).unwrap_or_default(),
        details(&event.data),
    ];
    columns.map(|text| printable(&text))
}

/// Formats an event's details as `name=value` pairs.
fn details(data: &serde_json::Value) -> String {
    let Some(fields) = data.as_object() else { return String::new() };
    let text = |value: &serde_json::Value| match value.as_str() {
        Some(text) => text.to_owned(),
        None => value.to_string(),
    };
    let pairs: Vec<_> =
        fields.iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
    pairs.join(" ")
}

/// Joins columns for lines that are printed one by one.
fn aligned(columns: &[String; 5]) -> String {
    let [time, event, resource, actor, details] = columns;
    let line = format!("{time:<20}  {event:<25}  {resource:<30}  {actor:<20}  {details}");
    line.trim_end().to_owned()
}

/// Prints one event: a line of JSON for programs, else a line of columns.
fn print(event: &api::Event, form: Form) -> anyhow::Result<()> {
    match form {
        Form::Json => output::stream_line(&serde_json::to_string(event)?),
        Form::Human => output::stream_line(&aligned(&columns(event))),
    }
}

/// Prints events as they happen, after the event `last`. Broken connections are opened again.
async fn follow(
    wanted: &Events,
    client: &Client,
    mut last: Option<String>,
    form: Form,
) -> anyhow::Result<()> {
    let mut retry = Retry::new();
    loop {
        retry.wait().await;
        match read(wanted, client, &mut last, form).await {
            Ok(()) => {
                retry.answered();
                retry.progressed();
            }
            Err(error) if !retry.can_mend(&error) => return Err(error),
            Err(_) => {}
        }
    }
}

/// Prints the events of one connection until it breaks. `last` becomes the last event's id.
async fn read(
    wanted: &Events,
    client: &Client,
    last: &mut Option<String>,
    form: Form,
) -> anyhow::Result<()> {
    let asked = [("resource", wanted.resource.clone())];
    let path = super::query("/v1/events/stream", &asked);
    let mut bytes = follow::open(client, &path, last.as_deref()).await?.bytes_stream();
    let (mut reader, mut frames) = (sse::Reader::default(), Vec::new());
    while let Ok(Some(Ok(part))) = tokio::time::timeout(follow::QUIET, bytes.next()).await {
        reader.feed(&part, &mut frames)?;
        for frame in frames.drain(..) {
            if frame.name == "access_revoked" {
                let why = "the credential has ended, or no longer allows the stream";
                return Err(output::failed(&frame.name, why.to_owned()));
            }
            let what = "the platform sent an event of an unknown form";
            let event: api::Event = serde_json::from_str(&frame.data).context(what)?;
            if wanted.kinds.is_empty() || wanted.kinds.contains(&event.event) {
                print(&event, form)?;
            }
            *last = Some(event.id);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn details_of_an_event_are_pairs_without_control_characters() {
        let event = api::Event {
            id: "1-1".to_owned(),
            team_id: "team-x".to_owned(),
            event: "capsule.error".to_owned(),
            resource_type: "capsule".to_owned(),
            resource_id: "cl-x".to_owned(),
            actor: Some(api::EventActor {
                kind: "api_key".to_owned(),
                id: "key-x".to_owned(),
                label: Some("ci\u{1b}[2J".to_owned()),
            }),
            generation: Some(3),
            data: json!({ "error": "it\nended", "fields": ["a"] }),
            created_at: time::OffsetDateTime::UNIX_EPOCH,
        };
        let shown = columns(&event);
        let wanted = [
            "1970-01-01T00:00:00Z",
            "capsule.error",
            "cl-x",
            "ci",
            "error=it\\u{a}ended fields=[\"a\"]",
        ];
        assert_eq!(shown, wanted);
    }
}
