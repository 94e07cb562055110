//! Templates on a second host, which fetches them from the store.

use super::{argv, delete, over, run, with, workshop_with};
use crate::moves::Second;
use reqwest::Method;
use serde_json::json;
use tests::{Image, Tree, busybox, eventually};

#[tokio::test]
async fn second_host_fetches_template_and_moves_its_capsules() {
    let store = tempfile::tempdir().unwrap();
    let folder = store.path().to_str().unwrap();
    let workshop = workshop_with(&[("WRENN_STORE", folder)]).await;
    let (client, platform) = (&workshop.client, &workshop.platform);
    let steps = json!([run("echo one > /one"), run("echo two > /two")]);
    let serve = "echo $$ > /dev/shm/pid; exec httpd -f -p 8000 -h /";
    let commands = json!({ "start": serve, "ready": "wget -q -O - http://127.0.0.1:8000/one" });
    client.build(&with(super::over_app(&workshop, "web", &steps), commands)).await;
    // An image of one program, without a shell and without `/etc`, goes there too.
    let program = std::fs::read(busybox()).unwrap();
    workshop.registry.push("lone:1", &Image::of(Tree::new().file("busybox", 0o755, program)));
    let lone = over(&workshop.registry.reference("lone:1"), "lone", &json!([]));
    client.build(&lone).await;
    let id = super::capsule_of(client, "web").await;
    client.out(&id, "echo mine > /mine; cat /dev/shm/pid").await;
    let pid = client.out(&id, "cat /dev/shm/pid").await;
    client.pause(&id).await;
    let versions = "SELECT count(*) FROM host_versions WHERE stored";
    eventually("the capsule and the versions are in the store", async || {
        let seen = client.get(&format!("/v1/capsules/{id}")).await.expect(200);
        (seen["stored"] == true && super::number(platform, versions).await == 2).then_some(())
    })
    .await;
    let invited = client.post("/v1/hosts", &json!({ "tags": ["second"] })).await.expect(201);
    let token = invited["registration_token"].as_str().unwrap();
    let settings = tempfile::tempdir().unwrap();
    let registries = workshop.registry.settings(settings.path());
    let vars = [("WRENN_STORE", folder), ("WRENN_REGISTRIES", registries.as_str())];
    let second = Second::start_with(platform, token, &vars);
    let hosts = client.get("/v1/hosts").await.expect(200);
    let local = hosts["items"].as_array().unwrap().iter().find(|h| h["name"] == "local").unwrap();
    let local = local["id"].as_str().unwrap();
    client.post(&format!("/v1/hosts/{local}/drain"), &json!({})).await.expect(200);
    // A capsule of layers resumes with its memory and its disk.
    let moved = client.change(&id, "resume", &json!({})).await;
    assert_eq!(moved["host_id"], invited["host"]["id"]);
    assert!(moved.get("booted").is_none(), "{moved}");
    assert_eq!(
        client.out(&id, "cat /one /two /mine /dev/shm/pid").await,
        format!("one\ntwo\nmine\n{pid}")
    );
    // Creates there fetch the version once, and run start and ready by themselves.
    let body = json!({ "template": "web" });
    let (one, two) = tokio::join!(client.create(&body), client.create(&body));
    for id in [&one, &two] {
        let answer = client.to_port(Method::GET, id, 8000, "/two").send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "two\n");
    }
    let alone = super::capsule_of(client, "lone").await;
    client.pause(&alone).await;
    client.resume(&alone).await;
    assert_eq!(argv(client, &alone, &["/busybox", "id", "-u"]).await, "0\n");
    for id in [&id, &one, &two, &alone] {
        delete(client, id).await;
    }
    // A build without its host runs on the other one, without the first one's cache.
    let built = client.build(&super::over_app(&workshop, "web", &steps)).await;
    assert_eq!(built.body["status"], "ready");
    eventually("nothing of it is left", async || {
        let rows = "SELECT count(*) FROM capsules WHERE status <> 'stopped'";
        (super::number(platform, rows).await == 0).then_some(())
    })
    .await;
    for name in ["web", "lone"] {
        client.delete(&format!("/v1/templates/{name}")).await.expect(204);
    }
    let host = format!("/v1/hosts/{}", moved["host_id"].as_str().unwrap());
    assert_eq!(client.send(client.request(Method::DELETE, &host)).await.status.as_u16(), 204);
    drop(second);
    workshop.finish();
}
