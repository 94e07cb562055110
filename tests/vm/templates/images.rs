//! Templates of images with little in them: no bash, no shell, no `/etc`. Each boots, pauses, resumes
//! and forks.

use super::{argv, capsule_of, delete, over, run, workshop};
use reqwest::Method;
use serde_json::{Value, json};
use tests::{Client, Image, Tree, busybox};

/// Checks programs, files and figures of a capsule by a static program alone, over a pause, a resume
/// and a fork.
async fn lives(client: &Client, id: &str, program: &[&str]) {
    let words = |more: &[&'static str]| [program, more].concat();
    assert_eq!(argv(client, id, &words(&["echo", "hi"])).await, "hi\n");
    let files = format!("/v1/capsules/{id}/files");
    let put = client.request(Method::PUT, &files).query(&[("path", "/data/file")]);
    client.send(put.body("contents")).await.expect(204);
    client.pause(id).await;
    client.resume(id).await;
    assert_eq!(argv(client, id, &words(&["cat", "/data/file"])).await, "contents");
    let figures = client.get(&format!("/api/v1/capsules/{id}/metrics")).await.expect(200);
    assert!(figures["points"][0]["mem_bytes"].as_u64().unwrap() > 0, "{figures}");
    // A pause of the disk alone boots the layers again.
    let paused = client.change(id, "pause", &json!({ "memory": false })).await;
    assert_eq!(paused["status"], "paused", "{paused}");
    client.resume(id).await;
    let fork = format!("/v1/capsules/{id}/fork");
    let forked = client.post(&fork, &json!({ "count": 1 })).await.expect(201);
    let child = forked["items"][0]["id"].as_str().unwrap();
    for id in [id, child] {
        assert_eq!(argv(client, id, &words(&["cat", "/data/file"])).await, "contents");
    }
    delete(client, child).await;
    delete(client, id).await;
}

#[tokio::test]
async fn image_with_busybox_alone_builds_and_lives() {
    let workshop = workshop().await;
    let (client, registry) = (&workshop.client, &workshop.registry);
    // The entry of another architecture names no image that could run.
    let bogus = Image::of(Tree::new().file("bogus", 0o644, "")).on("arm64");
    let index = registry.push_index("small:latest", &[bogus, Image::of(Tree::new().busybox())]);
    let files = client.upload(Tree::new().file("in/config", 0o644, "c\n")).await;
    let steps = json!([
        { "copy": { "sources": ["in/config"], "dest": "/opt/", "files": files } },
        run("cat /opt/config > /out; echo $0 > /shell"),
        { "workdir": "/made/here" },
    ]);
    let built = client.build(&over(&registry.reference("small"), "small", &steps)).await;
    let used = built.body["provenance"]["images"][0].clone();
    assert_eq!(used["asked_digest"], index.as_str(), "{used}");
    let id = capsule_of(client, "small").await;
    assert_eq!(client.out(&id, "cat /out /shell; pwd; id -u").await, "c\n/bin/sh\n/made/here\n0\n");
    lives(client, &id, &["/bin/busybox"]).await;
    workshop.finish();
}

#[tokio::test]
async fn image_without_a_shell_copies_files_and_refuses_run_clearly() {
    let workshop = workshop().await;
    let (client, registry) = (&workshop.client, &workshop.registry);
    let program = std::fs::read(busybox()).unwrap();
    registry.push("lone:1", &Image::of(Tree::new().file("busybox", 0o755, program)));
    let image = registry.reference("lone:1");
    let files = client.upload(Tree::new().file("config", 0o600, "c\n")).await;
    let steps = json!([
        { "copy": { "sources": ["config"], "dest": "/etc/lone/config", "files": files } },
        { "env": { "A": "b" } },
        { "workdir": "/srv" },
        // A new folder of WORKDIR belongs to root, also after USER.
        { "run": { "command": ["/busybox", "chown", "1000:50", "/srv"] } },
        { "user": "1000:50" },
        { "run": { "command": ["/busybox", "touch", "/srv/made"] } },
    ]);
    let refused = client.attempt(&over(&image, "lone", &json!([run("true")]))).await;
    refused.failed("1", "no shell in this image");
    let built = client.attempt(&over(&image, "lone", &steps)).await;
    assert_eq!(built.body["status"], "ready", "{}\n{:?}", built.body, built.lines);
    let id = capsule_of(client, "lone").await;
    let words = ["/busybox", "stat", "-c", "%u %g %a", "/etc/lone/config", "/srv/made", "/srv"];
    let modes = argv(client, &id, &words).await;
    assert_eq!(modes.lines().next(), Some("0 0 600"), "{modes}");
    assert_eq!(modes.lines().nth(1).map(|line| &line[..7]), Some("1000 50"), "{modes}");
    assert_eq!(argv(client, &id, &["/busybox", "pwd"]).await, "/srv\n");
    let seen = argv(client, &id, &["/busybox", "env"]).await;
    assert!(seen.lines().any(|line| line == "A=b"), "{seen}");
    let body = json!({ "cmd": "/busybox", "args": ["id"], "user": "root" });
    let asked = client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(200);
    assert!(asked["stdout"].as_str().unwrap().starts_with("uid=0"), "{asked}");
    delete(client, &id).await;
    // A Dockerfile that begins from nothing takes its files from another stage.
    let text = format!("FROM {image} AS from\nFROM scratch\nCOPY --from=from /busybox /busybox\n");
    let body = json!({
        "name": "nothing", "dockerfile": text, "memory_mib": 256, "disk_mib": 512,
    });
    client.build(&body).await;
    let id = capsule_of(client, "nothing").await;
    lives(client, &id, &["/busybox"]).await;
    workshop.finish();
}

#[tokio::test]
async fn image_like_distroless_pauses_resumes_and_forks_as_its_own_user() {
    let workshop = workshop().await;
    let (client, registry) = (&workshop.client, &workshop.registry);
    // The image has users, but neither a shell nor their programs.
    let users = "root:x:0:0:root:/root:/sbin/nologin\n\
        nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n";
    let tree = Tree::new()
        .file("app/busybox", 0o755, std::fs::read(busybox()).unwrap())
        .folder("data", 0o777)
        .folder("home/nonroot", 0o755)
        .file("etc/passwd", 0o644, users)
        .file("etc/group", 0o644, "root:x:0:\nnonroot:x:65532:\n");
    let image = Image::of(tree)
        .config("User", json!("nonroot"))
        .config("WorkingDir", json!("/home/nonroot"))
        .config("Entrypoint", json!(["/app/busybox", "sleep", "1000"]))
        .config("Env", json!(["MODE=quiet"]));
    registry.push("distroless:1", &image);
    client.build(&over(&registry.reference("distroless:1"), "distroless", &json!([]))).await;
    let id = capsule_of(client, "distroless").await;
    let program = ["/app/busybox"];
    let words = |more: &[&'static str]| [&program[..], more].concat();
    assert_eq!(argv(client, &id, &words(&["id", "-u"])).await, "65532\n");
    assert_eq!(argv(client, &id, &words(&["pwd"])).await, "/home/nonroot\n");
    assert!(argv(client, &id, &words(&["env"])).await.contains("MODE=quiet\n"));
    lives(client, &id, &program).await;
    workshop.finish();
}

#[tokio::test]
async fn archive_of_an_image_and_the_operators_base_are_sources_too() {
    let workshop = workshop().await;
    let client = &workshop.client;
    let archive = client.upload_bytes(&Image::busybox().layout()).await;
    let body = |name: &str, from: Value, steps: Value| json!({ "name": name, "from": from, "steps": steps, "memory_mib": 256, "disk_mib": 512 });
    let built =
        client.build(&body("packed", json!({ "archive": archive }), json!([run("id")]))).await;
    assert_eq!(built.count("uid=0"), 1, "{:?}", built.lines);
    // Debian's shell, users and programs run steps as in Docker.
    let steps = json!([
        run("useradd --create-home dev && python3 -c 'print(6 * 7)' > /answer"),
        { "user": "dev" },
        run("cd && id -un > me"),
    ]);
    client.build(&body("debian", json!({ "template": "base" }), steps)).await;
    let id = capsule_of(client, "debian").await;
    assert_eq!(client.out(&id, "cat /answer ~/me; id -un").await, "42\ndev\ndev\n");
    lives(client, &id, &["/usr/bin/env"]).await;
    // An image that does not exist, and a registry that is none, fail with the cause.
    let missing = workshop.registry.reference("nobody:1");
    let failed = client.attempt(&over(&missing, "absent", &json!([]))).await;
    failed.failed("base", "not found");
    workshop.finish();
}
