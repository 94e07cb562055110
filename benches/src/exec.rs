//! A command's round trip: `true` through the API, against the same call to envd itself.

use crate::inside::Inside;
use crate::stats::Row;
use connectrpc::client::{ClientConfig, HttpClient};
use protocol::process as wire;
use protocol::process::__buffa::oneof::process_event::Event;
use serde_json::json;
use std::time::{Duration, Instant};
use tests::Platform;

const ROUNDS: usize = 100;

type Process = protocol::process::ProcessClient<HttpClient>;

/// A direct way to a guest's envd: a client in the capsule's namespace, and envd's token.
pub(crate) struct Straight {
    inside: Inside,
    token: String,
}

impl Straight {
    pub(crate) fn to(platform: &Platform, capsule: &str) -> Self {
        let record = platform.dir().join(format!("capsules/{capsule}/capsule.json"));
        let record: serde_json::Value =
            serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
        let slot = record["slot"].as_u64().unwrap();
        let namespace = platform.leftovers().namespace(slot);
        let token = record["envd_token"].as_str().unwrap().to_owned();
        Self { inside: Inside::enter(&namespace), token }
    }

    /// Times `work`, which gets an HTTP client and envd's token.
    pub(crate) fn time<F>(
        &self,
        work: impl FnOnce(reqwest::Client, String) -> F + Send + 'static,
    ) -> Duration
    where
        F: Future<Output = ()>,
    {
        let token = self.token.clone();
        self.inside.run(move |runtime, client| {
            let client = client.clone();
            let started = Instant::now();
            runtime.block_on(work(client, token));
            started.elapsed()
        })
    }
}

/// Runs `true` through envd's service, up to the end of its stream. The client is the control
/// plane's own kind.
async fn run_true(client: Process) {
    let process = wire::ProcessConfig { cmd: "true".to_owned(), ..Default::default() };
    let request =
        wire::StartRequest { process: process.into(), stdin: Some(false), ..Default::default() };
    let mut stream = client.start(request).await.unwrap();
    let mut ended = false;
    while let Some(message) = stream.message::<wire::StartResponse>().await.unwrap() {
        let event = message.to_owned_message().event.into_option().and_then(|event| event.event);
        ended |= matches!(event, Some(Event::End(_)));
    }
    assert!(ended);
}

pub(crate) async fn measure(platform: &Platform, id: &str) -> Row {
    let (client, straight) = (platform.client(), Straight::to(platform, id));
    let path = format!("/v1/capsules/{id}/exec");
    let body = json!({ "cmd": "true" });
    let config = ClientConfig::new("http://169.254.0.2:49983".parse().unwrap())
        .with_default_header(protocol::ACCESS_TOKEN, &straight.token);
    // The client is made inside the namespace, so that it dials there.
    let process = straight.inside.run(move |runtime, _| {
        let _inside = runtime.enter();
        Process::new(HttpClient::plaintext(), config)
    });
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS + 10 {
        let started = Instant::now();
        client.post(&path, &body).await.expect(200);
        let took = started.elapsed();
        let process = process.clone();
        let direct = straight.time(async move |_, _| run_true(process).await);
        // The first ten rounds only warm caches.
        if round >= 10 {
            ours.push(took);
            floor.push(direct);
        }
    }
    Row::less("exec of `true` − straight to envd", &ours, &floor, "≤ 3 ms")
}
