//! Contexts: creation, order, restarts, removal, limits, and questions about their state.

use crate::Server;
use reqwest::Method;
use serde_json::{Value, json};

fn ids(list: &Value) -> Vec<String> {
    let items = list.as_array().unwrap().iter();
    items.map(|context| context["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn contexts_are_listed_in_order_and_keep_their_state_apart() {
    let server = Server::with(json!({ "warm": ["python", "javascript"] })).await;
    let first = server.get("/contexts").await;
    let languages = [&first[0]["language"], &first[1]["language"]];
    assert_eq!(languages, [&json!("python"), &json!("javascript")]);
    let body = json!({ "language": " Python ", "cwd": "/usr" });
    let (_, made) = server.ask(Method::POST, "/contexts", Some(body)).await;
    assert_eq!((&made["language"], &made["cwd"]), (&json!("python"), &json!("/usr")), "{made}");
    let id = made["id"].as_str().unwrap();
    let list = server.get("/contexts").await;
    assert_eq!(ids(&list)[..2], ids(&first)[..]);
    assert_eq!(ids(&list)[2], id);
    let own = |code: &str| server.ran(json!({ "code": code, "context_id": id }));
    assert_eq!(own("import os\nx = 1\nos.getcwd()").await.ok().value(), "/usr");
    server.run("x").await.fails("NameError", "x");
    let shown = server.get(&format!("/contexts/{id}")).await;
    assert_eq!((&shown["state"], &shown["executions"]), (&json!("idle"), &json!(1)), "{shown}");
    assert!(shown["memory_bytes"].as_u64().unwrap() > 1 << 20, "{shown}");
    assert!(shown["last_used"].is_string(), "{shown}");

    own("os.chdir('/')").await.ok();
    let (status, body) = server.ask(Method::POST, &format!("/contexts/{id}/restart"), None).await;
    assert_eq!((status, body), (200, Value::Null));
    let outcome = own("import os\n'x' in globals(), os.getcwd()").await.ok();
    assert_eq!((outcome.value(), outcome.count()), ("(False, '/usr')", 1));

    let (status, _) = server.ask(Method::DELETE, &format!("/contexts/{id}"), None).await;
    assert_eq!(status, 200);
    let body = json!({ "code": "1", "context_id": id });
    let answer = server.ask(Method::POST, "/execute", Some(body)).await;
    assert_eq!(answer, (404, json!(format!("Context {id} not found"))));
    // A default context that was removed is made again.
    let default = &ids(&first)[0];
    server.ask(Method::DELETE, &format!("/contexts/{default}"), None).await;
    assert_eq!(server.run("1 + 1").await.ok().value(), "2");
}

#[tokio::test]
async fn requests_that_cannot_be_are_refused_by_name() {
    let server = Server::with(json!({ "contexts": 2 })).await;
    let refused = async |path: &str, body: Value, status: u16, text: &str| {
        let (found, answer) = server.ask(Method::POST, path, Some(body)).await;
        assert_eq!(found, status, "{path}: {answer}");
        assert!(answer.as_str().unwrap().contains(text), "`{text}` not in {answer}");
    };
    let unknown = json!({ "code": "1", "language": "cobol" });
    refused("/execute", unknown, 400, "known are bash, javascript, python, typescript").await;
    refused("/contexts", json!({ "language": "cobol" }), 400, "cobol").await;
    refused("/contexts", json!({ "cwd": "/no/such" }), 400, "/no/such").await;
    let both = json!({ "code": "1", "context_id": "a", "language": "python" });
    refused("/execute", both, 400, "Only one of").await;
    refused("/execute", json!({ "code": "1", "context_id": "a" }), 404, "Context a").await;
    refused("/execute", json!({ "cod": "1" }), 422, "code").await;
    server.context("python").await;
    refused("/contexts", json!({}), 429, "2 contexts").await;
    refused("/execute", json!({ "code": "1", "language": "bash" }), 429, "2 contexts").await;
}

#[tokio::test]
async fn executions_of_one_context_wait_and_contexts_run_beside_each_other() {
    let server = Server::start().await;
    let id = server.context("python").await;
    // Each waits for a file that only the other context makes.
    let wait = |own: &str, other: &str| {
        format!(
            "import os, time\nopen('{own}', 'w').close()\n\
            while not os.path.exists('{other}'):\n    time.sleep(0.05)"
        )
    };
    let beside = json!({ "code": wait("a", "b"), "context_id": id });
    let first = wait("b", "a");
    let (one, two) = tokio::join!(server.ran(beside), server.run(&first));
    assert!(one.has_ended() && two.has_ended());
    let mut waiting = Vec::new();
    for i in 0..8 {
        let code = format!("order = [*globals().get('order', []), {i}]\norder");
        waiting.push(server.execute(json!({ "code": code })).await);
    }
    for (i, execution) in waiting.into_iter().enumerate() {
        let wanted = format!("{:?}", (0..=i).collect::<Vec<_>>());
        assert_eq!(execution.rest().await.ok().value(), wanted);
    }
}

#[tokio::test]
async fn variables_and_completions_are_told() {
    let server = Server::start().await;
    let code = "class Own:\n    def __repr__(self):\n        raise RuntimeError\n\
        own, number, text = Own(), 41, 'x' * 1000\nimport os";
    server.run(code).await.ok();
    let id = ids(&server.get("/contexts").await).remove(0);
    let variables = server.get(&format!("/contexts/{id}/variables")).await;
    let of = |name: &str| {
        let list = variables.as_array().unwrap();
        list.iter().find(|v| v["name"] == name).unwrap_or_else(|| panic!("{name}: {variables}"))
    };
    assert_eq!((&of("number")["type"], &of("number")["preview"]), (&json!("int"), &json!("41")));
    assert!(of("text")["preview"].as_str().unwrap().len() < 1000);
    assert_eq!(of("own")["type"], "Own");
    assert!(!variables.to_string().contains("\"os\""), "{variables}");
    let body = json!({ "code": "é = numb", "cursor": 8 });
    let complete = format!("/contexts/{id}/complete");
    let (status, answer) = server.ask(Method::POST, &complete, Some(body)).await;
    assert_eq!((status, &answer["matches"]), (200, &json!(["number"])), "{answer}");
    assert_eq!((&answer["cursor_start"], &answer["cursor_end"]), (&json!(4), &json!(8)));
    let id = server.context("javascript").await;
    let code = json!({ "code": "const number = 41", "context_id": id });
    server.ran(code).await.ok();
    let variables = server.get(&format!("/contexts/{id}/variables")).await;
    assert_eq!(variables[0]["name"], "number", "{variables}");
}
