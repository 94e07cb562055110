//! `wrenn template show`: a template, and one of its versions with all that made it.

use super::{build_id, builds, path, printable, reference};
use crate::client::Client;
use crate::output::{self, Form};
use recipe::names::{self, Selector};
use recipe::spec::Provenance;

/// Runs `wrenn template show`.
pub(super) async fn show(template: &str, client: &Client, form: Form) -> anyhow::Result<()> {
    let wanted = reference(template)?;
    let found: api::Template = client.get(&path(&wanted.name, "")?).await?;
    let version = match wanted.selector {
        None => found.version.clone(),
        Some(Selector::Build(build)) => Some(build.to_string()),
        Some(Selector::Tag(tag)) if tag == names::DEFAULT_TAG => found.version.clone(),
        Some(Selector::Tag(tag)) => Some(tagged(&wanted.name, &tag, client).await?),
    };
    let build = match &version {
        Some(id) if found.own => {
            let build: api::Build = client.get(&format!("/v1/builds/{id}")).await?;
            if build.template != found.name {
                return Err(output::not_found(format!("{} has no build {id}", found.name)));
            }
            Some(build)
        }
        _ => None,
    };
    if form == Form::Json {
        return output::json(&serde_json::json!({ "template": found, "version": build }));
    }
    let mut rows = of_template(found);
    match &build {
        Some(build) => rows.extend(of_build(build)),
        None => rows.extend(version.map(|id| ("version", id))),
    }
    let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    output::table(&["", ""], rows);
    Ok(())
}

/// Returns the build that a tag stands for: that of the newest assignment or, while that build is
/// not ready, the newest ready build with the tag.
async fn tagged(name: &str, tag: &str, client: &Client) -> anyhow::Result<String> {
    let none = || output::not_found(format!("{name} has no version with the tag {tag}"));
    let tags: api::TemplateTags = client.get(&path(name, "/tags")?).await?;
    let newest = tags.items.into_iter().find(|known| known.tag == tag).ok_or_else(none)?;
    let build: api::Build = client.get(&format!("/v1/builds/{}", build_id(&newest.build)?)).await?;
    if build.status == "ready" {
        return Ok(build.id);
    }
    let ready = builds(&path(name, "/versions")?, None, usize::MAX, client).await?;
    let with = |build: &api::Build| build.tags.iter().any(|known| known == tag);
    ready.into_iter().find(with).map(|build| build.id).ok_or_else(none)
}

type Rows = Vec<(&'static str, String)>;

/// Names the teams that may use a template.
fn reach(found: &api::Template) -> &'static str {
    match (found.shared, found.common) {
        (_, true) => "all teams, by the name alone",
        (true, false) => "all teams",
        (false, false) => "this team",
    }
}

fn of_template(found: api::Template) -> Rows {
    let reach = reach(&found);
    let mut rows = vec![
        ("name", found.name),
        ("id", found.id),
        ("for", reach.to_owned()),
        ("vcpus", found.vcpus.to_string()),
        ("memory", format!("{} MiB", found.memory_mib)),
        ("disk", format!("{} MiB", found.disk_mib)),
        ("isolation", found.isolation),
        ("created", output::ago(found.created_at)),
    ];
    if !found.tags.is_empty() {
        rows.push(("tags", found.tags.join(" ")));
    }
    if found.own {
        let last = found
            .last_spawned_at
            .map_or_else(String::new, |at| format!(", the last {}", output::ago(at)));
        rows.push(("capsules so far", format!("{}{last}", found.spawn_count)));
        rows.push(("size", output::bytes(found.bytes)));
    }
    rows
}

fn of_build(build: &api::Build) -> Rows {
    let mut rows = vec![("version", build.id.clone()), ("status", build.status.clone())];
    if !build.tags.is_empty() {
        rows.push(("version's tags", build.tags.join(" ")));
    }
    rows.push(("version's size", output::bytes(build.bytes)));
    let images = build.images.iter();
    rows.extend(images.map(|image| ("image", format!("{} {}", image.reference, image.digest))));
    if let Some(error) = &build.error {
        rows.push(("error", printable(&error.message)));
    }
    // A newer platform may write a form that this command does not know. JSON shows it then.
    let record = build.provenance.clone().map(serde_json::from_value::<Provenance>);
    if let Some(Ok(record)) = record {
        rows.extend(of_record(&record));
    }
    rows
}

fn of_record(record: &Provenance) -> Rows {
    let mut rows = Rows::new();
    if let Some(base) = &record.base {
        let version = base.version.map_or_else(String::new, |id| format!("@{id}"));
        rows.push(("template", format!("{}{version}", base.name)));
    }
    rows.extend(record.steps.iter().map(|step| ("step", printable(&first_line(&step.text)))));
    let config = &record.config;
    if let Some(user) = &config.user {
        rows.push(("user", printable(user)));
    }
    if let Some(workdir) = &config.workdir {
        rows.push(("workdir", printable(workdir)));
    }
    let env = config.env.iter();
    rows.extend(env.map(|(name, value)| ("env", printable(&format!("{name}={value}")))));
    let each = if record.start_each { "start in each capsule" } else { "start" };
    rows.extend(record.commands.start.iter().map(|c| (each, printable(&c.to_string()))));
    rows.extend(record.commands.ready.iter().map(|c| ("ready", printable(&c.to_string()))));
    rows
}

fn first_line(text: &str) -> String {
    match text.split_once('\n') {
        Some((first, _)) => format!("{first} …"),
        None => text.to_owned(),
    }
}
