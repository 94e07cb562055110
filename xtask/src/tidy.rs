//! The tree's own rules: sizes, module headers, sentences, layers, places of modules, names of
//! crates.

mod imports;
mod layers;
mod sentences;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a file. Tests below `#[cfg(test)]` do not count.
const LINES_MAX: usize = 600;

/// Returns the broken rules, a line for each.
pub(crate) fn faults(root: &Path) -> Vec<String> {
    let mut faults = Vec::new();
    let mut files = Vec::new();
    for dir in ["crates", "tests", "benches", "xtask", "fuzz"] {
        sources(&root.join(dir), &mut files);
    }
    for path in &files {
        let name = path.strip_prefix(root).unwrap_or(path).display();
        let Ok(text) = fs::read_to_string(path) else {
            faults.push(format!("{name}: cannot be read"));
            continue;
        };
        faults.extend(rules(path, &text).into_iter().map(|fault| format!("{name}: {fault}")));
    }
    let architecture = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap_or_default();
    for entry in fs::read_dir(root.join("crates")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !architecture.contains(&format!("`{name}`")) {
            faults.push(format!("ARCHITECTURE.md does not name the crate `{name}`"));
        }
        match imports::read(&modules(&entry.path().join("src"))) {
            Ok(imports) => faults.extend(layers::faults(&name, &architecture, &imports)),
            Err(error) => faults.push(format!("{name}: {error}")),
        }
    }
    faults.extend(pages(root).iter().flat_map(|path| headings(root, path)));
    if files.len() < 50 {
        faults.push(format!("only {} files were found to check", files.len()));
    }
    faults
}

/// Lists the pages for people: those at the root and those in `docs`.
fn pages(root: &Path) -> Vec<PathBuf> {
    let entries = [root.to_owned(), root.join("docs")].into_iter().flat_map(fs::read_dir);
    let paths = entries.flatten().flatten().map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|e| e == "md")).collect()
}

/// Finds the sections that a page has twice, as after a bad merge.
fn headings(root: &Path, page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap_or_default();
    let name = page.strip_prefix(root).unwrap_or(page).display();
    let twice = repeated(&text);
    twice.iter().map(|heading| format!("{name}: has the section `{heading}` twice")).collect()
}

/// Returns the headings of the second level that occur again.
fn repeated(text: &str) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    text.lines().filter(|line| line.starts_with("## ") && !seen.insert(*line)).collect()
}

/// Reads the files of a crate, by the paths of their modules.
fn modules(src: &Path) -> BTreeMap<imports::Module, String> {
    let mut files = Vec::new();
    sources(src, &mut files);
    let module = |path: PathBuf| {
        let text = fs::read_to_string(&path).ok()?;
        let below = path.strip_prefix(src).ok()?.with_extension("");
        Some((below.iter().map(|part| part.to_string_lossy().into_owned()).collect(), text))
    };
    files.into_iter().filter_map(module).collect()
}

/// Collects the Rust files below a directory, except for build output.
fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn rules(path: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text).lines().count();
    if code > LINES_MAX {
        faults
            .push(format!("{code} lines, over {LINES_MAX}; split it where another concern begins"));
    }
    if !text.starts_with("//!") {
        faults.push("opens without `//!`: say what it owns and what it never does".to_owned());
    }
    if path.file_name().is_some_and(|name| name == "mod.rs") {
        faults.push("is a mod.rs; name the file after its module".to_owned());
    }
    faults.extend(sentences::faults(text));
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tidy_rule_finds_its_violation() {
        let of = |name: &str, text: &str| rules(Path::new(name), text);
        assert!(of("a.rs", "//! Fine.\nfn f() {}\n").is_empty());
        assert!(of("a.rs", "fn f() {}\n")[0].contains("opens without"));
        assert!(of("x/mod.rs", "//! x\n")[0].contains("mod.rs"));
        assert!(of("a.rs", "//! What x is.\n")[0].contains("`What`"));
        let long = format!("//! x\n{}", "\n".repeat(LINES_MAX));
        assert!(of("a.rs", &long)[0].contains("lines"));
        let tests = format!("//! x\n#[cfg(test)]\nmod tests {{{}}}", "\n".repeat(LINES_MAX));
        assert!(of("a.rs", &tests).is_empty());
    }

    #[test]
    fn repeated_section_is_found_and_repeated_part_of_a_section_is_not() {
        assert_eq!(repeated("## A\n### C\n## B\n### C\n## A\n"), ["## A"]);
        assert!(repeated("## A\n### C\n## B\n### C\n").is_empty());
    }
}
