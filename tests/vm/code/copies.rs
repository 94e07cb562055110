//! Copies of machines: creates from the template, forks and resumes. Pristine contexts of two copies
//! draw different numbers, and contexts with state keep it.

use super::{Stream, begin, create, ran, stdout, value};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tests::Client;

/// Expression with a draw of each generator of Python.
const DRAW: &str = "import random, uuid, tempfile, numpy, ssl\n\
    ' '.join(map(str, [random.random(), numpy.random.rand(), uuid.uuid4(), \
    next(tempfile._get_candidate_names()), ssl.RAND_bytes(8).hex()]))";

/// Returns the draws of all generators of a capsule, Node's and bash's among them.
async fn draws(client: &Client, id: &str) -> Vec<String> {
    let python = value(client, id, DRAW).await;
    let mut all: Vec<String> = python.split(' ').map(str::to_owned).collect();
    let code = "console.log(Math.random(), crypto.randomUUID())";
    let node = ran(client, id, &json!({ "code": code, "language": "javascript" })).await;
    all.extend(stdout(&node).split_whitespace().map(str::to_owned));
    let bash = json!({ "code": "echo $RANDOM$RANDOM$RANDOM$RANDOM", "language": "bash" });
    all.extend(stdout(&ran(client, id, &bash).await).split_whitespace().map(str::to_owned));
    assert_eq!(all.len(), 8, "{all:?}");
    all
}

/// Forks a capsule. Returns the ids of the children.
async fn fork(client: &Client, id: &str, count: usize) -> Vec<String> {
    let path = format!("/v1/capsules/{id}/fork");
    let forked = client.post(&path, &json!({ "count": count })).await.expect(201);
    let items = forked["items"].as_array().unwrap();
    assert_eq!(items.len(), count, "{forked}");
    items.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

async fn delete(client: &Client, ids: &[String]) {
    for id in ids {
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
}

/// Draws in a capsule. No number may be among those that were seen.
async fn draw_apart(client: &Client, id: &str, seen: &mut BTreeSet<String>) {
    for draw in draws(client, id).await {
        assert!(seen.insert(draw.clone()), "{draw} twice, at last in {id}");
    }
}

/// Draws in creates of the template and in forks of one, and goes on with a seed of the user.
/// `WRENN_COPIES` is the number of either kind.
pub(super) async fn pristine_copies_draw_apart_and_seeds_hold(client: &Client) {
    let copies = tests::rounds("WRENN_COPIES", 2);
    let mut seen = BTreeSet::new();
    let source = create(client).await;
    // Each fork is of a capsule that has drawn nothing.
    for _ in 0..copies {
        let child = fork(client, &source, 1).await;
        draw_apart(client, &child[0], &mut seen).await;
        delete(client, &child).await;
    }
    draw_apart(client, &source, &mut seen).await;
    for _ in 1..copies {
        let other = [create(client).await];
        draw_apart(client, &other[0], &mut seen).await;
        delete(client, &other).await;
    }
    assert_eq!(seen.len(), 16 * copies);
    // The sequence of Python's generator with the seed 1.
    let draw = "random.seed(1); random.random()";
    assert_eq!(value(client, &source, draw).await, "0.13436424411240122");
    client.pause(&source).await;
    client.resume(&source).await;
    assert_eq!(value(client, &source, "random.random()").await, "0.8474337369372327");
    let mut both = fork(client, &source, 1).await;
    both.push(source);
    for id in &both {
        assert_eq!(value(client, id, "random.random()").await, "0.763774618976614", "{id}");
    }
    delete(client, &both).await;
}

/// Reads a stream to its cut. Returns its lines.
async fn cut(stream: Stream) -> Vec<Value> {
    let (lines, whole) = stream.rest().await;
    assert!(!whole, "a cut looks like an end: {lines:?}");
    lines
}

/// Forks and pauses a capsule in the middle of an execution.
pub(super) async fn execution_goes_on_over_pause_and_fork(client: &Client, id: &str) {
    let code = "import os, time\nkept = 7\nprint('up', flush=True)\n\
        while not os.path.exists('/tmp/go'):\n    time.sleep(0.1)\nprint('end')";
    let mut stream = begin(client, id, &json!({ "code": code })).await;
    stream.until("up").await;
    let execution = stream.id();
    // A fork leaves the source's streams alone. A pause cuts them, and a client takes them up again.
    let child = fork(client, id, 1).await.remove(0);
    client.pause(id).await;
    let lines = cut(stream).await;
    client.resume(id).await;
    let stream = Stream::attach(client, id, &execution, lines.len()).await;
    client.out(id, "touch /tmp/go").await;
    let (rest, whole) = stream.rest().await;
    assert!(whole && stdout(&rest) == "end\n", "{rest:?}");
    assert_eq!(value(client, id, "kept").await, "7");
    // In the child, the execution gives way to the next one.
    assert_eq!(value(client, &child, "kept").await, "7");
    let (all, whole) = Stream::attach(client, &child, &execution, 0).await.rest().await;
    assert!(whole, "{all:?}");
    let error = all.iter().find(|line| line["type"] == "error").unwrap();
    assert_eq!(error["name"], "KeyboardInterrupt", "{all:?}");
    delete(client, &[child]).await;
}
