//! API keys: made, shown once, revoked. A key never may more than who made it may.

use crate::app::App;
use crate::audit::Entry;
use crate::auth::policy::{Action, Resource, SCOPES, scoped};
use crate::auth::{Caller, random_hex};
use crate::db;
use crate::db::keys::Row;
use crate::db::listen::Change;
use crate::error::{Error, Result};
use crate::teams::{check_limits, check_not_platforms, check_title};
use serde_json::json;
use time::OffsetDateTime;
use types::{ApiKeyId, CapsuleId, TeamId, TemplateId, UserId};

/// Characters of a key that are kept, to know it by.
const PREFIX: usize = 10;
/// Longest life of a key that ends, in seconds: ten years.
const EXPIRES_MAX: u64 = 10 * 366 * 86_400;

/// A row for a key of a team that nobody else is told of yet.
pub(crate) fn row(team: TeamId, name: &str, key: &str) -> Row {
    Row {
        id: ApiKeyId::new().0,
        team_id: team.0,
        name: name.to_owned(),
        key_prefix: key.chars().take(PREFIX).collect(),
        created_by: None,
        created_at: OffsetDateTime::now_utc(),
        expires_at: None,
        last_used_at: None,
        operator: false,
        scopes: Vec::new(),
        template_id: None,
        capsule_id: None,
        limits: db::keys::KeyLimits::default(),
    }
}

/// Makes a key; the answer alone has it.
pub(crate) async fn create(app: &App, caller: Caller, wanted: api::NewKey) -> Result<api::ApiKey> {
    check_not_platforms(caller)?;
    let name = check_title("name", &wanted.name)?;
    let key = match wanted.form.as_deref() {
        None | Some("e2b") => crate::auth::new_api_key(),
        Some("wrn") => format!("wrn_{}", random_hex(20)),
        Some(_) => return Err(Error::invalid("form", "must be `e2b` or `wrn`")),
    };
    if let Some(scope) = wanted.scopes.iter().find(|scope| !SCOPES.contains(&scope.as_str())) {
        let message = format!("`{scope}` is none of {}", SCOPES.join(", "));
        return Err(Error::invalid("scopes", message));
    }
    if !scoped(wanted.scopes.iter().map(String::as_str)).within(caller.grants) {
        return Err(Error::invalid("scopes", "allow more than you may yourself"));
    }
    if wanted.operator && !caller.operator {
        return Err(Error::Forbidden("platform"));
    }
    let life = wanted.expires_sec;
    if life.is_some_and(|seconds| !(1..=EXPIRES_MAX).contains(&seconds)) {
        return Err(Error::invalid("expires_sec", format!("must be 1 to {EXPIRES_MAX}")));
    }
    let ends = |seconds| OffsetDateTime::now_utc() + std::time::Duration::from_secs(seconds);
    let limits = wanted.limits.unwrap_or_default();
    for (field, set) in
        [("snapshots", limits.snapshots.is_some()), ("storage_mb", limits.storage_mb.is_some())]
    {
        if set {
            return Err(Error::invalid(format!("limits.{field}"), "is a limit of teams alone"));
        }
    }
    let limits = check_limits(&limits)?;
    let only = confined(app, caller, &wanted).await?;
    let row = Row {
        created_by: creator(app, caller).await?,
        expires_at: life.map(ends),
        operator: wanted.operator,
        scopes: wanted.scopes,
        template_id: only.0.map(|id| id.0),
        capsule_id: only.1.map(|id| id.0),
        ..row(caller.team, &name, &key)
    };
    let id = ApiKeyId(row.id);
    let what = json!({ "name": name, "key_prefix": row.key_prefix, "scopes": row.scopes,
        "operator": row.operator });
    let entry = Entry::new(caller.team, caller.by, "api_key.create", id).with(what);
    let mut tx = app.db.begin().await?;
    db::keys::insert(&mut *tx, &row, &key, &limits).await?;
    db::audit::write(&mut *tx, &entry).await?;
    let kept = db::keys::find(&mut *tx, caller.team, id).await?.ok_or(Error::NotFound("key"))?;
    tx.commit().await?;
    Ok(api::ApiKey { key: Some(key), ..shown(kept) })
}

/// Whose powers a key may not exceed: those of the user who makes it, or who made the key that
/// makes it.
async fn creator(app: &App, caller: Caller) -> Result<Option<uuid::Uuid>> {
    match caller.key() {
        None => Ok(caller.user().map(|user| user.0)),
        Some(key) => {
            let row = db::keys::find(&app.db, caller.team, key).await?;
            Ok(row.ok_or(Error::Unauthenticated)?.created_by)
        }
    }
}

/// What a key is to be confined to, which must be the team's, or shared.
async fn confined(
    app: &App,
    caller: Caller,
    wanted: &api::NewKey,
) -> Result<(Option<TemplateId>, Option<CapsuleId>)> {
    let template = match &wanted.template {
        None => None,
        Some(name) => {
            let found = db::templates::find(&app.db, caller.team, name).await?;
            Some(TemplateId(found.ok_or(Error::NotFound("template"))?.id))
        }
    };
    let capsule = match &wanted.capsule {
        None => None,
        Some(id) => {
            let id = id.parse().map_err(|_| Error::NotFound("capsule"))?;
            Some(crate::capsules::get(app, caller, id).await?.id())
        }
    };
    Ok((template, capsule))
}

/// Revokes a key: one's own, or, as an admin, any of the team's.
pub(crate) async fn revoke(app: &App, caller: Caller, id: ApiKeyId) -> Result<()> {
    let mut tx = app.db.begin().await?;
    let row = db::keys::find(&mut *tx, caller.team, id).await?.ok_or(Error::NotFound("key"))?;
    let own = row.created_by.is_some() && row.created_by == caller.user().map(|user| user.0);
    if !own {
        caller.may(Action::TeamAdmin, Resource::Team)?;
    }
    // An operator's key may be all that is left to manage the platform by.
    if row.operator && !caller.operator {
        return Err(Error::Forbidden("platform"));
    }
    let revoked = db::keys::revoke(&mut *tx, id).await?;
    if revoked.is_some() {
        let entry = Entry::new(caller.team, caller.by, "api_key.revoke", id);
        db::audit::write(&mut *tx, &entry.with(json!({ "name": row.name }))).await?;
    }
    tx.commit().await?;
    if let Some(hash) = revoked.and_then(|hash| hash.try_into().ok()) {
        app.changed(&Change::Key(hash));
    }
    Ok(())
}

/// The wire's shape.
pub(crate) fn shown(row: Row) -> api::ApiKey {
    let own = row.limits.limits();
    let some = |n: u32| (n > 0).then_some(n);
    api::ApiKey {
        id: ApiKeyId(row.id).to_string(),
        team_id: TeamId(row.team_id).to_string(),
        name: row.name,
        key_prefix: row.key_prefix,
        scopes: row.scopes,
        template_id: row.template_id.map(|id| TemplateId(id).to_string()),
        capsule_id: row.capsule_id.map(|id| CapsuleId(id).to_string()),
        operator: row.operator,
        limits: api::Limits {
            capsules: some(own.capsules),
            vcpus: some(own.vcpus),
            memory_mb: (own.memory_mib > 0).then_some(own.memory_mib),
            creates_per_sec: some(own.creates_per_sec),
            requests_per_sec: some(own.requests_per_sec),
            ..api::Limits::default()
        },
        created_by: row.created_by.map(|id| UserId(id).to_string()),
        created_at: row.created_at,
        expires_at: row.expires_at,
        last_used_at: row.last_used_at,
        key: None,
    }
}
