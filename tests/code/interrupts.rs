//! Ends of code that somebody wants to stop: clients that leave, interrupts, deadlines, and code
//! that ignores all of them. State is kept wherever the kernel survives.

use crate::Server;
use reqwest::Method;
use serde_json::json;
use std::time::{Duration, Instant};

/// Code that runs for long, with a line at its beginning.
const PYTHON: [&str; 5] = [
    "import time; print('up', flush=True); time.sleep(300)",
    "print('up', flush=True)\nwhile True: pass",
    "import asyncio; print('up', flush=True)\nawait asyncio.sleep(300)",
    "import subprocess; print('up', flush=True); subprocess.run(['sleep', '300'])",
    "import threading; print('up', flush=True); threading.Event().wait()",
];
const JAVASCRIPT: [&str; 3] = [
    "console.log('up'); while (true) {}",
    "console.log('up'); await new Promise(() => {})",
    "console.log('up'); await new Promise((done) => setTimeout(done, 300000))",
];
const BASH: [&str; 3] = [
    "echo up; sleep 300",
    "echo up; while :; do :; done",
    "f() { sleep 300; }; echo up; f; echo no",
];

/// Leaves each piece of code, and checks that the context goes on with its state.
async fn leave(server: &Server, language: &str, (set, get): (&str, &str), codes: &[&str]) {
    server.run_in(language, set).await.ok();
    for code in codes {
        let body = json!({ "code": code, "language": language });
        let mut execution = server.execute(body).await;
        execution.until("up").await;
        drop(execution);
        // A context that had to be killed would have lost its state.
        let outcome = server.run_in(language, get).await.ok();
        let seen =
            outcome.lines.iter().any(|line| line["text"].as_str().unwrap_or("").trim() == "7");
        assert!(seen, "{code}: {:?}", outcome.lines);
    }
}

#[tokio::test]
async fn client_that_leaves_interrupts_python() {
    let server = Server::start().await;
    leave(&server, "python", ("x = 7", "x"), &PYTHON).await;
}

#[tokio::test]
async fn client_that_leaves_interrupts_numpy() {
    let server = Server::start().await;
    let code = "import numpy\nprint('up', flush=True)\nmatrix = numpy.ones((400, 400))\n\
        while True:\n    matrix @ matrix";
    leave(&server, "python", ("x = 7", "x"), &[code]).await;
}

#[tokio::test]
async fn client_that_leaves_interrupts_javascript_and_bash() {
    let server = Server::start().await;
    leave(&server, "javascript", ("let x = 7", "x"), &JAVASCRIPT).await;
    leave(&server, "bash", ("x=7", "echo $x"), &BASH).await;
}

#[tokio::test]
async fn interrupt_ends_the_execution_with_an_error_and_keeps_state() {
    let server = Server::start().await;
    for (language, code, name) in [
        ("python", PYTHON[0], "KeyboardInterrupt"),
        ("javascript", JAVASCRIPT[0], "Interrupted"),
        ("bash", BASH[0], "Interrupted"),
    ] {
        for of_context in [false, true] {
            let mut execution = server.execute(json!({ "code": code, "language": language })).await;
            execution.until("up").await;
            let path = match of_context {
                true => format!("/contexts/{}/interrupt", execution.context),
                false => format!("/executions/{}/interrupt", execution.id),
            };
            let (status, body) = server.ask(Method::POST, &path, None).await;
            assert_eq!((status, body), (200, json!(null)), "{path}");
            execution.rest().await.fails(name, "");
        }
    }
    let (status, body) = server.ask(Method::POST, "/executions/x/interrupt", None).await;
    assert_eq!((status, body), (404, json!("Execution x not found")));
}

#[tokio::test]
async fn deadline_ends_the_execution_with_its_own_error() {
    let server = Server::start().await;
    server.run("x = 7").await.ok();
    for code in PYTHON {
        let outcome = server.ran(json!({ "code": code, "timeout_ms": 1500 })).await;
        outcome.fails("ExecutionTimeout", "1500 ms");
        assert_eq!(outcome.stdout(), "up\n");
    }
    assert_eq!(server.ran(json!({ "code": "x", "timeout_ms": 60_000 })).await.ok().value(), "7");
    let body = json!({ "code": JAVASCRIPT[0], "language": "js", "timeout_ms": 1500 });
    server.ran(body).await.fails("ExecutionTimeout", "1500 ms");
}

#[tokio::test]
async fn code_that_ignores_interrupts_is_killed_for_the_next_execution() {
    let server = Server::start().await;
    let id = server.context("python").await;
    let code = "import signal, time\nx = 7\nsignal.signal(signal.SIGINT, lambda *_: None)\n\
        print('up', flush=True)\nwhile True: time.sleep(300)";
    let mut left = Vec::new();
    for body in [json!({ "code": code, "context_id": id }), json!({ "code": code })] {
        let mut execution = server.execute(body).await;
        execution.until("up").await;
        left.push(execution);
    }
    drop(left);
    // Who named the context gets an error, and who did not a line.
    let by_id = json!({ "code": "1 + 1", "context_id": id });
    let (by_id, by_name) = tokio::join!(server.ran(by_id), server.run("1 + 1"));
    by_id.fails("ContextRestarted", "state is lost");
    assert_eq!(by_id.value(), "2");
    assert_eq!(by_name.ok().value(), "2");
    server.run("x").await.fails("NameError", "x");
    assert_eq!(server.get(&format!("/contexts/{id}")).await["id"], json!(id));
}

#[tokio::test]
async fn call_in_c_and_ignored_signal_hold_up_the_next_execution_for_ten_seconds() {
    let server = Server::start().await;
    let swallowed = "import signal, time\nsignal.signal(signal.SIGINT, lambda *_: None)\n\
        print('up', flush=True)\nwhile True: time.sleep(300)";
    let ignored = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n\
        print('up', flush=True)\nwhile True: pass";
    for (language, code, next) in [
        ("python", "print('up', flush=True)\nsum(range(10**12))", "print('next')"),
        ("python", ignored, "print('next')"),
        ("python", swallowed, "print('next')"),
        ("bash", "trap '' INT; echo up; while :; do :; done", "echo next"),
    ] {
        let mut execution = server.execute(json!({ "code": code, "language": language })).await;
        execution.until("up").await;
        drop(execution);
        let begun = Instant::now();
        let outcome = server.run_in(language, next).await.ok();
        assert!(begun.elapsed() < Duration::from_secs(12), "{code}: {:?}", begun.elapsed());
        assert_eq!(outcome.stdout(), "next\n", "{code}");
        assert!(outcome.stderr().contains("state is lost"), "{:?}", outcome.lines);
    }
}

#[tokio::test]
async fn execution_that_waits_is_dropped_with_its_client_and_the_running_one_goes_on() {
    let server = Server::start().await;
    let mut first = server
        .execute(json!({ "code": "import time\nprint('up', flush=True)\n\
        time.sleep(2)\nprint('end')" }))
        .await;
    first.until("up").await;
    let second = server.execute(json!({ "code": "x = 1" })).await;
    let third = server.execute(json!({ "code": "'x' in globals()" })).await;
    drop(second);
    let first = first.rest().await.ok();
    assert_eq!(first.stdout(), "up\nend\n");
    let third = third.rest().await.ok();
    assert_eq!((third.value(), third.count()), ("False", 2));
}
