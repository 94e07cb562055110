//! E2B's calls about templates, by raw HTTP: statuses, bodies and texts that its clients look for.

use super::{limit, platform, runs};
use crate::auth::other_team;
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;
use tests::{Answer, Client, Platform, Tree, gzip};

/// Declares a build. Returns the ids of the template and of the build.
async fn declare(client: &Client, body: Value) -> (String, String) {
    let declared = client.post("/v3/templates", &body).await.expect(202);
    let text = |name: &str| declared[name].as_str().unwrap().to_owned();
    (text("templateID"), text("buildID"))
}

async fn start(client: &Client, (template, build): &(String, String), body: Value) -> Answer {
    client.post(&format!("/v2/templates/{template}/builds/{build}"), &body).await
}

async fn status(client: &Client, (template, build): &(String, String), query: &str) -> Value {
    client.get(&format!("/templates/{template}/builds/{build}/status{query}")).await.expect(200)
}

/// Polls as E2B's clients do.
async fn ended(client: &Client, ids: &(String, String)) -> Value {
    loop {
        let seen = status(client, ids, "?logsOffset=0").await;
        if seen["status"] == "ready" || seen["status"] == "error" {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn run(command: &str) -> Value {
    json!({ "type": "RUN", "args": [command], "force": false })
}

fn refuses(answer: &Answer, status: u16, message: &str) {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
    assert_eq!(answer.body["code"], status, "{}", answer.body);
    let told = answer.body["message"].as_str().unwrap();
    assert!(told.starts_with(message), "`{message}` does not begin `{told}`");
}

/// Uploads an archive by its signed address, which needs no key. A forged address takes nothing.
async fn upload(platform: &Platform, client: &Client, template: &str, hash: &str) {
    let path = format!("/templates/{template}/files/{hash}");
    let asked = client.get(&path).await.expect(201);
    assert_eq!(asked["present"], false, "{asked}");
    let url = asked["url"].as_str().unwrap();
    let nobody = platform.client_with("");
    let relative = url.strip_prefix(nobody.base()).expect("the address is the client's own");
    let archive = gzip(&Tree::new().file("folder/a.txt", 0o644, "a").archive());
    let put = |path: &str| nobody.send(nobody.request(Method::PUT, path).body(archive.clone()));
    for forged in [
        relative.replace(hash, &"e".repeat(64)),
        relative.replace("expires=", "expires=9"),
        format!("{}0", &relative[..relative.len() - 1]),
    ] {
        if forged != relative {
            assert!(put(&forged).await.status.is_client_error(), "{forged}");
        }
    }
    assert_eq!(put(relative).await.status, 200);
    assert_eq!(client.get(&path).await.expect(201)["present"], true);
    let wrong = client.get(&format!("/templates/{template}/files/xyz")).await;
    refuses(&wrong, 400, "Invalid files hash");
}

#[tokio::test]
async fn upload_address_has_the_host_that_the_client_sees() {
    let (platform, client) = platform().await;
    let declared = client.post("/v3/templates", &json!({ "name": "seen" })).await.expect(202);
    let id = declared["templateID"].as_str().unwrap();
    let path = format!("/templates/{id}/files/{}", "a".repeat(64));
    // These requests come from this machine, as those of a trusted proxy do.
    let ask = |lines: &[(&str, &str)]| {
        let asked = client.request(Method::GET, &path);
        client.send(lines.iter().fold(asked, |asked, (name, value)| asked.header(*name, *value)))
    };
    let (host, scheme) = ("x-forwarded-host", "x-forwarded-proto");
    for (lines, base) in [
        (&[][..], client.base()),
        (&[(host, "a.example, api.example.com"), (scheme, "https")], "https://api.example.com"),
        (&[(host, "api.example.com:8080"), (scheme, "http")], "http://api.example.com:8080"),
        (&[(host, "a.example"), (host, "b.example")], "http://b.example"),
    ] {
        let told = ask(lines).await.expect(201);
        let url = told["url"].as_str().unwrap();
        assert!(url.starts_with(&format!("{base}/templates/{id}/files/")), "{lines:?}: {url}");
    }
    assert_eq!(ask(&[(host, "user@example.com")]).await.status, 400);
    platform.finish();
}

#[tokio::test]
async fn five_calls_build_a_template_as_the_sdk_sends_them() {
    let (platform, client) = platform().await;
    let body = json!({ "name": "My-Tpl:V1", "tags": ["Prod"], "cpuCount": 2, "memoryMB": 1024 });
    let declared = client.post("/v3/templates", &body).await.expect(202);
    assert_eq!((&declared["names"], &declared["public"]), (&json!(["my-tpl"]), &json!(false)));
    assert_eq!(declared["aliases"], json!(["my-tpl"]));
    let mut tags: Vec<&str> =
        declared["tags"].as_array().unwrap().iter().flat_map(Value::as_str).collect();
    tags.sort_unstable();
    assert_eq!(tags, ["prod", "v1"], "tags of the name and of the list: {declared}");
    let template = declared["templateID"].as_str().unwrap().to_owned();
    let ids = (template.clone(), declared["buildID"].as_str().unwrap().to_owned());
    assert!(ids.1.parse::<uuid::Uuid>().is_ok(), "{declared}");
    assert_eq!(status(&client, &ids, "").await["status"], "waiting");

    let hash = "d".repeat(64);
    upload(&platform, &client, &template, &hash).await;

    let steps = json!([
        { "type": "COPY", "args": ["folder/*", "folder", "", "0755"], "filesHash": hash,
          "force": false, "forceUpload": true, "resolveSymlinks": false, "gzip": true },
        { "type": "ENV", "args": ["ENV_VAR", "Hello, World!"], "force": false },
        { "type": "WORKDIR", "args": ["/app"] },
        run("hello"),
        { "type": "USER", "args": ["user"] },
    ]);
    let body = json!({ "fromImage": "ubuntu:22.04", "force": false, "steps": steps });
    let begun = start(&client, &ids, body.clone()).await;
    assert_eq!((begun.status.as_u16(), begun.body), (202, json!("")), "an empty body");
    let seen = status(&client, &ids, "").await;
    assert!(["building", "ready"].contains(&seen["status"].as_str().unwrap()), "{seen}");
    let seen = ended(&client, &ids).await;
    assert_eq!((&seen["status"], &seen["logs"]), (&json!("ready"), &json!([])), "{seen}");
    assert_eq!((&seen["templateID"], &seen["buildID"]), (&json!(ids.0), &json!(ids.1)));
    assert!(seen.get("reason").is_none_or(Value::is_null), "{seen}");
    let entries = seen["logEntries"].as_array().unwrap();
    assert!(entries.iter().any(|entry| entry["message"] == "FROM ubuntu:22.04"), "{seen}");
    let has = |text: &str| entries.iter().any(|e| e["message"].as_str().unwrap().contains(text));
    for text in
        ["RUN hello [", "[stdout]: hello", "ENV ENV_VAR Hello, World!", "Build finished, took "]
    {
        assert!(has(text), "{text}: {seen}");
    }
    assert!(entries.iter().all(|e| e["timestamp"].is_string() && e["level"].is_string()), "{seen}");
    let count = entries.len();
    let rest = status(&client, &ids, &format!("?logsOffset={}&limit=2", count - 1)).await;
    assert_eq!(rest["logEntries"].as_array().unwrap().len(), 1);
    let none = status(&client, &ids, &format!("?logsOffset={count}")).await;
    assert_eq!(none["logEntries"], json!([]), "an empty page ends the reading");

    // The second build has every step from the cache, in the words that clients look for.
    let again = declare(&client, json!({ "name": "my-tpl:v1" })).await;
    assert_eq!(again.0, template, "the same template");
    start(&client, &again, body).await;
    let seen = ended(&client, &again).await.to_string();
    assert!(
        seen.contains("CACHED [builder ") && seen.contains("ENV ENV_VAR Hello, World! ["),
        "{seen}"
    );
    let made =
        client.post("/v2/sandboxes", &json!({ "templateID": "my-tpl:v1" })).await.expect(201);
    assert_eq!(made["templateID"], template.as_str(), "{made}");
    client
        .post("/v2/sandboxes", &json!({ "templateID": format!("my-tpl:{}", again.1) }))
        .await
        .expect(201);
    platform.finish();
}

#[tokio::test]
async fn refusals_have_statuses_and_texts_of_the_service() {
    let (platform, client) = platform().await;
    for (body, status, text) in [
        (json!({}), 400, "Name is required"),
        (json!({ "name": ":x" }), 400, "Name is required"),
        (json!({ "name": "name:" }), 400, "Invalid tag"),
        (json!({ "name": "a b" }), 400, "Invalid name: "),
        (json!({ "name": "a:b/c" }), 400, "Invalid tag: "),
        (json!({ "name": "other-team/x" }), 400, "Invalid name"),
        (json!({ "name": "x", "cpuCount": 3 }), 400, "CPU count must be 1 or an even number"),
        (json!({ "name": "x", "cpuCount": 64 }), 400, "CPU count must be at most 32"),
        (json!({ "name": "x", "memoryMB": 513 }), 400, "Memory must be divisible by 2"),
        (json!({ "name": "x", "memoryMB": 1_000_000 }), 400, "Memory can't be higher than "),
        (json!({ "name": 7 }), 400, "validation error"),
        (json!({ "name": "base" }), 403, "Alias 'base' already used"),
    ] {
        refuses(&client.post("/v3/templates", &body).await, status, text);
    }
    let ids = declare(&client, json!({ "name": "web" })).await;
    let wrong = |build: &str| (ids.0.clone(), build.to_owned());
    let image = json!({ "fromImage": "debian", "steps": [] });
    refuses(&start(&client, &wrong("xyz"), image.clone()).await, 400, "Invalid build ID: ");
    for sources in [json!({}), json!({ "fromImage": "a", "fromTemplate": "b" })] {
        assert_eq!(start(&client, &ids, sources).await.status, 400);
    }
    let unknown = "00000000-0000-4000-8000-000000000000";
    let path = format!("/templates/{}/builds/{unknown}/status", ids.0);
    refuses(&client.get(&path).await, 400, &format!("Build '{unknown}' not found"));
    let stranger = other_team(&platform).await;
    let path = format!("/templates/{}/builds/{}/status", ids.0, ids.1);
    assert!([400, 403, 404].contains(&stranger.get(&path).await.status.as_u16()));
    assert!(start(&stranger, &ids, image.clone()).await.status.is_client_error());
    // An unknown base is found out by the build, with the frame of `from_template`.
    assert_eq!(
        start(&client, &ids, json!({ "fromTemplate": "nowhere", "steps": [] })).await.status,
        202
    );
    let seen = ended(&client, &ids).await;
    assert_eq!(seen["reason"]["step"], "base", "{seen}");
    assert_eq!(seen["reason"]["message"], "template 'nowhere' not found", "{seen}");
    refuses(&start(&client, &ids, image).await, 400, "build is not in waiting state");
    // The failed step's number chooses the user's stack frame.
    let ids = declare(&client, json!({ "name": "web" })).await;
    let steps = json!([run("fine"), run("exit 7")]);
    start(&client, &ids, json!({ "fromImage": "debian", "steps": steps })).await;
    let seen = ended(&client, &ids).await;
    assert_eq!(seen["reason"]["step"], "2", "{seen}");
    assert_eq!(seen["reason"]["message"], "failed to run command 'exit 7': exit status 7");
    assert!(seen["reason"]["logEntries"].to_string().contains("leaving with 7"), "{seen}");
    let ids = declare(&client, json!({ "name": "web" })).await;
    let steps = json!([{ "type": "RUN", "args": ["whoami", "root123"] }]);
    start(&client, &ids, json!({ "fromImage": "debian", "steps": steps })).await;
    let text = "failed to run command 'whoami': command failed: unauthenticated: \
        invalid username: 'root123'";
    assert_eq!(ended(&client, &ids).await["reason"]["message"], text);
    // Former clients push images to a registry, and are told so.
    for path in ["/templates", "/v2/templates", "/templates/x", "/templates/x/builds/y"] {
        assert_eq!(client.post(path, &json!({})).await.status, 501, "{path}");
    }
    platform.finish();
}

#[tokio::test]
async fn newer_declaration_of_a_tag_supersedes_the_one_that_waits() {
    let (platform, client) = platform().await;
    limit(&client, &client, json!({ "builds": 20 })).await;
    let first = declare(&client, json!({ "name": "web:v1" })).await;
    let other = declare(&client, json!({ "name": "web:v2" })).await;
    let running = declare(&client, json!({ "name": "web:v3" })).await;
    start(&client, &running, json!({ "fromImage": "debian", "steps": [run("sleep 2")] })).await;
    declare(&client, json!({ "name": "web:v1" })).await;
    declare(&client, json!({ "name": "web:v3" })).await;
    let seen = ended(&client, &first).await;
    let text = "The build was canceled because it was superseded by a newer one.";
    assert_eq!(seen["reason"]["message"], text, "{seen}");
    assert_eq!(status(&client, &other, "").await["status"], "waiting", "another tag");
    assert_eq!(ended(&client, &running).await["status"], "ready", "one that has begun goes on");
    platform.finish();
}

#[tokio::test]
async fn templates_are_listed_tagged_published_and_deleted_as_the_cli_asks() {
    let (platform, client) = platform().await;
    let built = client.build(&runs("web:v1", &["x"])).await;
    let listed = client.get("/templates").await.expect(200);
    let mine = listed.as_array().unwrap().iter().find(|one| one["names"][0] == "web").unwrap();
    for field in [
        "templateID",
        "buildID",
        "buildStatus",
        "cpuCount",
        "memoryMB",
        "diskSizeMB",
        "public",
        "aliases",
        "names",
        "createdAt",
        "updatedAt",
        "createdBy",
        "lastSpawnedAt",
        "spawnCount",
        "buildCount",
        "envdVersion",
    ] {
        assert!(mine.get(field).is_some(), "{field} is missing: {mine}");
    }
    assert_eq!((&mine["buildStatus"], &mine["buildCount"]), (&json!("ready"), &json!(1)), "{mine}");
    let template = mine["templateID"].as_str().unwrap();
    let detail = client.get(&format!("/templates/{template}")).await.expect(200);
    assert_eq!(detail["builds"][0]["status"], "ready", "{detail}");
    let page = client.request(Method::GET, "/v2/templates?limit=1").send().await.unwrap();
    assert!(page.headers().contains_key("x-next-token"));

    // Aliases with a tag exist only if the tag does.
    for (alias, wanted) in [("web", 200), ("web%3Av1", 200), ("web%3Anone", 404), ("none", 404)] {
        let answer = client.get(&format!("/templates/aliases/{alias}")).await;
        assert_eq!(answer.status.as_u16(), wanted, "{alias}: {}", answer.body);
    }
    let target = |target: &str, tags: Value| json!({ "target": target, "tags": tags });
    let assigned =
        client.post("/templates/tags", &target("web:v1", json!(["stable", "latest"]))).await;
    let assigned = assigned.expect(201);
    assert_eq!(assigned["tags"], json!(["stable", "latest"]), "{assigned}");
    let build = assigned["buildID"].as_str().unwrap().to_owned();
    assert!(client.see_build(&built.id).await["tags"].to_string().contains("stable"));
    let none = client.post("/templates/tags", &target("web:v1", json!([]))).await;
    refuses(&none, 400, "At least one tag is required");
    let missing = client.post("/templates/tags", &target("web:none", json!(["a"]))).await;
    refuses(&missing, 404, "Template 'web' with tag 'none' not found");
    for wrong in [":x", "web:"] {
        let refused = client.post("/templates/tags", &target(wrong, json!(["a"]))).await;
        assert_eq!(refused.status, 400, "{wrong}: {}", refused.body);
    }
    let tags = client.get("/templates/web/tags").await.expect(200);
    let stable = tags.as_array().unwrap().iter().find(|tag| tag["tag"] == "stable").unwrap();
    assert_eq!(stable["buildID"], build.as_str(), "{tags}");
    let remove =
        |body: Value| client.send(client.request(Method::DELETE, "/templates/tags").json(&body));
    assert_eq!(remove(json!({ "name": "web", "tags": ["stable"] })).await.status, 204);
    let refused = remove(json!({ "name": "web", "tags": ["default"] })).await;
    refuses(&refused, 400, "Cannot delete the 'default' tag");
    let refused = remove(json!({ "name": "web:v1", "tags": ["v1"] })).await;
    refuses(&refused, 400, "Template name should not contain a tag, use the 'tags' field instead");

    let path = format!("/v2/templates/{template}");
    let public = client.patch(&path, &json!({ "public": true })).await.expect(200);
    assert_eq!(public["names"], json!(["web"]), "{public}");
    assert_eq!(client.get("/templates/aliases/web").await.expect(200)["public"], true);
    assert_eq!(client.patch(&path, &json!({ "public": false })).await.status, 200);
    let made = client.post("/v2/sandboxes", &json!({ "templateID": "web:v1" })).await.expect(201);
    let sandbox = made["sandboxID"].as_str().unwrap();
    let path = format!("/templates/{template}");
    let text = "cannot delete template 'web' because there are running sandboxes using it";
    refuses(&client.delete(&path).await, 400, text);
    client.post(&format!("/sandboxes/{sandbox}/pause"), &json!({})).await.expect(204);
    let text = "cannot delete template 'web' because there are paused sandboxes using it";
    refuses(&client.delete(&path).await, 400, text);
    client.delete(&format!("/sandboxes/{sandbox}")).await.expect(204);
    assert_eq!(client.delete(&path).await.status, 204);
    assert_eq!(client.get(&path).await.status, 404);
    assert_eq!(client.delete(&path).await.status, 404);
    platform.finish();
}

/// Builds a template as a trial does: it waits only on the text of the limit of builds at once.
/// Returns the number of refusals.
async fn trial(client: &Client, name: &str) -> usize {
    let mut refusals = 0;
    let ids = loop {
        let answer = client.post("/v3/templates", &json!({ "name": name })).await;
        let text = |field: &str| answer.body[field].as_str().unwrap_or_default().to_owned();
        if answer.status == 202 {
            break (text("templateID"), text("buildID"));
        }
        let limit = "you have reached the maximum number of concurrent template builds";
        assert!(answer.status == 429 && text("message").starts_with(limit), "{}", answer.body);
        refusals += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let body = json!({ "fromImage": "debian:12", "steps": [run(name)] });
    assert_eq!(start(client, &ids, body).await.status, 202, "{name}");
    let seen = ended(client, &ids).await;
    assert_eq!(seen["status"], "ready", "{name}: {seen}");
    refusals
}

#[tokio::test]
async fn twenty_trials_eight_at_once_all_build_under_a_limit_of_two() {
    let (platform, client) = platform().await;
    limit(&client, &client, json!({ "builds": 2 })).await;
    let names: Vec<String> = (0..20).map(|number| format!("trial-{number}")).collect();
    let trials = names.iter().map(|name| trial(&client, name));
    let refusals: Vec<usize> = futures::stream::iter(trials).buffer_unordered(8).collect().await;
    assert_eq!(refusals.len(), 20);
    assert!(refusals.iter().sum::<usize>() > 0, "the limit held nobody up");
    platform.finish();
}

#[tokio::test]
async fn e2b_name_of_the_code_interpreter_means_ours_unless_the_team_has_its_own() {
    let (platform, client) = platform().await;
    let create = json!({ "templateID": "code-interpreter-v1" });
    assert_eq!(client.post("/v2/sandboxes", &create).await.status, 404);
    let ours = client.build(&runs("code-interpreter", &["x"])).await;
    let made = client.post("/v2/sandboxes", &create).await.expect(201);
    client.delete(&format!("/sandboxes/{}", made["sandboxID"].as_str().unwrap())).await.expect(204);
    let alias = async || {
        let alias = client.get("/templates/aliases/code-interpreter-v1").await.expect(200);
        alias["templateID"].as_str().unwrap().to_owned()
    };
    let template = alias().await;
    let named = client.get("/templates/aliases/code-interpreter").await.expect(200);
    assert_eq!(template, named["templateID"].as_str().unwrap(), "{}", ours.id);
    client.build(&runs("code-interpreter-v1", &["y"])).await;
    assert_ne!(alias().await, template);
    platform.finish();
}

/// Returns the number of templates of a name that a caller lists.
async fn listed(client: &Client, name: &str) -> usize {
    let all = client.get("/v1/templates").await.expect(200);
    all["items"].as_array().unwrap().iter().filter(|item| item["name"] == name).count()
}

#[tokio::test]
async fn common_template_of_an_operator_is_every_teams_and_no_other_team_takes_its_name() {
    let (platform, operator) = platform().await;
    let stranger = other_team(&platform).await;
    platform.user("root@example.com").await;
    let third = platform.user("third@example.com").await;
    let path = "/v1/templates/code-interpreter";
    let common = json!({ "common": true });
    let create = json!({ "template": "code-interpreter-v1" });
    // Public templates of two teams, neither of which is common.
    for client in [&stranger, &operator] {
        client.build(&runs("code-interpreter", &["x"])).await;
        client.patch(path, &json!({ "public": true })).await.expect(200);
    }
    assert_eq!(third.post("/v1/capsules", &create).await.status, 404);
    stranger.patch(path, &common).await.refuses(403, "forbidden", "platform");
    let shown = operator.patch(path, &common).await.expect(200);
    assert_eq!((&shown["common"], &shown["shared"]), (&json!(true), &json!(true)), "{shown}");

    let found = third.get(path).await.expect(200);
    assert_eq!((&found["id"], &found["own"]), (&shown["id"], &json!(false)), "{found}");
    let alias = third.get("/templates/aliases/code-interpreter-v1").await.expect(200);
    assert_eq!(alias["templateID"], shown["id"]);
    let id = third.create(&create).await;
    third.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    assert_eq!(stranger.get(path).await.expect(200)["own"], true, "a team's own comes first");
    for client in [&stranger, &operator, &third] {
        assert_eq!(listed(client, "code-interpreter").await, 1);
    }
    // A key of the same team that is no operator's changes nothing that all teams run.
    let made = operator.post("/v1/api-keys", &json!({ "name": "plain" })).await.expect(201);
    let plain = platform.client_with(made["key"].as_str().unwrap());
    let rebuilt = plain.post("/v1/builds", &runs("code-interpreter", &["y"])).await;
    rebuilt.refuses(403, "forbidden", "common to all teams");
    let tags = json!({ "version": "default", "tags": ["other"] });
    let tagged = plain.post(&format!("{path}/tags"), &tags).await;
    tagged.refuses(403, "forbidden", "common to all teams");
    plain.delete(path).await.refuses(403, "forbidden", "common to all teams");

    // Taken back, the template is not common again when it is public again.
    operator.patch(path, &json!({ "public": false })).await.expect(200);
    let shown = operator.patch(path, &json!({ "public": true })).await.expect(200);
    assert_eq!(shown["common"], false, "{shown}");
    assert_eq!(third.post("/v1/capsules", &create).await.status, 404);
    assert_eq!(listed(&third, "code-interpreter").await, 0);
    platform.finish();
}
