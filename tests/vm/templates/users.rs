//! Users of steps and of capsules: names, numbers, groups, and numbers that are none.

use super::{capsule_of, delete, over_app, run, with, workshop};
use serde_json::json;

#[tokio::test]
async fn users_of_steps_are_names_or_numbers_with_their_groups() {
    let workshop = workshop().await;
    let client = &workshop.client;
    let who = |mark: &str| run(&format!("echo {mark} $(id -u) $(id -g) $(id -G | tr ' ' ,) $HOME"));
    let users = ["app", "1000", "1000:50", "app:staff", "0", "root", "4294967294", "2222"];
    let steps: Vec<_> = users
        .iter()
        .enumerate()
        .flat_map(|(n, user)| [json!({ "user": user }), who(&format!("user{n}"))])
        .collect();
    let built = client.build(&over_app(&workshop, "users", &json!(steps))).await;
    for (n, wanted) in [
        "1000 1000 1000,50 /home/app",
        "1000 1000 1000,50 /home/app",
        "1000 50 50 /home/app",
        "1000 50 50 /home/app",
        "0 0 0 /root",
        "0 0 0 /root",
        "4294967294 0 0 /",
        "2222 0 0 /",
    ]
    .iter()
    .enumerate()
    {
        let line = format!("[stdout]: user{n} {wanted}");
        assert_eq!(built.count(&line), 1, "{} → {line}: {:?}", users[n], built.lines);
    }
    // The last USER is the user of the capsules' programs, unless a request names another.
    let id = capsule_of(client, "users").await;
    assert_eq!(client.out(&id, "id -u").await, "2222\n");
    let body = json!({ "cmd": "id", "args": ["-un"], "user": "app" });
    let other = client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(200);
    assert_eq!(other["stdout"], "app\n");
    delete(client, &id).await;
    let body = with(
        over_app(&workshop, "users", &json!([{ "user": "app" }])),
        json!({ "user": "root", "workdir": "/tmp" }),
    );
    client.build(&body).await;
    let id = capsule_of(client, "users").await;
    assert_eq!(client.out(&id, "id -u; pwd").await, "0\n/tmp\n");
    delete(client, &id).await;
    workshop.finish();
}

#[tokio::test]
async fn users_that_overflow_or_do_not_exist_fail_their_step() {
    let workshop = workshop().await;
    let client = &workshop.client;
    for user in ["4294967295", "4294967296", "-1", "ghost", "app:ghosts"] {
        let steps = json!([run("true"), { "user": user }, run("id > /id")]);
        let id = client.post("/v1/builds", &over_app(&workshop, "wrong", &steps)).await;
        // A number that can be no user may be refused at once.
        if id.status == 400 {
            assert!(id.body.to_string().contains("user"), "{}", id.body);
            continue;
        }
        let built = client.ended(id.expect(201)["id"].as_str().unwrap()).await;
        assert_eq!(built.body["status"], "error", "{user}: {:?}", built.lines);
        let error = &built.body["error"];
        assert!(["2", "3"].contains(&error["step"].as_str().unwrap()), "{user}: {error}");
        let unknown = user.rsplit(':').next().unwrap();
        assert!(error["message"].as_str().unwrap().contains(unknown), "{user}: {error}");
    }
    workshop.finish();
}
