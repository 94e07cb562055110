//! `wrenn capsule …`: the dispatch, and the commands without a file of their own.

use super::{cp, exec, lifecycle, port, shell};
use crate::cli;
use crate::client::{Client, Refused};
use crate::output::{self, Form, Progress};
use std::process::ExitCode;

/// Runs a command of `wrenn capsule`.
pub(crate) async fn capsule(
    command: cli::Capsule,
    client: &Client,
    form: Form,
) -> anyhow::Result<ExitCode> {
    match command {
        cli::Capsule::Create(create) => self::create(create, client, form).await?,
        cli::Capsule::List => list(client, form).await?,
        cli::Capsule::Get { capsule } => get(&capsule, client, form).await?,
        cli::Capsule::Exec(command) => {
            return Ok(exec::exec(command, client, form)
                .await
                .unwrap_or_else(|e| failed(&e, form)));
        }
        cli::Capsule::Shell(command) => {
            return Ok(shell::shell(command, client).await.unwrap_or_else(|e| failed(&e, form)));
        }
        cli::Capsule::Pause(pause) => lifecycle::pause(&pause, client, form).await?,
        cli::Capsule::Resume(resume) => lifecycle::resume(&resume, client, form).await?,
        cli::Capsule::Fork(fork) => lifecycle::fork(&fork, client, form).await?,
        cli::Capsule::Snapshot(snapshot) => lifecycle::snapshot(snapshot, client, form).await?,
        cli::Capsule::Timeout(timeout) => lifecycle::timeout(&timeout, client, form).await?,
        cli::Capsule::Network(network) => lifecycle::network(network, client, form).await?,
        cli::Capsule::Cp(cp) => cp::cp(&cp, client, form).await?,
        cli::Capsule::Kill { capsules } => kill(&capsules, client, form).await?,
        cli::Capsule::Logs { capsule } => logs(&capsule, client, form).await?,
        cli::Capsule::Ps { capsule } => processes(&capsule, client, form).await?,
        cli::Capsule::Ports { capsule } => port::list(&capsule, client, form).await?,
        cli::Capsule::Url(url) => port::url(&url, client, form).await?,
        cli::Capsule::Publish { capsule, port } => {
            port::publish(&capsule, port, true, client, form).await?;
        }
        cli::Capsule::Unpublish { capsule, port } => {
            port::publish(&capsule, port, false, client, form).await?;
        }
        cli::Capsule::Forward(forward) => port::forward(&forward, client, form).await?,
        cli::Capsule::RotateToken { capsule } => port::rotate_token(&capsule, client, form).await?,
        cli::Capsule::RotateLinks { capsule } => port::rotate_links(&capsule, client, form).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the error of a command that did not run to its end, and returns an exit code for it. Few
/// programs use these codes, which shells, `timeout(1)` and `env(1)` return too.
pub(super) fn failed(error: &anyhow::Error, form: Form) -> ExitCode {
    output::error(error, form);
    let code = error.downcast_ref::<Refused>().map(|refused| refused.code.as_str());
    ExitCode::from(match code {
        Some("timeout") => 124,
        Some("command_not_executable") => 126,
        Some("command_not_found") => 127,
        _ => 125,
    })
}

/// Returns the API's path of a capsule's resource. The id is checked, so that it stays one path
/// segment.
pub(super) fn path(capsule: &str, rest: &str) -> anyhow::Result<String> {
    let id: types::CapsuleId = capsule
        .parse()
        .map_err(|e| output::usage(format!("`{capsule}` is not a capsule id: {e}")))?;
    Ok(format!("/v1/capsules/{id}{rest}"))
}

async fn create(create: cli::Create, client: &Client, form: Form) -> anyhow::Result<()> {
    let body = api::CreateCapsule {
        template: Some(create.template),
        vcpus: create.vcpus,
        memory_mib: create.memory_mib,
        disk_mib: create.disk_mib,
        idle_timeout: create.idle_timeout.map(lifecycle::seconds),
        lifetime: create.lifetime.map(lifecycle::seconds),
        on_timeout: create.on_timeout,
        auto_resume: create.auto_resume,
        public_ports: create.public,
        public_traffic: create.public_traffic,
        host_header: create.host_header,
        network: lifecycle::rules(create.network),
        host_tags: create.host_tags,
        envs: create.envs.into_iter().collect(),
        metadata: create.metadata.into_iter().collect(),
    };
    let progress = Progress::start("starting a capsule");
    let made: anyhow::Result<api::Capsule> = client.post("/v1/capsules", &body).await;
    progress.clear();
    let made = made?;
    if form == Form::Json {
        return output::json(&made);
    }
    output::line(&made.id);
    Ok(())
}

/// Returns a capsule's status as text for people.
fn status(status: String, disk_full: bool) -> String {
    if disk_full { format!("{status} (waiting: disk_full)") } else { status }
}

async fn list(client: &Client, form: Form) -> anyhow::Result<()> {
    let items: Vec<api::Capsule> = client.list("/v1/capsules").await?;
    if form == Form::Json {
        return output::json(&items);
    }
    let row = |c: api::Capsule| {
        vec![
            c.id,
            status(c.status, c.disk_full),
            c.template,
            c.vcpus.to_string(),
            format!("{} MiB", c.memory_mib),
            output::ago(c.created_at),
        ]
    };
    let header = ["ID", "STATUS", "TEMPLATE", "VCPUS", "MEMORY", "CREATED"];
    output::table(&header, items.into_iter().map(row).collect());
    Ok(())
}

async fn get(capsule: &str, client: &Client, form: Form) -> anyhow::Result<()> {
    let found: api::Capsule = client.get(&path(capsule, "")?).await?;
    if form == Form::Json {
        return output::json(&found);
    }
    let mut rows = vec![
        ("id", found.id),
        ("status", status(found.status, found.disk_full)),
        ("template", found.template),
        ("vcpus", found.vcpus.to_string()),
        ("memory", format!("{} MiB", found.memory_mib)),
        ("disk", format!("{} MiB", found.disk_mib)),
        ("host", found.host_id.unwrap_or_default()),
        ("created", output::ago(found.created_at)),
    ];
    if let Some(at) = found.ends_at {
        let end = humantime::format_rfc3339_seconds(at.into());
        rows.push(("ends", format!("{end} ({})", found.on_timeout)));
    }
    rows.extend(found.snapshot.map(|id| ("started from", id)));
    rows.extend(found.public_ports.iter().map(|port| ("public port", port.to_string())));
    rows.extend(found.error.map(|why| ("error", why)));
    let metadata = found.metadata.into_iter().map(|(name, value)| format!("{name}={value}"));
    rows.extend(metadata.map(|pair| ("metadata", pair)));
    let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    output::table(&["", ""], rows);
    Ok(())
}

async fn kill(capsules: &[String], client: &Client, form: Form) -> anyhow::Result<()> {
    let progress = Progress::start("ending capsules");
    let mut failed = None;
    for capsule in capsules {
        let ended = async { client.delete(&path(capsule, "")?).await };
        if let Err(error) = ended.await {
            failed.get_or_insert(output::about(capsule, error));
        }
    }
    progress.clear();
    if let Some(error) = failed {
        return Err(error);
    }
    if form == Form::Json { output::json(&capsules) } else { Ok(()) }
}

async fn logs(capsule: &str, client: &Client, form: Form) -> anyhow::Result<()> {
    let request = client.request(reqwest::Method::GET, &path(capsule, "/logs")?);
    let console = client.send(request).await?.bytes().await?;
    if form == Form::Json {
        return output::json(&serde_json::json!({ "console": String::from_utf8_lossy(&console) }));
    }
    output::raw(&console)
}

async fn processes(capsule: &str, client: &Client, form: Form) -> anyhow::Result<()> {
    let list: api::ProcessList = client.get(&path(capsule, "/processes")?).await?;
    if form == Form::Json {
        return output::json(&list.processes);
    }
    let row = |p: api::Process| {
        vec![
            p.pid.to_string(),
            p.tag.unwrap_or_default(),
            format!("{} {}", p.cmd, p.args.join(" ")),
        ]
    };
    output::table(&["PID", "TAG", "COMMAND"], list.processes.into_iter().map(row).collect());
    Ok(())
}
