//! `wrenn template`: templates, their versions and their builds.

mod build;
mod builtin;
mod follow;
mod progress;
mod show;
mod source;
mod upload;

use super::{query, render};
use crate::cli::{BuildLogs, Template, Versions};
use crate::client::Client;
use crate::output::{self, Form};
use follow::News;
use futures::StreamExt;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
pub(super) use progress::printable;
use recipe::names::{self, Reference, Selector};
use std::process::ExitCode;
use std::time::Duration;
use types::BuildId;

/// Most builds that one request lists.
const PAGE: usize = 100;

/// Runs `wrenn template`.
pub(crate) async fn template(
    command: Template,
    client: &Client,
    form: Form,
) -> anyhow::Result<ExitCode> {
    match command {
        Template::Build(wanted) => return Box::pin(build::build(*wanted, client, form)).await,
        Template::List => list(client, form).await?,
        Template::Show { template } => show::show(&template, client, form).await?,
        Template::Versions(wanted) => versions(&wanted, client, form).await?,
        Template::Tag { template, tags } => tag(&template, tags, client, form).await?,
        Template::Untag { template, tags } => untag(&template, &tags, client, form).await?,
        Template::Publish { template, common: true } => {
            render(&make_common(&template, client).await?, "common", form)?;
        }
        Template::Publish { template, common: false } => {
            publish(&template, true, client, form).await?;
        }
        Template::Unpublish { template } => publish(&template, false, client, form).await?,
        Template::Logs(wanted) => logs(&wanted, client, form).await?,
        Template::Cancel { build } => cancel(&build, client, form).await?,
        Template::Delete { templates } => delete(&templates, client, form).await?,
        Template::Require { template, tier } => {
            let change = api::ChangeTemplate { isolation: Some(tier), ..Default::default() };
            let changed: api::Template = client.patch(&path(&template, "")?, &change).await?;
            render(&changed, &changed.isolation, form)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads NAME, NAME:TAG or NAME@BUILD. The name of a team before it is refused, since these commands
/// are about the own team's templates.
fn reference(text: &str) -> anyhow::Result<Reference> {
    let wanted = Reference::native(text).map_err(|error| output::usage(error.to_string()))?;
    match wanted.namespace {
        None => Ok(wanted),
        Some(_) => Err(output::usage(format!("`{text}` must be NAME, NAME:TAG or NAME@BUILD"))),
    }
}

/// Returns the API's path of a template's resource. The name is checked, so that it stays one path
/// segment.
fn path(name: &str, rest: &str) -> anyhow::Result<String> {
    names::native_name(name).map_err(|error| output::usage(error.to_string()))?;
    Ok(format!("/v1/templates/{name}{rest}"))
}

/// Checks the id of a build.
fn build_id(text: &str) -> anyhow::Result<String> {
    let id: Result<BuildId, _> = text.parse();
    let id = id.map_err(|e| output::usage(format!("`{text}` is no id of a build: {e}")))?;
    Ok(id.to_string())
}

/// Returns the id of a build, given the id or the name of a template, whose newest build counts.
async fn find_build(text: &str, client: &Client) -> anyhow::Result<String> {
    if text.starts_with(BuildId::PREFIX) {
        return build_id(text);
    }
    path(text, "")?;
    let newest = builds("/v1/builds", Some(text.to_owned()), 1, client).await?;
    match newest.into_iter().next() {
        Some(build) => Ok(build.id),
        None => Err(output::not_found(format!("the template {text} has no build"))),
    }
}

/// Reports whether a build has come to its end.
fn has_ended(build: &api::Build) -> bool {
    matches!(build.status.as_str(), "ready" | "error")
}

/// Names tags for people.
fn tag_list(tags: &[String]) -> String {
    match tags {
        [] => "no tag".to_owned(),
        [tag] => format!("tag {tag}"),
        tags => format!("tags {}", tags.join(", ")),
    }
}

/// Fetches up to `count` builds, newest first.
async fn builds(
    route: &str,
    template: Option<String>,
    count: usize,
    client: &Client,
) -> anyhow::Result<Vec<api::Build>> {
    let (mut items, mut before) = (Vec::new(), None);
    while items.len() < count {
        let limit = (count - items.len()).min(PAGE).to_string();
        let asked = [("template", template.clone()), ("limit", Some(limit)), ("before", before)];
        let page: api::BuildPage = client.get(&query(route, &asked)).await?;
        items.extend(page.items);
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    items.truncate(count);
    Ok(items)
}

async fn list(client: &Client, form: Form) -> anyhow::Result<()> {
    let list: api::TemplateList = client.get("/v1/templates").await?;
    if form == Form::Json {
        return output::json(&list.items);
    }
    let row = |t: api::Template| {
        let shared = if t.shared { "all teams" } else { "this team" };
        vec![
            t.name,
            t.tags.join(" "),
            t.vcpus.to_string(),
            format!("{} MiB", t.memory_mib),
            format!("{} MiB", t.disk_mib),
            if t.bytes == 0 { String::new() } else { output::bytes(t.bytes) },
            t.last_spawned_at.map_or_else(String::new, output::ago),
            t.isolation,
            shared.to_owned(),
            t.id,
        ]
    };
    let header =
        ["NAME", "TAGS", "VCPUS", "MEMORY", "DISK", "SIZE", "USED", "ISOLATION", "FOR", "ID"];
    output::table(&header, list.items.into_iter().map(row).collect());
    Ok(())
}

async fn versions(wanted: &Versions, client: &Client, form: Form) -> anyhow::Result<()> {
    let route = path(&wanted.template, "/versions")?;
    let items = match wanted.all {
        true => builds("/v1/builds", Some(wanted.template.clone()), wanted.count, client).await?,
        false => builds(&route, None, wanted.count, client).await?,
    };
    if form == Form::Json {
        return output::json(&items);
    }
    let row = |build: api::Build| {
        let since = build.started_at.unwrap_or(build.created_at);
        let took = build.ended_at.and_then(|end| Duration::try_from(end - since).ok());
        vec![
            build.id,
            build.status,
            build.tags.join(" "),
            format!("{}/{}", build.step, build.steps),
            output::bytes(build.bytes),
            took.map_or_else(String::new, output::human),
            output::ago(build.created_at),
        ]
    };
    let header = ["BUILD", "STATUS", "TAGS", "STEPS", "SIZE", "TOOK", "CREATED"];
    output::table(&header, items.into_iter().map(row).collect());
    Ok(())
}

async fn tag(template: &str, tags: Vec<String>, client: &Client, form: Form) -> anyhow::Result<()> {
    let wanted = reference(template)?;
    let version = match wanted.selector {
        None => names::DEFAULT_TAG.to_owned(),
        Some(Selector::Tag(tag)) => tag,
        Some(Selector::Build(build)) => build.to_string(),
    };
    let body = api::AssignTags { version, tags };
    let tags: api::TemplateTags = client.post(&path(&wanted.name, "/tags")?, &body).await?;
    if form == Form::Json {
        return output::json(&tags.items);
    }
    let row = |tag: api::TemplateTag| vec![tag.tag, tag.build, output::ago(tag.assigned_at)];
    output::table(&["TAG", "BUILD", "ASSIGNED"], tags.items.into_iter().map(row).collect());
    Ok(())
}

async fn untag(template: &str, tags: &[String], client: &Client, form: Form) -> anyhow::Result<()> {
    for tag in tags {
        let checked = names::native_tag(tag).map_err(|error| output::usage(error.to_string()))?;
        let removed = client.delete(&path(template, &format!("/tags/{checked}"))?).await;
        removed.map_err(|error| output::about(tag, error))?;
    }
    if form == Form::Json { output::json(&tags) } else { Ok(()) }
}

async fn publish(template: &str, public: bool, client: &Client, form: Form) -> anyhow::Result<()> {
    let change = api::ChangeTemplate { public: Some(public), ..Default::default() };
    let changed: api::Template = client.patch(&path(template, "")?, &change).await?;
    render(&changed, if public { "public" } else { "private" }, form)
}

/// Lets every team find a template by its name alone.
async fn make_common(template: &str, client: &Client) -> anyhow::Result<api::Template> {
    let change = api::ChangeTemplate { common: Some(true), ..Default::default() };
    client.patch(&path(template, "")?, &change).await
}

async fn delete(templates: &[String], client: &Client, form: Form) -> anyhow::Result<()> {
    for template in templates {
        let removed = client.delete(&path(template, "")?).await;
        removed.map_err(|error| output::about(template, error))?;
    }
    if form == Form::Json { output::json(&templates) } else { Ok(()) }
}

async fn cancel(build: &str, client: &Client, form: Form) -> anyhow::Result<()> {
    let id = find_build(build, client).await?;
    client.post_empty(&format!("/v1/builds/{id}/cancel")).await?;
    render(&serde_json::json!({ "id": id }), &id, form)
}

/// Prints the log of a build, as text or as one line of JSON for each line.
async fn logs(wanted: &BuildLogs, client: &Client, form: Form) -> anyhow::Result<()> {
    let id = find_build(&wanted.build, client).await?;
    if wanted.follow {
        let mut news = follow::follow(client, id);
        while let Some(next) = news.next().await {
            match next? {
                News::Line(line) => print(&line, form)?,
                News::End(build) => return build::failure(&build).map_or(Ok(()), Err),
            }
        }
        return Ok(());
    }
    let mut from = None;
    loop {
        let asked = query(&format!("/v1/builds/{id}/logs"), &[("from", from)]);
        let log: api::BuildLog = client.get(&asked).await?;
        log.items.iter().try_for_each(|line| print(line, form))?;
        if log.items.is_empty() {
            return Ok(());
        }
        from = Some(log.next.to_string());
    }
}

fn print(line: &api::BuildLine, form: Form) -> anyhow::Result<()> {
    match form {
        Form::Json => output::line(&serde_json::to_string(line)?),
        Form::Human => {
            for text in line.text.trim_end_matches('\n').split('\n') {
                output::line(&printable(text));
            }
        }
    }
    Ok(())
}

/// Encodes a text as one path segment.
pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}
