//! Builds of templates: declared, started, watched. Statuses and texts are those that E2B's builder
//! looks for.

use super::names;
use crate::app::App;
use crate::auth::Caller;
use crate::builds::{self, Declaration, Steps};
use crate::db;
use crate::db::build_logs::{Level, Line};
use crate::db::builds::{BuildState, Reason};
use crate::error::{Error, Result};
use crate::http::extract::{LargeSent, Path, Query};
use crate::policy::{Action, Resource};
use crate::templates;
use axum::Json;
use axum::extract::{FromRequest, Request, State};
use http::StatusCode;
use recipe::e2b::WireStep;
use recipe::start::Commands;
use recipe::{BuildSpec, Command, Pull, Source};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use time::OffsetDateTime;
use types::resources::Resources;
use types::{BuildId, TemplateId};

/// Sizes of a build that names none.
const VCPUS: u32 = 2;
const MEMORY_MIB: u32 = 1024;
/// Most entries of a page of the log.
const PAGE: u32 = 100;

/// A JSON body. The error of a broken one begins as E2B's does.
pub(super) struct Valid<T>(T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Valid<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self> {
        match LargeSent::<T>::from_request(request, app).await {
            Err(Error::Invalid { field, message }) => {
                Err(Error::invalid("validation", format!("error: {field} {message}")))
            }
            read => read.map(|LargeSent(value, _)| Self(value)),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewTemplate {
    name: Option<String>,
    /// Former form of `name`.
    alias: Option<String>,
    tags: Option<Vec<String>>,
    cpu_count: Option<u32>,
    #[serde(rename = "memoryMB")]
    memory_mb: Option<u32>,
    min_free_disk_mb: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Declared {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "buildID")]
    build_id: String,
    public: bool,
    names: [String; 1],
    tags: Vec<String>,
    aliases: [String; 1],
}

/// Declares a build. Its files and steps come later.
pub(super) async fn declare(
    State(app): State<Arc<App>>,
    caller: Caller,
    Valid(wanted): Valid<NewTemplate>,
) -> Result<(StatusCode, Json<Declared>)> {
    let name = wanted.name.clone().or(wanted.alias.clone()).unwrap_or_default();
    let name = names::read(&name)?;
    let tags = wanted.tags.clone().unwrap_or_default();
    let tags = tags.iter().map(|tag| names::read_tag(tag)).collect::<Result<_>>()?;
    let declaration = Declaration { name, tags, size: size(&wanted)?, public: false };
    let (template, build, tags) = Box::pin(builds::declare(&app, caller, declaration)).await?;
    let declared = Declared {
        template_id: template.id.to_string(),
        build_id: build.id.0.to_string(),
        public: template.public,
        names: [template.name.clone()],
        tags,
        aliases: [template.name],
    };
    Ok((StatusCode::ACCEPTED, Json(declared)))
}

/// Reads the sizes of a build.
fn size(wanted: &NewTemplate) -> Result<Resources> {
    let vcpus = wanted.cpu_count.unwrap_or(VCPUS);
    if vcpus > 32 {
        return Err(Error::invalid("CPU count", "must be at most 32"));
    }
    if vcpus != 1 && (vcpus == 0 || !vcpus.is_multiple_of(2)) {
        return Err(Error::invalid("CPU count", "must be 1 or an even number"));
    }
    let memory_mib = wanted.memory_mb.unwrap_or(MEMORY_MIB);
    if !memory_mib.is_multiple_of(2) {
        return Err(Error::invalid("Memory", "must be divisible by 2"));
    }
    if memory_mib < 128 {
        return Err(Error::invalid("Memory", "must be at least 128 MB"));
    }
    if memory_mib > 65_536 {
        return Err(Error::invalid("Memory", "can't be higher than 65536 MB"));
    }
    let disk_mib = wanted.min_free_disk_mb.unwrap_or(0).max(Resources::default().disk_mib);
    let size = Resources { vcpus, memory_mib, disk_mib };
    size.check()?;
    Ok(size)
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Start {
    from_image: Option<String>,
    from_template: Option<String>,
    from_image_registry: Option<ImageLogin>,
    force: Option<bool>,
    start_cmd: Option<String>,
    ready_cmd: Option<String>,
    steps: Option<Vec<WireStep>>,
}

/// Login to the registry of the image.
#[derive(Clone, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase")]
enum ImageLogin {
    #[serde(rename = "registry")]
    Basic {
        username: String,
        password: String,
    },
    Aws {
        aws_access_key_id: String,
        aws_secret_access_key: String,
        aws_region: String,
    },
    Gcp {
        service_account_json: String,
    },
}

impl From<ImageLogin> for api::PutRegistryLogin {
    fn from(login: ImageLogin) -> Self {
        match login {
            ImageLogin::Basic { username, password } => Self::Basic { username, password },
            ImageLogin::Aws { aws_access_key_id, aws_secret_access_key, aws_region } => Self::Aws {
                access_key_id: aws_access_key_id,
                secret_access_key: aws_secret_access_key,
                region: aws_region,
            },
            ImageLogin::Gcp { service_account_json } => Self::Gcp { service_account_json },
        }
    }
}

/// Begins a declared build. The answer has no body.
pub(super) async fn start(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((template, build)): Path<(String, String)>,
    Valid(wanted): Valid<Start>,
) -> Result<StatusCode> {
    let id = names::build_id(&build)?;
    let found = db::builds::progress(&app.db, id).await?.ok_or(Error::NotFound("build"))?;
    check_team(caller, &found)?;
    let own = templates::own(&app, caller, &names::plain(&template), Action::CapsulesAdmin).await?;
    if own.id != found.template_id {
        return Err(Error::NotFound("build"));
    }
    Box::pin(builds::begin(&app, caller, id, read(wanted)?)).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Converts a start to the build that a host gets. The declaration has the sizes.
fn read(wanted: Start) -> Result<Steps> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let source = match (given(wanted.from_image), given(wanted.from_template)) {
        (Some(image), None) if names::is_base(&image) => Source::Template("base".to_owned()),
        (Some(image), None) => Source::Image(image),
        (None, Some(template)) => Source::Template(template),
        (None, None) | (Some(_), Some(_)) => {
            return Err(Error::invalid("fromImage", "or fromTemplate must be given, and not both"));
        }
    };
    let is_image = matches!(source, Source::Image(_));
    let (steps, force) = (wanted.steps.unwrap_or_default(), wanted.force.unwrap_or(false));
    let recipe = recipe::e2b::recipe(source, steps, force)
        .map_err(|error| Error::invalid("steps", format!("are invalid: {error}")))?;
    let shell = |text: Option<String>| given(text).map(Command::Shell);
    let spec = BuildSpec {
        recipe,
        commands: Commands { start: shell(wanted.start_cmd), ready: shell(wanted.ready_cmd) },
        start_each: false,
        start_from_image: false,
        ready_within_sec: None,
        env: BTreeMap::new(),
        user: None,
        workdir: None,
        env_at_run: false,
        force,
        pull: Pull::Always,
        resources: Resources::default(),
        within_sec: recipe::spec::WITHIN_SEC,
    };
    let login = wanted.from_image_registry.filter(|_| is_image).map(Into::into);
    Ok(Steps { spec, login })
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Polled {
    logs_offset: Option<u64>,
    limit: Option<u32>,
    level: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "buildID")]
    build_id: String,
    status: &'static str,
    /// Former form of the log, which is always empty.
    logs: [String; 0],
    log_entries: Vec<Entry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Failed>,
}

#[derive(Serialize)]
pub(super) struct Entry {
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    message: String,
    level: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<String>,
}

impl From<Line> for Entry {
    fn from(line: Line) -> Self {
        Self {
            timestamp: line.at,
            message: line.text,
            level: line.level.as_str(),
            step: line.step.map(|step| step.to_string()),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Failed {
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    log_entries: Vec<Entry>,
}

/// Converts the reason of a failed build. Older clients break on a step that is neither `base` nor
/// `finalize` nor a number.
fn failed(reason: Reason, at: OffsetDateTime) -> Failed {
    let known =
        |step: &String| matches!(step.as_str(), "base" | "finalize") || step.parse::<u32>().is_ok();
    let entry = |message: String| Entry {
        timestamp: at,
        message,
        level: Level::Error.as_str(),
        step: None,
    };
    Failed {
        message: reason.message,
        step: reason.step.filter(known),
        log_entries: reason.output.into_iter().map(entry).collect(),
    }
}

/// Returns the status of a build and a page of its log. The status is read first: lines that come
/// after an end would otherwise be missed.
pub(super) async fn status(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((template, build)): Path<(String, String)>,
    Query(asked): Query<Polled>,
) -> Result<Json<Status>> {
    let id = names::build_id(&build)?;
    let level: Level = asked.level.as_deref().map_or(Ok(Level::Debug), str::parse)?;
    let limit = asked.limit.unwrap_or(PAGE).min(PAGE);
    let progress = find(&app, caller, (&template, &build), id).await?;
    let skip = asked.logs_offset.unwrap_or(0);
    let lines = match limit {
        0 => Vec::new(),
        limit => db::build_logs::after(&app.db, id, skip, level, limit.into()).await?,
    };
    let now = OffsetDateTime::now_utc();
    Ok(Json(Status {
        template_id: template,
        build_id: id.0.to_string(),
        status: progress.state.as_str(),
        logs: [],
        log_entries: lines.into_iter().map(Entry::from).collect(),
        // The row of a build may have its reason some moments before its end.
        reason: progress
            .reason
            .filter(|_| progress.state == BuildState::Error)
            .map(|reason| failed(reason.0, now)),
    }))
}

/// Refuses the builds of other teams. E2B's clients expect another status here than for builds that
/// do not exist.
fn check_team(caller: Caller, found: &db::builds::Progress) -> Result<()> {
    match found.team_id == caller.team {
        true => Ok(()),
        false => Err(Error::OthersTemplate),
    }
}

/// Returns the state of a build of the team, by one query. A path with the id of another template
/// names no build.
async fn find(
    app: &App,
    caller: Caller,
    (template, build): (&str, &str),
    id: BuildId,
) -> Result<db::builds::Progress> {
    let missing = || Error::invalid("Build", format!("'{}' not found", build.escape_debug()));
    let found = db::builds::progress(&app.db, id).await?.ok_or_else(missing)?;
    check_team(caller, &found)?;
    if template.parse::<TemplateId>().is_ok_and(|named| named != found.template_id) {
        return Err(missing());
    }
    let resource = Resource::Template(found.template_id);
    caller.may(Action::CapsulesRead, resource).map_err(|_| missing())?;
    Ok(found)
}

#[derive(Default, Deserialize)]
pub(super) struct Logged {
    /// Milliseconds since 1970.
    cursor: Option<i64>,
    limit: Option<u32>,
    direction: Option<String>,
    level: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Logs {
    logs: Vec<Entry>,
}

/// Returns lines of a build's log from a time on, or back from it.
pub(super) async fn logs(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((template, build)): Path<(String, String)>,
    Query(asked): Query<Logged>,
) -> Result<Json<Logs>> {
    let id = names::build_id(&build)?;
    find(&app, caller, (&template, &build), id).await?;
    let level: Level = asked.level.as_deref().map_or(Ok(Level::Debug), str::parse)?;
    let at = asked
        .cursor
        .map(|ms| OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000));
    let at = at.transpose().map_err(|_| Error::invalid("cursor", "must be milliseconds"))?;
    let backward = asked.direction.as_deref() == Some("backward");
    let limit = asked.limit.unwrap_or(PAGE).clamp(1, PAGE);
    let lines = db::build_logs::around(&app.db, id, at, backward, level, limit.into()).await?;
    Ok(Json(Logs { logs: lines.into_iter().map(Entry::from).collect() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn start(json: serde_json::Value) -> Result<Steps> {
        read(serde_json::from_value(json).unwrap())
    }

    #[test]
    fn sizes_are_refused_with_the_texts_of_the_service() {
        let size = |cpu, memory| {
            super::size(&NewTemplate {
                cpu_count: cpu,
                memory_mb: memory,
                ..NewTemplate::default()
            })
        };
        let made = size(None, None).unwrap();
        assert_eq!((made.vcpus, made.memory_mib), (2, 1024));
        assert!(size(Some(1), None).is_ok());
        for (cpu, memory, text) in [
            (Some(3), None, "CPU count must be 1 or an even number"),
            (Some(0), None, "CPU count must be 1 or an even number"),
            (Some(34), None, "CPU count must be at most 32"),
            (None, Some(513), "Memory must be divisible by 2"),
            (None, Some(1 << 20), "Memory can't be higher than 65536 MB"),
        ] {
            assert_eq!(size(cpu, memory).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn start_has_exactly_one_source_and_the_base_is_ours() {
        let steps =
            start(json!({"fromImage": "e2bdev/base", "force": false, "steps": []})).unwrap();
        assert_eq!(steps.spec.recipe.stages[0].source, Source::Template("base".to_owned()));
        let steps = start(json!({"fromImage": "debian", "steps": [
            {"type": "RUN", "args": ["true"], "forceUpload": true}],
            "fromImageRegistry": {"type": "aws", "awsAccessKeyId": "a",
                "awsSecretAccessKey": "b", "awsRegion": "c"}}));
        assert!(matches!(steps.unwrap().login, Some(api::PutRegistryLogin::Aws { .. })));
        assert!(start(json!({})).is_err());
        assert!(start(json!({"fromImage": "a", "fromTemplate": "b"})).is_err());
    }

    #[test]
    fn unknown_step_of_a_reason_is_left_out() {
        let reason = |step: &str| Reason { step: Some(step.to_owned()), ..Reason::default() };
        let now = OffsetDateTime::now_utc();
        for step in ["base", "finalize", "3"] {
            assert_eq!(failed(reason(step), now).step.as_deref(), Some(step));
        }
        assert_eq!(failed(reason("layer"), now).step, None);
    }
}
