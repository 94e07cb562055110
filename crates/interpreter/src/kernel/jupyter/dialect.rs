//! Code that sets variables and generators of a kernel, in the kernel's own language. It runs
//! silently around the user's code, whose line numbers stay as they are. Values travel as literals
//! of ASCII, or as base64.

use crate::kernel::message::hex;
use crate::kernel::{SEED, Setup};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The package of ours in Python's own kernels.
const PYTHON: &str = "__import__('wrenn_kernel.prologue').prologue";

/// Language of a kernel, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dialect {
    /// Python in a kernel of our fork server.
    Python,
    R,
    Java,
    Other,
}

/// Changes before a run, as a dialect gets them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Variables of the capsule to set, and to remove.
    pub set: BTreeMap<String, String>,
    pub removed: Vec<String>,
    /// Variables of this run alone.
    pub run: BTreeMap<String, String>,
    pub seed: Option<[u8; SEED]>,
}

impl Changes {
    /// Compares a setup with the capsule's earlier variables, which it replaces.
    pub(super) fn of(setup: &Setup, known: &mut BTreeMap<String, String>) -> Self {
        let mut changes = Self { run: setup.envs.clone(), seed: setup.seed, ..Self::default() };
        if let Some(capsule) = &setup.capsule {
            let gone = |name: &&String| !capsule.contains_key(*name);
            changes.removed = known.keys().filter(gone).cloned().collect();
            changes.set = BTreeMap::clone(capsule);
            known.clone_from(capsule);
        }
        changes
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Dialect {
    /// Returns the dialect of a kernelspec's language.
    pub(crate) fn of(language: &str) -> Self {
        match language.to_ascii_lowercase().as_str() {
            "r" => Self::R,
            "java" => Self::Java,
            _ => Self::Other,
        }
    }

    /// Reports whether a line and its end come as one text. Java's users expect a text alone.
    pub(super) fn splits_line_ends(self) -> bool {
        self == Self::Java
    }

    /// Reports whether variables are properties of the program rather than its environment.
    pub(super) fn hides_environment(self) -> bool {
        self == Self::Java
    }

    /// Reports whether the kernel has our package.
    pub(super) fn has_package(self) -> bool {
        self == Self::Python
    }

    /// Returns code that makes changes, if there are any that the language can make.
    pub(super) fn before(self, changes: &Changes) -> Option<String> {
        if changes.is_empty() {
            return None;
        }
        match self {
            Self::Python => Some(python(changes)),
            Self::R => Some(r(changes)),
            Self::Java => Some(java(changes)),
            Self::Other => None,
        }
    }

    /// Returns code that restores the variables that a run had for itself.
    pub(super) fn after(self, changes: &Changes) -> Option<String> {
        if changes.run.is_empty() {
            return None;
        }
        match self {
            Self::Python => Some(format!("{PYTHON}.restore()")),
            Self::R => Some(R_RESTORE.to_owned()),
            Self::Java => Some(JAVA_RESTORE.to_owned()),
            Self::Other => None,
        }
    }

    /// Returns an expression for the user's variables, as JSON.
    pub(super) fn variables(self) -> Option<String> {
        self.has_package().then(|| format!("{PYTHON}.variables()"))
    }
}

fn python(changes: &Changes) -> String {
    let seed = changes.seed.map(|seed| hex(&seed));
    let given = json!({
        "set": changes.set, "removed": changes.removed, "run": changes.run, "seed": seed,
    });
    format!("{PYTHON}.apply('{}')", STANDARD.encode(given.to_string()))
}

/// Code in R that restores what [`r`] kept in an option.
const R_RESTORE: &str = "local({ kept <- getOption('wrenn.kept'); options(wrenn.kept = NULL); \
    for (name in names(kept)) if (is.na(kept[[name]])) Sys.unsetenv(name) \
    else do.call(Sys.setenv, as.list(kept[name])) })";

fn r(changes: &Changes) -> String {
    let mut code = String::from("invisible({ ");
    for name in &changes.removed {
        let _ = write!(code, "Sys.unsetenv({}); ", r_text(name));
    }
    r_set(&mut code, &changes.set);
    if !changes.run.is_empty() {
        let names: Vec<String> = changes.run.keys().map(|name| r_text(name)).collect();
        let names = names.join(", ");
        let _ = write!(
            code,
            "options(wrenn.kept = Sys.getenv(c({names}), unset = NA, names = TRUE)); "
        );
        r_set(&mut code, &changes.run);
    }
    if let Some([a, b, c, d, ..]) = changes.seed {
        // R's integers have 31 bits and a sign.
        let _ = write!(code, "set.seed({}L); ", u32::from_be_bytes([a, b, c, d]) >> 1);
    }
    code + "})"
}

fn r_set(code: &mut String, variables: &BTreeMap<String, String>) {
    for (name, value) in variables {
        let (name, value) = (r_text(name), r_text(value));
        let _ = write!(code, "do.call(Sys.setenv, structure(list({value}), names = {name})); ");
    }
}

/// Makes a literal of R.
fn r_text(text: &str) -> String {
    literal(text, |out, c| write!(out, "\\U{{{:x}}}", u32::from(c)))
}

/// Snippet of Java that restores what [`java`] kept in a variable.
const JAVA_RESTORE: &str = "{ var all = System.getProperties(); \
    wrennKept.forEach((name, value) -> { \
    if (value == null) all.remove(name); else all.setProperty(name, value); }); \
    wrennKept.clear(); }";

fn java(changes: &Changes) -> String {
    let mut code = String::new();
    if !changes.run.is_empty() {
        code.push_str("var wrennKept = new java.util.HashMap<String, String>();\n");
    }
    code.push_str("{ ");
    for name in &changes.removed {
        let _ = write!(code, "System.clearProperty({}); ", java_text(name));
    }
    for (name, value) in &changes.set {
        let _ = write!(code, "System.setProperty({}, {}); ", java_text(name), java_text(value));
    }
    for (name, value) in &changes.run {
        let (name, value) = (java_text(name), java_text(value));
        let _ = write!(
            code,
            "wrennKept.put({name}, System.getProperty({name})); System.setProperty({name}, {value}); "
        );
    }
    code + "}"
}

/// Makes a literal of Java.
fn java_text(text: &str) -> String {
    literal(text, |out, c| {
        c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
    })
}

/// Makes a literal in double quotes. Characters beyond printable ASCII are written by `escape`.
fn literal(text: &str, escape: impl Fn(&mut String, char) -> std::fmt::Result) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            _ => _ = escape(&mut out, c),
        }
    }
    out + "\""
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn changes_name_the_variables_that_went() {
        let mut known = BTreeMap::new();
        let capsule = |entries| Some(Arc::new(map(entries)));
        let first = Setup { capsule: capsule(&[("A", "1"), ("B", "2")]), ..Setup::default() };
        assert!(Changes::of(&first, &mut known).removed.is_empty());
        let second = Setup { capsule: capsule(&[("B", "3")]), ..Setup::default() };
        let changes = Changes::of(&second, &mut known);
        assert_eq!((changes.removed, changes.set), (vec!["A".into()], map(&[("B", "3")])));
        let none = Changes::of(&Setup::default(), &mut known);
        assert!(none.is_empty() && known == map(&[("B", "3")]));
        assert_eq!(Dialect::Python.before(&none), None);
        assert_eq!(Dialect::Python.after(&changes_of_run()), Some(format!("{PYTHON}.restore()")));
    }

    fn changes_of_run() -> Changes {
        Changes { run: map(&[("K\"", "a'\\\n\u{1F600}é")]), ..Changes::default() }
    }

    #[test]
    fn values_with_quotes_and_newlines_are_literals_of_ascii() {
        let r = Dialect::R.before(&changes_of_run()).unwrap();
        assert!(r.contains(r#"structure(list("a'\\\n\U{1f600}\U{e9}"), names = "K\""))"#), "{r}");
        let java = Dialect::Java.before(&changes_of_run()).unwrap();
        assert!(java.contains(r#"setProperty("K\"", "a'\\\n\ud83d\ude00\u00e9")"#), "{java}");
        let python = Dialect::Python.before(&changes_of_run()).unwrap();
        for code in [r, java, python] {
            assert!(code.is_ascii());
        }
    }

    #[test]
    fn seed_is_an_integer_of_r() {
        let changes = Changes { seed: Some([0xFF; SEED]), ..Changes::default() };
        assert!(Dialect::R.before(&changes).unwrap().contains("set.seed(2147483647L)"));
        assert_eq!(Dialect::R.after(&changes), None);
        assert_eq!(Dialect::Other.before(&changes), None);
    }
}
