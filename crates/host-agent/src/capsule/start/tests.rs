//! Commands of a version in a guest whose envd is a stub.

use super::*;
use crate::guest::Route;
use crate::guest::stub::{self, Seen};
use crate::version::example;
use daemon::{Tasks, lock};
use std::sync::{Arc, Mutex};
use types::BuildId;

/// A log that retains all lines.
#[derive(Default)]
struct Kept(Mutex<Vec<(Level, String)>>);

impl StartLog for Kept {
    fn line(&self, level: Level, text: String) {
        lock(&self.0).push((level, text));
    }
}

impl Kept {
    fn info(&self) -> Vec<String> {
        let lines = lock(&self.0);
        lines.iter().filter(|(level, _)| *level == Level::Info).map(|(_, t)| t.clone()).collect()
    }
}

fn version(start: Option<&str>, ready: Option<&str>) -> Version {
    let command = |text: Option<&str>| text.map(|text| Command::Shell(text.to_owned()));
    Version { start: command(start), ready: command(ready), ..example(BuildId::new()) }
}

/// Runs a version's commands, and returns the result, the log, and the requests to the guest.
async fn run(version: &Version, envs: &[(&str, &str)]) -> (Result<(), Error>, Kept, Arc<Seen>) {
    let (at, seen) = stub::start().await;
    let guest = Guest::new(Route::Loopback(at), "t", 10, Tasks::default());
    let envs = envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let (envs, log) = (envs.collect(), Kept::default());
    let helpers = Some(guest.helpers("t").await.unwrap());
    let (guest, log_to) = (&guest, &log);
    let commands = Commands { guest, token: "t", version, envs: &envs, helpers, log: log_to };
    let done = commands.run().await;
    (done, log, seen)
}

fn text(done: Result<(), Error>) -> String {
    match done {
        Err(Error::Start(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn ready_command_is_tried_until_it_succeeds_beside_the_start_command() {
    let version = Version { dialect: Dialect::E2b, ..version(Some("serve"), Some("after 1")) };
    let (done, log, seen) = run(&version, &[]).await;
    done.unwrap();
    assert_eq!(
        log.info(),
        [
            "Running start command: serve",
            "Waiting for template to be ready: after 1",
            "[start] [stdout]: up",
            "Template is ready",
        ]
    );
    assert_eq!(seen.commands(), ["serve", "after 1", "after 1"]);
    let starts = lock(&seen.starts);
    let (request, token) = &starts[0];
    let config = request.process.as_option().unwrap();
    let argv = [config.cmd.as_str(), &config.args[0], &config.args[1], &config.args[2]];
    assert_eq!(argv, ["/bin/bash", "-l", "-c", "export PATH=\"$PATH:/run/h\"\nserve"]);
    assert_eq!(config.envs["PATH"], format!("{SEARCH_PATH}:/run/h"));
    assert_eq!(config.envs["B"], "build");
    assert_eq!((request.tag.as_deref(), token.as_str()), (Some("start"), "t"));
    assert_eq!(starts[1].0.tag, None);
}

#[tokio::test]
async fn start_command_that_fails_ends_the_wait_at_once() {
    let (done, _, seen) = run(&version(Some("exit 3"), Some("after 1000")), &[]).await;
    let wanted = "start command failed: error running start command: exit status 3\n\
                  bad [1mthing";
    assert_eq!(text(done), wanted);
    assert!(seen.commands().len() <= 2);
    let (done, _, _) = run(&version(Some("refuse"), None), &[]).await;
    assert_eq!(text(done), "start command failed: no such user");
}

#[tokio::test]
async fn start_command_that_ends_well_does_not_end_the_wait() {
    let (done, log, _) = run(&version(Some("exit 0"), Some("after 1")), &[]).await;
    done.unwrap();
    assert_eq!(log.info().last().map(String::as_str), Some("Template is ready"));
}

#[tokio::test]
async fn ready_command_that_never_succeeds_fails_in_time_with_its_last_output() {
    let version = Version { ready_within_sec: 1, ..version(None, Some("exit 4")) };
    let (done, _, _) = run(&version, &[]).await;
    let wanted = "ready command failed: `exit 4` did not succeed within 1 s; its last try: exit \
                  status 4\nbad [1mthing";
    assert_eq!(text(done), wanted);
}

#[tokio::test]
async fn variables_of_a_create_go_before_those_of_the_build() {
    let version = version(None, Some("after 0"));
    let (done, _, seen) = run(&version, &[("B", "create"), ("PATH", "/mine")]).await;
    done.unwrap();
    let starts = lock(&seen.starts);
    let config = starts[0].0.process.as_option().unwrap();
    assert!(!config.envs.contains_key("B"), "the guest has the create's value");
    assert_eq!(config.envs["PATH"], "/mine:/run/h");
    assert_eq!((config.cmd.as_str(), config.args.len()), ("/bin/sh", 2));
}

#[tokio::test]
async fn inherited_commands_run_with_the_configuration_of_the_base() {
    let env = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    let base = recipe::Config {
        env: env("A", "base"),
        build_env: env("C", "base's build"),
        user: Some("app".to_owned()),
        workdir: Some("/base".to_owned()),
        ..recipe::Config::default()
    };
    let version = Version { commands_config: Some(base), ..version(None, Some("after 0")) };
    let (done, _, seen) = run(&version, &[]).await;
    done.unwrap();
    let starts = lock(&seen.starts);
    let config = starts[0].0.process.as_option().unwrap();
    assert_eq!((config.envs["A"].as_str(), config.envs["C"].as_str()), ("base", "base's build"));
    assert!(!config.envs.contains_key("B"), "the variable is of the version's own build");
    assert_eq!(config.cwd.as_deref(), Some("/base"));
}

#[test]
fn only_login_shells_get_helpers_in_their_command() {
    let shell = Command::Shell("x".to_owned());
    let exec = Command::Exec(vec!["x".to_owned(), "y".to_owned()]);
    let login = argv(&shell, Dialect::E2b, Some("/run/h"));
    assert_eq!(login.last().unwrap(), "export PATH=\"$PATH:/run/h\"\nx");
    assert_eq!(argv(&shell, Dialect::E2b, None), ["/bin/bash", "-l", "-c", "x"]);
    assert_eq!(argv(&shell, Dialect::Steps, Some("/run/h")), ["/bin/sh", "-c", "x"]);
    assert_eq!(argv(&exec, Dialect::E2b, Some("/run/h")), ["x", "y"]);
    assert_eq!(in_line(&Command::Shell("a\n\x1b[1mb".to_owned())), "a  [1mb");
}
