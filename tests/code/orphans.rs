//! Executions without their client: they go on if the client asked so, can be attached to, and give
//! way to the next execution.

use crate::Server;
use reqwest::Method;
use serde_json::json;

const COUNT: &str = "import time\nprint('up', flush=True)\nfor i in range(20):\n    print(i)\n    \
    time.sleep(0.1)\nprint('end')";

#[tokio::test]
async fn kept_execution_goes_on_and_is_attached_to_after_some_lines() {
    let server = Server::start().await;
    let mut execution = server.execute(json!({ "code": COUNT, "keep": true })).await;
    execution.until("3\n").await;
    let (id, context) = (execution.id.clone(), execution.context.clone());
    drop(execution);
    let first = server.attach(&id, 0).await.rest().await.ok();
    let wanted: String = (0..20).map(|i| format!("{i}\n")).collect();
    assert_eq!(first.stdout(), format!("up\n{wanted}end\n"));
    assert_eq!(first.lines[0]["execution_id"], json!(id));
    assert_eq!(first.lines[0]["context_id"], json!(context));
    // After its end it is kept for a while, and later clients get the lines that they lack.
    let later = server.attach(&id, 3).await.rest().await.ok();
    assert_eq!(later.lines, first.lines[3..]);
    let (status, text) = server.ask(Method::GET, "/executions/x", None).await;
    assert_eq!((status, text), (404, json!("Execution x not found")));
}

#[tokio::test]
async fn orphan_gives_way_to_the_next_execution() {
    let server = Server::start().await;
    server.run("x = 7").await.ok();
    let code = "import time\nprint('up', flush=True)\ntime.sleep(300)";
    let mut execution = server.execute(json!({ "code": code, "keep": true })).await;
    execution.until("up").await;
    let id = execution.id.clone();
    drop(execution);
    assert_eq!(server.run("x").await.ok().value(), "7");
    server.attach(&id, 0).await.rest().await.fails("KeyboardInterrupt", "");
    // A second client keeps it from giving way.
    let mut execution = server.execute(json!({ "code": COUNT, "keep": true })).await;
    execution.until("up").await;
    let watcher = server.attach(&execution.id, 0).await;
    drop(execution);
    assert_eq!(server.run("i").await.ok().value(), "19");
    assert!(watcher.rest().await.ok().stdout().ends_with("end\n"));
}

#[tokio::test]
async fn old_lines_of_a_long_execution_are_told_as_omitted() {
    let server = Server::start().await;
    let code = "for i in range(12_000):\n    print(f'{i:0999d}')";
    let execution = server.execute(json!({ "code": code, "keep": true })).await;
    let id = execution.id.clone();
    let whole = execution.rest().await.ok();
    let later = server.attach(&id, 0).await.rest().await.ok();
    let omitted = &later.lines[0];
    assert_eq!(omitted["type"], "omitted", "{omitted}");
    assert!(omitted["bytes"].as_u64().unwrap() > 6_000_000, "{omitted}");
    let missing = usize::try_from(omitted["lines"].as_u64().unwrap()).unwrap();
    assert_eq!(later.lines[1..], whole.lines[missing..]);
}
