//! A command's round trip: `true` through the API, against the same call to envd itself.

use crate::inside::Inside;
use crate::stats::Row;
use connectrpc::client::{ClientConfig, HttpClient};
use protocol::process as wire;
use protocol::process::__buffa::oneof::process_event::{Event, data_event::Output};
use serde_json::json;
use std::time::{Duration, Instant};
use tests::Platform;

const ROUNDS: usize = 100;

pub(crate) type Process = protocol::process::ProcessClient<HttpClient>;

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

/// Makes a client of envd's service, which dials from inside a namespace. The client is the control
/// plane's own kind.
pub(crate) fn process_client(inside: &Inside, token: Option<&str>) -> Process {
    let mut config = ClientConfig::new("http://169.254.0.2:49983".parse().unwrap());
    if let Some(token) = token {
        config = config.with_default_header(protocol::ACCESS_TOKEN, token);
    }
    // The client is made inside the namespace, so that it dials there.
    inside.run(move |runtime, _| {
        let _inside = runtime.enter();
        Process::new(HttpClient::plaintext(), config)
    })
}

/// Runs a program through envd's service, up to the end of its stream. Returns its output.
pub(crate) async fn run(client: Process, command: &[String]) -> Result<String, String> {
    let Some((program, args)) = command.split_first() else { return Err("no program".to_owned()) };
    let (cmd, args) = (program.clone(), args.to_vec());
    let process = wire::ProcessConfig { cmd, args, ..Default::default() };
    let request =
        wire::StartRequest { process: process.into(), stdin: Some(false), ..Default::default() };
    let mut stream = client.start(request).await.map_err(|error| error.to_string())?;
    let (mut out, mut ended) = (Vec::new(), None);
    while let Some(message) =
        stream.message::<wire::StartResponse>().await.map_err(|error| error.to_string())?
    {
        let event = message.to_owned_message().event.into_option().and_then(|event| event.event);
        match event {
            Some(Event::Data(data)) => {
                if let Some(Output::Stdout(bytes)) = data.output {
                    out.extend_from_slice(&bytes);
                }
            }
            Some(Event::End(end)) => ended = Some(end.exit_code),
            Some(Event::Start(_) | Event::Keepalive(_)) | None => {}
        }
    }
    match ended {
        Some(0) => Ok(String::from_utf8_lossy(&out).into_owned()),
        Some(code) => Err(format!("{program} ended with {code}")),
        None => Err(format!("the stream of {program} ended early")),
    }
}

/// Runs `true` through envd's service.
async fn run_true(client: Process) {
    run(client, &["true".to_owned()]).await.unwrap();
}

pub(crate) async fn measure(platform: &Platform, id: &str) -> Row {
    let (client, straight) = (platform.client(), Straight::to(platform, id));
    let path = format!("/v1/capsules/{id}/exec");
    let body = json!({ "cmd": "true" });
    let process = process_client(&straight.inside, Some(&straight.token));
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
    Row::less("exec of `true` − straight to envd", &ours, &floor, "≤ 1 ms")
}
