//! Contexts that are removed, and executions whose clients leave. No control group and no process
//! of them stays in the guest. `tests/code/leftovers.rs` counts descriptors and files, on this
//! machine.

use super::{begin, create, value};
use serde_json::json;
use tests::{Client, eventually};

/// Command that counts the control groups of kernels and the user's processes in them.
const COUNT: &str = "cd /sys/fs/cgroup/user; ls -d k-* | wc -l; cat k-*/cgroup.procs | wc -l";

/// Returns the numbers of groups and of processes.
async fn count(client: &Client, id: &str) -> (usize, usize) {
    let out = client.out(id, COUNT).await;
    let mut numbers = out.split_whitespace().map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Makes contexts and removes them, and leaves executions. `WRENN_CONTEXTS` and `WRENN_LEFT` are
/// their numbers.
pub(super) async fn removed_contexts_leave_no_group(client: &Client) {
    let id = create(client).await;
    assert_eq!(value(client, &id, "1 + 1").await, "2");
    let before = count(client, &id).await;
    let contexts = format!("/v1/capsules/{id}/code/contexts");
    for round in 0..tests::rounds("WRENN_CONTEXTS", 3) {
        let language = ["python", "javascript", "bash"][round % 3];
        let made = client.post(&contexts, &json!({ "language": language })).await.expect(201);
        let context = made["id"].as_str().unwrap();
        let gone = client.delete(&format!("{contexts}/{context}")).await;
        assert!(gone.status.is_success(), "{}", gone.body);
    }
    for _ in 0..tests::rounds("WRENN_LEFT", 5) {
        drop(begin(client, &id, &json!({ "code": "import time; time.sleep(0.01)" })).await);
    }
    assert_eq!(value(client, &id, "1 + 1").await, "2");
    eventually("groups and processes are as before", async || {
        let now = count(client, &id).await;
        (now.0 <= before.0 && now.1 <= before.1).then_some(())
    })
    .await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
}
