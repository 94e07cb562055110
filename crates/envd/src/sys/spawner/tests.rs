//! Tests with real programs, started by the threads.

use super::*;
use crate::error::Error;
use crate::sys::spawn::{Child, Step};
use crate::users::User;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitOptions, waitpid};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;
use tokio::sync::Semaphore;

const LIMIT: Duration = Duration::from_secs(60);

fn plan(script: &str) -> Plan {
    let gid = rustix::process::getgid().as_raw();
    let uid = rustix::process::getuid().as_raw();
    let user = User { name: "me".into(), uid, gid, groups: vec![gid], home: "/".into() };
    let child = Child { terminal: false, alone: true };
    let envs = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
    let args = ["-c".to_owned(), script.to_owned()];
    Plan::new("sh", &args, &envs, Path::new("/"), user, child).unwrap()
}

/// Requests a start that writes to `output`.
fn ask(
    spawner: &Spawner,
    places: &Arc<Semaphore>,
    output: &OwnedFd,
    plan: impl FnOnce() -> Result<Plan> + Send + 'static,
) -> Asked {
    let place = Arc::clone(places).try_acquire_owned().unwrap();
    let output = output.as_raw_fd();
    let stdio = [output; 3];
    spawner.ask(Request { plan: Box::new(plan), stdio, cgroup: None, place }).ok().unwrap()
}

async fn outcome(asked: &mut Asked) -> Outcome {
    tokio::time::timeout(LIMIT, asked.outcome()).await.unwrap().unwrap()
}

#[tokio::test]
async fn program_started_on_one_thread_is_waited_for_on_another() {
    let (spawner, places) = (Spawner::new(), Arc::new(Semaphore::new(1)));
    // The threads have their own table by now, so the pipe is in another one.
    let (output, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut asked = ask(&spawner, &places, &theirs, || Ok(plan("echo up")));
    let Outcome::Runs(pid) = outcome(&mut asked).await else { panic!("it did not start") };
    drop(theirs);
    let mut text = String::new();
    File::from(output).read_to_string(&mut text).unwrap();
    assert_eq!(text, "up\n");
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0));
    assert_eq!(places.available_permits(), 1);
}

#[tokio::test]
async fn hanging_starts_do_not_block_other_starts() {
    let (spawner, places) = (Spawner::new(), Arc::new(Semaphore::new(9)));
    let (_output, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let hang = || {
        let (release, hanging) = channel::<()>();
        let look_up = move || {
            let _ = hanging.recv();
            Ok(plan("exit 3"))
        };
        (release, ask(&spawner, &places, &theirs, look_up))
    };
    let hanging: Vec<_> = (0..8).map(|_| hang()).collect();
    let mut asked = ask(&spawner, &places, &theirs, || Ok(plan("exit 4")));
    let Outcome::Runs(pid) = outcome(&mut asked).await else { panic!("it did not start") };
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(4));
    for (release, mut asked) in hanging {
        drop(release);
        let Outcome::Runs(pid) = outcome(&mut asked).await else { panic!("it did not start") };
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(3));
    }
    assert_eq!(places.available_permits(), 9);
}

#[tokio::test]
async fn start_cancelled_before_exec_runs_no_program() {
    let (spawner, places) = (Spawner::new(), Arc::new(Semaphore::new(1)));
    let (output, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let ((release, hanging), (tell, told)) = (channel::<()>(), channel());
    let look_up = move || {
        let _ = tell.send(());
        let _ = hanging.recv();
        Ok(plan("echo up"))
    };
    let mut asked = ask(&spawner, &places, &theirs, look_up);
    told.recv_timeout(LIMIT).unwrap();
    asked.cancel();
    drop(release);
    let Outcome::Failed(failure, _) = outcome(&mut asked).await else { panic!("it started") };
    assert_eq!(failure.step, Step::Setup);
    assert_eq!(failure.error.raw_os_error(), Some(libc::ECANCELED));
    drop(theirs);
    let mut text = String::new();
    File::from(output).read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
}

#[tokio::test]
async fn cancelled_start_kills_its_running_program() {
    let (spawner, places) = (Spawner::new(), Arc::new(Semaphore::new(1)));
    let (_output, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut asked = ask(&spawner, &places, &theirs, || Ok(plan("exec sleep 600")));
    let Outcome::Runs(pid) = outcome(&mut asked).await else { panic!("it did not start") };
    asked.cancel();
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.terminating_signal(), Some(libc::SIGKILL));
}

#[tokio::test]
async fn start_without_a_plan_is_refused_with_its_error() {
    let (spawner, places) = (Spawner::new(), Arc::new(Semaphore::new(1)));
    let (_output, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut asked = ask(&spawner, &places, &theirs, || Err(Error::invalid("no such account")));
    let Outcome::Refused(error) = outcome(&mut asked).await else { panic!("it started") };
    assert_eq!(error.message, "no such account");
    assert_eq!(places.available_permits(), 1);
}
