//! API keys: creation, revocation and limits. A key is shown once. It never has more rights than
//! its maker.

use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::auth::locked_rights::lock_rights;
use crate::db;
use crate::db::keys::Row;
use crate::db::listen::Change;
use crate::error::{Error, Result};
use crate::fields::check_title;
use crate::limits::Limits;
use crate::policy::{Action, Confinement, KeyScope, Resource, scoped};
use crate::secret::random_hex;
use crate::teams::{check_limits, check_not_platforms};
use serde_json::json;
use sqlx::PgConnection;
use std::num::{NonZeroU32, NonZeroU64};
use time::OffsetDateTime;
use types::{ApiKeyId, TeamId};

/// Number of a key's first characters that are stored, to recognize it by.
const PREFIX: usize = 10;
/// Longest lifetime of a key that expires, in seconds: ten years.
const EXPIRES_MAX: u64 = 10 * 366 * 86_400;
/// Longest chain of keys in which each key made the next one.
const DEPTH_MAX: i64 = 8;

/// Makes the row of a new key, without scopes, limits or an end.
pub(crate) fn row(team: TeamId, name: &str, key: &str) -> Row {
    Row {
        id: ApiKeyId::new(),
        team_id: team,
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
        made_by_key: None,
        counted_as: None,
        limits: db::keys::KeyLimits::default(),
    }
}

/// Creates a key. Only this answer contains it.
pub(crate) async fn create(app: &App, caller: Caller, wanted: api::NewKey) -> Result<api::ApiKey> {
    check_not_platforms(caller)?;
    let name = check_title("name", &wanted.name)?;
    let key = match wanted.form.as_deref() {
        None | Some("e2b") => crate::secret::new_api_key(),
        Some("wrn") => format!("wrn_{}", random_hex(20)),
        Some(_) => return Err(Error::invalid("form", "must be `e2b` or `wrn`")),
    };
    let scopes = read_scopes(&wanted.scopes)?;
    let life = wanted.expires_in;
    if life.is_some_and(|seconds| !(1..=EXPIRES_MAX).contains(&seconds)) {
        return Err(Error::invalid(
            "expires_in",
            format!("must be between 1 and {EXPIRES_MAX} seconds"),
        ));
    }
    let ends = |seconds| OffsetDateTime::now_utc() + std::time::Duration::from_secs(seconds);
    let limits = wanted.limits.unwrap_or_default();
    for (field, set) in [
        ("snapshots", limits.snapshots.is_some()),
        ("storage_mib", limits.storage_mib.is_some()),
        ("templates", limits.templates.is_some()),
        ("builds", limits.builds.is_some()),
        ("template_mib", limits.template_mib.is_some()),
    ] {
        if set {
            return Err(Error::invalid(format!("limits.{field}"), "can only be set for teams"));
        }
    }
    let limits = check_limits(&limits)?;
    let confinement = confinement(app, caller, &wanted).await?;
    let mut tx = app.db.begin().await?;
    let rights = lock_rights(&mut tx, caller, Action::KeysMake).await?;
    if !scoped(scopes.iter().copied()).within(rights.permissions) {
        return Err(Error::invalid("scopes", "must not exceed your own permissions"));
    }
    if wanted.operator && !rights.operator {
        return Err(Error::Forbidden("platform"));
    }
    let row = Row {
        created_by: rights.maker.user,
        expires_at: life.map(ends),
        operator: wanted.operator,
        scopes,
        template_id: confinement.template,
        capsule_id: confinement.capsule,
        ..row(caller.team, &name, &key)
    };
    let (row, limits) = match &rights.key {
        None => (row, limits),
        Some(from) => inherited(&mut tx, row, limits, from).await?,
    };
    let id = row.id;
    let what = json!({ "name": name, "key_prefix": row.key_prefix, "scopes": row.scopes,
        "operator": row.operator });
    let entry = Entry::new(caller.team, caller.by, "api_key.create", id).with(what);
    db::keys::insert(&mut *tx, &row, &key, &limits).await?;
    db::audit::write(&mut *tx, &entry).await?;
    let stored = db::keys::find(&mut *tx, caller.team, id).await?.ok_or(Error::NotFound("key"))?;
    tx.commit().await?;
    Ok(api::ApiKey { key: Some(key), ..to_api(stored) })
}

fn read_scopes(names: &[String]) -> Result<Vec<KeyScope>> {
    let scopes = names.iter().map(|name| {
        name.parse::<KeyScope>().map_err(|_| {
            let known = KeyScope::ALL.map(KeyScope::as_str).join(", ");
            Error::invalid(
                "scopes",
                format!("contains the unknown scope `{name}`; known scopes are {known}"),
            )
        })
    });
    scopes.collect()
}

/// Limits a key that another key makes: none of its limits goes beyond its maker's.
async fn inherited(
    tx: &mut PgConnection,
    row: Row,
    limits: db::limits::Row,
    from: &Row,
) -> Result<(Row, db::limits::Row)> {
    if db::keys::depth(&mut *tx, from.id).await? >= DEPTH_MAX {
        return Err(Error::LimitReached("the key", format!("keys can be nested {DEPTH_MAX} deep")));
    }
    let expires_at = match (row.expires_at, from.expires_at) {
        (Some(end), Some(last)) if end > last => {
            let message = "must not outlast the key that creates it";
            return Err(Error::invalid("expires_in", message));
        }
        (end, last) => end.or(last),
    };
    let own = from.limits.limits();
    let limits = within(limits, &own)?;
    let limited = own.creates_per_sec.is_some() || own.requests_per_sec.is_some();
    let counted_as = if limited { from.counted_as.or(Some(from.id)) } else { None };
    Ok((Row { expires_at, made_by_key: Some(from.id), counted_as, ..row }, limits))
}

/// Returns limits that are at most `own`. A limit that is not asked for is as in `own`. Pure.
fn within(asked: db::limits::Row, own: &Limits) -> Result<db::limits::Row> {
    fn at_most<N: Copy + Ord + Default + ToString>(
        field: &str,
        asked: Option<N>,
        own: Option<N>,
    ) -> Result<Option<N>> {
        let Some(own) = own else { return Ok(asked) };
        let none = N::default();
        match asked {
            None => Ok(Some(own)),
            Some(n) if n != none && n <= own => Ok(asked),
            Some(_) => {
                let message = format!(
                    "must be between 1 and {}, the limit of the key that creates it",
                    own.to_string()
                );
                Err(Error::invalid(format!("limits.{field}"), message))
            }
        }
    }
    Ok(db::limits::Row {
        capsules: at_most("capsules", asked.capsules, own.capsules.map(NonZeroU32::get))?,
        vcpus: at_most("vcpus", asked.vcpus, own.vcpus.map(NonZeroU32::get))?,
        memory_mib: at_most("memory_mib", asked.memory_mib, own.memory_mib.map(NonZeroU64::get))?,
        creates_per_sec: at_most(
            "creates_per_sec",
            asked.creates_per_sec,
            own.creates_per_sec.map(NonZeroU32::get),
        )?,
        requests_per_sec: at_most(
            "requests_per_sec",
            asked.requests_per_sec,
            own.requests_per_sec.map(NonZeroU32::get),
        )?,
        ..asked
    })
}

/// Returns the template and the capsule that a key is to be confined to. They must be the team's or
/// shared.
async fn confinement(app: &App, caller: Caller, wanted: &api::NewKey) -> Result<Confinement> {
    let template = match &wanted.template {
        None => None,
        Some(name) => {
            let found = db::templates::find(&app.db, caller.team, name).await?;
            Some(found.ok_or(Error::NotFound("template"))?.id)
        }
    };
    let capsule = match &wanted.capsule {
        None => None,
        Some(text) => {
            let id = crate::capsules::find_id(app, caller, text).await?;
            let id = id.ok_or(Error::NotFound("capsule"))?;
            Some(crate::capsules::get(app, caller, id).await?.id)
        }
    };
    Ok(Confinement { capsule, template })
}

/// Returns a page of the keys of the caller's team that are not revoked, newest first.
pub(crate) async fn list(
    app: &App,
    caller: Caller,
    before: Option<ApiKeyId>,
    limit: i64,
) -> Result<Vec<Row>> {
    Ok(db::keys::list(&app.db, caller.team, before, limit).await?)
}

/// Revokes a key: the caller's own or, for admins, any key of the team. The keys and invitations
/// made with the key end, and its channels are disabled.
pub(crate) async fn revoke(app: &App, caller: Caller, id: ApiKeyId) -> Result<()> {
    let mut tx = app.db.begin().await?;
    let rights = lock_rights(&mut tx, caller, Action::KeysMake).await?;
    let row = db::keys::find(&mut *tx, caller.team, id).await?.ok_or(Error::NotFound("key"))?;
    let own = row.created_by.is_some() && row.created_by == caller.user();
    if !own {
        Caller { permissions: rights.permissions, ..caller }
            .may(Action::TeamAdmin, Resource::Team)?;
    }
    // An operator's key may be all that is left to manage the platform by.
    if row.operator && !rights.operator {
        return Err(Error::Forbidden("platform"));
    }
    let (hashes, ended) = db::makers::end_of_key(&mut tx, id).await?;
    let entry = Entry::new(caller.team, caller.by, "api_key.revoke", id);
    let entry = entry.with(json!({ "name": row.name, "ended": ended }));
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    for hash in hashes.into_iter().filter_map(|hash| hash.try_into().ok()) {
        app.changed(&Change::Key(hash));
    }
    Ok(())
}

/// Converts a row to the API's form.
pub(crate) fn to_api(row: Row) -> api::ApiKey {
    let own = row.limits.limits();
    api::ApiKey {
        id: row.id.to_string(),
        team_id: row.team_id.to_string(),
        name: row.name,
        key_prefix: row.key_prefix,
        scopes: row.scopes.iter().map(KeyScope::to_string).collect(),
        template_id: row.template_id.map(|id| id.to_string()),
        capsule_id: row.capsule_id.map(|id| id.to_string()),
        operator: row.operator,
        limits: api::Limits {
            capsules: own.capsules.map(NonZeroU32::get),
            vcpus: own.vcpus.map(NonZeroU32::get),
            memory_mib: own.memory_mib.map(NonZeroU64::get),
            creates_per_sec: own.creates_per_sec.map(NonZeroU32::get),
            requests_per_sec: own.requests_per_sec.map(NonZeroU32::get),
            ..api::Limits::default()
        },
        created_by: row.created_by.map(|id| id.to_string()),
        created_at: row.created_at,
        expires_at: row.expires_at,
        last_used_at: row.last_used_at,
        key: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_made_by_a_key_has_at_most_its_makers_limits() {
        let own = Limits {
            capsules: NonZeroU32::new(2),
            memory_mib: NonZeroU64::new(512),
            ..Limits::NONE
        };
        let none = within(db::limits::Row::default(), &own).unwrap();
        assert_eq!((none.capsules, none.vcpus, none.memory_mib), (Some(2), None, Some(512)));
        let asked = |n| db::limits::Row { capsules: Some(n), vcpus: Some(9), ..Default::default() };
        let less = within(asked(1), &own).unwrap();
        assert_eq!((less.capsules, less.vcpus), (Some(1), Some(9)));
        for n in [0, 3] {
            let refused = within(asked(n), &own).unwrap_err().to_string();
            assert!(refused.starts_with("limits.capsules must be between 1 and 2"), "{refused}");
        }
    }
}
