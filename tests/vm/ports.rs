//! Servers on a real guest's loopback, which the host cannot reach by itself.

use crate::capsule;
use crate::proxy::{forwarded, serve};
use futures::{SinkExt, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::Duration;
use tests::{Client, Platform, eventually};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// Returns the addresses on which a capsule's server listens at a port, by the list of ports.
async fn addresses(client: &Client, id: &str, port: u16) -> Vec<Value> {
    let listed = client.get(&format!("/v1/capsules/{id}/ports")).await.expect(200);
    let listed = listed.as_array().unwrap().iter().filter(|listed| listed["port"] == port);
    listed.map(|listed| json!([listed["address"], listed["program"]])).collect()
}

/// Sends bytes to a server and back over HTTP, a WebSocket and a forwarded port.
async fn exchange(platform: &Platform, client: &Client, id: &str, port: u16) {
    let body: Vec<u8> = (0..1_000_000_u32).map(|i| u8::try_from(i % 253).unwrap()).collect();
    let sum = types::hex::encode(&Sha256::digest(&body));
    let post = client.to_port(Method::POST, id, port, "/").body(body).send().await.unwrap();
    assert_eq!(post.text().await.unwrap(), sum);
    let url = format!("ws{}/ws", platform.url().strip_prefix("http").unwrap());
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("host", format!("{port}-{id}.localhost").parse().unwrap());
    request.headers_mut().insert("x-api-key", client.key().parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    for message in [Message::text("hello"), Message::binary(vec![7; 200_000])] {
        socket.send(message.clone()).await.unwrap();
        let back = tokio::time::timeout(Duration::from_secs(60), socket.next()).await.unwrap();
        assert_eq!(back.unwrap().unwrap(), message);
    }
    forwarded(platform, id, port);
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_server_is_reached_and_port_stays_free_on_other_addresses() {
    let (platform, client, id) = capsule().await;
    for (address, port) in [("127.0.0.1", 8080), ("::1", 8081)] {
        serve(&client, &id, address, port).await;
        exchange(&platform, &client, &id, port).await;
        assert_eq!(addresses(&client, &id, port).await, [json!([address, "python3"])]);
    }
    assert!(addresses(&client, &id, 49983).await.is_empty());
    // Only the server itself occupies the port.
    let bind = "import socket; socket.socket().bind(('169.254.0.2', 8080))";
    client.out(&id, &format!("python3 -c \"{bind}\"")).await;
    let process = format!("/v1/capsules/{id}/processes/127.0.0.1-8080");
    client.delete(&process).await.expect(204);
    eventually("the server has ended", || async {
        addresses(&client, &id, 8080).await.is_empty().then_some(())
    })
    .await;
    let answer = client.send(client.to_port(Method::GET, &id, 8080, "/")).await;
    let told = answer.body.to_string();
    assert!(answer.status == 502 && told.contains("port is not open"), "{told}");
    // A server on all addresses takes the port right after.
    serve(&client, &id, "0.0.0.0", 8080).await;
    exchange(&platform, &client, &id, 8080).await;
    assert_eq!(addresses(&client, &id, 8080).await, [json!(["0.0.0.0", "python3"])]);
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_server_is_reached_after_pause_and_in_fork() {
    let (platform, client, id) = capsule().await;
    serve(&client, &id, "127.0.0.1", 8080).await;
    client.pause(&id).await;
    client.resume(&id).await;
    exchange(&platform, &client, &id, 8080).await;
    let fork = client.post(&format!("/v1/capsules/{id}/fork"), &json!({})).await.expect(201);
    let child = fork["items"][0]["id"].as_str().unwrap();
    // The child's envd has a token of its own.
    exchange(&platform, &client, child, 8080).await;
    platform.finish();
}
