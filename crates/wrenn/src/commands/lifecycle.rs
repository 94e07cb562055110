//! `wrenn capsule pause`, `resume`, `fork`, `snapshot`, `timeout`, and `wrenn snapshot …`.

use super::capsule::path;
use crate::cli;
use crate::client::Client;
use crate::output::{self, Form, Progress};
use reqwest::Method;

/// Returns a duration in whole seconds, rounded up: 0 would mean forever, or now.
pub(super) fn seconds(given: humantime::Duration) -> u32 {
    let whole = given.as_secs() + u64::from(given.subsec_nanos() > 0);
    u32::try_from(whole).unwrap_or(u32::MAX)
}

/// Requests a change of a capsule and prints the capsule's new status.
async fn change(
    client: &Client,
    (capsule, what): (&str, &str),
    body: &impl serde::Serialize,
    doing: &str,
    form: Form,
) -> anyhow::Result<()> {
    let progress = Progress::start(doing);
    let done: anyhow::Result<api::Capsule> = client.post(&path(capsule, what)?, body).await;
    progress.clear();
    let done = done?;
    if form == Form::Json {
        return output::json(&done);
    }
    output::line(&format!("{} is {}", done.id, done.status));
    Ok(())
}

pub(super) async fn pause(pause: &cli::Pause, client: &Client, form: Form) -> anyhow::Result<()> {
    let body = api::Pause { memory: pause.disk_only.then_some(false) };
    for capsule in &pause.capsules {
        change(client, (capsule, "/pause"), &body, "pausing", form).await?;
    }
    Ok(())
}

pub(super) async fn resume(
    resume: &cli::Resume,
    client: &Client,
    form: Form,
) -> anyhow::Result<()> {
    let body = api::Resume {
        lifetime: resume.lifetime.map(seconds),
        memory: resume.boot.then_some(false),
        snapshot: resume.snapshot,
    };
    for capsule in &resume.capsules {
        change(client, (capsule, "/resume"), &body, "resuming", form).await?;
    }
    Ok(())
}

pub(super) async fn timeout(
    timeout: &cli::Timeout,
    client: &Client,
    form: Form,
) -> anyhow::Result<()> {
    let body = api::SetTimeout {
        lifetime: timeout.after.map(seconds),
        on_timeout: timeout.on_timeout.clone(),
        idle_timeout: timeout.idle_timeout.map(seconds),
    };
    change(client, (&timeout.capsule, "/timeout"), &body, "setting the timeout", form).await
}

pub(super) async fn fork(fork: &cli::Fork, client: &Client, form: Form) -> anyhow::Result<()> {
    let body = api::Fork {
        count: Some(fork.count),
        name: fork.name.clone(),
        lifetime: fork.lifetime.map(seconds),
    };
    let progress = Progress::start("forking");
    let made: anyhow::Result<api::Forked> =
        client.post(&path(&fork.capsule, "/fork")?, &body).await;
    progress.clear();
    let made = made?;
    if form == Form::Json {
        return output::json(&made);
    }
    for capsule in &made.items {
        output::line(&capsule.id);
    }
    for error in &made.errors {
        output::note(&format!("a copy did not start: {}", error.message));
    }
    Ok(())
}

pub(super) fn rules(rules: cli::Rules) -> api::Network {
    let internet = rules.no_internet.then_some(false);
    api::Network { internet, allow: rules.allow, deny: rules.deny }
}

pub(super) async fn network(
    network: cli::Network,
    client: &Client,
    form: Form,
) -> anyhow::Result<()> {
    let path = path(&network.capsule, "/network")?;
    let request = client.request(Method::PUT, &path).json(&rules(network.rules));
    let capsule: api::Capsule = client.send(request).await?.json().await?;
    if form == Form::Json { output::json(&capsule) } else { Ok(()) }
}

pub(super) async fn snapshot(
    snapshot: cli::TakeSnapshot,
    client: &Client,
    form: Form,
) -> anyhow::Result<()> {
    let body = api::CreateSnapshot {
        capsule_id: snapshot.capsule,
        name: snapshot.name,
        overwrite: snapshot.overwrite,
        memory: Some(!snapshot.disk_only),
    };
    let progress = Progress::start("taking a snapshot");
    let taken: anyhow::Result<api::Snapshot> = client.post("/v1/snapshots", &body).await;
    progress.clear();
    let taken = taken?;
    if form == Form::Json {
        return output::json(&taken);
    }
    output::line(&taken.name);
    Ok(())
}

/// Runs `wrenn snapshot`.
pub(crate) async fn snapshots(
    command: cli::Snapshot,
    client: &Client,
    form: Form,
) -> anyhow::Result<()> {
    match command {
        cli::Snapshot::List => list(client, form).await,
        cli::Snapshot::Delete { snapshots } => {
            for name in &snapshots {
                // Checked names hold no character with a meaning in a path.
                types::names::check_name("snapshot", name)?;
                client.delete(&format!("/v1/snapshots/{name}")).await?;
            }
            if form == Form::Json { output::json(&snapshots) } else { Ok(()) }
        }
    }
}

async fn list(client: &Client, form: Form) -> anyhow::Result<()> {
    let items: Vec<api::Snapshot> = client.list("/v1/snapshots").await?;
    if form == Form::Json {
        return output::json(&items);
    }
    let row = |s: api::Snapshot| {
        vec![
            s.name,
            s.template,
            format!("{} MiB", s.memory_mib),
            output::bytes(s.size_bytes.unsigned_abs()),
            output::ago(s.created_at),
            s.capsule_id.unwrap_or_default(),
        ]
    };
    let header = ["NAME", "TEMPLATE", "MEMORY", "SIZE", "CREATED", "OF"];
    output::table(&header, items.into_iter().map(row).collect());
    Ok(())
}
