//! The recipes' files, their Dockerfiles, and the choice of a recipe. Nothing is fetched.

use super::*;
use crate::cli::{Cli, Command, Template};
use clap::Parser;
use recipe::dockerfile::{Dockerfile, Options};
use recipe::{Action, Source};
use std::os::unix::fs::PermissionsExt;

fn build_of(words: &[&str]) -> cli::BuildTemplate {
    let words = ["wrenn", "template", "build"].iter().chain(words);
    let Command::Template(Template::Build(build)) = Cli::parse_from(words).command else {
        panic!("not build")
    };
    *build
}

fn text(name: &str) -> &'static str {
    let found = FILES.iter().find(|(known, _)| *known == name);
    let (_, contents) = found.unwrap_or_else(|| panic!("no file {name}"));
    std::str::from_utf8(contents).unwrap()
}

#[test]
fn name_alone_chooses_the_recipe_and_a_source_does_not() {
    for name in ["code-interpreter", "code-interpreter-full"] {
        let found = find(name, &build_of(&[name, "--memory", "4096"]).source);
        assert_eq!(found.map(|builtin| builtin.name), Some(name));
        for source in [
            &["."][..],
            &["-f", "x"],
            &["--image", "debian"],
            &["--from", "base"],
            &["--target", "a"],
        ] {
            let words = [&[name][..], source].concat();
            assert_eq!(find(name, &build_of(&words).source), None, "{words:?}");
        }
    }
    assert_eq!(find("web", &build_of(&["web"]).source), None);
}

#[test]
fn defaults_leave_settings_of_the_caller_alone() {
    let mut body = api::CreateBuild::default();
    BUILTINS[0].complete(&mut body);
    assert_eq!((body.vcpus, body.memory_mib), (Some(2), Some(2048)));
    assert_eq!(body.ready.as_deref(), Some(READY));
    let mut body = api::CreateBuild {
        memory_mib: Some(4096),
        ready: Some("true".to_owned()),
        ..api::CreateBuild::default()
    };
    BUILTINS[0].complete(&mut body);
    assert_eq!((body.memory_mib, body.ready.as_deref()), (Some(4096), Some("true")));
    assert_eq!(body.ready_within_sec, None);
}

#[test]
fn dockerfiles_begin_from_templates_and_copy_files_of_the_recipe() {
    for (builtin, base) in BUILTINS.iter().zip(["base", "code-interpreter"]) {
        let parsed = Dockerfile::parse(text(builtin.dockerfile)).unwrap();
        let recipe = parsed.recipe(&Options::default()).unwrap();
        recipe.check().unwrap();
        assert_eq!(recipe.stages.len(), 1);
        let stage = &recipe.stages[0];
        assert_eq!(stage.source, Source::Image(base.to_owned()));
        let copied = stage.steps.iter().filter_map(|step| step.action.as_copy());
        let own: Vec<&String> =
            copied.flat_map(|copy| &copy.sources).filter(|s| s.starts_with("recipe/")).collect();
        assert!(!own.is_empty());
        for source in own {
            let below = source["recipe/".len()..].trim_end_matches('/');
            let is_there = |name: &str| name == below || name.starts_with(&format!("{below}/"));
            assert!(FILES.iter().any(|(name, _)| is_there(name)), "{source}");
        }
        let mut users = stage.steps.iter().rev().filter_map(|step| {
            if let Action::User(user) = &step.action { Some(user.as_str()) } else { None }
        });
        assert_eq!(users.next(), Some("user"), "programs of capsules do not run as root");
    }
}

#[test]
fn locks_have_a_hash_for_each_package() {
    for lock in ["python.lock", "python-more.lock", "node.lock", "java.lock"] {
        let lines: Vec<&str> =
            text(lock).lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
        assert!(!lines.is_empty());
        for line in lines {
            let (package, hash) = line.split_once(" --hash=sha256:").unwrap();
            assert!(package.contains("==") && hash.len() == 64, "{lock}: {line}");
        }
    }
    let npm: serde_json::Value = serde_json::from_str(text("package-lock.json")).unwrap();
    for (name, package) in npm["packages"].as_object().unwrap() {
        assert!(name.is_empty() || package["integrity"].is_string(), "{name}");
    }
}

#[test]
fn list_holds_the_recipe_and_no_test_of_it() {
    for name in ["fetch", "base.packages", "interpreter.json", "full/interpreter.json"] {
        assert!(!text(name).is_empty());
    }
    let is_left_out = |name: &str| name.contains("tests/") || name.contains("__pycache__");
    assert!(FILES.iter().all(|(name, _)| !is_left_out(name)));
}

#[test]
fn files_are_written_once_and_again_after_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path()).unwrap();
    assert_eq!(fs::read_to_string(folder.join("fetch")).unwrap(), text("fetch"));
    let mark = folder.join("mark");
    fs::write(&mark, "").unwrap();
    write(dir.path()).unwrap();
    assert!(mark.exists(), "equal files stay");
    fs::write(folder.join(MADE), "another version").unwrap();
    write(dir.path()).unwrap();
    assert!(!mark.exists() && folder.join("Dockerfile").exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no staged folder is left");
}

#[test]
fn failed_fetch_names_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("fetch");
    fs::write(&script, "echo \"step for $2\"; echo 'error: no python3' >&2; exit 1").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o600)).unwrap();
    let error = BUILTINS[1].fetch(dir.path(), dir.path(), Form::Json).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("packages of code-interpreter-full"), "{error}");
    assert!(error.contains("no python3"), "{error}");
}

#[test]
fn cache_folder_is_that_of_the_variable_or_the_user() {
    let with = |pairs: &[(&str, &str)]| {
        let pairs: Vec<(String, String)> =
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        cache(move |name| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    };
    assert_eq!(with(&[("HOME", "/h")]), Path::new("/h/.cache/wrenn"));
    assert_eq!(with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]), Path::new("/c/wrenn"));
    assert_eq!(with(&[("HOME", "/h"), ("WRENN_CACHE_DIR", "/w")]), Path::new("/w"));
}
