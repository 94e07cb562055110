//! Logins to registries: stored for the team, shown without secrets, kept encrypted.

use super::platform;
use serde_json::json;
use sqlx::{Connection, PgConnection};

const SECRET: &str = "s3cret-of-the-registry";

#[tokio::test]
async fn login_is_stored_encrypted_and_never_shown() {
    let (platform, client) = platform().await;
    // The first user is an admin of the platform. The second one owns a team alone.
    platform.user("root@example.com").await;
    let stranger = platform.user("stranger@example.com").await;
    for (host, body, kind, name) in [
        ("ghcr.io", json!({ "basic": { "username": "ada", "password": SECRET } }), "basic", "ada"),
        (
            "1.dkr.ecr.eu-west-1.amazonaws.com",
            json!({ "aws": { "access_key_id": "AKIA1", "secret_access_key": SECRET, "region": "eu-west-1" } }),
            "aws",
            "AKIA1",
        ),
        (
            "europe-docker.pkg.dev",
            json!({ "gcp": { "service_account_json":
                json!({ "client_email": "a@b.example", "private_key": SECRET }).to_string() } }),
            "gcp",
            "a@b.example",
        ),
    ] {
        let stored = client.put(&format!("/v1/registries/{host}"), &body).await.expect(200);
        assert_eq!(
            (&stored["registry"], &stored["kind"]),
            (&json!(host), &json!(kind)),
            "{stored}"
        );
        assert_eq!(stored["username"], name, "{stored}");
        assert!(!stored.to_string().contains(SECRET), "{stored}");
    }
    let listed = client.get("/v1/registries").await.expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 3);
    assert!(!listed.to_string().contains(SECRET), "{listed}");
    assert_eq!(stranger.get("/v1/registries").await.expect(200)["items"], json!([]));
    stranger.delete("/v1/registries/ghcr.io").await.refuses(404, "not_found", "login");
    // A later login replaces the first.
    let body = json!({ "basic": { "username": "eve", "password": SECRET } });
    assert_eq!(client.put("/v1/registries/ghcr.io", &body).await.expect(200)["username"], "eve");
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let sql = "SELECT r::text || encode(sealed, 'escape') FROM registry_logins r";
    let rows: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut db).await.unwrap();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| !row.contains(SECRET)), "a login is stored as it is");
    let sql = "SELECT a::text FROM audit_logs a";
    let audit: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut db).await.unwrap();
    let audit = audit.concat();
    assert!(audit.contains("ghcr.io") && !audit.contains(SECRET), "{audit}");
    assert!(!platform.log().contains(SECRET), "a login is in the log");
    client.delete("/v1/registries/ghcr.io").await.expect(204);
    client.delete("/v1/registries/ghcr.io").await.refuses(404, "not_found", "login");
    platform.finish();
}

#[tokio::test]
async fn login_out_of_form_is_refused_without_repeating_its_secret() {
    let (platform, client) = platform().await;
    let good = json!({ "basic": { "username": "ada", "password": SECRET } });
    for (host, body) in [
        ("https:%2f%2fghcr.io", good.clone()),
        ("a b", good.clone()),
        ("ghcr.io", json!({})),
        ("ghcr.io", json!({ "basic": { "username": "ada", "password": SECRET, "more": 1 } })),
        ("ghcr.io", json!({ "basic": { "username": "a:b", "password": SECRET } })),
        ("ghcr.io", json!({ "basic": { "username": "ada", "password": "" } })),
        ("pkg.dev", json!({ "gcp": { "service_account_json": SECRET } })),
        (
            "x.amazonaws.com",
            json!({ "aws": { "access_key_id": "A", "secret_access_key": SECRET,
            "region": "../x" } }),
        ),
    ] {
        let answer = client.put(&format!("/v1/registries/{host}"), &body).await;
        assert_eq!(answer.status, 400, "{host}: {}", answer.body);
        assert!(!answer.body.to_string().contains(SECRET), "{}", answer.body);
    }
    assert_eq!(client.get("/v1/registries").await.expect(200)["items"], json!([]));
    platform.finish();
}
