//! Steps of a build on a real guest, and the cache of steps.

use super::{capsule_of, delete, is_quiet, machines, over_app, run, with, workshop};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::{Image, Tree, Workshop};

/// Returns steps of every kind. The last one writes `last`.
async fn steps(workshop: &Workshop, last: &str) -> Value {
    let files = Tree::new()
        .folder("src", 0o755)
        .owned("src/tool", 0o755, (777, 777), "#!/bin/sh\necho tool $1\n")
        .owned("src/data/x.txt", 0o640, (777, 777), "x\n")
        .link("src/away", "/nowhere/at/all");
    let files = workshop.client.upload(files).await;
    json!([
        { "env": { "GREETING": "hello", "PATH": "/app/bin:$PATH" } },
        { "workdir": "/app/work" },
        { "copy": { "sources": ["src/"], "dest": "/app/bin/", "files": files } },
        run("echo $GREETING > greeting; chown app /home/app; pwd"),
        { "user": "app" },
        run(&format!("id -un > ~/who; echo {last} > ~/last; echo said-$((20+3))")),
    ])
}

#[tokio::test]
async fn steps_of_every_kind_make_a_template_and_the_same_build_again_boots_nothing() {
    let workshop = workshop().await;
    let (client, platform) = (&workshop.client, &workshop.platform);
    let steps_of = |last| steps(&workshop, last);
    let first = client.build(&over_app(&workshop, "web", &steps_of("one").await)).await;
    assert!(first.cached().is_empty(), "{:?}", first.lines);
    assert_eq!(first.count("[stdout]: said-23"), 1, "{:?}", first.lines);
    assert_eq!(first.count("[stdout]: /app/work"), 1, "{:?}", first.lines);
    let id = capsule_of(client, "web").await;
    let seen = client
        .out(&id, "pwd; id -un; cat greeting ~/who ~/last; echo $GREETING; which tool; tool 1")
        .await;
    let wanted = "/app/work\napp\nhello\napp\none\nhello\n/app/bin/tool\ntool 1\n";
    assert_eq!(seen, wanted);
    let copied = client.out(&id, "stat -c '%u %g %a' /app/bin/tool /app/bin/data/x.txt").await;
    assert_eq!(copied, "0 0 755\n0 0 640\n", "files belong to root, not to the archive's owner");
    assert_eq!(client.out(&id, "readlink /app/bin/away").await, "/nowhere/at/all\n");
    // A login shell keeps the PATH of the steps.
    assert_eq!(client.out(&id, "sh -l -c 'which tool'").await, "/app/bin/tool\n");

    // The cache has all steps, so no guest boots.
    let before = machines(platform).await;
    let since = Instant::now();
    let again = client.build(&over_app(&workshop, "web", &steps_of("one").await)).await;
    let took = since.elapsed();
    assert_eq!(again.cached(), [1, 2, 3, 4, 5, 6], "{:?}", again.lines);
    assert_eq!(machines(platform).await, before, "a guest ran for a cached build");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_ne!(again.id, first.id, "each build is a version of its own");

    // Only the changed step runs. The first capsule keeps its files.
    let changed = client.build(&over_app(&workshop, "web", &steps_of("two").await)).await;
    assert_eq!(changed.cached(), [1, 2, 3, 4, 5], "{:?}", changed.lines);
    let newer = capsule_of(client, "web").await;
    assert_eq!(client.out(&newer, "cat ~/last greeting").await, "two\nhello\n");
    assert_eq!(client.out(&id, "cat ~/last").await, "one\n");
    // A version stays reachable by its build.
    let older = capsule_of(client, &format!("web@{}", first.id)).await;
    assert_eq!(client.out(&older, "cat ~/last").await, "one\n");

    // `force` runs all steps anew.
    let forced = with(over_app(&workshop, "web", &steps_of("two").await), json!({ "force": true }));
    assert!(client.build(&forced).await.cached().is_empty());
    for id in [&id, &newer, &older] {
        delete(client, id).await;
    }
    is_quiet(platform, 0).await;
    workshop.finish();
}

#[tokio::test]
async fn failing_step_is_named_with_its_output_and_keeps_the_steps_before() {
    let workshop = workshop().await;
    let client = &workshop.client;
    let with_third = |third: &str| {
        over_app(&workshop, "web", &json!([run("echo a > /a"), run("echo b > /b"), run(third)]))
    };
    let bad = "echo begun; echo broken >&2; exit 3";
    let failed = client.attempt(&with_third(bad)).await;
    failed.failed("3", &format!("failed to run command '{bad}': exit status 3"));
    let output = failed.body["error"]["output"].to_string();
    assert!(output.contains("begun") && output.contains("broken"), "{output}");
    assert_eq!(failed.count("[stderr]: broken"), 1, "{:?}", failed.lines);
    // A failed build makes no version and takes no tag.
    let none = client.post("/v1/capsules", &json!({ "template": "web" })).await;
    none.refuses(404, "no_version", "default");
    let fixed = client.build(&with_third("cat /a /b > /c")).await;
    assert_eq!(fixed.cached(), [1, 2], "{:?}", fixed.lines);
    let id = capsule_of(client, "web").await;
    assert_eq!(client.out(&id, "cat /c").await, "a\nb\n");
    // Processes of a step end with it, and the next step sees its files alone.
    let left =
        json!([run("sleep 1000 & echo $! > /pid"), run("! kill -0 $(cat /pid) && echo gone")]);
    let built = client.build(&over_app(&workshop, "left", &left)).await;
    assert_eq!(built.count("[stdout]: gone"), 1, "{:?}", built.lines);
    // A removed file of a lower layer stays removed, and a replaced folder is opaque.
    let removed =
        json!([run("mkdir /d; touch /d/old /x"), run("rm -r /x /d; mkdir /d; touch /d/new")]);
    client.build(&over_app(&workshop, "removed", &removed)).await;
    let other = capsule_of(client, "removed").await;
    assert_eq!(client.out(&other, "ls /d; test ! -e /x").await, "new\n");
    // Steps over a template find its files, settings and cache.
    let over = json!({
        "name": "more", "from": { "template": "removed" }, "memory_mib": 256, "disk_mib": 512,
        "steps": [run("ls /d > /seen")], "env": { "STAGE": "dev" },
    });
    client.build(&over).await;
    let more = capsule_of(client, "more").await;
    assert_eq!(client.out(&more, "cat /seen; echo $STAGE").await, "new\ndev\n");
    for id in [&id, &other, &more] {
        delete(client, id).await;
    }
    workshop.finish();
}

#[tokio::test]
async fn moved_tag_of_an_image_is_seen_and_leaves_older_versions() {
    let workshop = workshop().await;
    let client = &workshop.client;
    let steps = json!([run("cp /release /seen")]);
    let body = over(&workshop, &steps);
    let push = |text: &str| {
        let layer = Tree::new().file("release", 0o644, text);
        workshop.registry.push("moving:latest", &Image::busybox().layer(layer))
    };
    let digest = push("one\n");
    let one = client.build(&body).await;
    assert_eq!(one.body["images"][0]["digest"], digest.as_str(), "{}", one.body);
    let _ = workshop.registry.take_requests();
    let same = client.build(&body).await;
    let asked = workshop.registry.take_requests();
    assert!(asked.iter().all(|request| !request.contains("/blobs/")), "{asked:?}");
    assert_eq!(same.cached(), [1]);
    let digest = push("two\n");
    // Without a question to the registry, the host's image counts.
    let _ = workshop.registry.take_requests();
    let missing = client.build(&with(body.clone(), json!({ "pull": "missing" }))).await;
    assert_eq!((missing.cached(), workshop.registry.take_requests()), (vec![1], vec![]));
    let two = client.build(&body).await;
    assert_eq!(two.body["images"][0]["digest"], digest.as_str(), "{}", two.body);
    assert!(two.cached().is_empty(), "{:?}", two.lines);
    for (version, wanted) in [(&one.id, "one\n"), (&two.id, "two\n")] {
        let id = capsule_of(client, &format!("moving@{version}")).await;
        assert_eq!(client.out(&id, "cat /seen").await, wanted);
        delete(client, &id).await;
    }
    workshop.finish();
}

fn over(workshop: &Workshop, steps: &Value) -> Value {
    super::over(&workshop.registry.reference("moving"), "moving", steps)
}
