//! `wrenn template build`: uploads, the request, and the view of the build until its end.

use super::follow::{News, follow};
use super::progress::{Progress, Style};
use super::{builtin, make_common, path, source, tag_list, upload};
use crate::cli;
use crate::client::Client;
use crate::output::{self, Form, Live};
use anyhow::Context;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use recipe::names::{self, Reference, Selector};
use reqwest::{Method, StatusCode};
use std::process::ExitCode;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};

/// Time between two changes of the moving lines.
const TICK: Duration = Duration::from_millis(100);
/// Tries of a request whose answer got lost. The platform takes them for one request.
const TRIES: u32 = 4;
/// Exit code of a command that Ctrl-C ended, as shells have it.
const INTERRUPTED: u8 = 130;

/// Runs `wrenn template build`.
pub(super) async fn build(
    build: cli::BuildTemplate,
    client: &Client,
    form: Form,
) -> anyhow::Result<ExitCode> {
    let name = build.name.clone();
    let wanted = reference(&name)?;
    for tag in &build.tags {
        names::native_tag(tag).map_err(|error| output::usage(error.to_string()))?;
    }
    let (detach, plain) = (build.detach, build.plain);
    let (mut body, from) = request(build);
    let builtin = builtin::find(&wanted.name, &from);
    let is_first = match builtin {
        Some(builtin) => complete(builtin, &mut body, &wanted.name, client).await,
        None => false,
    };
    let source = tokio::task::spawn_blocking(move || read(builtin, from, form)).await??;
    body.from = source.from;
    body.recipe = source.recipe.as_ref().map(serde_json::to_value).transpose()?;
    if form == Form::Human {
        output::notes(&source.notes);
    }
    upload::upload(client, &wanted.name, source.uploads, form).await?;
    let made = post(client, &body).await?;
    if is_first && let Err(error) = make_common(&wanted.name, client).await {
        output::note(&format!("other teams do not find {} by its name: {error:#}", wanted.name));
    }
    if detach {
        super::super::render(&made, &made.id, form)?;
        return Ok(ExitCode::SUCCESS);
    }
    let moves = form == Form::Human && !plain;
    let mut interrupts = signal(SignalKind::interrupt())?;
    let interrupted = async || {
        interrupts.recv().await;
    };
    let (built, code) = watch(client, &made.id, (form, moves), interrupted).await?;
    match (built, form) {
        (None, _) => {}
        (Some(built), Form::Json) => output::json(&built)?,
        (Some(built), Form::Human) => ready(&built, &name),
    }
    Ok(code)
}

/// Reads the name of a template that is built, with a tag or without.
fn reference(text: &str) -> anyhow::Result<Reference> {
    let wanted = Reference::native(text).map_err(|error| output::usage(error.to_string()))?;
    if wanted.namespace.is_some() || matches!(wanted.selector, Some(Selector::Build(_))) {
        return Err(output::usage(format!("`{text}` must be NAME or NAME:TAG")));
    }
    Ok(wanted)
}

/// Reads the source of a template: a recipe of this executable, or the caller's.
fn read(
    builtin: Option<&builtin::Builtin>,
    from: cli::BuildFrom,
    form: Form,
) -> anyhow::Result<source::Source> {
    let Some(builtin) = builtin else { return source::read(from) };
    let cache = builtin::cache(|name| std::env::var(name).ok());
    let (folder, dockerfile) = builtin.prepare(&cache, form)?;
    source::read_builtin(folder, dockerfile)
}

/// Completes the request for a recipe of this executable. Returns true if the build makes an
/// operator's new template, which becomes common to all teams.
async fn complete(
    builtin: &builtin::Builtin,
    body: &mut api::CreateBuild,
    name: &str,
    client: &Client,
) -> bool {
    builtin.complete(body);
    let operator = is_operator(client).await;
    body.public |= operator;
    operator && is_new(name, client).await
}

/// Reports whether the caller's team has no template of a name. A failed request counts as no.
async fn is_new(name: &str, client: &Client) -> bool {
    let Ok(path) = path(name, "") else { return false };
    match client.get::<api::Template>(&path).await {
        Ok(found) => !found.own,
        Err(error) => crate::client::is_status(&error, StatusCode::NOT_FOUND),
    }
}

/// Reports whether the caller is an operator, who alone sees the addresses of shared hosts. A
/// failed request counts as no.
async fn is_operator(client: &Client) -> bool {
    let list = client.get::<api::HostList>("/v1/hosts").await;
    let shared = |host: &api::Host| host.team_id.is_none() && !host.address.is_empty();
    list.is_ok_and(|list| list.items.iter().any(shared))
}

fn request(build: cli::BuildTemplate) -> (api::CreateBuild, cli::BuildFrom) {
    let body = api::CreateBuild {
        name: build.name,
        tags: build.tags,
        start: build.start.start,
        ready: build.start.ready,
        start_each: build.start.start_each,
        start_from_image: build.start.start_from_image,
        ready_within_sec: build
            .start
            .ready_within
            .map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX)),
        env: build.envs.into_iter().collect(),
        user: build.user,
        workdir: build.workdir,
        vcpus: build.vcpus,
        memory_mib: build.memory_mib,
        disk_mib: build.disk_mib,
        public: build.public,
        force: build.no_cache,
        pull: build.pull,
        ..api::CreateBuild::default()
    };
    (body, build.source)
}

/// Asks for the build. A lost answer is asked for again.
async fn post(client: &Client, body: &api::CreateBuild) -> anyhow::Result<api::Build> {
    let key = uuid::Uuid::new_v4().to_string();
    let mut tries = 1;
    loop {
        let request = client.request(Method::POST, "/v1/builds").json(body);
        match client.send(request.header("Idempotency-Key", &key)).await {
            Ok(answer) => return answer.json().await.context("the answer is no build"),
            Err(error) if tries < TRIES && crate::client::is_passing(&error) => {
                tokio::time::sleep(Duration::from_millis(250) * tries).await;
                tries += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Shows a build until its end. `interrupted` waits for a Ctrl-C. The first Ctrl-C asks the platform
/// to cancel, and a second one leaves at once. Returns the build if it is ready.
///
/// # Errors
/// When the build failed, or the platform is gone.
async fn watch(
    client: &Client,
    id: &str,
    (form, moves): (Form, bool),
    mut interrupted: impl AsyncFnMut(),
) -> anyhow::Result<(Option<api::Build>, ExitCode)> {
    let id = super::build_id(id)?;
    let live = Live::start(moves);
    let style = if live.moves() { Style::Moving { width: Live::width() } } else { Style::Plain };
    let mut progress = Progress::new(style);
    let mut ticks = tokio::time::interval(TICK);
    let mut news = follow(client, id.clone());
    let mut is_cancelled = false;
    let mut cancels = FuturesUnordered::new();
    let built = loop {
        tokio::select! {
            next = news.next() => match next.transpose()? {
                Some(News::Line(line)) if form == Form::Human => {
                    live.keep(&progress.line(&line, OffsetDateTime::now_utc()));
                }
                Some(News::Line(_)) => {}
                Some(News::End(build)) => break *build,
                None => anyhow::bail!("the platform did not tell the build's end"),
            },
            _ = ticks.tick() => live.show(&progress.live(OffsetDateTime::now_utc())),
            () = interrupted() => {
                if is_cancelled {
                    live.clear();
                    output::note(&format!("the build may go on; see `wrenn template logs -f {id}`"));
                    return Ok((None, ExitCode::from(INTERRUPTED)));
                }
                is_cancelled = true;
                live.keep(&["cancelling the build; Ctrl-C again leaves at once".to_owned()]);
                cancels.push(cancel(client, &id));
            }
            Some(error) = cancels.next() => {
                live.keep(&error.into_iter().collect::<Vec<_>>());
            }
        }
    };
    if form == Form::Human {
        live.keep(&progress.end(&built));
    }
    live.clear();
    match failure(&built) {
        None => Ok((Some(built), ExitCode::SUCCESS)),
        Some(error) if is_cancelled => {
            output::error(&error, form);
            Ok((None, ExitCode::from(INTERRUPTED)))
        }
        Some(error) => Err(error),
    }
}

/// Asks for a cancel. Returns a line for people if that fails.
async fn cancel(client: &Client, id: &str) -> Option<String> {
    let asked = client.post_empty(&format!("/v1/builds/{id}/cancel")).await;
    asked.err().map(|error| format!("cannot cancel the build: {error:#}"))
}

/// Returns the error of a build that did not become ready.
pub(super) fn failure(build: &api::Build) -> Option<anyhow::Error> {
    if build.status == "ready" {
        return None;
    }
    let Some(error) = &build.error else {
        let message = format!("the build ended as {}", build.status);
        return Some(output::failed("build_failed", message));
    };
    let place = match error.step.as_deref() {
        None => String::new(),
        Some("base") => " at its base".to_owned(),
        Some("finalize") => " after its steps".to_owned(),
        Some(step) => format!(" in step {step}"),
    };
    let message = format!("the build failed{place}: {}", error.message);
    Some(output::failed("build_failed", message))
}

/// Prints the end of a build, with the command that uses it.
fn ready(build: &api::Build, name: &str) {
    let since = build.started_at.unwrap_or(build.created_at);
    let took = build.ended_at.and_then(|end| Duration::try_from(end - since).ok());
    let took = took.map_or_else(String::new, |took| format!(" in {}", output::human(took)));
    let tags = tag_list(&build.tags);
    output::note(&format!("\nbuilt {} as {}{took}; {tags}", build.template, build.id));
    output::note("Start a capsule of it:");
    output::line(&format!("wrenn capsule create {name}"));
}

#[cfg(test)]
mod tests;
