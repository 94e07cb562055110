//! The record of a version's making, as callers see it. Values of variables whose names look like
//! secrets are masked. Pure.

use crate::db::builds::Build;
use recipe::{Action, BuildSpec, Provenance};
use serde_json::Value;
use std::collections::BTreeSet;

/// Parts of names that secrets have.
const SECRETS: [&str; 10] = [
    "secret",
    "token",
    "password",
    "passwd",
    "pwd",
    "api_key",
    "apikey",
    "private",
    "credential",
    "auth",
];
/// Text in place of a secret.
const MASK: &str = "***";
/// Shortest value that is masked inside other texts. A shorter one would hide unrelated text.
const SHORTEST: usize = 4;

/// Returns the record with masked values, if the build has one.
pub(super) fn provenance(row: &Build) -> Option<Value> {
    let provenance = row.provenance.as_ref()?;
    let secrets = secrets(row.spec.as_ref().map(|spec| &spec.0), provenance);
    let mut value = serde_json::to_value(&provenance.0).ok()?;
    mask(&mut value, &secrets);
    Some(value)
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRETS.iter().any(|part| name.contains(part)) || name == "key" || name.ends_with("_key")
}

/// Collects the values of variables whose names look like secrets.
fn secrets(spec: Option<&BuildSpec>, provenance: &Provenance) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut add = |name: &str, value: &str| {
        if is_secret(name) && value.len() >= SHORTEST {
            all.insert(value.to_owned());
        }
    };
    for (name, value) in &provenance.config.env {
        add(name, value);
    }
    let Some(spec) = spec else { return all };
    spec.env.iter().for_each(|(name, value)| add(name, value));
    for step in spec.recipe.stages.iter().flat_map(|stage| &stage.steps) {
        match &step.action {
            Action::Env(values) => values.iter().for_each(|(name, value)| add(name, value)),
            Action::Arg(arg) => {
                let values = [&arg.value, &arg.default];
                values.into_iter().flatten().for_each(|value| add(&arg.name, value));
            }
            Action::Run(_)
            | Action::Copy(_)
            | Action::Workdir(_)
            | Action::User(_)
            | Action::Label(_)
            | Action::Expose(_)
            | Action::Volume(_)
            | Action::StopSignal(_)
            | Action::Healthcheck(_)
            | Action::Entrypoint(_)
            | Action::Cmd(_)
            | Action::Onbuild(_) => {}
        }
    }
    all
}

/// Masks secrets in all texts. A member with a secret's name is masked as a whole.
fn mask(value: &mut Value, secrets: &BTreeSet<String>) {
    match value {
        Value::String(text) => {
            for secret in secrets {
                if text.contains(secret.as_str()) {
                    *text = text.replace(secret.as_str(), MASK);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| mask(item, secrets)),
        Value::Object(members) => {
            for (name, member) in members {
                if let Value::String(text) = member
                    && is_secret(name)
                    && name != "key"
                {
                    MASK.clone_into(text);
                } else {
                    mask(member, secrets);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_of_secret_names_are_masked_in_all_texts() {
        let secrets = BTreeSet::from(["hunter22".to_owned()]);
        let mut value = json!({
            "steps": [{"text": "ENV DB_PASSWORD hunter22", "key": "0123"}],
            "config": {"env": {"API_TOKEN": "x", "PATH": "/bin"}},
        });
        mask(&mut value, &secrets);
        assert_eq!(
            value,
            json!({
                "steps": [{"text": "ENV DB_PASSWORD ***", "key": "0123"}],
                "config": {"env": {"API_TOKEN": "***", "PATH": "/bin"}},
            })
        );
        assert!(is_secret("AWS_SECRET_ACCESS_KEY") && is_secret("SSH_KEY") && !is_secret("KEYS"));
    }
}
