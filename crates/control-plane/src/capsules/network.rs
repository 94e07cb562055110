//! Rules for the network destinations of a capsule. The row holds them, and the host enforces them.

use super::get::get;
use super::settle::settled;
use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use protocol::host;
use serde_json::json;
use types::egress::{Egress, Net, RULES_MAX, Rule};
use types::{CapsuleId, CapsuleState};

/// Parses requested rules. The error names the wrong rule.
pub(crate) fn read(wanted: &api::Network) -> Result<Egress> {
    let rules = |field: &str, texts: &[String]| -> Result<Vec<Rule>> {
        if texts.len() > RULES_MAX {
            return Err(Error::invalid(field, format!("must have at most {RULES_MAX} rules")));
        }
        let rule = |text: &String| text.parse::<Rule>();
        let rules: std::result::Result<_, _> = texts.iter().map(rule).collect();
        rules.map_err(|wrong| Error::invalid(field, format!("is invalid: {wrong}")))
    };
    let allow = rules("network.allow", &wanted.allow)?;
    let mut deny = rules("network.deny", &wanted.deny)?;
    let all = Rule::Net(Net::ALL);
    if wanted.internet == Some(false) && !deny.contains(&all) {
        deny.push(all);
    }
    let egress = Egress { allow, deny, revision: 0 };
    let is_name = |rule: &Rule| matches!(rule, Rule::Name(_));
    if egress.allow.iter().any(is_name) && !egress.denies_all() && !egress.deny.iter().any(is_name)
    {
        let why = "contains host names, which need a denied range; deny 0.0.0.0/0 too";
        return Err(Error::invalid("network.allow", why));
    }
    Ok(egress)
}

/// Converts rules to the API's form.
pub(crate) fn to_api(egress: &Egress) -> api::Network {
    let texts = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect();
    api::Network {
        internet: Some(!egress.denies_all()),
        allow: texts(&egress.allow),
        deny: texts(&egress.deny),
    }
}

/// Makes the host's message for rules.
pub(super) fn wire(egress: &Egress) -> host::Egress {
    let api::Network { allow, deny, .. } = to_api(egress);
    host::Egress { allow, deny, revision: egress.revision, ..Default::default() }
}

/// Has the host of a running capsule enforce the row's rules. They hold when this returns, unless
/// the host knows later ones.
pub(crate) async fn apply(app: &App, capsule: &Capsule) -> Result<()> {
    app.agent_of(capsule)?.set_egress(capsule.id, wire(&capsule.egress)).await
}

/// Replaces the rules of a capsule. In a running capsule they hold when this returns.
pub(crate) async fn set(
    app: &App,
    caller: Caller,
    id: CapsuleId,
    wanted: &api::Network,
) -> Result<Capsule> {
    let egress = read(wanted)?;
    let state = settled(app, caller, id).await?.state;
    if !matches!(state, CapsuleState::Running | CapsuleState::Paused) {
        return Err(Error::NotRunning(state));
    }
    // The row comes first. If a later step fails, the next resume applies the row's rules, and the
    // reconciler corrects the host.
    let api::Network { allow, deny, .. } = to_api(&egress);
    let what = json!({ "allow": allow, "deny": deny });
    let entry = Entry::new(caller.team, caller.by, "capsule.set_network", id).with(what);
    let mut tx = app.db.begin().await?;
    db::capsules::set_egress(&mut *tx, id, &egress, &caller.by).await?;
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    daemon::failpoint("control.network").map_err(|e| Error::Internal(e.into()))?;
    // A resume at this moment reads the row again when the capsule runs.
    let capsule = get(app, caller, id).await?;
    if capsule.state == CapsuleState::Running {
        apply(app, &capsule).await?;
    }
    Ok(capsule)
}
