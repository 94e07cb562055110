//! Tests that start, follow and end whole programs on this machine.

use super::exit::Exit;
use super::hub::{Event, Subscription};
use super::run::start;
use super::*;
use crate::guest::Guest;
use connectrpc::ErrorCode;

/// Time far longer than any test takes.
const LIMIT: Duration = Duration::from_secs(60);

fn shell(script: &str) -> Spec {
    let args = vec!["-c".to_owned(), script.to_owned()];
    Spec { cmd: "sh".to_owned(), args, cwd: Some("/".to_owned()), ..Spec::default() }
}

async fn run(
    guest: &Arc<Guest>,
    spec: Spec,
    deadline: Option<Instant>,
) -> Result<(Arc<Process>, Subscription)> {
    let started = start(guest, "root".to_owned(), spec, Vec::new(), deadline);
    tokio::time::timeout(LIMIT, started).await.unwrap()
}

/// Reads to the end. Returns standard output and the program's end.
async fn outcome(events: &mut Subscription) -> (String, Exit) {
    let mut out = Vec::new();
    loop {
        match tokio::time::timeout(LIMIT, events.next()).await.unwrap() {
            Some(Ok(Event::Data(Output::Stdout, data))) => out.extend_from_slice(&data),
            Some(Ok(Event::Data(..))) => {}
            Some(Ok(Event::End(exit))) => return (String::from_utf8(out).unwrap(), exit),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn program_output_and_exit_code_are_reported() {
    let guest = Arc::new(Guest::new(None, 0));
    let (process, mut events) = run(&guest, shell("echo hi; exit 3"), None).await.unwrap();
    let (out, exit) = outcome(&mut events).await;
    assert_eq!((out.as_str(), exit.code), ("hi\n", 3));
    assert_eq!(process.signal(Signal::KILL).unwrap_err().code, ErrorCode::NotFound);
    assert!(guest.processes.running().is_empty());
}

#[test]
fn list_shows_the_first_arguments_of_a_long_list() {
    let short = shell("true");
    assert_eq!(short.clone().shorten().args, short.args);
    let long = Spec { args: vec!["z".to_owned(); 100_000], ..short };
    let shown = long.shorten().args;
    assert_eq!((shown.len(), shown.last().unwrap().as_str()), (8192, "…"));
}

#[tokio::test]
async fn program_that_cannot_start_is_refused_and_not_listed() {
    let guest = Arc::new(Guest::new(None, 0));
    let missing = Spec { cmd: "nosuchcommand".to_owned(), ..shell("") };
    let plain = Spec { cmd: "/etc/passwd".to_owned(), ..shell("") };
    let lost = Spec { cwd: Some("/nosuchfolder".to_owned()), ..shell("") };
    for (spec, code) in [
        (missing, ErrorCode::NotFound),
        (plain, ErrorCode::PermissionDenied),
        (lost, ErrorCode::InvalidArgument),
    ] {
        let error = run(&guest, spec, None).await.err().unwrap();
        assert_eq!(error.code, code, "{error}");
    }
    assert!(guest.processes.running().is_empty());
}

#[tokio::test]
async fn deadline_and_kill_end_program_with_unread_output() {
    let guest = Arc::new(Guest::new(None, 0));
    let deadline = Instant::now() + Duration::from_secs(1);
    let (_, mut silent) = run(&guest, shell("exec yes"), Some(deadline)).await.unwrap();
    let gone = async {
        while !guest.processes.running().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.unwrap();
    let (out, exit) = outcome(&mut silent).await;
    assert_eq!((exit.code, exit.status.as_str()), (-1, "signal: killed"));
    assert!(out.len() > PIPE_MAX / 2, "{} bytes were kept for the reader", out.len());
}

#[tokio::test]
async fn background_job_outlives_its_program_and_keeps_writing() {
    let guest = Arc::new(Guest::new(None, 0));
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    let script = format!(
        "(while ! test -e {}; do sleep 0.02; done; head -c 300000 /dev/zero; echo late) & echo hi",
        gate.display()
    );
    let (process, mut events) = run(&guest, shell(&script), None).await.unwrap();
    let (out, exit) = outcome(&mut events).await;
    assert_eq!((out.as_str(), exit.code), ("hi\n", 0));
    std::fs::write(&gate, "").unwrap();
    tokio::time::timeout(LIMIT, process.hub.settled()).await.unwrap();
    let (kept, exit) = outcome(&mut process.hub.subscribe().unwrap()).await;
    assert!(kept.ends_with("\0late\n"), "{} bytes were kept", kept.len());
    assert_eq!((kept.len(), exit.code), (64 << 10, 0));
}
