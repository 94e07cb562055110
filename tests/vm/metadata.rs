//! The metadata service. Guests see the same service under each driver and from each server.

use crate::ready::claimed;
use serde_json::json;
use tests::Client;

const SERVICE: &str = "http://169.254.169.254";

/// Runs `curl` in a capsule. Returns the status and the body.
async fn ask(client: &Client, id: &str, args: &str) -> (u16, String) {
    let command = format!("curl -s -m 20 -w '\\n%{{http_code}}' {args}");
    let said = client.out(id, &command).await;
    let (body, status) = said.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

/// Returns a session token of the metadata service.
async fn token(client: &Client, id: &str) -> String {
    let args = format!("-X PUT -H 'X-metadata-token-ttl-seconds: 60' {SERVICE}/latest/api/token");
    let (status, token) = ask(client, id, &args).await;
    assert_eq!(status, 200, "{token}");
    token
}

/// Returns a guest's own identity, as a new process and files show it.
pub(crate) async fn says(client: &Client, id: &str) -> String {
    let files = "cat /run/wrenn/.WRENN_SANDBOX_ID /run/wrenn/.WRENN_TEMPLATE_ID";
    client.out(id, &format!("echo $WRENN_SANDBOX_ID $WRENN_TEMPLATE_ID; {files}")).await
}

#[tokio::test]
async fn metadata_service_requires_a_token() {
    let (platform, client, id) = claimed().await;
    let token = token(&client, &id).await;
    let with = format!("-H 'X-metadata-token: {token}'");
    let json = "-H 'Accept: application/json'";
    let all = ask(&client, &id, &format!("{with} {json} {SERVICE}/")).await;
    let about: serde_json::Value = serde_json::from_str(&all.1).unwrap();
    assert_eq!((all.0, &about), (200, &json!({ "instanceID": id, "envID": "base" })));
    let mut names: Vec<String> = {
        let (status, text) = ask(&client, &id, &format!("{with} {SERVICE}/")).await;
        assert_eq!(status, 200, "{text}");
        text.lines().map(str::to_owned).collect()
    };
    names.sort();
    assert_eq!(names, ["envID", "instanceID"]);
    for (args, status, body) in [
        (format!("{with} {SERVICE}/instanceID"), 200, Some(id.as_str())),
        (format!("{with} {SERVICE}/envID"), 200, Some("base")),
        (format!("{with} {json} {SERVICE}/envID"), 200, Some("\"base\"")),
        (format!("{with} {SERVICE}/none"), 404, None),
        (format!("{SERVICE}/envID"), 401, None),
        (format!("-H 'X-metadata-token: {}' {SERVICE}/envID", "A".repeat(54)), 401, None),
        (format!("-H 'X-metadata-token: x' {SERVICE}/envID"), 401, None),
        (format!("-X PUT {SERVICE}/latest/api/token"), 400, None),
    ] {
        let (found, said) = ask(&client, &id, &args).await;
        assert_eq!(found, status, "{args}: {said}");
        assert!(body.is_none_or(|body| body == said), "{args}: {said}");
    }
    // Guests cannot change anything here. The wording of the refusal differs between servers.
    for method in ["POST", "PATCH", "DELETE"] {
        let args = format!("-X {method} {with} {SERVICE}/envID");
        let (status, said) = ask(&client, &id, &args).await;
        assert!((400..600).contains(&status), "{method}: {status} {said}");
    }
    let path = format!("{SERVICE}/latest/api/token");
    for ttl in ["0", "21601", "x"] {
        let args = format!("-X PUT -H 'X-metadata-token-ttl-seconds: {ttl}' {path}");
        assert_eq!(ask(&client, &id, &args).await.0, 400, "{ttl}");
    }
    let forwarded = "-H 'X-Forwarded-For: 1.2.3.4' -H 'X-metadata-token-ttl-seconds: 60'";
    assert_eq!(ask(&client, &id, &format!("-X PUT {forwarded} {path}")).await.0, 400);
    platform.finish();
}

#[tokio::test]
async fn metadata_follows_resume_and_fork() {
    let (platform, client, id) = claimed().await;
    let told = |id: &str| format!("{id} base\n{id}base");
    assert_eq!(says(&client, &id).await, told(&id));
    let old = token(&client, &id).await;
    client.pause(&id).await;
    client.resume(&id).await;
    assert_eq!(says(&client, &id).await, told(&id));
    let with = format!("-H 'X-metadata-token: {old}' {SERVICE}/envID");
    assert_eq!(ask(&client, &id, &with).await.0, 401, "a token of before is good");
    let forked = client.post(&format!("/v1/capsules/{id}/fork"), &json!({ "count": 1 })).await;
    let child = forked.expect(201)["items"][0]["id"].as_str().unwrap().to_owned();
    let of_child = says(&client, &child).await;
    assert!(of_child.starts_with(&format!("{child} ")), "{of_child}");
    assert!(of_child.contains(&format!("\n{child}")), "{of_child}");
    assert_eq!(says(&client, &id).await, told(&id));
    platform.finish();
}
