//! Creates of a template with a started server, up to the server's first answer.

use super::{DISK_MIB, body, timed};
use crate::bare::{Bare, Namespace};
use crate::stats::{Row, percentile, shown};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::{Client, Workshop};

const CREATES: usize = 21;
const NAME: &str = "started";
const SERVE: &str = "mkdir -p /tmp/www; echo up > /tmp/www/up; exec httpd -f -p 8000 -h /tmp/www";

/// Measures creates against the bare restore of the same machine up to envd's first answer, and
/// against a create of `base` up to a first command.
pub(super) async fn measure(workshop: &Workshop) -> Vec<Row> {
    let client = &workshop.client;
    let mut wanted = body(workshop, NAME, &json!([]));
    wanted["start"] = SERVE.into();
    wanted["ready"] = "wget -q -O - http://127.0.0.1:8000/up".into();
    timed(client, &wanted).await;
    let of_started = json!({ "template": NAME });
    let like = restored(client, &of_started).await;
    let floor = Bare::of_template(&workshop.platform, &like, NAME, DISK_MIB);
    let at = Namespace::new("started");
    // The first create of `base` may boot.
    let first = client.create(&json!({})).await;
    let (mut ours, mut bare, mut base) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..CREATES {
        let (machine, took) = floor.restore(&at, "started.sock");
        machine.end();
        bare.push(took);
        ours.push(answered(client, &of_started).await);
        base.push(commanded(client).await);
    }
    for id in [like, first] {
        remove(client, &id).await;
    }
    let (our_high, base_high) = (shown(percentile(&ours, 95)), shown(percentile(&base, 95)));
    let ratio = percentile(&ours, 95).as_secs_f64() / percentile(&base, 95).as_secs_f64();
    let what = "started server's answer ÷ `base`'s first command, 95th of a hundred";
    vec![
        Row::ratio("create to a started server's answer ÷ bare restore", &ours, &bare, "≤ 1.2"),
        Row::ratio("the same ÷ create of `base` to a first command", &ours, &base, "≤ 1.2"),
        Row::new(what, &our_high, &base_high, &format!("{ratio:.2}"), ""),
    ]
}

/// Creates a capsule that must be restored. Returns its id.
async fn restored(client: &Client, body: &Value) -> String {
    let made = client.post("/v1/capsules", body).await.expect(201);
    assert!(made.get("booted").is_none(), "the build saved no machine: {made}");
    made["id"].as_str().unwrap().to_owned()
}

async fn answered(client: &Client, body: &Value) -> Duration {
    let since = Instant::now();
    let id = restored(client, body).await;
    let answer = client.to_port(Method::GET, &id, 8000, "/up").send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "up\n");
    let took = since.elapsed();
    remove(client, &id).await;
    took
}

async fn commanded(client: &Client) -> Duration {
    let since = Instant::now();
    let id = client.create(&json!({})).await;
    client.out(&id, "true").await;
    let took = since.elapsed();
    remove(client, &id).await;
    took
}

async fn remove(client: &Client, id: &str) {
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
}
