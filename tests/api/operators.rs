//! Metrics for operators: histograms with equal buckets, metrics of hosts and pools, and the key
//! that Prometheus sends.

use reqwest::Method;
use tests::{Driver, Platform, eventually};

/// Metrics of a platform with one capsule, and of its certificates and database.
const SHOWN: [&str; 12] = [
    "wrenn_capsule_create_seconds_bucket{le=\"0.001\"}",
    "wrenn_capsule_create_seconds_bucket{le=\"60\"} 1",
    "wrenn_capsule_create_stage_seconds_bucket{stage=\"host\",le=\"+Inf\"} 1",
    "wrenn_boot_stage_seconds_count{stage=\"epoch\"} 1",
    "wrenn_operations_under_way{operation=\"create\"} 0",
    "wrenn_hosts{state=\"online\"} 1",
    "wrenn_host_capsules_in_state{state=\"running\"} 1",
    "wrenn_host_memory_limit_mib ",
    "wrenn_database_probe_seconds_count ",
    "wrenn_database_connections{state=\"used\"} ",
    "wrenn_certificate_expires_at_seconds{certificate=\"authority\"} ",
    "wrenn_certificate_expires_at_seconds{certificate=\"host\"} ",
];

#[tokio::test]
async fn metrics_have_histograms_stages_and_gauges_of_hosts_pools_and_certificates() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.own_client();
    client.create(&serde_json::json!({})).await;
    let text = eventually("all metrics are measured", || async {
        let text = client.get("/metrics").await.expect(200).as_str().unwrap().to_owned();
        let shows = |wanted: &&str| text.lines().any(|line| line.starts_with(*wanted));
        SHOWN.iter().all(shows).then_some(text)
    })
    .await;
    assert!(!text.contains("quantile="), "{text}");
    assert!(text.contains("# TYPE wrenn_capsule_create_seconds histogram"), "{text}");
    assert!(text.contains("# HELP wrenn_capsule_create_seconds "), "{text}");
    platform.finish();
}

#[tokio::test]
async fn operators_key_is_taken_as_a_bearer_token_and_other_bearers_are_refused() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let stranger = platform.client_with("");
    let ask = |token: &str| {
        let request = stranger.request(Method::GET, "/metrics");
        stranger.send(request.header("authorization", format!("Bearer {token}")))
    };
    ask(client.key()).await.expect(200);
    ask("e2b_0000000000000000000000000000000000000000").await.refuses(401, "unauthorized", "");
    ask("nonsense").await.refuses(401, "unauthorized", "");
    platform.finish();
}
