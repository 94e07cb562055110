//! Tables of recipes over bases, and properties of keys.

use super::*;
use crate::dockerfile::{Dockerfile, Options};
use crate::steps::{Command, Stage};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn base() -> Base {
    let config = Config {
        env: map(&[("PATH", "/bin"), ("HOME_DIR", "/srv")]),
        cmd: Some(Command::Shell("base".to_owned())),
        ..Config::default()
    };
    Base { identity: "sha256:00".to_owned(), config }
}

fn plan_with(text: &str, base: &Base, args: &[(&str, &str)]) -> Result<Plan, Error> {
    let options = Options { args: map(args), ..Options::default() };
    let recipe = Dockerfile::parse(text).unwrap().recipe(&options).unwrap();
    recipe.check().unwrap();
    resolve(&recipe, "amd64", &|_| Some(base))
}

fn plan(text: &str) -> PlannedStage {
    plan_with(text, &base(), &[]).unwrap().stages.pop().unwrap()
}

fn work(instructions: &str) -> Work {
    plan(&format!("FROM a\n{instructions}")).steps.pop().unwrap().work
}

fn run_of(work: Work) -> RunWork {
    if let Work::Run(run) = work { run } else { panic!("{work:?}") }
}

fn copy_of(work: Work) -> CopyWork {
    if let Work::Copy(copy) = work { copy } else { panic!("{work:?}") }
}

#[test]
fn environment_sees_base_and_earlier_steps() {
    for (text, name, wanted) in [
        ("ENV PATH=/x:$PATH", "PATH", Some("/x:/bin")),
        ("ENV A=1\nENV B=$A", "B", Some("1")),
        ("ENV A=1\nENV A=2 B=$A", "B", Some("1")),
        ("ENV A='$PATH'", "A", Some("$PATH")),
        ("ENV A=\"x y\"", "A", Some("x y")),
        ("ENV A x \"y\"", "A", Some("x y")),
        ("ENV A=${N:-d}", "A", Some("d")),
        ("ARG A=1\nENV B=$A", "B", Some("1")),
        ("ARG A=1\nENV A=2\nENV B=$A", "B", Some("2")),
        ("ENV A=2\nARG A=1\nENV B=$A", "B", Some("2")),
        ("ARG A=$PATH\nENV B=$A", "B", Some("/bin")),
        ("ARG A=1", "A", None),
    ] {
        let stage = plan(&format!("FROM a\n{text}"));
        assert_eq!(stage.config.env.get(name).map(String::as_str), wanted, "{text}");
    }
}

#[test]
fn runs_get_arguments_user_and_directory() {
    let run = run_of(work("ARG A=1\nENV B=2\nUSER app\nWORKDIR x\nWORKDIR ../y\nRUN a $B"));
    assert_eq!(run.program, Program::Argv(["/bin/sh", "-c", "a $B"].map(str::to_owned).to_vec()));
    assert_eq!(run.env, map(&[("A", "1"), ("B", "2"), ("HOME_DIR", "/srv"), ("PATH", "/bin")]));
    assert_eq!((run.user.as_str(), run.workdir.as_str()), ("app", "/y"));
    let first = run_of(work("RUN [\"a\", \"$B\"]"));
    assert_eq!(first.program, Program::Argv(vec!["a".to_owned(), "$B".to_owned()]));
    assert_eq!((first.user.as_str(), first.workdir.as_str()), ("root", "/"));
    let shell = run_of(work("SHELL [\"/bin/bash\", \"-ec\"]\nRUN x"));
    assert_eq!(shell.program, Program::Argv(["/bin/bash", "-ec", "x"].map(str::to_owned).to_vec()));
    let script = run_of(work("RUN <<E\n#!/bin/x\nE"));
    assert_eq!(script.program, Program::Script("#!/bin/x\n".to_owned()));
}

#[test]
fn copies_get_absolute_destinations_and_owners() {
    for (text, dest, into, owner) in [
        ("COPY a /x", "/x", false, "0:0"),
        ("COPY a /x/", "/x", true, "0:0"),
        ("ARG X=/y\nCOPY a b $X", "/y", true, "0:0"),
        ("WORKDIR /w\nCOPY a .", "/w", true, "0:0"),
        ("WORKDIR /w\nUSER app\nCOPY a b/c", "/w/b/c", false, "0:0"),
        ("COPY --chown=app:1 a $HOME_DIR/", "/srv", true, "app:1"),
        ("ARG U=7\nCOPY --chown=$U a ../x", "/x", false, "7"),
    ] {
        let copy = copy_of(work(text));
        let found = (copy.dest.as_str(), copy.into, copy.owner.as_str());
        assert_eq!(found, (dest, into, owner), "{text}");
    }
    let inline = copy_of(work("COPY <<A <<'B' /x/\n\"$PATH\" \\$x\nA\n$PATH\nB"));
    let wanted = [("A", "\"/bin\" $x\n"), ("B", "$PATH\n")];
    assert_eq!(inline.inline, wanted.map(|(name, text)| (name.to_owned(), text.to_owned())));
    assert!(!inline.lacks_files());
    let sources = copy_of(work("ARG D=src\nCOPY $D/a /x")).sources;
    assert_eq!(sources, ["src/a"]);
}

#[test]
fn descriptions_are_collected() {
    let stage = plan(
        "FROM a\nENV P=80\nEXPOSE $P 90/UDP 1-2\nVOLUME /v\nLABEL a=\"b c\" d=$P\nSTOPSIGNAL SIGINT\n\
         ONBUILD RUN x\nHEALTHCHECK NONE\nENTRYPOINT [\"e\"]\nCMD [\"c\"]",
    );
    let config = stage.config;
    let exposed: Vec<_> = config.exposed.iter().map(String::as_str).collect();
    assert_eq!(exposed, ["1-2/tcp", "80/tcp", "90/udp"]);
    assert_eq!(config.labels, map(&[("a", "b c"), ("d", "80")]));
    assert_eq!((config.onbuild.len(), config.stop_signal.as_deref()), (1, Some("SIGINT")));
    assert!(config.volumes.contains("/v") && config.entrypoint.is_some() && config.cmd.is_some());
    assert_eq!(plan("FROM a\nENTRYPOINT [\"e\"]").config.cmd, None);
    assert_eq!(
        plan("FROM a\nCMD x\nENTRYPOINT y").config.cmd,
        Some(Command::Shell("x".to_owned()))
    );
    assert!(plan("FROM a\nUSER x").config.cmd.is_some());
    // Descriptions change no key.
    assert_eq!(plan("FROM a\nLABEL a=b\nEXPOSE 1\nCMD x\nARG A=1").key, plan("FROM a").base);
}

#[test]
fn bad_values_are_refused_by_line() {
    for (text, line, instruction, word) in [
        ("FROM a\nUSER $X", 2, "USER", "empty"),
        ("FROM a\nUSER 4294967295", 2, "USER", "4294967294"),
        ("FROM a\nWORKDIR $X", 2, "WORKDIR", "empty"),
        ("FROM a\nENV A='b", 2, "ENV", "quote"),
        ("FROM a\nENV A=${B", 2, "ENV", "closed"),
        ("FROM a\nENV A=${B:?setB}", 2, "ENV", "setB"),
        ("FROM a\nEXPOSE x", 2, "EXPOSE", "port"),
        ("FROM a\nEXPOSE 65536", 2, "EXPOSE", "port"),
        ("FROM a\nEXPOSE 2-1", 2, "EXPOSE", "port"),
        ("FROM a\nARG X=http://y\nADD $X z", 3, "ADD", "remote"),
        ("FROM a\nARG X=..\nCOPY $X/b z", 3, "COPY", "outside"),
        ("FROM a\nCOPY a $X", 2, "COPY", "destination"),
        ("FROM a\nCOPY --chmod=$X a b", 2, "COPY", "octal"),
        ("FROM a\nCOPY --chown=-1 a b", 2, "COPY", "user"),
    ] {
        let error = plan_with(text, &base(), &[]).expect_err(text);
        assert_eq!((error.line, error.instruction), (Some(line), instruction), "{text}: {error}");
        assert!(error.message.contains(word), "{text}: {error}");
    }
    let huge = format!("FROM a\nENV A={0}\nENV B={0}", "x".repeat(40_000));
    assert!(plan_with(&huge, &base(), &[]).unwrap_err().message.contains("65536"));
    let runs = format!("FROM a\nENV A={}\n{}", "x".repeat(60_000), "RUN a\n".repeat(300));
    assert!(plan_with(&runs, &base(), &[]).unwrap_err().message.contains("environments"));
}

#[test]
fn stages_hand_on_configuration_and_keys() {
    let text = "FROM a AS x\nENV A=1\nARG B=2\nRUN a\nFROM x\nENV C=$A$B\nCOPY --from=x /a /b";
    let plan = plan_with(text, &base(), &[]).unwrap();
    let [first, second] = &plan.stages[..] else { panic!() };
    assert_eq!(second.base, first.key);
    assert_eq!(second.config.env.get("C").map(String::as_str), Some("1"));
    assert_eq!(plan.missing_files().count(), 0);
    let other = plan_with(&text.replace("RUN a", "RUN b"), &base(), &[]).unwrap();
    assert_ne!(other.stages[1].key, second.key);
}

#[test]
fn copied_stage_is_named_by_its_files_and_not_by_its_place() {
    let plain = plan("FROM b AS x\nRUN a\nFROM a\nCOPY --from=x /a /b");
    let moved = plan(
        "FROM c AS y\nRUN z\nFROM b AS x\nRUN a\nFROM a\nCOPY --from=y /q /q\nCOPY --from=x /a /b",
    );
    assert_ne!(plain.key, moved.key);
    let renamed = plan("FROM b AS q\nRUN a\nFROM a\nCOPY --from=q /a /b");
    assert_eq!(plain.key, renamed.key);
    let changed = plan("FROM b AS x\nRUN c\nFROM a\nCOPY --from=x /a /b");
    assert_ne!(plain.key, changed.key);
}

#[test]
fn triggers_of_the_base_run_first_and_once() {
    let mut base = base();
    base.config.onbuild = vec!["ENV T=1".to_owned(), "RUN t".to_owned()];
    let plan = plan_with("FROM a AS x\nRUN own\nFROM x\nRUN last", &base, &[]).unwrap();
    let texts = |stage: usize| {
        let steps = plan.stages[stage].steps.iter();
        steps.map(|step| (step.number, step.text.clone())).collect::<Vec<_>>()
    };
    let step = |number: usize, text: &str| (number, text.to_owned());
    assert_eq!(texts(0), [step(0, "ENV T=1"), step(0, "RUN t"), step(1, "RUN own")]);
    assert_eq!(texts(1), [step(1, "RUN last")]);
    base.config.onbuild = vec!["FROM b".to_owned()];
    let error = plan_with("FROM a", &base, &[]).unwrap_err();
    assert!(error.message.contains("ONBUILD of the base"), "{error}");
}

#[test]
fn force_reaches_later_steps_and_depending_stages() {
    let options = Options::default();
    let text = "FROM a AS x\nRUN a\nRUN b\nFROM b\nRUN c\nCOPY --from=x /a /b\nRUN d";
    let mut recipe = Dockerfile::parse(text).unwrap().recipe(&options).unwrap();
    let base = base();
    let plain = resolve(&recipe, "amd64", &|_| Some(&base)).unwrap();
    recipe.stages[0].steps[1].force = true;
    let forced = resolve(&recipe, "amd64", &|_| Some(&base)).unwrap();
    let flags = |stage: usize| {
        forced.stages[stage].lookups().iter().map(|step| step.force).collect::<Vec<_>>()
    };
    assert_eq!((flags(0), flags(1)), (vec![false, true], vec![false, true, true]));
    assert_eq!(plain.stages[1].key, forced.stages[1].key);
}

fn e2b_plan(steps: serde_json::Value, source: Source, base: &Base) -> Result<PlannedStage, Error> {
    let steps = serde_json::from_value(steps).unwrap();
    let recipe = e2b::recipe(source, steps, false).unwrap();
    resolve(&recipe, "amd64", &|_| Some(base)).map(|mut plan| plan.stages.pop().unwrap())
}

#[test]
fn steps_of_e2b_follow_its_rules() {
    let base = base();
    let steps = serde_json::json!([
        {"type": "ENV", "args": ["PATH", "${PATH}:/x", "Q", "`a` $(b) \"c\" \\n"]},
        {"type": "RUN", "args": ["make"]},
        {"type": "COPY", "args": ["a", "b/", "", "0644"], "filesHash": "0".repeat(64)},
        {"type": "WORKDIR", "args": ["app"]},
        {"type": "RUN", "args": ["id", "root"]},
        {"type": "USER", "args": ["root"]},
        {"type": "COPY", "args": ["$A", "x", "app", ""], "filesHash": "0".repeat(64)},
    ]);
    let stage = e2b_plan(steps, Source::Image("debian".to_owned()), &base).unwrap();
    let works: Vec<_> = stage.steps.iter().map(|step| step.work.clone()).collect();
    assert_eq!(works[0], Work::User { name: "user".to_owned(), create: true });
    assert_eq!((stage.steps[0].number, stage.steps[1].number), (0, 1));
    assert_eq!(stage.steps[1].text, "ENV PATH ${PATH}:/x Q `a` $(b) \"c\" \\n");
    assert_eq!(stage.config.build_env, map(&[("PATH", "/bin:/x"), ("Q", "`a` $(b) \"c\" \\n")]));
    assert_eq!(stage.config.env, base.config.env);
    let run = run_of(works[2].clone());
    assert_eq!(
        run.program,
        Program::Argv(["/bin/bash", "-l", "-c", "make"].map(str::to_owned).to_vec())
    );
    assert_eq!((run.user.as_str(), run.workdir.as_str()), ("user", "/home/user"));
    assert_eq!(run.env["PATH"], "/bin:/x");
    let copy = copy_of(works[3].clone());
    assert_eq!(
        (copy.dest.as_str(), copy.owner.as_str(), copy.mode),
        ("/home/user/b", "user", Some(0o644))
    );
    assert_eq!(
        works[4],
        Work::Workdir { path: "/home/user/app".to_owned(), owner: "user".to_owned() }
    );
    assert_eq!(run_of(works[5].clone()).user, "root");
    let last = copy_of(works[7].clone());
    assert_eq!(
        (last.sources[0].as_str(), last.dest.as_str(), last.owner.as_str()),
        ("$A", "/home/user/app/x", "app")
    );
    let template = Source::Template("base".to_owned());
    assert!(e2b_plan(serde_json::json!([]), template, &base).unwrap().steps.is_empty());
}

#[test]
fn unknown_base_is_named() {
    let stages =
        vec![Stage { name: None, source: Source::Template("gone".to_owned()), steps: Vec::new() }];
    let recipe = Recipe { dialect: Dialect::Steps, escape: Default::default(), stages };
    let error = resolve(&recipe, "amd64", &|_| None).unwrap_err();
    assert_eq!(error.to_string(), "stage 0, step 0: FROM: the base `gone` is not known");
}

#[test]
fn each_fact_that_a_step_sees_changes_its_key() {
    let key = |text: &str| plan(&format!("FROM a\n{text}")).key;
    let plain = key("RUN a");
    for other in [
        "RUN b",
        "RUN [\"a\"]",
        "USER u\nRUN a",
        "WORKDIR /w\nRUN a",
        "ENV A=1\nRUN a",
        "ARG A=1\nRUN a",
        "SHELL [\"/bin/bash\", \"-c\"]\nRUN a",
        "RUN --mount=type=tmpfs,target=/x a",
        "RUN a\nRUN a",
    ] {
        assert_ne!(key(other), plain, "{other}");
    }
    let with_arg = |value: &str| {
        let plan = plan_with("FROM a\nARG A\nRUN a\nCOPY a b", &base(), &[("A", value)]).unwrap();
        plan.stages[0].steps.iter().map(|step| step.key).collect::<Vec<_>>()
    };
    let (one, two) = (with_arg("1"), with_arg("2"));
    assert_eq!(one[0], two[0]);
    assert_ne!(one[1], two[1]);
    let other = Base { identity: "sha256:01".to_owned(), ..base() };
    assert_ne!(plan_with("FROM a\nRUN a", &other, &[]).unwrap().stages[0].key, plain);
}

#[test]
fn files_of_the_context_are_part_of_the_key() {
    let mut recipe = Dockerfile::parse("FROM a\nRUN x\nCOPY a b\nRUN y")
        .unwrap()
        .recipe(&Options::default())
        .unwrap();
    let base = base();
    let mut keys = Vec::new();
    for digit in ["0", "1"] {
        assert!(recipe.set_files(0, 2, digit.repeat(64)));
        let plan = resolve(&recipe, "amd64", &|_| Some(&base)).unwrap();
        assert_eq!(plan.missing_files().count(), 0);
        keys.push(plan.stages[0].steps.iter().map(|step| step.key).collect::<Vec<_>>());
    }
    assert_eq!(keys[0][0], keys[1][0]);
    assert!(keys[0][1] != keys[1][1] && keys[0][2] != keys[1][2]);
    assert!(!recipe.set_files(0, 1, "0".repeat(64)) && !recipe.set_files(1, 1, String::new()));
}

proptest! {
    /// Two recipes share keys exactly as long as their steps are equal.
    #[test]
    fn keys_agree_on_the_common_prefix_alone(
        a in proptest::collection::vec(0u8..4, 1..8),
        b in proptest::collection::vec(0u8..4, 1..8),
    ) {
        let keys = |steps: &[u8]| {
            let line = |step: &u8| ["RUN a\n", "RUN b\n", "ENV A=1\n", "USER u\n"][usize::from(*step)];
            let text = format!("FROM a\n{}", steps.iter().map(line).collect::<String>());
            plan(&text).steps.iter().map(|step| step.key).collect::<Vec<_>>()
        };
        let common = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        let shared = keys(&a).iter().zip(keys(&b)).take_while(|(a, b)| *a == b).count();
        prop_assert_eq!(common, shared);
    }
}
