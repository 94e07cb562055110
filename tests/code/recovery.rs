//! Ends of the interpreter itself: kernels outlive it with their state, and the next interpreter
//! finds them.

use crate::Server;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Returns the ids and the languages of all contexts.
async fn list(server: &Server) -> Vec<(Value, Value)> {
    let list = server.get("/contexts").await;
    let items = list.as_array().unwrap().iter();
    items.map(|context| (context["id"].clone(), context["language"].clone())).collect()
}

#[tokio::test]
async fn kernels_outlive_a_killed_and_an_ended_interpreter() {
    let mut server = Server::start().await;
    let cells = [
        ("python", "x = 7", "print(x)"),
        ("javascript", "let x = 7", "console.log(x)"),
        ("typescript", "let y: number = 7", "console.log(y)"),
        ("bash", "x=7", "echo $x"),
    ];
    for (language, set, _) in cells {
        server.run_in(language, set).await.ok();
    }
    let before = list(&server).await;
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
        server.end(signal);
        server.resume().await;
        assert_eq!(list(&server).await, before, "{signal:?}");
        for (language, _, get) in cells {
            let outcome = server.run_in(language, get).await.ok();
            assert_eq!(outcome.stdout(), "7\n", "{language} after {signal:?}");
        }
    }
    let outcome = server.run("import os\nos._exit(3)").await;
    outcome.fails("KernelDied", "");
    assert_eq!(server.run("1 + 1").await.ok().value(), "2");
}

#[tokio::test]
async fn execution_goes_on_through_a_crash_and_can_be_attached_to() {
    let mut server = Server::start().await;
    let home = server.path("home");
    let code = "import os, time\nprint('up', flush=True)\n\
        while not os.path.exists('go'):\n    time.sleep(0.05)\nprint('end')\nx = 7";
    let mut execution = server.execute(json!({ "code": code })).await;
    execution.until("up").await;
    server.end(Signal::KILL);
    let id = execution.id.clone();
    assert!(!execution.rest().await.whole, "a cut looks like an end");
    server.resume().await;
    assert_eq!(server.get("/contexts").await[0]["state"], "busy");
    let attached = server.attach(&id, 0).await;
    std::fs::write(home.join("go"), "").unwrap();
    let outcome = attached.rest().await.ok();
    assert_eq!(outcome.stdout(), "end\n");
    let outcome = server.run("x").await.ok();
    assert_eq!((outcome.value(), outcome.count()), ("7", 2));
}

#[tokio::test]
async fn kernel_that_died_with_the_interpreter_is_told_to_the_next_execution() {
    let mut server = Server::start().await;
    let id = server.context("python").await;
    server.ran(json!({ "code": "x = 7", "context_id": id })).await.ok();
    let pid =
        server.ran(json!({ "code": "import os\nprint(os.getpid())", "context_id": id })).await;
    let pid = pid.ok().stdout().trim().parse().unwrap();
    server.end(Signal::KILL);
    tests::signal(pid, Signal::KILL);
    server.resume().await;
    let outcome = server.ran(json!({ "code": "1 + 1", "context_id": id })).await;
    outcome.fails("ContextRestarted", "state is lost");
    assert_eq!(outcome.value(), "2");
    // A broken state file costs the state, and no more.
    server.end(Signal::KILL);
    std::fs::write(server.path("run/state.json"), "{").unwrap();
    server.resume().await;
    assert_eq!(server.run("1 + 1").await.ok().value(), "2");
    let (status, _) = server.ask(Method::GET, &format!("/contexts/{id}"), None).await;
    assert_eq!(status, 404);
}
