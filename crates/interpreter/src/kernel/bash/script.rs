//! Lines that the shell executes. Descriptors from 250 on are the interpreter's. Cells arrive on
//! 250, reports leave on 251, and markers on 252 and 253.

use crate::kernel::SEED;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Redirections of the user's code. Its programs get none of the interpreter's descriptors.
const USER_FILES: &str = "</dev/null 250<&- 251>&- 252>&- 253>&-";

/// Puts back the variables that a run had set.
const RESTORE: &str = r#"builtin eval "${__wrenn_restore-}"; __wrenn_restore="#;

/// A script that prepares a run, and warnings for the user.
#[derive(Debug, Default)]
pub(super) struct Setup {
    pub script: String,
    pub warnings: Vec<String>,
}

/// Writes the first line: it moves descriptors, turns off prompts and history, and defines the
/// functions of the later lines. The line ends with the report about run 0.
pub(super) fn prologue(secret: &str) -> String {
    let mark = |file: u32| format!(r#"builtin printf '\0%s:%s\0' {secret} "$1" >&{file}"#);
    let (out, err) = (mark(252), mark(253));
    format!(
        "exec 250<&3 251>&4 252>&1 253>&2 3<&- 4>&-; PS1= PS2= __wrenn_restore= __wrenn_cell=; \
         unset PROMPT_COMMAND HISTFILE MAILCHECK; set +o history +o monitor +H; \
         shopt -u checkwinsize; \
         __wrenn_end() {{ {out}; {err}; builtin printf '%s %s\\n' \"$1\" \"$2\" >&251; }}; \
         __wrenn_sync() {{ __wrenn_cell=; while [[ $__wrenn_cell != \"$1\" ]]; do \
         IFS= builtin read -r -d '' -u 250 __wrenn_cell || :; done; }}; __wrenn_end 0 0\n"
    )
}

/// Writes the line that skips to a token, reads a setup and a cell, evaluates both, and reports the
/// status. Traces that the user has turned on show the user's code alone.
pub(super) fn run(token: &str, number: u64) -> String {
    format!(
        "{{ __wrenn_sync {token}; IFS= builtin read -r -d '' -u 250 __wrenn_setup; \
         IFS= builtin read -r -d '' -u 250 __wrenn_cell; \
         case $- in *x*) builtin set +x; __wrenn_cell=\"set -x; $__wrenn_cell\";; esac; \
         }} >/dev/null 2>&1; builtin eval \"$__wrenn_setup\" >/dev/null; \
         builtin eval \"$__wrenn_cell\" {USER_FILES}; \
         {{ __wrenn_code=$?; builtin set +v; PS1= PS2= PROMPT_COMMAND=; {RESTORE}; \
         __wrenn_end {number} $__wrenn_code; }} >/dev/null 2>&1\n"
    )
}

/// Writes the line that skips cells up to a token and reports the end of a run. The shell may
/// interrupt a read once more than it was asked to, so a read that fails is repeated.
pub(super) fn settle(token: &str, run: u64, status: u8) -> String {
    format!(
        "{{ __wrenn_sync {token}; builtin set +v; {RESTORE}; \
         __wrenn_end {run} {status}; }} >/dev/null 2>&1\n"
    )
}

/// Writes the script that sets variables and the seed before a run.
pub(super) fn setup(
    set: &BTreeMap<String, String>,
    unset: &[String],
    envs: &BTreeMap<String, String>,
    seed: Option<[u8; SEED]>,
) -> Setup {
    let mut setup = Setup::default();
    if let Some([a, b, ..]) = seed {
        let _ = write!(setup.script, "RANDOM={}; ", u16::from_le_bytes([a, b]));
    }
    for name in unset.iter().filter(|name| is_name(name)) {
        let _ = write!(setup.script, "builtin unset -v {name}; ");
    }
    let set = setup.usable(set);
    export(&mut setup.script, &set);
    let envs = setup.usable(envs);
    save(&mut setup.script, &envs);
    export(&mut setup.script, &envs);
    setup
}

impl Setup {
    /// Returns the variables that bash can hold, and warns of the others.
    fn usable<'a>(&mut self, all: &'a BTreeMap<String, String>) -> Vec<(&'a str, &'a str)> {
        let mut usable = Vec::new();
        for (name, value) in all {
            if !is_name(name) {
                self.warnings.push(format!("bash cannot hold a variable named '{name}'\n"));
            } else if value.contains('\0') {
                self.warnings.push(format!("the value of {name} has a NUL character\n"));
            } else {
                usable.push((name.as_str(), value.as_str()));
            }
        }
        usable
    }
}

/// Adds the command that remembers variables, as a script that restores them.
fn save(script: &mut String, variables: &[(&str, &str)]) {
    if variables.is_empty() {
        return;
    }
    let names = variables.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
    let _ = write!(
        script,
        "__wrenn_restore=\"builtin unset -v {names}; $(builtin declare -p {names} 2>/dev/null)\"; "
    );
}

fn export(script: &mut String, variables: &[(&str, &str)]) {
    for (name, value) in variables {
        let _ = write!(script, "builtin export {name}={}; ", quoted(value));
    }
}

/// Tells if bash takes a name for a variable's.
fn is_name(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(is_letter) && name.chars().all(|c| is_letter(c) || c.is_ascii_digit())
}

/// Quotes a value, so that the shell changes nothing in it.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_line_is_one_line() {
        for line in [prologue("s"), run("r", 1), settle("t", 1, 130)] {
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert!(line.ends_with('\n'));
        }
    }

    #[test]
    fn values_are_quoted_and_earlier_ones_remembered() {
        let envs = variables(&[("A", "it's\n$x"), ("B", "")]);
        let setup = setup(&variables(&[("C", "1")]), &["D".to_owned()], &envs, None);
        assert!(setup.script.starts_with("builtin unset -v D; builtin export C='1'; "));
        assert!(setup.script.contains("$(builtin declare -p A B 2>/dev/null)"));
        assert!(setup.script.contains("export A='it'\\''s\n$x'; builtin export B=''; "));
        assert!(setup.warnings.is_empty());
    }

    #[test]
    fn variables_that_bash_cannot_hold_are_named() {
        let envs = variables(&[("1A", "x"), ("A-B", "x"), ("", "x"), ("N", "a\0b"), ("_ok1", "x")]);
        let setup = setup(&BTreeMap::new(), &["$(x)".to_owned()], &envs, Some([1; SEED]));
        assert_eq!(setup.warnings.len(), 4);
        assert!(setup.script.starts_with("RANDOM=257; __wrenn_restore="));
        assert!(!setup.script.contains("A-B") && !setup.script.contains("$(x)"));
    }
}
