//! Channels: URLs that a team has its events sent to. The transaction of a change also writes its
//! events to the outbox, and `deliver` sends them.

pub(crate) mod deliver;
pub(crate) mod expire;
pub(crate) mod guard;

use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::auth::locked_rights::lock_rights;
use crate::db;
use crate::db::channels::{Channel, Delivery, DeliveryState};
use crate::error::{Error, Result};
use crate::fields::check_title;
use crate::policy::Action;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::Sha256;
use types::{ChannelId, DeliveryId, hex};

/// Most channels of a team.
const CHANNELS_MAX: i64 = 32;
/// Longest URL, in bytes.
const URL_MAX: usize = 2000;
/// Kinds of events.
pub(crate) const EVENTS: [&str; 37] = [
    "capsule.created",
    "capsule.running",
    "capsule.pausing",
    "capsule.paused",
    "capsule.resuming",
    "capsule.error",
    "capsule.missing",
    "capsule.stopping",
    "capsule.destroyed",
    "capsule.changed",
    "template.created",
    "template.changed",
    "template.deleted",
    "template.build.started",
    "template.build.ready",
    "template.build.failed",
    "template.build.cancelled",
    "template.snapshot.created",
    "template.snapshot.deleted",
    "template.tag.assigned",
    "template.tag.deleted",
    "key.created",
    "key.revoked",
    "member.added",
    "member.role",
    "member.removed",
    "invitation.created",
    "invitation.removed",
    "team.changed",
    "team.limits",
    "channel.created",
    "channel.changed",
    "channel.deleted",
    "registry.login",
    "registry.logout",
    "host.up",
    "host.down",
];

/// Returns the secret that signs a channel's deliveries. It is derived from the platform's secret,
/// so no channel's row contains it.
pub(crate) fn secret(app: &App, id: ChannelId, version: i32) -> String {
    hex::encode(&mac(&app.channel_secret, format!("{id}.{version}").as_bytes()))
}

/// Returns an HMAC-SHA256.
fn mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    // HMAC takes a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

/// Returns a delivery's signature, over the timestamp, a dot and the body.
fn signature(secret: &str, timestamp: i64, body: &[u8]) -> String {
    let message = [timestamp.to_string().as_bytes(), b".", body].concat();
    format!("sha256={}", hex::encode(&mac(secret.as_bytes(), &message)))
}

fn check_url(app: &App, url: &str) -> Result<()> {
    let wrong = |message: &str| Err(Error::invalid("url", message));
    let Ok(parsed) = reqwest::Url::parse(url) else { return wrong("is not a valid URL") };
    let plain = !url.chars().any(char::is_control) && url.len() <= URL_MAX;
    if !matches!(parsed.scheme(), "http" | "https") || !plain {
        return wrong("must be an HTTP or HTTPS URL of at most 2000 bytes");
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return wrong("must not contain a user or password; deliveries are signed");
    }
    if !app.accounts.private_channels && guard::is_private_literal(&parsed) {
        return wrong("must not have a private address, unless WRENN_WEBHOOK_PRIVATE allows it");
    }
    Ok(())
}

fn check_events(events: &[String]) -> Result<()> {
    events.iter().try_for_each(|event| read_kind("events", event).map(|_| ()))
}

/// Reads the name of a kind of events.
pub(crate) fn read_kind(field: &str, name: &str) -> Result<&'static str> {
    let known = EVENTS.into_iter().find(|event| *event == name);
    known.ok_or_else(|| {
        let known = EVENTS.join(", ");
        let message = format!("contains the unknown event `{name}`; known events are {known}");
        Error::invalid(field, message)
    })
}

pub(crate) async fn create(
    app: &App,
    caller: Caller,
    wanted: api::NewChannel,
) -> Result<api::Channel> {
    let name = check_title("name", &wanted.name)?;
    check_url(app, &wanted.url)?;
    check_events(&wanted.events)?;
    let now = time::OffsetDateTime::now_utc();
    let row = Channel {
        id: ChannelId::new(),
        team_id: caller.team,
        name,
        url: wanted.url,
        events: wanted.events,
        enabled: true,
        version: 1,
        created_at: now,
        updated_at: now,
    };
    let id = row.id;
    let mut tx = app.db.begin().await?;
    let maker = lock_rights(&mut tx, caller, Action::TeamAdmin).await?.maker;
    if db::channels::count(&mut *tx, caller.team).await? >= CHANNELS_MAX {
        return Err(Error::LimitReached("the team", format!("{CHANNELS_MAX} channels")));
    }
    if !db::channels::insert(&mut *tx, &row, maker).await? {
        return Err(Error::Conflict("a channel with this name exists".to_owned()));
    }
    let what = json!({ "name": row.name, "url": row.url, "events": row.events });
    let entry = Entry::new(caller.team, caller.by, "channel.create", id).with(what);
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    Ok(api::Channel { secret: Some(secret(app, id, 1)), ..to_api(row) })
}

/// Returns the channels of the caller's team, the earliest first.
pub(crate) async fn list(app: &App, caller: Caller) -> Result<Vec<Channel>> {
    Ok(db::channels::list(&app.db, caller.team).await?)
}

/// Returns a page of a channel's deliveries, newest first.
pub(crate) async fn deliveries(
    app: &App,
    caller: Caller,
    id: ChannelId,
    before: Option<DeliveryId>,
    limit: i64,
) -> Result<Vec<Delivery>> {
    get(app, caller, id).await?;
    Ok(db::channels::deliveries(&app.db, id, before, limit).await?)
}

pub(crate) async fn get(app: &App, caller: Caller, id: ChannelId) -> Result<Channel> {
    let found = db::channels::find(&app.db, caller.team, id).await?;
    found.ok_or(Error::NotFound("channel"))
}

pub(crate) async fn change(
    app: &App,
    caller: Caller,
    id: ChannelId,
    wanted: api::ChangeChannel,
) -> Result<api::Channel> {
    let what = json!(wanted);
    let name = wanted.name.as_deref().map(|name| check_title("name", name)).transpose()?;
    wanted.url.as_deref().map_or(Ok(()), |url| check_url(app, url))?;
    wanted.events.as_deref().map_or(Ok(()), check_events)?;
    let row = update(app, caller, id, ("channel.change", what), |row| {
        row.name = name.unwrap_or_else(|| row.name.clone());
        row.url = wanted.url.unwrap_or_else(|| row.url.clone());
        row.events = wanted.events.unwrap_or_else(|| row.events.clone());
        row.enabled = wanted.enabled.unwrap_or(row.enabled);
    });
    Ok(to_api(row.await?))
}

/// Makes a new secret, which signs deliveries from now on.
pub(crate) async fn renew(app: &App, caller: Caller, id: ChannelId) -> Result<api::Channel> {
    let action = ("channel.renew_secret", json!({}));
    let row = update(app, caller, id, action, |row| row.version += 1).await?;
    let new = secret(app, id, row.version);
    Ok(api::Channel { secret: Some(new), ..to_api(row) })
}

/// Changes a channel under its lock, so that concurrent changes do not undo each other.
async fn update(
    app: &App,
    caller: Caller,
    id: ChannelId,
    (action, what): (&'static str, serde_json::Value),
    change: impl FnOnce(&mut Channel),
) -> Result<Channel> {
    let mut tx = app.db.begin().await?;
    let maker = lock_rights(&mut tx, caller, Action::TeamAdmin).await?.maker;
    let found = db::channels::lock(&mut *tx, caller.team, id).await?;
    let mut row = found.ok_or(Error::NotFound("channel"))?;
    change(&mut row);
    let taken = |error: sqlx::Error| match error.as_database_error() {
        Some(error) if error.is_unique_violation() => {
            Error::Conflict("a channel with this name exists".to_owned())
        }
        _ => error.into(),
    };
    db::channels::update(&mut *tx, &row, maker).await.map_err(taken)?;
    let entry = Entry::new(caller.team, caller.by, action, id).with(what);
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    Ok(row)
}

pub(crate) async fn delete(app: &App, caller: Caller, id: ChannelId) -> Result<()> {
    let mut tx = app.db.begin().await?;
    lock_rights(&mut tx, caller, Action::TeamAdmin).await?;
    if !db::channels::remove(&mut *tx, caller.team, id).await? {
        return Err(Error::NotFound("channel"));
    }
    let entry = Entry::new(caller.team, caller.by, "channel.delete", id);
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    Ok(())
}

/// Sends a test event to one channel.
pub(crate) async fn test(app: &App, caller: Caller, id: ChannelId) -> Result<DeliveryId> {
    let row = get(app, caller, id).await?;
    let now = time::OffsetDateTime::now_utc();
    let at = now.format(&time::format_description::well_known::Rfc3339);
    let body = json!({ "seq": 0, "transaction": "0", "team_id": row.team_id.0, "kind": "channel.test",
        "resource_type": "channel", "resource_id": row.id.0, "data": {},
        "actor_type": caller.by.principal.kind(), "actor_id": caller.by.principal.id(),
        "created_at": at.map_err(|e| Error::Internal(e.into()))? });
    let sent = db::channels::send(&app.db, id, "channel.test", body).await?;
    let sent = sent.ok_or(Error::NotFound("channel"))?;
    app.streams.wake(Some(caller.team));
    Ok(sent)
}

/// Converts a row to the API's form.
pub(crate) fn to_api(row: Channel) -> api::Channel {
    api::Channel {
        id: row.id.to_string(),
        team_id: row.team_id.to_string(),
        name: row.name,
        url: row.url,
        events: row.events,
        enabled: row.enabled,
        secret: None,
        created_at: row.created_at,
        updated_at: row.updated_at,
    }
}

pub(crate) fn delivery_shown(row: Delivery) -> api::Delivery {
    api::Delivery {
        id: row.id.to_string(),
        event: row.kind,
        next_at: (row.state == DeliveryState::Waiting).then_some(row.next_at),
        status: row.state.to_string(),
        attempts: row.attempts,
        answer: row.answer,
        error: row.error,
        created_at: row.created_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhook_signature_covers_timestamp_and_body() {
        // The value is from `printf '%s' '12.{}' | openssl dgst -sha256 -hmac key`.
        let told = "sha256=043e30e1e15664dc97494d18e4110984bcbd2c4e6f3e19de9569dc1ea6d9b03e";
        assert_eq!(signature("key", 12, b"{}"), told);
        assert_ne!(signature("key", 13, b"{}"), told);
        assert_ne!(signature("kex", 12, b"{}"), told);
    }
}
