//! Imports between the files of a crate, read from their tokens. Code of unit tests does not count.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};

/// Path of a file's module below its crate, such as `db`, `capsules`.
pub(super) type Module = Vec<String>;
/// Modules that each module imports from.
pub(super) type Imports = BTreeMap<Module, BTreeSet<Module>>;

/// Reads the imports of a crate from the texts of its files. Pure.
///
/// # Errors
/// When a text is no Rust. The error names the module.
pub(super) fn read(files: &BTreeMap<Module, String>) -> Result<Imports, String> {
    let mut parsed = BTreeMap::new();
    let mut tests = BTreeSet::new();
    for (module, text) in files {
        let tokens = text.parse::<TokenStream>();
        let tokens = tokens.map_err(|e| format!("{}: {e}", module.join("::")))?;
        let mut file = File::default();
        file.scan(&tokens.into_iter().collect::<Vec<_>>(), module);
        tests.extend(std::mem::take(&mut file.tests));
        parsed.insert(module.clone(), file);
    }
    let is_test = |module: &Module| tests.iter().any(|test| module.starts_with(test));
    let modules = parsed.iter().filter(|(module, _)| !is_test(module));
    Ok(modules
        .map(|(module, file)| {
            let targets = file.targets(files);
            (
                module.clone(),
                targets.into_iter().filter(|to| to != module && !is_test(to)).collect(),
            )
        })
        .collect())
}

/// Paths that one file names, as they are written, with the module that each is in.
#[derive(Default)]
struct File {
    /// Child modules by name.
    children: BTreeMap<String, Module>,
    /// Imported names, with their paths.
    uses: Vec<(String, Module, Module)>,
    paths: Vec<(Module, Module)>,
    /// Modules that only tests compile.
    tests: Vec<Module>,
}

impl File {
    /// Collects the paths of some tokens. `scope` is the module that they are in.
    fn scan(&mut self, tokens: &[TokenTree], scope: &Module) {
        let mut at = 0;
        let mut test = false;
        while let Some(token) = tokens.get(at) {
            match token {
                TokenTree::Punct(mark) if mark.as_char() == '#' => {
                    test |= tokens.get(at + 1).is_some_and(is_cfg_test);
                    at += 2;
                }
                TokenTree::Ident(word) if test && !is_visibility(&word.to_string()) => {
                    at = self.skip_test(tokens, at, scope);
                    test = false;
                }
                TokenTree::Ident(word) if word == "mod" => at = self.module(tokens, at, scope),
                TokenTree::Ident(word) if word == "use" => {
                    let end = end_of_item(tokens, at);
                    self.tree(&tokens[at + 1..end], &Vec::new(), scope);
                    at = end + 1;
                }
                TokenTree::Ident(_) => at = self.path(tokens, at, scope),
                TokenTree::Group(group) => {
                    self.scan(&group.stream().into_iter().collect::<Vec<_>>(), scope);
                    at += 1;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => at += 1,
            }
        }
    }

    /// Skips an item that only tests compile. Notes it if it is a module.
    fn skip_test(&mut self, tokens: &[TokenTree], at: usize, scope: &Module) -> usize {
        if let (TokenTree::Ident(word), Some(TokenTree::Ident(name))) =
            (&tokens[at], tokens.get(at + 1))
            && word == "mod"
        {
            self.tests.push(below(scope, &name.to_string()));
        }
        end_of_item(tokens, at) + 1
    }

    /// Reads `mod name;` or `mod name { … }`.
    fn module(&mut self, tokens: &[TokenTree], at: usize, scope: &Module) -> usize {
        let Some(TokenTree::Ident(name)) = tokens.get(at + 1) else { return at + 1 };
        let inner = below(scope, &name.to_string());
        self.children.insert(name.to_string(), inner.clone());
        if let Some(TokenTree::Group(group)) = tokens.get(at + 2) {
            self.scan(&group.stream().into_iter().collect::<Vec<_>>(), &inner);
        }
        at + 3
    }

    /// Reads a tree of `use` below a path.
    fn tree(&mut self, tokens: &[TokenTree], before: &Module, scope: &Module) {
        for branch in tokens.split(|token| is_mark(token, ',')) {
            let mut path = before.clone();
            let mut name = None;
            let mut words = branch.iter().filter(|token| !is_mark(token, ':')).peekable();
            while let Some(token) = words.next() {
                match token {
                    TokenTree::Ident(word) if word == "as" => {
                        name = words.next().map(ToString::to_string);
                    }
                    TokenTree::Ident(word) if word == "self" && !path.is_empty() => {}
                    TokenTree::Ident(word) => path.push(word.to_string()),
                    TokenTree::Group(group) => {
                        self.tree(&group.stream().into_iter().collect::<Vec<_>>(), &path, scope);
                        path.clear();
                    }
                    TokenTree::Punct(_) | TokenTree::Literal(_) => {}
                }
            }
            if let Some(last) = path.last().cloned() {
                self.uses.push((name.unwrap_or(last), path, scope.clone()));
            }
        }
    }

    /// Reads a path in code, such as `db::keys::find`.
    fn path(&mut self, tokens: &[TokenTree], mut at: usize, scope: &Module) -> usize {
        let mut path = Module::new();
        while let Some(TokenTree::Ident(word)) = tokens.get(at) {
            path.push(word.to_string());
            at += 1;
            if !(tokens.get(at).is_some_and(|token| is_mark(token, ':'))
                && tokens.get(at + 1).is_some_and(|token| is_mark(token, ':')))
            {
                break;
            }
            at += 2;
        }
        self.paths.push((path, scope.clone()));
        at
    }

    /// Returns the modules of the crate that the paths lead into. A path that only brings a module's
    /// name into scope does not count, since the uses of that name do.
    fn targets(&self, files: &BTreeMap<Module, String>) -> BTreeSet<Module> {
        let mut names = self.children.clone();
        let mut found = BTreeSet::new();
        for (name, path, scope) in &self.uses {
            if let Some(path) = absolute(path, scope, &self.children) {
                names.insert(name.clone(), path.clone());
                found.insert(path);
            }
        }
        let paths = self.paths.iter().filter(|(path, _)| path.len() > 1);
        found.extend(paths.filter_map(|(path, scope)| absolute(path, scope, &names)));
        let inner = |path: &Module| {
            let longest = (1..path.len()).rev().find(|n| files.contains_key(&path[..*n].to_vec()));
            let is_module = files.contains_key(path);
            longest.filter(|_| !is_module).map(|n| path[..n].to_vec())
        };
        found.iter().filter_map(inner).collect()
    }
}

/// Returns a path from the crate's root; `None` for a path that leads out of the crate. `names` has
/// the names that may begin a path, beside `crate`, `self` and `super`.
fn absolute(path: &[String], scope: &[String], names: &BTreeMap<String, Module>) -> Option<Module> {
    let up = path.iter().take_while(|word| *word == "super").count();
    if up > 0 {
        let base = &scope[..scope.len().saturating_sub(up)];
        return Some([base, &path[up..]].concat());
    }
    let (first, rest) = path.split_first()?;
    let base = match first.as_str() {
        "crate" => Module::new(),
        "self" => scope.to_vec(),
        name => names.get(name)?.clone(),
    };
    Some([base.as_slice(), rest].concat())
}

fn below(scope: &Module, name: &str) -> Module {
    [scope.as_slice(), &[name.to_owned()]].concat()
}

/// Returns the place of the semicolon or the braces that end an item.
fn end_of_item(tokens: &[TokenTree], at: usize) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => is_mark(token, ';'),
    };
    let is_use = matches!(&tokens[at], TokenTree::Ident(word) if word == "use");
    let end = |token: &TokenTree| if is_use { is_mark(token, ';') } else { ends(token) };
    tokens[at..].iter().position(end).map_or(tokens.len() - 1, |n| at + n)
}

fn is_mark(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == mark)
}

fn is_cfg_test(token: &TokenTree) -> bool {
    token.to_string().replace(' ', "") == "[cfg(test)]"
}

fn is_visibility(word: &str) -> bool {
    word == "pub"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Vec<String> {
        let module = |name: &str| name.split('/').map(str::to_owned).collect::<Module>();
        let files = files.iter().map(|(name, text)| (module(name), (*text).to_owned())).collect();
        let imports = read(&files).unwrap();
        let edges = imports.iter().flat_map(|(from, to)| {
            to.iter().map(|to| format!("{} -> {}", from.join("/"), to.join("/")))
        });
        edges.collect()
    }

    #[test]
    fn imports_are_found_in_use_trees_and_in_paths_of_code() {
        let found = of(&[
            ("a", "use crate::{b::{self, X}, c}; fn f() { c::d::g(); vec![super::e::h()]; }"),
            ("b", "pub(crate) use c::Y; mod c;"),
            ("b/c", "use super::Z;"),
            ("c", ""),
            ("c/d", "use std::a; use self::x::Y; fn f() { a::b::c() }"),
            ("e", "#[cfg(test)] use crate::a::F; use crate::c as other; fn f() { other::g() }"),
        ]);
        assert_eq!(found, ["a -> b", "a -> c/d", "a -> e", "b -> b/c", "b/c -> b", "e -> c"]);
    }

    #[test]
    fn code_of_unit_tests_imports_nothing() {
        let found = of(&[
            ("a", "#[cfg(test)]\nmod tests { use crate::b::X; }\n#[cfg(test)]\nmod more;"),
            ("a/more", "use crate::b::X;"),
            ("b", "#[cfg(test)]\nfn f() { crate::a::g() }"),
        ]);
        assert_eq!(found, [""; 0]);
    }
}
