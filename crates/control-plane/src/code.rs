//! The code interpreter of a capsule: executions, and the contexts that they run in. The
//! interpreter serves at a port of its own in the guest. A guest is hostile, so this module bounds
//! every answer in time, size and shape, except the lines of an execution, which stream through.

use crate::app::App;
use crate::auth::Caller;
use crate::capsules;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result, printable};
use crate::load::{Payer, UnderWay};
use axum::body::Body;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::time::Duration;
use types::{CapsuleId, names, resources};
use uuid::Uuid;

/// Largest body that the interpreter takes, in bytes.
const CODE_MAX: usize = 16 << 20;
/// Largest answer that is no stream, in bytes. A list of contexts with late output is the largest.
const ANSWER_MAX: usize = 16 << 20;
/// Bytes that are read of an error from the interpreter.
const ERROR_MAX: usize = 16 << 10;
/// Time from the head of an answer that is no stream to its end.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Longest time limit of an execution, in milliseconds.
const DAY_MS: u32 = 24 * 3600 * 1000;
/// Longest name of a language, in bytes.
const LANGUAGE_MAX: usize = 64;

/// Body of a run, as the interpreter reads it.
#[derive(Serialize)]
struct Execute<'a> {
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    language: Option<&'a str>,
    env_vars: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_bytes: Option<u32>,
    /// Always set: an execution goes on without its client, who may attach again.
    keep: bool,
}

impl<'a> Execute<'a> {
    /// Converts a request, and checks the parts that need no guest.
    fn new(run: &'a api::RunCode) -> Result<Self> {
        let context_id = run.context_id.as_deref().map(context_id).transpose()?;
        if context_id.is_some() && run.language.is_some() {
            return Err(Error::invalid("language", "must be absent when `context_id` is given"));
        }
        check_language(run.language.as_deref())?;
        names::check_envs("envs", &run.envs)?;
        if let Some(timeout) = run.timeout_ms {
            resources::in_range("timeout_ms", timeout, 1, DAY_MS)?;
        }
        if let Some(most) = run.max_output_bytes {
            resources::in_range("max_output_bytes", most, 1, u32::MAX)?;
        }
        Ok(Self {
            code: &run.code,
            context_id,
            language: run.language.as_deref(),
            env_vars: &run.envs,
            timeout_ms: run.timeout_ms,
            max_output_bytes: run.max_output_bytes,
            keep: true,
        })
    }
}

/// Parses the id of a context. Any other text is a context that does not exist.
pub(crate) fn context_id(text: &str) -> Result<Uuid> {
    text.parse().map_err(|_| Error::NotFound("context"))
}

/// Parses the id of an execution. Any other text is an execution that does not exist.
pub(crate) fn execution_id(text: &str) -> Result<Uuid> {
    text.parse().map_err(|_| Error::NotFound("execution"))
}

fn check_language(language: Option<&str>) -> Result<()> {
    match language {
        Some(name) if name.is_empty() || name.len() > LANGUAGE_MAX => {
            Err(Error::invalid("language", format!("must have 1 to {LANGUAGE_MAX} bytes")))
        }
        _ => Ok(()),
    }
}

/// A checked body of a request, as the interpreter reads it. A body is checked before its capsule
/// is woken.
pub(crate) struct Checked(Vec<u8>);

impl Checked {
    /// Checks a run.
    ///
    /// # Errors
    /// The error names the wrong field.
    pub(crate) fn run(run: &api::RunCode) -> Result<Self> {
        json(&Execute::new(run)?)
    }

    /// Checks the creation of a context.
    ///
    /// # Errors
    /// When `language` cannot be the name of a language.
    pub(crate) fn context(create: &api::CreateCodeContext) -> Result<Self> {
        check_language(create.language.as_deref())?;
        json(create)
    }

    /// Checks a completion.
    ///
    /// # Errors
    /// When `cursor` is beyond the end of the code.
    pub(crate) fn completion(complete: &api::CompleteCode) -> Result<Self> {
        let length = u32::try_from(complete.code.chars().count()).unwrap_or(u32::MAX);
        let cursor = complete.cursor.unwrap_or(length);
        if cursor > length {
            return Err(Error::invalid("cursor", "must not be beyond the end of `code`"));
        }
        json(&serde_json::json!({ "code": complete.code, "cursor": cursor }))
    }
}

fn json(value: &impl Serialize) -> Result<Checked> {
    serde_json::to_vec(value).map(Checked).map_err(|error| Error::Internal(error.into()))
}

/// The code interpreter of one capsule.
pub(crate) struct Interpreter<'a> {
    app: &'a App,
    capsule: Capsule,
    /// Holder of the memory for answers.
    payer: Payer,
    under_way: UnderWay,
}

impl<'a> Interpreter<'a> {
    /// Returns the interpreter of a capsule of the caller's team. A paused capsule is woken first
    /// if its `auto_resume` is set. `under_way` holds the memory of answers until they are sent.
    pub(crate) async fn of(
        app: &'a App,
        caller: Caller,
        id: CapsuleId,
        under_way: UnderWay,
    ) -> Result<Self> {
        let capsule = capsules::awake(app, caller, id).await?;
        Ok(Self { app, capsule, payer: Payer::Caller(caller.holder()), under_way })
    }

    /// Runs code. Returns the lines of the execution, unchanged. The execution goes on when the
    /// lines are dropped.
    pub(crate) async fn run(&self, run: Checked) -> Result<Body> {
        let lines = self.ask(Method::POST, "/execute", Some(run), "context").await?;
        metrics::counter!("wrenn_code_executions_total").increment(1);
        Ok(lines.into_body())
    }

    /// Returns the lines of an execution after the first `after`, and then those to come.
    pub(crate) async fn attach(&self, execution: Uuid, after: u64) -> Result<Body> {
        let path = format!("/executions/{execution}?after={after}");
        Ok(self.ask(Method::GET, &path, None, "execution").await?.into_body())
    }

    /// Interrupts an execution.
    pub(crate) async fn interrupt(&self, execution: Uuid) -> Result<()> {
        let path = format!("/executions/{execution}/interrupt");
        self.done(Method::POST, &path, "execution").await
    }

    /// Returns all contexts.
    pub(crate) async fn contexts(&self) -> Result<Vec<api::CodeContext>> {
        let answer = self.ask(Method::GET, "/contexts", None, "context").await?;
        self.read(answer).await
    }

    /// Makes a context.
    pub(crate) async fn create(&self, context: Checked) -> Result<api::CodeContext> {
        let answer = self.ask(Method::POST, "/contexts", Some(context), "context").await?;
        self.read(answer).await
    }

    /// Returns one context.
    pub(crate) async fn context(&self, id: Uuid) -> Result<api::CodeContext> {
        let path = format!("/contexts/{id}");
        let answer = self.ask(Method::GET, &path, None, "context").await?;
        self.read(answer).await
    }

    /// Removes a context.
    pub(crate) async fn remove(&self, id: Uuid) -> Result<()> {
        self.done(Method::DELETE, &format!("/contexts/{id}"), "context").await
    }

    /// Restarts a context, which loses its state.
    pub(crate) async fn restart(&self, id: Uuid) -> Result<()> {
        self.done(Method::POST, &format!("/contexts/{id}/restart"), "context").await
    }

    /// Interrupts the execution that runs in a context.
    pub(crate) async fn interrupt_context(&self, id: Uuid) -> Result<()> {
        self.done(Method::POST, &format!("/contexts/{id}/interrupt"), "context").await
    }

    /// Returns completions of a piece of code.
    pub(crate) async fn complete(
        &self,
        id: Uuid,
        completion: Checked,
    ) -> Result<api::CodeCompletion> {
        let path = format!("/contexts/{id}/complete");
        let answer = self.ask(Method::POST, &path, Some(completion), "context").await?;
        self.read(answer).await
    }

    /// Returns the variables of a context.
    pub(crate) async fn variables(&self, id: Uuid) -> Result<Vec<api::CodeVariable>> {
        let path = format!("/contexts/{id}/variables");
        let answer = self.ask(Method::GET, &path, None, "context").await?;
        self.read(answer).await
    }

    /// Makes a call without a body, whose answer says nothing.
    async fn done(&self, method: Method, path: &str, resource: &'static str) -> Result<()> {
        self.ask(method, path, None, resource).await.map(|_| ())
    }

    /// Sends a request to the interpreter, and returns an answer that is a success. `resource` is
    /// missing when the interpreter answers 404.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Checked>,
        resource: &'static str,
    ) -> Result<Response<Body>> {
        let (app, capsule) = (self.app, &self.capsule);
        let mut request = Request::new(body.map_or_else(Body::empty, |body| Body::from(body.0)));
        *request.method_mut() = method;
        let kind = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, kind);
        let agent = app.agent_of(capsule)?;
        let sent = agent.interpret(capsule.id, &capsule.envd_token, path, request);
        let answer = capsules::unless_silent(app, capsule, Box::pin(sent)).await?.map(Body::new);
        if let Some(refusal) = answer.headers().get(protocol::REFUSAL) {
            return Err(self.classify(Error::from_interpreter_refusal(refusal)).await);
        }
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (head, body) = answer.into_parts();
        let text = tokio::time::timeout(ANSWER_TIME, Limited::new(body, ERROR_MAX).collect()).await;
        let text = text.ok().and_then(|text| Some(text.ok()?.to_bytes())).unwrap_or_default();
        Err(explain(head.status, &String::from_utf8_lossy(&text), resource))
    }

    /// Reads an answer that is no stream.
    async fn read<T: DeserializeOwned>(&self, answer: Response<Body>) -> Result<T> {
        let reading = tokio::time::timeout(ANSWER_TIME, self.collect(answer.into_body())).await;
        let bytes = match reading.unwrap_or(Err(Error::GuestUnavailable)) {
            Ok(bytes) => bytes,
            Err(error) => return Err(self.classify(error).await),
        };
        let wrong = |_| Error::BadAnswer("did not answer as a code interpreter does");
        serde_json::from_slice(&bytes).map_err(wrong)
    }

    /// Reads a body whole, into memory of the caller's share.
    async fn collect(&self, mut body: Body) -> Result<Vec<u8>> {
        let mut room = self.app.load.body(self.payer)?;
        let mut all = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Error::GuestUnavailable)?;
            let Ok(part) = frame.into_data() else { continue };
            if all.len() + part.len() > ANSWER_MAX {
                return Err(Error::BadAnswer("answered more than a code interpreter does"));
            }
            room.grow_to(all.len() + part.len())?;
            all.extend_from_slice(&part);
        }
        self.under_way.hold(room);
        Ok(all)
    }

    /// Finds the reason that the guest did not answer: the capsule may have been paused meanwhile.
    async fn classify(&self, error: Error) -> Error {
        capsules::classify_failure(self.app, &self.capsule, error).await
    }
}

/// Explains a refusal with the body `text`. The interpreter's texts name the field. Pure.
fn explain(status: StatusCode, text: &str, resource: &'static str) -> Error {
    match status.as_u16() {
        404 => Error::NotFound(resource),
        413 => Error::TooLarge(CODE_MAX),
        429 => Error::LimitReached("the capsule", printable(text)),
        400 | 422 if !text.is_empty() => Error::refused_by_guest(text),
        400..=499 => Error::BadAnswer("did not answer as a code interpreter does"),
        502..=504 => Error::GuestUnavailable,
        _ => Error::InterpreterFailed(printable(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(run: &api::RunCode) -> String {
        Checked::run(run).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn cursor_counts_characters_and_defaults_to_the_end() {
        let complete = |cursor| api::CompleteCode { code: "é.x".to_owned(), cursor };
        let sent = |cursor| {
            let body = Checked::completion(&complete(cursor)).unwrap().0;
            serde_json::from_slice::<serde_json::Value>(&body).unwrap()["cursor"].clone()
        };
        assert_eq!((sent(None), sent(Some(2))), (3.into(), 2.into()));
        let beyond = Checked::completion(&complete(Some(4))).err().unwrap();
        assert!(beyond.to_string().starts_with("cursor must not be"), "{beyond}");
    }

    #[test]
    fn invalid_run_is_refused_by_the_name_of_its_field() {
        let id = || Some(Uuid::nil().to_string());
        let language = || Some("python".to_owned());
        let both = api::RunCode { context_id: id(), language: language(), ..Default::default() };
        assert!(refusal(&both).starts_with("language must be absent"));
        let long = api::RunCode { language: Some("x".repeat(65)), ..Default::default() };
        assert!(refusal(&long).starts_with("language must have"));
        let never = api::RunCode { timeout_ms: Some(0), ..Default::default() };
        assert!(refusal(&never).starts_with("timeout_ms must be between 1"));
        let nothing = api::RunCode { max_output_bytes: Some(0), ..Default::default() };
        assert!(refusal(&nothing).starts_with("max_output_bytes must be between 1"));
        let envs = BTreeMap::from([("A B".to_owned(), String::new())]);
        assert!(refusal(&api::RunCode { envs, ..Default::default() }).starts_with("envs contains"));
        let path = Some("../health".to_owned());
        let missing = refusal(&api::RunCode { context_id: path, ..Default::default() });
        assert_eq!(missing, "context not found");
        assert_eq!(refusal(&api::RunCode::default()), "");
    }

    #[test]
    fn run_is_always_kept_without_its_client() {
        let run = api::RunCode { code: "1".to_owned(), ..Default::default() };
        let sent: serde_json::Value =
            serde_json::from_slice(&Checked::run(&run).unwrap().0).unwrap();
        assert_eq!(sent, serde_json::json!({ "code": "1", "env_vars": {}, "keep": true }));
    }

    #[test]
    fn interpreter_statuses_map_to_distinct_error_codes() {
        let explain =
            |status, text: &str| explain(StatusCode::from_u16(status).unwrap(), text, "execution");
        for (status, text, code) in [
            (400, "language 'cobol' is unknown", "invalid_request"),
            (404, "Execution x not found", "not_found"),
            (413, "body", "too_large"),
            (422, "cursor: it is beyond the end", "invalid_request"),
            (422, "", "bad_answer"),
            (405, "", "bad_answer"),
            (429, "32 contexts", "limit_reached"),
            (503, "", "guest_unavailable"),
            (500, "the kernel did not start", "interpreter_failed"),
        ] {
            assert_eq!(explain(status, text).code(), code, "{status} {text}");
        }
        let shown = explain(400, "language 'cobol'\u{1b}[2J is unknown").to_string();
        assert_eq!(shown, "the guest refused the request: language 'cobol'[2J is unknown");
    }
}
