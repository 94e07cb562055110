//! Many contexts that are removed, and many clients that leave: nothing of them stays behind.
//! `tests/long` raises both numbers (`WRENN_CONTEXTS`, `WRENN_LEFT`).

use crate::Server;
use reqwest::Method;
use serde_json::json;

/// Processes, descriptors and files of an interpreter. Sockets are among the descriptors.
#[derive(Debug)]
struct Held {
    processes: usize,
    /// Descriptors of the interpreter.
    own: usize,
    /// Descriptors of all processes that it has started.
    others: usize,
    /// Files of contexts.
    files: usize,
}

impl Held {
    fn by(server: &Server) -> Self {
        let pids = server.processes();
        Self {
            processes: pids.len(),
            own: descriptors(server.pid()),
            others: pids.iter().copied().map(descriptors).sum(),
            files: std::fs::read_dir(server.path("run")).unwrap().count(),
        }
    }

    fn is_within(&self, other: &Self) -> bool {
        self.processes <= other.processes
            && self.own <= other.own
            && self.others <= other.others
            && self.files <= other.files
    }
}

/// Returns the number of descriptors of a process, or 0 once it has ended.
fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Makes a context and removes it.
async fn make_and_remove(server: &Server, language: &str) {
    let id = server.context(language).await;
    let (status, _) = server.ask(Method::DELETE, &format!("/contexts/{id}"), None).await;
    assert_eq!(status, 200);
}

/// Begins an execution and leaves after its first line.
async fn leave(server: &Server) {
    drop(server.execute(json!({ "code": "import time; time.sleep(0.01)" })).await);
}

#[tokio::test]
async fn removed_contexts_and_clients_that_left_leave_nothing_behind() {
    let server = Server::start().await;
    assert_eq!(server.run("1 + 1").await.ok().value(), "2");
    let processes = server.processes().len();
    // The first of each may open files that stay open for later ones.
    make_and_remove(&server, "python").await;
    leave(&server).await;
    assert_eq!(server.run("1 + 1").await.ok().value(), "2");
    tests::eventually("the first context has ended", async || {
        (server.processes().len() <= processes).then_some(())
    })
    .await;
    let before = Held::by(&server);
    for round in 0..tests::rounds("WRENN_CONTEXTS", 6) {
        make_and_remove(&server, ["python", "javascript", "bash"][round % 3]).await;
    }
    for _ in 0..tests::rounds("WRENN_LEFT", 50) {
        leave(&server).await;
    }
    assert_eq!(server.run("1 + 1").await.ok().value(), "2");
    tests::eventually("processes, descriptors and files are as before", async || {
        Held::by(&server).is_within(&before).then_some(())
    })
    .await;
}
