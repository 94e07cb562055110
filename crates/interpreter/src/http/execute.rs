//! The run of code: `POST /execute`.

use super::{App, answer, body};
use crate::context::{Context, Request as Code};
use crate::contexts::Contexts;
use crate::error::{Error, Result};
use crate::execution::Options;
use axum::extract::{ConnectInfo, Request, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// Body of the request. SDKs send null for absent values.
#[derive(serde::Deserialize)]
pub(super) struct Execute {
    code: String,
    context_id: Option<String>,
    language: Option<String>,
    env_vars: Option<BTreeMap<String, String>>,
    /// Longest time of the run. 0 is none.
    timeout_ms: Option<u64>,
    max_output_bytes: Option<u64>,
    /// Set if the execution goes on without its client.
    keep: Option<bool>,
}

/// Context that a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    Id(String),
    /// The default context of a language.
    Language(String),
    Default,
}

impl Execute {
    /// Checks the request. Returns the context that it names, and the code without its share of
    /// memory.
    pub(super) fn checked(self) -> Result<(Named, Code)> {
        let envs = self.env_vars.unwrap_or_default();
        check_envs(&envs)?;
        let filled = |name: Option<String>| name.filter(|name| !name.is_empty());
        let named = match (filled(self.context_id), filled(self.language)) {
            (Some(_), Some(_)) => {
                let text = "Only one of context_id or language can be provided";
                return Err(Error::invalid(text));
            }
            (Some(id), None) => Named::Id(id),
            (None, Some(language)) => Named::Language(language),
            (None, None) => Named::Default,
        };
        let options =
            Options { keep: self.keep.unwrap_or(false), max_output: self.max_output_bytes };
        let code = Code {
            code: self.code,
            envs,
            timeout: self.timeout_ms.filter(|limit| *limit > 0).map(Duration::from_millis),
            options,
            by_id: matches!(named, Named::Id(_)),
            _permit: None,
        };
        Ok((named, code))
    }
}

/// Runs code in a context, and answers with its lines. The head comes before the code has its turn.
pub(super) async fn execute(
    State(contexts): App,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Result<Response> {
    if !peer.ip().is_loopback() {
        check_token(&contexts, request.headers())?;
    }
    let (execute, permit) = body::code::<Execute>(&contexts, request).await?;
    let (named, code) = execute.checked()?;
    let context = find(&contexts, named).await?;
    let stream = context.execute(Code { _permit: Some(permit), ..code })?;
    Ok(answer::lines(stream))
}

/// Refuses a wrong token. The proxies before this port check callers that send none.
fn check_token(contexts: &Contexts, headers: &HeaderMap) -> Result<()> {
    let capsule = contexts.services.capsule().capsule;
    let (Some(token), Some(given)) = (&capsule.token, headers.get(protocol::ACCESS_TOKEN)) else {
        return Ok(());
    };
    if given.as_bytes().ct_eq(token.as_bytes()).into() {
        return Ok(());
    }
    Err(Error::new(StatusCode::UNAUTHORIZED, "the access token is wrong"))
}

fn check_envs(envs: &BTreeMap<String, String>) -> Result<()> {
    let is_wrong = |name: &str| name.is_empty() || name.contains(['=', '\0']);
    if let Some(name) = envs.keys().find(|name| is_wrong(name)) {
        return Err(Error::unprocessable(format!("env_vars: '{name}' is no name of a variable")));
    }
    match envs.iter().find(|(_, value)| value.contains('\0')) {
        Some((name, _)) => {
            Err(Error::unprocessable(format!("env_vars: the value of '{name}' has a zero byte")))
        }
        None => Ok(()),
    }
}

async fn find(contexts: &Contexts, named: Named) -> Result<Arc<Context>> {
    match named {
        Named::Id(id) => contexts.get(&id),
        Named::Language(language) => contexts.default(Some(&language)).await,
        Named::Default => contexts.default(None).await,
    }
}
