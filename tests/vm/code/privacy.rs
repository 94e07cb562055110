//! The interpreter's port is root's shell to whoever reaches it, so public traffic never opens it.

use super::create;
use reqwest::Method;
use serde_json::json;
use tests::{Client, Platform};

/// Port of the code interpreter.
const PORT: u16 = 49999;
/// Paths of the port, each with a method.
const CALLS: [(Method, &str); 4] = [
    (Method::POST, "/execute"),
    (Method::GET, "/contexts"),
    (Method::POST, "/contexts"),
    (Method::GET, "/health"),
];

/// Sends each call with a header. Returns the statuses.
async fn statuses(client: &Client, id: &str, header: Option<(&str, &str)>) -> Vec<u16> {
    let mut seen = Vec::new();
    for (method, path) in CALLS {
        let mut request = client.to_port(method, id, PORT, path);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let body = json!({ "code": "1", "language": "python" });
        seen.push(client.send(request.json(&body)).await.status.as_u16());
    }
    seen
}

async fn traffic_token(client: &Client, id: &str) -> String {
    let port = client.get(&format!("/v1/capsules/{id}/ports/80")).await.expect(200);
    port["traffic_token"].as_str().unwrap().to_owned()
}

/// Asks for the port without and with the tokens of two capsules.
pub(super) async fn port_is_closed_to_all_but_the_capsules_own(platform: &Platform, id: &str) {
    let (client, nobody) = (platform.client(), platform.client_with(""));
    let body = json!({ "template": "code-interpreter", "public_traffic": true });
    let public = client.create(&body).await;
    let other = create(&client).await;
    let token = traffic_token(&client, &other).await;
    for id in [id, &public] {
        assert_eq!(statuses(&nobody, id, None).await, [401; 4], "without a token");
        for name in ["e2b-traffic-access-token", "x-access-token"] {
            let seen = statuses(&nobody, id, Some((name, &token))).await;
            assert_eq!(seen, [404; 4], "with another capsule's token as {name}");
        }
        let own = traffic_token(&client, id).await;
        let header = Some(("e2b-traffic-access-token", own.as_str()));
        assert_eq!(statuses(&nobody, id, header).await, [200; 4], "with its own token");
        assert_eq!(statuses(&client, id, None).await, [200; 4], "with the owner's key");
        let open = format!("/v1/capsules/{id}/ports/49999");
        let opened = client.put(&open, &json!({ "public": true })).await;
        opened.refuses(400, "invalid_request", "port of the code interpreter");
    }
    // Within the guest, no token is asked for.
    let health = "curl -s -o /dev/null -w '%{http_code}' http://localhost:49999/health";
    assert_eq!(client.out(&public, health).await, "200");
    for id in [public, other] {
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
}
