//! `wrenn capsule …`: the dispatch, and the commands without a file of their own.

use super::{capsule_list, cp, exec, lifecycle, logs, port, ps, shell, stats};
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
        cli::Capsule::List(list) => capsule_list::list(&list, client, form).await?,
        cli::Capsule::Get { capsule } => capsule_list::get(&capsule, client, form).await?,
        cli::Capsule::Rename { capsule, name } => {
            capsule_list::rename(&capsule, name, client, form).await?;
        }
        cli::Capsule::Set(set) => capsule_list::set(set, client, form).await?,
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
        cli::Capsule::Logs(wanted) => logs::logs(&wanted, client, form).await?,
        cli::Capsule::Metrics(metrics) => stats::metrics(metrics, client, form).await?,
        cli::Capsule::Ps(command) => ps::ps(&command, client, form).await?,
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

/// Returns the API's path of a capsule's resource. The id or name is checked, so that it stays one
/// path segment.
pub(super) fn path(capsule: &str, rest: &str) -> anyhow::Result<String> {
    if let Err(error) = capsule.parse::<types::CapsuleId>()
        && !is_name(capsule)
    {
        let why = format!("`{capsule}` is not a capsule id: {error}; nor is it a capsule's name");
        return Err(output::usage(why));
    }
    Ok(format!("/v1/capsules/{capsule}{rest}"))
}

/// Reports whether a text may be the name of a capsule.
pub(super) fn is_name(text: &str) -> bool {
    types::names::check_capsule_name("name", text).is_ok()
}

async fn create(create: cli::Create, client: &Client, form: Form) -> anyhow::Result<()> {
    let body = api::CreateCapsule {
        name: create.name,
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
        logs: create.logs,
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
