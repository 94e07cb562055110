//! Commands by `wrenn capsule exec`: input that stays open, and exit codes of commands that cannot
//! run.

use super::text;
use crate::capsule;
use serde_json::Value;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use tests::Platform;

/// Starts a command whose standard input stays open.
fn start(platform: &Platform, args: &[&str]) -> (Child, ChildStdin) {
    let mut command = platform.wrenn();
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    (child, stdin)
}

/// Waits for a command's end. Returns its exit code and its output.
fn end(mut child: Child) -> (Option<i32>, Vec<u8>, Vec<u8>) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_end(&mut err).unwrap();
    (child.wait().unwrap().code(), out, err)
}

#[tokio::test]
async fn exec_returns_at_command_exit_while_stdin_stays_open() {
    let (platform, _, id) = capsule().await;
    let script = ["capsule", "exec", &id, "--", "sh", "-c", "read -r line; echo got $line; exit 7"];
    for json in [false, true] {
        let args = if json { [&["--json"], &script[..]].concat() } else { script.to_vec() };
        let (child, mut stdin) = start(&platform, &args);
        stdin.write_all(b"one\n").unwrap();
        let (code, out, err) = end(child);
        assert_eq!(code, Some(7), "{}", text(&err));
        if json {
            let result: Value = serde_json::from_slice(&out).unwrap();
            assert_eq!((&result["stdout"], &result["exit_code"]), (&"got one\n".into(), &7.into()));
            assert_eq!(result["sandbox_id"], id.as_str());
        } else {
            assert_eq!(text(&out), "got one\n");
        }
        drop(stdin);
    }
    platform.finish();
}

#[tokio::test]
async fn exec_timeout_applies_while_stdin_stays_open() {
    let (platform, _, id) = capsule().await;
    let script = ["capsule", "exec", "--timeout", "1", &id, "--", "cat"];
    for json in [false, true] {
        let args = if json { [&["--json"], &script[..]].concat() } else { script.to_vec() };
        let (child, stdin) = start(&platform, &args);
        let (code, out, err) = end(child);
        assert_eq!((code, text(&out)), (Some(124), ""), "{}", text(&err));
        if json {
            let failure: Value = serde_json::from_slice(&err).unwrap();
            assert_eq!(failure["error"]["code"], "timeout");
        }
        drop(stdin);
    }
    platform.finish();
}

#[tokio::test]
async fn command_that_cannot_run_gets_shell_exit_code() {
    let (platform, _, id) = capsule().await;
    for (program, wanted) in
        [("nosuchcommand", 127), ("/no/such/command", 127), ("/etc/passwd", 126), ("/etc", 126)]
    {
        let plain: &[&str] = &[];
        for json in [plain, &["--json"]] {
            let args = [json, &["capsule", "exec", "-n", &id, "--", program]].concat();
            let out = platform.run(&args);
            assert_eq!(out.status.code(), Some(wanted), "{program}: {out:?}");
            assert!(text(&out.stderr).contains(program), "{out:?}");
        }
    }
    platform.finish();
}
