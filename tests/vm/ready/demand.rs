//! Contents and size of the pool: it follows templates, gives way to capsules, and keeps teams
//! apart. Creates beyond the pool make machines of their own.

use super::{TAKEN, are_gone, delete, pooled, take};
use crate::small;
use serde_json::json;
use std::collections::BTreeSet;
use tests::{Driver, Image, POOLS, Platform, Tree, Workshop, eventually};

/// Metric of the machines that wait for a create.
const READY: &str = "wrenn_host_ready_capsules";

/// Makes the version of the template `web` whose file `/version` holds a text.
async fn build(workshop: &Workshop, text: &str) {
    let name = format!("app:{}", text.trim());
    let image = Image::busybox().layer(Tree::new().file("version", 0o644, text));
    workshop.registry.push(&name, &image);
    let body = json!({
        "name": "web", "from": { "image": workshop.registry.reference(&name) },
        "vcpus": 1, "memory_mib": 256, "disk_mib": 512,
    });
    workshop.client.build(&body).await;
}

#[tokio::test]
async fn replaced_or_deleted_template_takes_its_machines_out_of_the_pool() {
    let workshop = Workshop::start(Driver::Guests, &POOLS).await;
    let (client, platform) = (&workshop.client, &workshop.platform);
    let web = json!({ "template": "web" });
    build(&workshop, "one\n").await;
    let first = client.create(&web).await;
    let old = platform.ready(1).await;
    let taken = platform.figure(TAKEN).await;
    build(&workshop, "two\n").await;
    let second = client.create(&web).await;
    assert_eq!(platform.figure(TAKEN).await, taken, "a machine of the former version was taken");
    assert_eq!(client.out(&first, "cat /version").await, "one\n");
    assert_eq!(client.out(&second, "cat /version").await, "two\n");
    are_gone(platform, &old).await;
    let third = take(platform, client, &web).await;
    assert_eq!(client.out(&third, "cat /version").await, "two\n");
    for id in [&first, &second, &third] {
        delete(client, id).await;
    }
    let last = platform.ready(1).await;
    client.delete("/v1/templates/web").await.expect(204);
    are_gone(platform, &last).await;
    platform.settles(0).await;
    workshop.finish();
}

#[tokio::test]
async fn pool_gives_way_to_creates_and_resumes_that_need_its_memory() {
    let vars = [("WRENN_MEMORY_MIB", "1100"), ("WRENN_READY_MEMORY_PERCENT", "50")];
    let (platform, client, first) = pooled(&vars).await;
    let waiting = platform.ready(1).await;
    // The larger capsule fits beside the first one, and not beside a ready machine too.
    let larger = json!({ "memory_mib": 640, "disk_mib": 256 });
    let second = client.create(&larger).await;
    are_gone(&platform, &waiting).await;
    for id in [&first, &second] {
        assert_eq!(client.out(id, "echo up").await, "up\n");
    }
    platform.settles(2).await;
    assert_eq!(platform.figure(READY).await, 0);
    delete(&client, &second).await;
    platform.ready(1).await;
    client.pause(&first).await;
    let second = client.create(&larger).await;
    client.resume(&first).await;
    for id in [&first, &second] {
        assert_eq!(client.out(id, "echo up").await, "up\n");
    }
    eventually("no machine is ready", async || (platform.figure(READY).await == 0).then_some(()))
        .await;
    platform.settles(2).await;
    platform.finish();
}

#[tokio::test]
async fn burst_beyond_the_pool_succeeds_and_no_team_gets_a_machine_of_another() {
    let more = [("WRENN_MEMORY_MIB", "6144"), ("WRENN_READY_MEMORY_PERCENT", "13")];
    let platform = Platform::start(Driver::Guests, &[&POOLS[..], &more[..]].concat()).await;
    // The first user is an admin of the platform, and takes no part.
    platform.user("root@example.com").await;
    let teams = [platform.user("a@example.com").await, platform.user("b@example.com").await];
    teams[0].create(&small()).await;
    let waiting = platform.ready(1).await;
    let taken = platform.figure(TAKEN).await;
    let other = teams[1].create(&small()).await;
    assert_eq!(platform.figure(TAKEN).await, taken, "a machine of another team was taken");
    assert_eq!(platform.machine_name(&other), other);
    assert!(waiting.iter().all(|machine| machine.processes().len() == 1), "{waiting:?}");
    // Machines of both teams are ready. The sizes and variables of the burst differ.
    let ready = eventually("both teams have a machine in the pool", async || {
        let found = platform.ready(2).await;
        let is_mixed = found.iter().any(|machine| machine.team != found[0].team);
        is_mixed.then_some(found)
    })
    .await;
    let creates = (0..12).map(|number: usize| {
        let client = &teams[number % 2];
        let [memory, disk] = if number.is_multiple_of(3) { [192, 128] } else { [256, 256] };
        let envs = json!({ "WHO": number.to_string() });
        let body = json!({ "memory_mib": memory, "disk_mib": disk, "envs": envs });
        async move {
            let id = client.create(&body).await;
            let told = client.out(&id, "echo $WHO; cat /etc/machine-id").await;
            (number, id, told)
        }
    });
    let made = futures::future::join_all(creates).await;
    let mut seen = BTreeSet::new();
    for (number, id, told) in &made {
        let (who, machine_id) = told.split_once('\n').unwrap();
        assert_eq!(who, number.to_string());
        let name = platform.machine_name(id);
        let of = platform.record(id)["team"].clone();
        let from = ready.iter().find(|machine| machine.name == name);
        assert!(from.is_none_or(|machine| of == machine.team.as_str()), "{id} has {from:?}");
        assert!(seen.insert(machine_id.to_owned()) && seen.insert(name), "{id} is a copy");
    }
    assert!(platform.figure(TAKEN).await > taken, "the burst took nothing from the pool");
    platform.settles(14).await;
    platform.finish();
}
