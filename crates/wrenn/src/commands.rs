//! The client commands: each asks the API and prints the answer.

mod account;
mod capsule;
mod capsule_list;
mod code;
mod cp;
mod doctor;
mod event;
mod exec;
mod follow;
mod host;
mod key;
mod lifecycle;
mod logs;
mod port;
mod ps;
mod registry;
mod shell;
mod sse;
mod stats;
mod team;
mod template;
mod user;

pub(crate) use account::account;
pub(crate) use capsule::capsule;
pub(crate) use code::code;
pub(crate) use doctor::doctor;
pub(crate) use event::events;
pub(crate) use host::host;
pub(crate) use key::{audit, key};
pub(crate) use lifecycle::snapshots;
pub(crate) use registry::registry;
pub(crate) use stats::top;
pub(crate) use team::team;
pub(crate) use template::template;
pub(crate) use user::user;

use crate::output::{self, Form};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::io::{IsTerminal, Write};

/// Appends to a path those query fields that have a value.
fn query(path: &str, fields: &[(&str, Option<String>)]) -> String {
    let given = fields.iter().filter_map(|(name, value)| {
        Some(format!("{name}={}", utf8_percent_encode(value.as_deref()?, NON_ALPHANUMERIC)))
    });
    let given: Vec<String> = given.collect();
    if given.is_empty() { path.to_owned() } else { format!("{path}?{}", given.join("&")) }
}

/// Prints a value as JSON or, for people and scripts, as one line of text.
fn render(value: &impl serde::Serialize, text: &str, form: Form) -> anyhow::Result<()> {
    match form {
        Form::Json => output::json(value),
        Form::Human => {
            output::line(text);
            Ok(())
        }
    }
}

/// Asks for confirmation of an action that cannot be undone.
///
/// # Errors
/// When standard input is no terminal: the caller must pass `--yes` then.
fn agreed(question: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(output::usage("confirmation needs a terminal; use --yes to confirm"));
    }
    write!(std::io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
