//! Tables of Dockerfiles, good and bad.

use super::*;
use crate::steps::{Command, Copy, Healthcheck, Inline, Mount, Run};
use proptest::prelude::*;

fn parse(text: &str) -> Dockerfile {
    Dockerfile::parse(text).unwrap_or_else(|fault| panic!("{text:?}: {fault}"))
}

/// Returns the steps of the last stage of a file without arguments.
fn steps(text: &str) -> Vec<Action> {
    let recipe = parse(text).recipe(&Options::default());
    let recipe = recipe.unwrap_or_else(|fault| panic!("{text:?}: {fault}"));
    recipe.check().unwrap_or_else(|error| panic!("{text:?}: {error}"));
    let last = recipe.stages.last().unwrap().clone();
    last.steps.into_iter().map(|step| step.action).collect()
}

fn only(instruction: &str) -> Action {
    let mut steps = steps(&format!("FROM a\n{instruction}\n"));
    assert_eq!(steps.len(), 1, "{instruction:?}");
    steps.remove(0)
}

fn shell(text: &str) -> Command {
    Command::Shell(text.to_owned())
}

fn exec(arguments: &[&str]) -> Command {
    Command::Exec(arguments.iter().map(|text| (*text).to_owned()).collect())
}

fn run(command: Command) -> Action {
    Action::Run(Run { command, user: None, shell: None, mounts: Vec::new() })
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn copy(sources: &[&str], dest: &str) -> Copy {
    let sources = sources.iter().map(|text| (*text).to_owned()).collect();
    Copy { sources, dest: dest.to_owned(), ..Copy::default() }
}

#[test]
fn commands_of_run_are_read() {
    for (text, wanted) in [
        ("RUN a b", shell("a b")),
        ("run a", shell("a")),
        ("  RuN\ta  ", shell("a")),
        ("RUN [\"a\", \"b c\"]", exec(&["a", "b c"])),
        ("RUN [\"a\\n\"]", exec(&["a\n"])),
        ("RUN [ -f x ] && y", shell("[ -f x ] && y")),
        ("RUN ['a']", shell("['a']")),
        ("RUN a \\\n  b", shell("a   b")),
        ("RUN a \\  \nb", shell("a b")),
        ("RUN a \\\n# comment\n\n   # other\n b", shell("a  b")),
        ("RUN a && \\\n    b && \\\n    c", shell("a &&     b &&     c")),
        ("RUN a # no comment", shell("a # no comment")),
        ("RUN \\\na", shell("a")),
        ("RUN a \\\r\n b\r", shell("a  b")),
        ("RUN echo '<<EOF' \"<<B\"", shell("echo '<<EOF' \"<<B\"")),
        ("RUN cat <<<x", shell("cat <<<x")),
        ("RUN echo 1 << 2", shell("echo 1 << 2")),
        ("RUN <<EOF\na\nb $X\nEOF", shell("a\nb $X\n")),
        ("RUN <<-EOF\n\ta\n\t\tb\n\tEOF", shell("a\nb\n")),
        ("RUN <<'E-F'\na\nE-F", shell("a\n")),
        ("RUN <<EOF\n# a\n\nb\nEOF", shell("# a\n\nb\n")),
        ("RUN <<EOF\na \\\nEOF", shell("a \\\n")),
        ("RUN cat <<EOF > /x\na\nEOF", shell("cat <<EOF > /x\na\nEOF\n")),
        ("RUN python3 <<\"EOF\"\nx\nEOF", shell("python3 <<\"EOF\"\nx\nEOF\n")),
        ("RUN cat <<A 3<<B\na\nA\nb\nB", shell("cat <<A 3<<B\na\nA\nb\nB\n")),
        ("RUN <<EOF cat\na\nEOF", shell("<<EOF cat\na\nEOF\n")),
        ("RUN --network=default --security=sandbox a", shell("a")),
        ("RUN -- a", shell("a")),
    ] {
        assert_eq!(only(text), run(wanted), "{text:?}");
    }
    assert_eq!(steps("FROM a\nRUN a \\\\\nUSER b")[0], run(shell("a \\\\")));
    let script = Command::Script { script: "#!/usr/bin/env python3\nx\n".to_owned() };
    assert_eq!(only("RUN <<EOF\n#!/usr/bin/env python3\nx\nEOF"), run(script));
    assert_eq!(steps("FROM a\nRUN x \\"), [run(shell("x"))]);
}

#[test]
fn mounts_of_run_are_read() {
    let text =
        "RUN --mount=type=cache,target=/c,id=x,sharing=locked --mount=type=tmpfs,dst=/t,size=2m a";
    let Action::Run(run) = only(text) else { panic!() };
    let cache = Mount::Cache { target: "/c".to_owned(), id: Some("x".to_owned()) };
    let tmpfs = Mount::Tmpfs { target: "/t".to_owned(), size: Some(2 << 20) };
    assert_eq!((run.mounts, run.command), (vec![cache, tmpfs], shell("a")));
}

#[test]
fn copies_are_read() {
    let with = |change: &dyn Fn(&mut Copy)| {
        let mut copy = copy(&["a"], "/x");
        change(&mut copy);
        copy
    };
    for (text, wanted) in [
        ("COPY a /x", copy(&["a"], "/x")),
        ("COPY a b c/ /x/", copy(&["a", "b", "c/"], "/x/")),
        ("COPY a b .", copy(&["a", "b"], ".")),
        ("COPY a b /x", copy(&["a", "b"], "/x")),
        ("COPY . .", copy(&["."], ".")),
        ("COPY [\"a b\", \"/x y/\"]", copy(&["a b"], "/x y/")),
        ("COPY \"a b\" /x", copy(&["\"a b\""], "/x")),
        ("COPY a* [b]? /x/", copy(&["a*", "[b]?"], "/x/")),
        ("COPY $A/b $B", copy(&["$A/b"], "$B")),
        ("COPY a b $B", copy(&["a", "b"], "$B")),
        ("COPY --link a /x", copy(&["a"], "/x")),
        ("COPY --chown=1:2 a /x", with(&|c| c.owner = Some("1:2".to_owned()))),
        ("COPY --chmod=0755 a /x", with(&|c| c.mode = Some("0755".to_owned()))),
        ("COPY --chmod=$M a /x", with(&|c| c.mode = Some("$M".to_owned()))),
        ("COPY --from=b:1 a /x", with(&|c| c.from = Some(Source::Image("b:1".to_owned())))),
        ("ADD a /x", with(&|c| c.unpack = true)),
        ("ADD --chown=u a /x", with(&|c| (c.unpack, c.owner) = (true, Some("u".to_owned())))),
    ] {
        assert_eq!(only(text), Action::Copy(wanted), "{text}");
    }
    let inline = |name: &str, text: &str, expand| Inline {
        name: name.to_owned(),
        text: text.to_owned(),
        expand,
    };
    let Action::Copy(found) = only("COPY a <<E <<-'F' /x/\n$V\nE\n\tb\nF") else { panic!() };
    assert_eq!(found.sources, ["a"]);
    assert_eq!(found.inline, [inline("E", "$V\n", true), inline("F", "b\n", false)]);
}

#[test]
fn other_instructions_are_read() {
    let text = |text: &str| text.to_owned();
    for (instruction, wanted) in [
        ("ENV A=1", Action::Env(map(&[("A", "1")]))),
        (
            "ENV A=1 B=\"x y\" C=a\\ b",
            Action::Env(map(&[("A", "1"), ("B", "\"x y\""), ("C", "a\\ b")])),
        ),
        ("ENV A b c", Action::Env(map(&[("A", "b c")]))),
        ("ENV A b=c", Action::Env(map(&[("A", "b=c")]))),
        ("ENV A=", Action::Env(map(&[("A", "")]))),
        ("ENV A=1 \\\n    B=2", Action::Env(map(&[("A", "1"), ("B", "2")]))),
        ("ENV \"A\"=$B", Action::Env(map(&[("A", "$B")]))),
        ("ENV A='$B' A=2", Action::Env(map(&[("A", "2")]))),
        ("LABEL a.b=c \"d\"=f", Action::Label(map(&[("a.b", "c"), ("d", "f")]))),
        ("MAINTAINER me <a@b>", Action::Label(map(&[("maintainer", "me <a@b>")]))),
        ("WORKDIR /a b", Action::Workdir(text("/a b"))),
        ("WORKDIR $A/b", Action::Workdir(text("$A/b"))),
        ("USER app:staff", Action::User(text("app:staff"))),
        ("EXPOSE 80 53/udp $P", Action::Expose(vec![text("80"), text("53/udp"), text("$P")])),
        ("VOLUME /a /b", Action::Volume(vec![text("/a"), text("/b")])),
        ("VOLUME [\"/a b\"]", Action::Volume(vec![text("/a b")])),
        ("STOPSIGNAL SIGTERM", Action::StopSignal(text("SIGTERM"))),
        ("CMD a b", Action::Cmd(shell("a b"))),
        ("CMD [\"a\"]", Action::Cmd(exec(&["a"]))),
        ("CMD []", Action::Cmd(exec(&[]))),
        ("ENTRYPOINT [\"a\", \"b\"]", Action::Entrypoint(exec(&["a", "b"]))),
        ("ENTRYPOINT a", Action::Entrypoint(shell("a"))),
        ("ONBUILD RUN a", Action::Onbuild(text("RUN a"))),
        ("HEALTHCHECK NONE", Action::Healthcheck(Healthcheck { command: None, options: map(&[]) })),
        (
            "HEALTHCHECK --interval=5s CMD a b",
            Action::Healthcheck(Healthcheck {
                command: Some(shell("a b")),
                options: map(&[("interval", "5s")]),
            }),
        ),
        ("ARG A", Action::Arg(Arg { name: text("A"), value: None, default: None })),
        ("ARG A=b", Action::Arg(Arg { name: text("A"), value: None, default: Some(text("b")) })),
    ] {
        assert_eq!(only(instruction), wanted, "{instruction}");
    }
    assert_eq!(steps("FROM a\nARG A B=c").len(), 2);
}

#[test]
fn shell_changes_later_commands_alone() {
    let steps = steps("FROM a\nRUN x\nSHELL [\"/bin/bash\", \"-c\"]\nRUN y\nCMD z\nRUN [\"w\"]");
    let shells: Vec<_> = steps
        .iter()
        .filter_map(|step| if let Action::Run(run) = step { Some(run.shell.clone()) } else { None })
        .collect();
    let bash = Some(vec!["/bin/bash".to_owned(), "-c".to_owned()]);
    assert_eq!(shells, [None, bash.clone(), bash.clone()]);
    assert_eq!(steps[2], Action::Cmd(exec(&["/bin/bash", "-c", "z"])));
    let recipe = parse("FROM a AS x\nSHELL [\"s\"]\nFROM x\nRUN a\nFROM b\nRUN a\nFROM X\nRUN b");
    let shell = |stage: usize| {
        let Action::Run(run) = &recipe.stages[stage].steps[0].action else { panic!() };
        run.shell.clone()
    };
    assert_eq!(
        (shell(1), shell(2), shell(3)),
        (Some(vec!["s".to_owned()]), None, Some(vec!["s".to_owned()]))
    );
}

#[test]
fn directives_stand_before_everything_else() {
    let backtick = parse("# escape=`\nFROM a\nRUN x `\n  y\nCOPY a c:\\\\");
    assert_eq!(backtick.escape, Escape::Backtick);
    assert_eq!(backtick.stages[0].steps[0].action, run(shell("x   y")));
    for text in [
        "# syntax=docker/dockerfile:1\nFROM a",
        "#syntax = docker/dockerfile:1.7-labs\n# check=skip=all\n# escape=\\\nFROM a",
        "# syntax=docker.io/docker/dockerfile@sha256:00\nFROM a",
        "# comment\n# escape=`\nFROM a",
        "\n# escape=`\nFROM a",
        "# unknown=x\n# escape=`\nFROM a",
        "FROM a\n# escape=`\n",
        "\u{feff}FROM a",
        "# see http://x/?a=b\nFROM a",
    ] {
        assert_eq!(parse(text).escape, Escape::Backslash, "{text:?}");
    }
}

#[test]
fn sources_of_stages_are_resolved() {
    let options = Options { args: map(&[("V", "12"), ("S", "one")]), ..Options::default() };
    let image = |name: &str| Source::Image(name.to_owned());
    for (text, wanted) in [
        ("FROM debian", image("debian")),
        ("from debian as x", image("debian")),
        ("FROM debian:12@sha256:00", image("debian:12@sha256:00")),
        ("FROM scratch", Source::Scratch),
        ("ARG V\nFROM debian:$V", image("debian:12")),
        ("ARG V=11\nFROM debian:${V}", image("debian:12")),
        ("ARG W=11\nFROM debian:${W}-slim", image("debian:11-slim")),
        ("ARG A=1\nARG B=x$A\nFROM debian:$B", image("debian:x1")),
        ("ARG A=1 B=$A\nFROM d:$B", image("d:1")),
        ("FROM debian:${W:-13}", image("debian:13")),
        ("FROM --platform=linux/amd64 a", image("a")),
        ("FROM --platform=$BUILDPLATFORM a", image("a")),
        ("FROM --platform=x86_64 a", image("a")),
        ("FROM a-$TARGETARCH", image("a-amd64")),
        ("FROM a AS one\nFROM ONE", Source::Stage(0)),
        ("ARG S\nFROM a AS one\nFROM $S", Source::Stage(0)),
        ("FROM a AS one\nFROM b\nFROM one", Source::Stage(0)),
    ] {
        let recipe = parse(text).recipe(&options).unwrap_or_else(|fault| panic!("{text}: {fault}"));
        assert_eq!(recipe.stages.last().unwrap().source, wanted, "{text}");
    }
}

#[test]
fn unused_stages_are_left_out_and_others_renumbered() {
    let text = "FROM a AS a\nFROM b AS b\nRUN b\nFROM c AS c\nCOPY --from=b x y\n\
                FROM d AS d\nCOPY --from=2 x y\nCOPY --from=img x y\n";
    let of = |target: Option<&str>| {
        let options = Options { target: target.map(str::to_owned), ..Options::default() };
        let recipe = parse(text).recipe(&options).unwrap();
        recipe.check().unwrap();
        let names = recipe.stages.iter().map(|stage| stage.name.clone().unwrap());
        (names.collect::<Vec<_>>().join(" "), recipe)
    };
    let (names, recipe) = of(None);
    assert_eq!(names, "b c d");
    let froms = recipe.stages.iter().flat_map(|stage| &stage.steps);
    let froms: Vec<_> = froms
        .into_iter()
        .filter_map(
            |step| if let Action::Copy(copy) = &step.action { copy.from.clone() } else { None },
        )
        .collect();
    let image = Source::Image("img".to_owned());
    assert_eq!(froms, [Source::Stage(0), Source::Stage(1), image]);
    assert_eq!(of(Some("A")).0, "a");
    assert_eq!(of(Some("1")).0, "b");
    let missing = Options { target: Some("x".to_owned()), ..Options::default() };
    assert!(parse(text).recipe(&missing).unwrap_err().message.contains("`x`"));
}

#[test]
fn arguments_get_values_of_caller_and_global_scope() {
    let file = parse("ARG A=1\nARG B=2\nFROM x\nARG A\nARG B=3\nARG C\nARG D=4\nARG TARGETARCH");
    let options = Options { args: map(&[("D", "$x"), ("Z", "")]), ..Options::default() };
    let recipe = file.recipe(&options).unwrap();
    let values: Vec<_> = recipe.stages[0]
        .steps
        .iter()
        .filter_map(|step| {
            if let Action::Arg(arg) = &step.action { Some(arg.value.as_deref()) } else { None }
        })
        .collect();
    assert_eq!(values, [Some("1"), None, None, Some("$x"), Some("amd64")]);
    assert_eq!(file.undeclared_args(&options), ["Z"]);
}

#[test]
fn lines_of_instructions_are_kept() {
    let file = parse("# c\n\nFROM a\n\nRUN a \\\n b\nRUN <<E\nx\nE\n# c\nUSER u");
    let lines: Vec<_> = file.stages[0].steps.iter().map(|step| step.line).collect();
    assert_eq!(lines, [Some(5), Some(7), Some(11)]);
}

/// Bad files: text, line and instruction of the fault, and a part of its message.
const BAD: &[(&str, u32, &str, &str)] = &[
    ("", 1, "file", "no FROM"),
    ("# only\n", 1, "file", "no FROM"),
    ("ARG A", 1, "file", "no FROM"),
    ("RUN a\nFROM b", 1, "RUN", "before the first"),
    ("FROM", 1, "FROM", "takes an image"),
    ("FROM a b", 1, "FROM", "takes an image"),
    ("FROM a AS", 1, "FROM", "takes an image"),
    ("FROM a AS 1x", 1, "FROM", "no name"),
    ("FROM a AS scratch", 1, "FROM", "no name"),
    ("FROM a AS x\nFROM b AS X", 2, "FROM", "two stages"),
    ("FROM --foo=1 a", 1, "FROM", "--foo"),
    ("FROM a\nFOO x", 2, "FOO", "no instruction"),
    ("FROM a\n\nRUN", 3, "RUN", "command"),
    ("FROM a\nRUN []", 2, "RUN", "command"),
    ("FROM a\nRUN [\"a\", 1]", 2, "RUN", "no text"),
    ("FROM a\nRUN <<EOF\nx", 2, "RUN", "does not end"),
    ("FROM a\nRUN <<EOF\nEOF", 2, "RUN", "empty"),
    ("FROM a\nRUN --mount=type=secret,id=x a", 2, "RUN", "type=secret is not"),
    ("FROM a\nRUN --mount=type=ssh a", 2, "RUN", "type=ssh is not"),
    ("FROM a\nRUN --mount=target=/x a", 2, "RUN", "type=bind is not"),
    ("FROM a\nRUN --mount=type=foo a", 2, "RUN", "foo"),
    ("FROM a\nRUN --mount=type=cache a", 2, "RUN", "no target"),
    ("FROM a\nRUN --mount=type=cache,target=/x,from=y a", 2, "RUN", "from"),
    ("FROM a\nRUN --mount=type=tmpfs,target=/x,size=1x a", 2, "RUN", "size"),
    ("FROM a\nRUN --mount a", 2, "RUN", "--mount"),
    ("FROM a\nRUN --network=host a", 2, "RUN", "--network=host"),
    ("FROM a\nRUN --security=insecure a", 2, "RUN", "insecure"),
    ("FROM a\nRUN --device=x a", 2, "RUN", "--device"),
    ("FROM a\nCOPY a", 2, "COPY", "destination"),
    ("FROM a\nCOPY", 2, "COPY", "destination"),
    ("FROM a\nCOPY ../a b", 2, "COPY", "outside"),
    ("FROM a\nCOPY a/../../b c", 2, "COPY", "outside"),
    ("FROM a\nCOPY https://x/y z", 2, "COPY", "remote"),
    ("FROM a\nCOPY --chmod=u=rw a b", 2, "COPY", "octal"),
    ("FROM a\nCOPY --chmod=9 a b", 2, "COPY", "octal"),
    ("FROM a\nCOPY --parents a b", 2, "COPY", "--parents"),
    ("FROM a\nCOPY --exclude=x a b", 2, "COPY", "--exclude"),
    ("FROM a\nCOPY --from= a b", 2, "COPY", "--from"),
    ("FROM a\nCOPY --from=$X a b", 2, "COPY", "variables"),
    ("FROM a\nCOPY --from=0 a b", 2, "COPY", "no earlier"),
    ("FROM a AS x\nCOPY --from=x a b", 2, "COPY", "no earlier"),
    ("FROM a\nCOPY --from=y a b\nFROM b AS y", 2, "COPY", "no earlier"),
    ("FROM a\nCOPY --from=9 a b", 2, "COPY", "no earlier"),
    ("FROM a\nCOPY --from=scratch a b", 2, "COPY", "no files"),
    ("FROM a\nCOPY a <<E\nx\nE", 2, "COPY", "destination belongs"),
    ("FROM a\nCOPY <<E /x", 2, "COPY", "does not end"),
    ("FROM a\nCOPY --from=i <<E /x\nE", 2, "COPY", "exclude"),
    ("FROM a\nADD http://x/y z", 2, "ADD", "remote"),
    ("FROM a\nUSER b\nADD git@github.com:a/b.git z", 3, "ADD", "remote"),
    ("FROM a\nADD --checksum=x a b", 2, "ADD", "--checksum"),
    ("FROM a\nADD --from=x a b", 2, "ADD", "--from"),
    ("FROM a\nENV", 2, "ENV", "at least one"),
    ("FROM a\nENV A", 2, "ENV", "no value"),
    ("FROM a\nENV A=1 B", 2, "ENV", "name=value"),
    ("FROM a\nENV =1", 2, "ENV", "no name"),
    ("FROM a\nENV $A=1", 2, "ENV", "no name"),
    ("FROM a\nLABEL", 2, "LABEL", "at least one"),
    ("FROM a\nARG", 2, "ARG", "at least one"),
    ("FROM a\nARG 'A B'", 2, "ARG", "no name"),
    ("FROM a\nWORKDIR", 2, "WORKDIR", "one argument"),
    ("FROM a\nUSER", 2, "USER", "one argument"),
    ("FROM a\nEXPOSE", 2, "EXPOSE", "at least one"),
    ("FROM a\nVOLUME []", 2, "VOLUME", "at least one"),
    ("FROM a\nSTOPSIGNAL", 2, "STOPSIGNAL", "one argument"),
    ("FROM a\nSHELL /bin/sh", 2, "SHELL", "list"),
    ("FROM a\nSHELL []", 2, "SHELL", "list"),
    ("FROM a\nCMD", 2, "CMD", "command"),
    ("FROM a\nHEALTHCHECK", 2, "HEALTHCHECK", "NONE"),
    ("FROM a\nHEALTHCHECK CMD", 2, "HEALTHCHECK", "command"),
    ("FROM a\nHEALTHCHECK --foo=1 NONE", 2, "HEALTHCHECK", "--foo"),
    ("FROM a\nONBUILD", 2, "ONBUILD", "one instruction"),
    ("FROM a\nONBUILD FROM b", 2, "ONBUILD", "FROM: is not allowed"),
    ("FROM a\nONBUILD ONBUILD RUN b", 2, "ONBUILD", "is not allowed"),
    ("FROM a\nONBUILD FOO", 2, "ONBUILD", "FOO"),
    ("FROM a\nONBUILD RUN <<E", 2, "ONBUILD", "does not end"),
    ("# escape=x\nFROM a", 1, "# escape", "neither"),
    ("# escape=`\n# escape=`\nFROM a", 2, "# escape", "twice"),
    ("# syntax=evil/frontend\nFROM a", 1, "# syntax", "evil"),
    ("FROM a\nRUN a\0b", 2, "file", "NUL"),
];

#[test]
fn bad_files_are_refused_by_line_and_instruction() {
    for (text, line, instruction, word) in BAD {
        let fault = Dockerfile::parse(text).expect_err(text);
        let place = (fault.line, fault.instruction.as_str());
        assert_eq!(place, (*line, *instruction), "{text:?}: {fault}");
        assert!(fault.message.contains(word), "{text:?}: {fault}");
    }
    let long = format!("FROM a\nCOPY --from={} a b", "x".repeat(600));
    assert!(Dockerfile::parse(&long).unwrap_err().message.contains("an image"));
    let name = format!("FROM a AS {}", "x".repeat(129));
    assert!(Dockerfile::parse(&name).unwrap_err().message.contains("no name"));
}

#[test]
fn sources_that_cannot_be_resolved_are_refused() {
    for (text, line, instruction, word) in [
        ("FROM $X", 1, "FROM", "no image"),
        ("FROM ${X", 1, "FROM", "not closed"),
        ("FROM ${X%y}", 1, "FROM", "operator"),
        ("ARG X='a b'\nFROM $X", 2, "FROM", "no image"),
        ("FROM a\nFROM --platform=linux/arm64 b", 2, "FROM", "linux/arm64"),
        ("FROM --platform=windows/amd64 b", 1, "FROM", "windows/amd64"),
        ("ARG A=${B:?gone}\nFROM a", 1, "ARG", "gone"),
        (&format!("FROM {}", "a".repeat(600)), 1, "FROM", "no image"),
    ] {
        let fault = parse(text).recipe(&Options::default()).expect_err(text);
        assert_eq!(
            (fault.line, fault.instruction.as_str()),
            (line, instruction),
            "{text:?}: {fault}"
        );
        assert!(fault.message.contains(word), "{text:?}: {fault}");
    }
}

#[test]
fn large_files_are_refused() {
    let lines = |line: &str, count: usize| format!("FROM a\n{}", line.repeat(count));
    for (text, word) in [
        (lines("USER a\n", STEPS_MAX + 1), "1000 steps"),
        ("FROM a\n".repeat(STAGES_MAX + 1), "64 stages"),
        ("ARG A\n".repeat(4001), "4000 instructions"),
        (lines(" ", BYTES_MAX), "bytes"),
        (format!("FROM a\nRUN {}", "x".repeat(200_000)), "bytes"),
        (format!("FROM a\nEXPOSE {}", "1 ".repeat(2000)), "1000 arguments"),
        (format!("FROM a\nARG {}", "a ".repeat(2000)), "1000 steps"),
    ] {
        let fault = Dockerfile::parse(&text).expect_err(word);
        assert!(fault.message.contains(word), "{fault}");
    }
}

proptest! {
    #[test]
    fn parser_never_panics(text in "((FROM a|RUN|COPY|ENV|ARG A|# escape=`|ONBUILD|SHELL)?[ a<\\[\\]\"'\\\\$={},:/-]{0,12}\n){0,8}") {
        if let Ok(file) = Dockerfile::parse(&text)
            && let Ok(recipe) = file.recipe(&Options::default())
        {
            prop_assert!(recipe.check().is_ok());
        }
    }

    #[test]
    fn recipe_survives_json(words in proptest::collection::vec("[a-z$/]{1,6}", 1..5)) {
        let text = format!("FROM a\nRUN {0}\nENV A={1}\nWORKDIR {1}", words.join(" "), words[0]);
        let recipe = parse(&text).recipe(&Options::default()).unwrap();
        let json = serde_json::to_string(&recipe).unwrap();
        prop_assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), recipe);
    }
}
