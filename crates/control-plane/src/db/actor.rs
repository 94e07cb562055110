//! Actor of events. Triggers write the events, and take the actor from the transaction's setting
//! `wrenn.actor`. The statement that makes a change also makes the setting, so it costs no round
//! trip. Without the setting, the actor is the platform.
//!
//! Statements that lock a team make the setting for the changes after them (`db::teams::lock`,
//! `db::limits::hold`). PostgreSQL skips a part of a statement that nothing refers to. Statements
//! therefore make the setting in a condition, as `set_config(…) IS NOT NULL`.

use crate::audit::{Actor, Principal};
use serde_json::json;
use sqlx::PgConnection;

/// Returns the value of `wrenn.actor` for an actor. A host acts for the platform.
pub(crate) fn setting(by: &Actor) -> String {
    let mut setting = match by.principal {
        Principal::User(id) => json!({ "type": "user", "id": id, "uuid": id.0 }),
        Principal::Key(id) => json!({ "type": "api_key", "id": id, "uuid": id.0 }),
        Principal::Host(_) | Principal::System | Principal::Nobody => {
            json!({ "type": "system", "id": "system" })
        }
    };
    if let Some(reason) = by.reason {
        setting["reason"] = reason.into();
    }
    setting.to_string()
}

/// Names the actor of a transaction's later changes, by a statement of its own. Only rare
/// transactions that lock no team use this statement.
pub(crate) async fn act_as(tx: &mut PgConnection, by: &Actor) -> sqlx::Result<()> {
    let sql = "SELECT set_config('wrenn.actor', $1, true)";
    sqlx::query(sql).bind(setting(by)).execute(tx).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use types::{ApiKeyId, HostId, UserId};

    fn read(principal: Principal, reason: Option<&'static str>) -> Value {
        let by = Actor { principal, from: "192.0.2.1".parse().ok(), reason };
        serde_json::from_str(&setting(&by)).unwrap()
    }

    #[test]
    fn setting_names_users_and_keys_and_hides_hosts_and_addresses() {
        let (user, key) = (UserId::new(), ApiKeyId::new());
        let wanted = json!({ "type": "user", "id": user.to_string(), "uuid": user.0.to_string() });
        assert_eq!(read(Principal::User(user), None), wanted);
        let wanted = json!({ "type": "api_key", "id": key.to_string(), "uuid": key.0.to_string() });
        assert_eq!(read(Principal::Key(key), None), wanted);
        let system = json!({ "type": "system", "id": "system" });
        assert_eq!(read(Principal::Nobody, None), system);
        let host = json!({ "type": "system", "id": "system", "reason": "idle" });
        assert_eq!(read(Principal::Host(HostId::new()), Some("idle")), host);
    }
}
