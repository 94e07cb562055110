//! Bad input: each case gets a clear error that names the field, and changes nothing.

use crate::capsule;
use reqwest::Method;
use serde_json::{Value, json};
use tests::{Driver, Platform};

#[tokio::test]
async fn invalid_create_names_field_and_creates_nothing() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let long = "x".repeat(65);
    let wrong: Vec<(Value, &str)> = vec![
        (json!({ "vcpus": 0 }), "vcpus must be between 1 and 32"),
        (json!({ "vcpus": 33 }), "vcpus"),
        (json!({ "vcpus": -1 }), "vcpus is invalid"),
        (json!({ "vcpus": 1.5 }), "vcpus is invalid"),
        (json!({ "vcpus": "two" }), "vcpus is invalid"),
        (json!({ "memory_mib": 0 }), "memory_mib must be between 128 and 65536"),
        (json!({ "memory_mib": 4_294_967_296_u64 }), "memory_mib"),
        (json!({ "disk_mib": 1 }), "disk_mib"),
        (json!({ "idle_timeout": 2_592_001 }), "idle_timeout"),
        (json!({ "template": "" }), "template is invalid"),
        (json!({ "template": "../base" }), "template"),
        (json!({ "template": long }), "template"),
        (json!({ "template": 7 }), "template is invalid"),
        (json!({ "envs": { "A=B": "x" } }), "envs contains `A=B`"),
        (json!({ "envs": { "A": "\0" } }), "envs contains a NUL"),
        (json!({ "envs": ["A"] }), "envs is invalid"),
        (json!({ "metadata": { "a": "x".repeat(20_000) } }), "metadata must be at most 16 KiB"),
        (json!({ "colour": "red" }), "colour"),
        (json!([1]), "body must be a JSON object"),
    ];
    for (body, told) in wrong {
        client.post("/v1/capsules", &body).await.refuses(400, "invalid_request", told);
    }
    for garbage in [&b"{"[..], b"\xff\xfe", b"{} {}", b"nonsense"] {
        let request = client.request(Method::POST, "/v1/capsules").body(garbage);
        client.send(request).await.refuses(400, "invalid_request", "is invalid");
    }
    let unknown = json!({ "template": "nosuch" });
    client.post("/v1/capsules", &unknown).await.refuses(404, "not_found", "template not found");
    let list = client.get("/v1/capsules").await.expect(200);
    assert_eq!(list["items"], json!([]));
    assert!(platform.leftovers().folders.is_empty());
    platform.finish();
}

/// PostgreSQL stores no NUL in texts, so every text with a NUL is refused.
#[tokio::test]
async fn nul_is_refused_in_every_input() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    for path in ["/v1/audit-logs?actor=%00", "/v1/audit-logs?action=a%00b", "/v1/snapshots/%00"] {
        client.get(path).await.refuses(400, "invalid_request", "NUL");
    }
    for (path, body) in [
        ("/v1/capsules", json!({ "metadata": { "a": "\0" } })),
        ("/v1/api-keys", json!({ "name": "x", "template": "\0" })),
        ("/v1/api-keys", json!({ "name": "\0" })),
        ("/v1/channels", json!({ "name": "x", "url": "http://example.com/\0" })),
        ("/v1/channels", json!({ "name": "x\0", "url": "http://example.com/" })),
        ("/v1/admin/users", json!({ "email": "a\0@example.com" })),
        ("/v1/admin/users", json!({ "email": "a@example.com", "name": "\0" })),
    ] {
        client.post(path, &body).await.refuses(400, "invalid_request", "");
    }
    client
        .post("/v1/auth/login", &json!({ "email": "a@example.com", "password": "\0" }))
        .await
        .refuses(401, "wrong_credentials", "");
    assert_eq!(client.get("/v1/capsules").await.expect(200)["items"], json!([]));
    assert!(!platform.log().contains("internal error"));
    platform.finish();
}

/// Headers of every answer keep browsers from guessing its type and from caching it.
#[tokio::test]
async fn every_answer_has_browser_security_headers() {
    let (platform, client, id) = capsule().await;
    for path in ["/v1/capsules", &format!("/v1/capsules/{id}"), "/nosuch", "/health", "/docs"] {
        let answer = client.request(Method::GET, path).send().await.unwrap();
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header("x-frame-options"), "DENY", "{path}");
        assert_eq!(header("referrer-policy"), "no-referrer", "{path}");
        assert_eq!(header("cache-control"), "no-store", "{path}");
        let policy = header("content-security-policy");
        assert!(policy.contains("default-src 'none'"), "{path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
    }
    platform.finish();
}

#[tokio::test]
async fn unknown_routes_ids_and_queries_get_error_envelope() {
    let (platform, client, id) = capsule().await;
    client.get("/nosuch").await.refuses(404, "not_found", "route");
    client.get("/v1/capsules/x").await.refuses(404, "not_found", "capsule");
    let none = "cl-0000000000000000000000000";
    let beyond = format!("cl-{}", "z".repeat(25));
    for path in [none, &beyond, &id.to_uppercase(), "%ff", "..%2f"] {
        client.get(&format!("/v1/capsules/{path}")).await.refuses(404, "not_found", "not found");
        client.delete(&format!("/v1/capsules/{path}")).await.refuses(404, "not_found", "not found");
    }
    let patch = client.request(Method::PATCH, "/v1/capsules");
    client.send(patch).await.refuses(405, "method_not_allowed", "method");
    for (query, told) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "query is invalid"),
        ("before=x", "before is not the id"),
        ("colour=red", "colour"),
        ("sort=age", "sort must be"),
        ("status=gone", "status must be"),
        ("status=stopped", "status must be"),
        ("snapshot=x", "snapshot is not the id"),
        ("ended=true&sort=name", "sort must not be"),
        ("sort=name&before=x", "before is not the `next`"),
        ("metadata[a]=1&metadata[a]=2", "metadata must have"),
    ] {
        let list = client.get(&format!("/v1/capsules?{query}")).await;
        list.refuses(400, "invalid_request", told);
    }
    let plain = client.get(&format!("/v1/capsules/{id}/exec/stream")).await;
    plain.refuses(400, "invalid_request", "upgrade must request a WebSocket");
    for query in ["path=%ff%fe", "", "path=/a&path=/b", "path=/a&colour=red"] {
        let file = client.get(&format!("/v1/capsules/{id}/files?{query}")).await;
        assert_eq!(file.status.as_u16(), 400, "{query}: {}", file.body);
        assert_eq!(file.body["error"]["code"], "invalid_request", "{query}: {}", file.body);
    }
    let large = client.request(Method::POST, "/v1/capsules").body(vec![b' '; 21 << 20]);
    client.send(large).await.refuses(413, "too_large", "larger than");
    platform.finish();
}

#[tokio::test]
async fn invalid_commands_and_paths_name_error() {
    let (platform, client, id) = capsule().await;
    let exec = format!("/v1/capsules/{id}/exec");
    for (body, told) in [
        (json!({}), "missing field `cmd`"),
        (json!({ "cmd": "" }), "cmd must not be empty"),
        (json!({ "cmd": "true", "cwd": "/nosuch" }), "cwd '/nosuch' does not exist"),
        (json!({ "cmd": "true", "user": "nosuch" }), "invalid username: 'nosuch'"),
        (json!({ "cmd": "true", "args": ["a\0b"] }), "NUL"),
        (json!({ "cmd": "true", "args": [1] }), "args[0] is invalid"),
        (json!({ "cmd": "true", "timeout": 0 }), "timeout must be between 1 and 86400"),
        (json!({ "cmd": "true", "envs": { "1": "x" } }), "envs contains `1`"),
    ] {
        client.post(&exec, &body).await.refuses(400, "invalid_request", told);
    }
    for (cmd, code) in [
        ("/nosuch", "command_not_found"),
        ("nosuchcommand", "command_not_found"),
        ("/etc/passwd", "command_not_executable"),
        ("/etc", "command_not_executable"),
    ] {
        let told = format!("cannot run '{cmd}'");
        client.post(&exec, &json!({ "cmd": cmd })).await.refuses(400, code, &told);
    }
    let files = |what: &str| format!("/v1/capsules/{id}/files/{what}");
    for (what, body, told) in [
        ("list", json!({ "path": "" }), "path must be 1 to 4095 bytes"),
        ("stat", json!({ "path": "a\0b" }), "path must be 1 to 4095 bytes"),
        ("mkdir", json!({ "path": "x".repeat(5000) }), "path must be 1 to 4095 bytes"),
        ("move", json!({ "source": "/a" }), "missing field `destination`"),
        ("list", json!({ "path": "/etc/passwd" }), "is not a directory"),
        ("remove", json!({ "path": "/tmp/../" }), "path must not be the root"),
        (
            "read",
            json!({ "path": "/etc" }),
            "the guest refused the request: path is not a regular file: /etc",
        ),
    ] {
        client.post(&files(what), &body).await.refuses(400, "invalid_request", told);
    }
    for (what, body) in [
        ("list", json!({ "path": "/nosuch" })),
        ("stat", json!({ "path": "/nosuch" })),
        ("read", json!({ "path": "/nosuch" })),
        ("move", json!({ "source": "/nosuch", "destination": "/tmp/x" })),
    ] {
        client.post(&files(what), &body).await.refuses(404, "not_found", "not found");
    }
    let kill = format!("/v1/capsules/{id}/processes");
    client.delete(&format!("{kill}/999999")).await.refuses(404, "not_found", "process");
    client.delete(&format!("{kill}/nosuch")).await.refuses(404, "not_found", "process");
    let signal = client.delete(&format!("{kill}/1?signal=SIGSEGV")).await;
    signal.refuses(400, "invalid_request", "signal must be TERM, KILL,");
    for signal in ["TERM", "SIGHUP"] {
        let refused = client.delete(&format!("{kill}/1?signal={signal}")).await;
        refused.refuses(400, "invalid_request", "process 1 belongs to the platform");
    }
    platform.finish();
}
