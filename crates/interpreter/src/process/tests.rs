//! Tests of processes, with real programs of this machine.

use super::*;
use std::io::Read;
use std::path::Path;

const WAIT: Duration = Duration::from_secs(20);

fn shell(script: &str, files: Vec<Option<OwnedFd>>) -> Program {
    Program {
        path: "sh".into(),
        args: vec!["-c".into(), script.into()],
        envs: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
        cwd: "/".into(),
        files,
        oom_score: 100,
    }
}

async fn start(script: &str) -> Process {
    start_with(script, vec![None, None, None]).await
}

async fn start_with(script: &str, files: Vec<Option<OwnedFd>>) -> Process {
    Process::start(shell(script, files), &User::current(), "test").await.unwrap()
}

async fn end(process: &Process) -> Status {
    tokio::time::timeout(WAIT, process.end()).await.unwrap().status
}

/// Runs a script and returns the text that it writes to its descriptor 4.
async fn output(script: &str) -> String {
    let (mut reader, writer) = io::pipe().unwrap();
    let files = vec![None, None, None, None, Some(OwnedFd::from(writer))];
    let process = start_with(script, files).await;
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    drop(process);
    text
}

#[tokio::test]
async fn ended_program_reports_its_status() {
    assert_eq!(end(&start("exit 3").await).await, Status::Code(3));
    assert_eq!(end(&start("kill -11 $$").await).await, Status::Signal(11));
    assert_eq!((read_status(0x300), read_status(9)), (Status::Code(3), Status::Signal(9)));
}

#[tokio::test]
async fn program_leads_a_session_and_has_only_its_files() {
    let text = output("exec >&4; echo $$; cat /proc/self/oom_score_adj; ls -l /proc/$$/fd").await;
    let mut lines = text.lines();
    let pid: i32 = lines.next().unwrap().parse().unwrap();
    assert!(pid > 1);
    assert_eq!(lines.next(), Some("100"));
    assert_eq!(text.matches("/dev/null").count(), 3, "{text}");
    assert_eq!(text.matches("pipe:").count(), 2, "1 and 4 are the pipe: {text}");
    let session = output("exec >&4; cut -d ' ' -f 6 /proc/$$/stat; echo $$").await;
    let ids: Vec<&str> = session.lines().collect();
    assert_eq!(ids.first(), ids.get(1), "{session}");
}

#[tokio::test]
async fn signals_reach_the_group_and_a_stop_only_the_process() {
    let process = start("trap 'exit 7' INT; sleep 60 & wait; sleep 60").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    process.signal_alone(libc::SIGSTOP);
    process.signal(libc::SIGINT);
    process.signal_alone(libc::SIGCONT);
    assert_eq!(end(&process).await, Status::Code(7));
    process.signal(libc::SIGKILL);
}

#[tokio::test]
async fn drop_kills_the_program_and_its_children() {
    let (mut reader, writer) = io::pipe().unwrap();
    let files = vec![None, None, None, Some(OwnedFd::from(writer))];
    let process = start_with("sleep 60 & exec sleep 60", files).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(process);
    // The pipe's end is the end of all who held it.
    let read = tokio::task::spawn_blocking(move || reader.read_to_end(&mut Vec::new()));
    assert_eq!(tokio::time::timeout(WAIT, read).await.unwrap().unwrap().unwrap(), 0);
}

#[tokio::test]
async fn released_program_is_adopted_by_pid_and_start_time() {
    let process = start("sleep 60").await;
    let (pid, started, group) = process.saved();
    process.release();
    let driver = serde_json::Value::Null;
    let mut saved = Saved { pid, started: started + 1, group, run: 0, driver };
    assert_eq!(Process::adopt(&saved).err().unwrap().kind(), io::ErrorKind::NotFound);
    saved.started = started;
    let adopted = Process::adopt(&saved).unwrap();
    assert!(adopted.memory().is_some());
    adopted.signal(libc::SIGTERM);
    assert_eq!(end(&adopted).await, Status::Signal(libc::SIGTERM));
    assert!(Process::adopt(&Saved { pid: 0, ..saved }).is_err());
}

#[tokio::test]
async fn failed_start_names_its_step() {
    let error = async |change: fn(&mut Program)| {
        let mut program = shell("true", vec![]);
        change(&mut program);
        let started = Process::start(program, &User::current(), "test").await;
        started.err().unwrap().to_string()
    };
    let missing = error(|program| program.path = "no-such-program".into()).await;
    assert!(missing.contains("'no-such-program' cannot be run"), "{missing}");
    let folder = error(|program| program.cwd = "/no/such/folder".into()).await;
    assert!(folder.contains("folder '/no/such/folder' cannot be entered"), "{folder}");
    let nul = error(|program| program.cwd = Path::new("/\0").into()).await;
    assert!(nul.contains("NUL"), "{nul}");
}

#[tokio::test]
async fn start_that_is_given_up_ends_its_program() {
    let (mut reader, writer) = io::pipe().unwrap();
    let files = vec![None, None, None, Some(OwnedFd::from(writer))];
    let (user, program) = (User::current(), shell("sleep 60", files));
    let mut starting = Box::pin(Process::start(program, &user, "test"));
    // The first poll begins the start.
    drop(tokio::time::timeout(Duration::ZERO, &mut starting).await);
    drop(starting);
    let read = tokio::task::spawn_blocking(move || reader.read_to_end(&mut Vec::new()));
    assert_eq!(tokio::time::timeout(WAIT, read).await.unwrap().unwrap().unwrap(), 0);
}
