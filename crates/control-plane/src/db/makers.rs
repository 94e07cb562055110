//! Makers of keys, invitations, channels and tokens, and the end of these with their maker's
//! rights.

use crate::audit::{Actor, Principal};
use sqlx::{PgConnection, PgExecutor};
use types::{ApiKeyId, TeamId, UserId};

/// Maker of a key, an invitation, a channel or a token. The platform itself has neither user nor
/// key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Maker {
    /// The user, or the maker of the key.
    pub user: Option<UserId>,
    pub key: Option<ApiKeyId>,
}

/// Returns the maker that an actor stands for.
pub(crate) async fn of(db: &mut PgConnection, by: Actor) -> sqlx::Result<Maker> {
    match by.principal {
        Principal::User(id) => Ok(Maker { user: Some(id), key: None }),
        Principal::Key(id) => {
            let user = super::keys::creator(db, id).await?;
            Ok(Maker { user, key: Some(id) })
        }
        Principal::Host(_) | Principal::System | Principal::Nobody => Ok(Maker::default()),
    }
}

/// Counts of keys, invitations and channels that ended with their maker's rights.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub(crate) struct Ended {
    pub keys_revoked: u64,
    pub invitations_deleted: u64,
    pub channels_disabled: u64,
}

/// Deletes a user's invitations and disables the channels that they set. Applies to one team, or to
/// all teams without one. Another admin may enable a channel again, since it belongs to the team.
pub(crate) async fn end_of_user(
    db: &mut PgConnection,
    team: Option<TeamId>,
    user: UserId,
) -> sqlx::Result<Ended> {
    let sql =
        "DELETE FROM invitations WHERE invited_by = $2 AND ($1::uuid IS NULL OR team_id = $1)";
    let deleted = sqlx::query(sql).bind(team).bind(user).execute(&mut *db).await?;
    Ok(Ended {
        keys_revoked: 0,
        invitations_deleted: deleted.rows_affected(),
        channels_disabled: disable_channels(db, team, user).await?,
    })
}

/// Disables the channels that a user set, of one team or of all. Returns their count.
pub(crate) async fn disable_channels(
    db: &mut PgConnection,
    team: Option<TeamId>,
    user: UserId,
) -> sqlx::Result<u64> {
    let sql = "UPDATE channels SET enabled = false, updated_at = now() WHERE created_by = $2 \
               AND enabled AND ($1::uuid IS NULL OR team_id = $1)";
    let disable = sqlx::query(sql).bind(team).bind(user);
    Ok(disable.execute(db).await?.rows_affected())
}

/// Revokes a key and every key that was made with it, deletes their invitations and disables their
/// channels. Returns the hashes of the keys. The caller holds the team, so that no key is made
/// meanwhile.
pub(crate) async fn end_of_key(
    db: &mut PgConnection,
    key: ApiKeyId,
) -> sqlx::Result<(Vec<Vec<u8>>, Ended)> {
    let sql = "WITH RECURSIVE family (id) AS (SELECT $1::uuid UNION \
               SELECT k.id FROM api_keys k JOIN family f ON k.made_by_key = f.id) \
               UPDATE api_keys SET revoked_at = now() WHERE id IN (SELECT id FROM family) \
               AND revoked_at IS NULL RETURNING id, key_hash";
    let revoked: Vec<(ApiKeyId, Vec<u8>)> =
        sqlx::query_as(sql).bind(key).fetch_all(&mut *db).await?;
    let (ids, hashes): (Vec<ApiKeyId>, Vec<Vec<u8>>) = revoked.into_iter().unzip();
    let sql = "DELETE FROM invitations WHERE made_by_key = ANY($1)";
    let deleted = sqlx::query(sql).bind(&ids).execute(&mut *db).await?;
    let sql = "UPDATE channels SET enabled = false, updated_at = now() \
               WHERE made_by_key = ANY($1) AND enabled";
    let disabled = sqlx::query(sql).bind(&ids).execute(&mut *db).await?;
    let ended = Ended {
        keys_revoked: ids.len() as u64,
        invitations_deleted: deleted.rows_affected(),
        channels_disabled: disabled.rows_affected(),
    };
    Ok((hashes, ended))
}

/// Reports whether a maker may still act on the whole platform.
pub(crate) async fn operator_stands(db: impl PgExecutor<'_>, maker: Maker) -> sqlx::Result<bool> {
    let sql = "SELECT operator_stands($1, $2)";
    sqlx::query_scalar(sql).bind(maker.user).bind(maker.key).fetch_one(db).await
}
