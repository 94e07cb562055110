//! Ends of kernels: each is told with its reason, and the context lives on with a new kernel.
//! `tests/long` repeats them (`WRENN_DEATHS`).

use crate::Server;
use serde_json::json;
use std::time::Duration;

/// Ends of Python's kernel by its own code, with the reasons that are told.
const DEATHS: [(&str, &str); 4] = [
    ("import os; os._exit(3)", "exit status 3"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
    ("import ctypes; ctypes.string_at(0)", "signal 11"),
    ("import os; os.abort()", "signal 6"),
];

#[tokio::test]
async fn python_that_dies_is_told_with_its_reason_and_the_context_lives_on() {
    let server = Server::start().await;
    let other = server.context("python").await;
    server.ran(json!({ "code": "y = 8", "context_id": other })).await.ok();
    let rounds = tests::rounds("WRENN_DEATHS", 1);
    for (code, why) in DEATHS.into_iter().cycle().take(rounds * DEATHS.len()) {
        server.run("x = 7\nimport os\nos.chdir('/')").await.ok();
        // A kernel that dies at once may take its last output with it.
        let code = format!("import time\nprint('before', flush=True)\ntime.sleep(0.3)\n{code}");
        let outcome = server.run(&code).await;
        outcome.fails("KernelDied", why);
        assert_eq!(outcome.stdout(), "before\n", "{code}");
        let next = server.run("import os\n'x' in globals(), os.getcwd()").await.ok();
        let home = server.path("home");
        assert_eq!(next.value(), format!("(False, '{}')", home.display()), "{code}");
        assert_eq!(next.count(), 1, "{code}");
    }
    let kept = server.ran(json!({ "code": "y", "context_id": other })).await.ok();
    assert_eq!(kept.value(), "8", "another context was touched");
}

#[tokio::test]
async fn quit_ends_the_kernel_without_an_error() {
    let server = Server::start().await;
    for code in ["quit()", "exit", "import sys; x = 1\nquit()"] {
        server.run("y = 1").await.ok();
        server.run(code).await.ok();
        // The kernel ends a moment later. An execution meanwhile gets its answer.
        assert_eq!(server.run("1 + 1").await.ok().value(), "2", "{code}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let next = server.run("'y' in globals()").await.ok();
        assert_eq!((next.value(), next.stderr()), ("False", String::new()), "{code}");
    }
    // An exception that a program uses for its end is an error like others.
    let outcome = server.run("import sys; sys.exit(3)").await;
    outcome.fails("SystemExit", "3");
}

#[tokio::test]
async fn kernel_that_dies_between_executions_is_told_to_the_next() {
    let server = Server::start().await;
    let id = server.context("python").await;
    let code = "import os, threading\nthreading.Timer(1, os._exit, [4]).start()";
    for body in [json!({ "code": code, "context_id": id }), json!({ "code": code })] {
        server.ran(body).await.ok();
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let by_id = server.ran(json!({ "code": "1 + 1", "context_id": id })).await;
    by_id.fails("KernelDied", "exit status 4");
    assert_eq!(by_id.value(), "2");
    let by_name = server.run("1 + 1").await.ok();
    assert!(by_name.stderr().contains("exit status 4"), "{:?}", by_name.lines);
}

#[tokio::test]
async fn node_and_bash_that_die_are_told_too() {
    let server = Server::start().await;
    let deaths = [
        ("javascript", "console.log('before'); process.exit(3)", "exit status 3"),
        ("javascript", "console.log('before'); process.kill(process.pid, 'SIGKILL')", "signal 9"),
        ("bash", "echo before; exit 3", "exit status 3"),
        ("bash", "echo before; kill -9 $$", "signal 9"),
    ];
    let rounds = tests::rounds("WRENN_DEATHS", 1);
    for (language, code, why) in deaths.into_iter().cycle().take(rounds * deaths.len()) {
        let outcome = server.run_in(language, code).await;
        outcome.fails("KernelDied", why);
        let check = if language == "bash" { "echo again" } else { "console.log('again')" };
        assert_eq!(server.run_in(language, check).await.ok().stdout(), "again\n", "{code}");
    }
}

#[tokio::test]
async fn forks_of_user_code_harm_no_kernel() {
    let server = Server::start().await;
    let code = "import os\nx = 7\npid = os.fork()\nif pid == 0:\n    os._exit(5)\n\
        os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])";
    assert_eq!(server.run(code).await.ok().value(), "5");
    let code = "import multiprocessing\nwith multiprocessing.Pool(2) as pool:\n    \
        print(pool.map(abs, [-1, -2]))";
    assert_eq!(server.run(code).await.ok().stdout(), "[1, 2]\n");
    assert_eq!(server.run("x").await.ok().value(), "7");
}

#[tokio::test]
async fn full_disk_fails_new_contexts_and_no_execution() {
    let server = Server::on_small_disk().await;
    let fill = format!(
        "import os\nfile = os.open('{}', os.O_CREAT | os.O_WRONLY)\ntry:\n    while True:\n        \
         os.write(file, b'x' * 4096)\nexcept OSError as error:\n    print(error.errno)",
        server.path("run/fill").display()
    );
    assert_eq!(server.run(&fill).await.ok().stdout(), "28\n");
    for i in 0..3 {
        assert_eq!(server.run(&format!("{i} + 1")).await.ok().value(), (i + 1).to_string());
    }
    let create = json!({ "language": "python" });
    let (status, body) = server.ask(reqwest::Method::POST, "/contexts", Some(create)).await;
    assert_eq!(status, 500, "{body}");
    assert!(body.as_str().unwrap().contains("No space left"), "{body}");
    server.run("os.close(file)\nos.truncate('/proc/self/cwd/../run/fill', 0)").await.ok();
    server.context("python").await;
}
