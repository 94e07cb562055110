//! The order of a crate's layers. ARCHITECTURE.md lists each crate's layers from the outside to the
//! inside, with their files. A file may import from its own layer and from layers further inside.
//! Files of different folders never import each other in a circle.

use super::imports::{Imports, Module};
use std::collections::{BTreeMap, BTreeSet};

/// A crate's layers, from the outside to the inside: the name of each, and its files and folders.
type Layers = Vec<(String, Vec<String>)>;

/// Returns the broken rules of one crate, a line for each. Pure.
pub(super) fn faults(krate: &str, architecture: &str, imports: &Imports) -> Vec<String> {
    let layers = layers_of(krate, architecture);
    let mut faults = circles(krate, imports);
    if layers.is_empty() {
        return faults;
    }
    let places: BTreeMap<&Module, Option<usize>> =
        imports.keys().map(|module| (module, place(module, &layers))).collect();
    for (module, place) in &places {
        if place.is_none() {
            faults.push(format!("ARCHITECTURE.md names no layer for {krate}'s {}", path(module)));
        }
    }
    for (_, files) in &layers {
        for file in files {
            if !places.keys().any(|module| is_below(module, file)) {
                faults
                    .push(format!("ARCHITECTURE.md names {krate}'s {file}, which does not exist"));
            }
        }
    }
    for (from, targets) in imports {
        for to in targets {
            if let (Some(Some(outer)), Some(Some(inner))) = (places.get(from), places.get(to))
                && inner < outer
            {
                faults.push(format!(
                    "{krate}: {} ({}) imports {} ({}), which is further outside",
                    path(from),
                    layers[*outer].0,
                    path(to),
                    layers[*inner].0
                ));
            }
        }
    }
    faults
}

/// Reads a crate's table of layers: the first one after its name in bold.
fn layers_of(krate: &str, architecture: &str) -> Layers {
    let Some((_, rest)) = architecture.split_once(&format!("\n**`{krate}`**\n")) else {
        return Vec::new();
    };
    let lines = rest.lines().skip_while(|line| !line.starts_with('|'));
    let rows = lines.take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(str::trim);
        let name = cells.next().unwrap_or_default().to_owned();
        let files = cells.next().unwrap_or_default().split('`').skip(1).step_by(2);
        (name, files.map(str::to_owned).collect())
    })
    .collect()
}

/// Returns the number of a module's layer. The longest entry that covers the module decides.
fn place(module: &Module, layers: &Layers) -> Option<usize> {
    let entries = layers.iter().enumerate().flat_map(|(n, (_, files))| {
        files.iter().filter(|file| is_below(module, file)).map(move |file| (file.len(), n))
    });
    entries.max_by_key(|(length, _)| *length).map(|(_, n)| n)
}

/// Reports whether an entry of the table, a file or a folder, covers a module.
fn is_below(module: &Module, entry: &str) -> bool {
    match entry.strip_suffix('/') {
        Some(folder) => path(module).starts_with(&format!("{folder}/")),
        None => path(module) == entry,
    }
}

fn path(module: &Module) -> String {
    format!("{}.rs", module.join("/"))
}

/// Finds circles of imports whose files are in different folders.
fn circles(krate: &str, imports: &Imports) -> Vec<String> {
    let reach: BTreeMap<&Module, BTreeSet<&Module>> =
        imports.keys().map(|module| (module, reachable(module, imports))).collect();
    let mut told = BTreeSet::new();
    let mut faults = Vec::new();
    for (module, there) in &reach {
        let circle: BTreeSet<&Module> = there
            .iter()
            .copied()
            .filter(|other| reach.get(other).is_some_and(|back| back.contains(module)))
            .collect();
        let folders: BTreeSet<&str> = circle.iter().map(|module| folder(module)).collect();
        if folders.len() > 1 && told.insert(circle.clone()) {
            let files: Vec<String> = circle.into_iter().map(path).collect();
            faults.push(format!("{krate}: these import each other: {}", files.join(", ")));
        }
    }
    faults
}

/// Returns the first part of a module's path. `capsules.rs` and `capsules/` are one folder.
fn folder(module: &Module) -> &str {
    module.first().map_or("", String::as_str)
}

fn reachable<'a>(from: &Module, imports: &'a Imports) -> BTreeSet<&'a Module> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&Module> = imports.get(from).into_iter().flatten().collect();
    while let Some(module) = next.pop() {
        if reached.insert(module) {
            next.extend(imports.get(module).into_iter().flatten());
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\n**`x`**\n\n| layer | files | task |\n|---|---|---|\n\
        | entry | `http.rs`, `http/` | a |\n| ground | `db.rs`, `http/rules.rs` | b |\n\n| no | `a.rs` | |\n";

    fn imports(of: &[(&str, &[&str])]) -> Imports {
        let module = |text: &str| text.split('/').map(str::to_owned).collect::<Module>();
        of.iter()
            .map(|(from, to)| (module(from), to.iter().map(|to| module(to)).collect()))
            .collect()
    }

    #[test]
    fn import_of_a_layer_further_outside_is_refused() {
        let right = imports(&[("http", &["http/rules", "db"]), ("http/rules", &[]), ("db", &[])]);
        assert_eq!(faults("x", TABLE, &right), [""; 0]);
        let wrong = imports(&[("http", &[]), ("http/rules", &["http"]), ("db", &["http"])]);
        let found = faults("x", TABLE, &wrong);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|fault| fault.contains("further outside")));
    }

    #[test]
    fn file_without_layer_and_entry_without_file_are_refused() {
        let found = faults("x", TABLE, &imports(&[("http", &[]), ("db", &[]), ("new", &[])]));
        assert!(found.iter().any(|fault| fault.contains("names no layer for x's new.rs")));
        assert!(found.iter().any(|fault| fault.contains("http/rules.rs, which does not exist")));
    }

    #[test]
    fn circle_across_folders_is_refused_and_within_one_is_not() {
        let across = imports(&[("a", &["b/c"]), ("b", &[]), ("b/c", &["a"])]);
        let found = faults("y", TABLE, &across);
        assert_eq!(found, ["y: these import each other: a.rs, b/c.rs"]);
        let within = imports(&[("a", &["a/c"]), ("a/c", &["a"])]);
        assert_eq!(faults("y", TABLE, &within), [""; 0]);
    }
}
