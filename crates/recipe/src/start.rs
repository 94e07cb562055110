//! Start and ready commands: defaults, inheritance, and times of the ready check.

use crate::resolve::Config;
use crate::steps::Command;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Ready command of a template that has a start command alone.
pub const DEFAULT_READY: &str = "sleep 20";
/// Most time that one try of the ready command may take.
pub const TRY_MAX: Duration = Duration::from_secs(30);
/// Default of the time within which a template becomes ready.
pub const READY_WITHIN: Duration = Duration::from_secs(600);
/// Largest time that a template may ask for.
pub const READY_WITHIN_MAX: Duration = Duration::from_secs(3600);

/// Commands that end a build.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Commands {
    /// Program that runs when the template's machine is saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Command>,
    /// Command that succeeds once the machine may be saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<Command>,
}

/// Commands with the origin of their configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Program to start.
    pub start: Option<Command>,
    /// Ready command, with its default.
    pub ready: Option<Command>,
    /// Tells that both come from the base. They then run with the base's user, environment and
    /// working directory.
    pub is_inherited: bool,
}

/// Chooses a template's commands. The base's commands apply only if the template names neither.
/// Empty commands count as absent.
#[must_use]
pub fn resolve(own: &Commands, base: Option<&Commands>) -> Resolved {
    let present = |command: &Option<Command>| command.clone().filter(|c| !is_empty(c));
    let own = Commands { start: present(&own.start), ready: present(&own.ready) };
    let is_inherited = own == Commands::default();
    let inherited = base.filter(|_| is_inherited);
    let chosen = inherited
        .map_or(own, |base| Commands { start: present(&base.start), ready: present(&base.ready) });
    let default = chosen.start.as_ref().map(|_| Command::Shell(DEFAULT_READY.to_owned()));
    let is_inherited = is_inherited && (chosen.start.is_some() || chosen.ready.is_some());
    Resolved { ready: chosen.ready.or(default), start: chosen.start, is_inherited }
}

fn is_empty(command: &Command) -> bool {
    match command {
        Command::Shell(text) | Command::Script { script: text } => text.trim().is_empty(),
        Command::Exec(arguments) => arguments.first().is_none_or(String::is_empty),
    }
}

/// Returns the program that an image starts: its entrypoint with its default arguments. Arguments
/// are dropped after an entrypoint that is a text for a shell, as Docker does.
#[must_use]
pub fn of_image(config: &Config) -> Option<Command> {
    let command = match (&config.entrypoint, &config.cmd) {
        (None, cmd) => cmd.clone(),
        (Some(Command::Exec(program)), None) if program.is_empty() => None,
        (Some(Command::Exec(program)), Some(Command::Exec(arguments))) => {
            Some(Command::Exec([&program[..], &arguments[..]].concat()))
        }
        (Some(Command::Exec(program)), Some(shell @ Command::Shell(_))) => {
            Some(Command::Exec([program.clone(), shell.argv(&["/bin/sh", "-c"])].concat()))
        }
        (Some(entrypoint), _) => Some(entrypoint.clone()),
    };
    command.filter(|command| !is_empty(command))
}

/// Returns the pause before a try of the ready command: 250 ms, 500 ms, 1 s, then 2 s. Tries count
/// from 0.
#[must_use]
pub fn pause_before(attempt: u32) -> Duration {
    Duration::from_millis(250 << attempt.min(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(text: &str) -> Option<Command> {
        Some(Command::Shell(text.to_owned()))
    }

    fn exec(arguments: &[&str]) -> Option<Command> {
        Some(Command::Exec(arguments.iter().map(|text| (*text).to_owned()).collect()))
    }

    #[test]
    fn own_commands_replace_both_of_the_base() {
        let base = Commands { start: shell("serve"), ready: shell("check") };
        let of = |start, ready| resolve(&Commands { start, ready }, Some(&base));
        let inherited = of(None, None);
        assert!(inherited.is_inherited);
        assert_eq!((inherited.start, inherited.ready), (shell("serve"), shell("check")));
        let own = of(shell("other"), None);
        assert!(!own.is_inherited);
        assert_eq!((own.start, own.ready), (shell("other"), shell(DEFAULT_READY)));
        let ready = of(None, shell("true"));
        assert_eq!((ready.start, ready.ready, ready.is_inherited), (None, shell("true"), false));
        assert!(of(shell(" "), exec(&[])).is_inherited);
        let none = resolve(&Commands::default(), None);
        assert_eq!((none.start, none.ready, none.is_inherited), (None, None, false));
    }

    #[test]
    fn image_starts_its_entrypoint_with_arguments() {
        for (entrypoint, cmd, wanted) in [
            (None, None, None),
            (None, exec(&["a"]), exec(&["a"])),
            (None, shell("a b"), shell("a b")),
            (exec(&["a"]), None, exec(&["a"])),
            (exec(&["a"]), exec(&["b"]), exec(&["a", "b"])),
            (exec(&["a"]), shell("b"), exec(&["a", "/bin/sh", "-c", "b"])),
            (shell("a"), exec(&["b"]), shell("a")),
            (exec(&[]), exec(&["b"]), exec(&["b"])),
            (exec(&[]), None, None),
        ] {
            let config = Config { entrypoint, cmd, ..Config::default() };
            assert_eq!(of_image(&config), wanted);
        }
    }

    #[test]
    fn pauses_grow_to_two_seconds() {
        let pauses: Vec<_> = (0..6).map(|attempt| pause_before(attempt).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 2000, 2000]);
    }
}
