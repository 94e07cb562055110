//! Tests with real programs, started and reaped without a runtime.

use super::*;
use rustix::fd::AsFd;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

fn plan(cmd: &str, args: &[&str], envs: &[(&str, &str)], cwd: &Path) -> Plan {
    let gid = rustix::process::getgid().as_raw();
    let uid = rustix::process::getuid().as_raw();
    let user = User { name: "me".into(), uid, gid, groups: vec![gid], home: "/".into() };
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let envs = envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let child = Child { terminal: false, alone: true };
    Plan::new(cmd, &args, &envs.collect(), cwd, user, child).unwrap()
}

/// Runs a program to its end and returns its failure, its output and its exit code.
fn run(plan: &Plan) -> (Option<Failure>, String, Option<i32>) {
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let (output, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let stdio = [null.as_fd(), theirs.as_fd(), null.as_fd()];
    let started = spawn(plan, stdio, None, &Cancellable::default(), &mut Stack::new().unwrap());
    drop(theirs);
    let mut text = String::new();
    File::from(output).read_to_string(&mut text).unwrap();
    match started {
        Ok(pid) => {
            let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
            (None, text, status.exit_status())
        }
        Err(failure) => (Some(failure), text, None),
    }
}

#[test]
fn program_gets_its_arguments_environment_and_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap();
    let envs = [("PATH", "/nowhere:/usr/bin:/bin"), ("A", "ü b")];
    let script = r#"echo "$A"; pwd; echo "$1"; exit 3"#;
    let (failure, output, code) = run(&plan("sh", &["-c", script, "sh", "x"], &envs, &path));
    assert!(failure.is_none(), "{failure:?}");
    assert_eq!(output, format!("ü b\n{}\nx\n", path.display()));
    assert_eq!(code, Some(3));
}

#[test]
fn failed_start_reports_its_step_and_error() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "text").unwrap();
    std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o644)).unwrap();
    let here = dir.path().display().to_string();
    let search = format!("/nowhere:{here}:/usr/bin:/bin");
    let envs = [("PATH", search.as_str())];
    let path = plain.display().to_string();
    let missing = dir.path().join("missing");
    for (cmd, cwd, step, number) in [
        ("nosuchcommand", dir.path(), Step::Exec, libc::ENOENT),
        ("/nosuchfolder/x", dir.path(), Step::Exec, libc::ENOENT),
        (path.as_str(), dir.path(), Step::Exec, libc::EACCES),
        ("plain", dir.path(), Step::Exec, libc::EACCES),
        (here.as_str(), dir.path(), Step::Exec, libc::EACCES),
        ("sh", missing.as_path(), Step::Folder, libc::ENOENT),
        ("sh", plain.as_path(), Step::Folder, libc::ENOTDIR),
    ] {
        let failure = run(&plan(cmd, &[], &envs, cwd)).0.unwrap();
        assert_eq!((failure.step, failure.error.raw_os_error()), (step, Some(number)), "{cmd}");
    }
}

#[test]
fn child_inherits_no_descriptor() {
    // An exec does not close this descriptor, so only the child itself can.
    let (leaked, _writer) = pipe_with(PipeFlags::empty()).unwrap();
    let test = format!("test -e /proc/self/fd/{}", leaked.as_raw_fd());
    let envs = [("PATH", "/usr/bin:/bin")];
    let (failure, _, code) = run(&plan("sh", &["-c", &test], &envs, Path::new("/")));
    assert!(failure.is_none(), "{failure:?}");
    assert_eq!(code, Some(1));
}

#[test]
fn command_with_nul_is_refused() {
    let user = User { name: "me".into(), uid: 0, gid: 0, groups: vec![], home: "/".into() };
    let child = Child { terminal: false, alone: true };
    let envs = BTreeMap::new();
    assert!(Plan::new("a\0b", &[], &envs, Path::new("/"), user, child).is_err());
}
