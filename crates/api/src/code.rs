//! Code that a capsule's code interpreter runs, and the contexts that keep its state.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// Request body of `POST /v1/capsules/{id}/code`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunCode {
    /// Code to run.
    pub code: String,
    /// Language whose default context runs the code. The default is `python`. Must be absent when
    /// `context_id` is given.
    #[serde(default)]
    pub language: Option<String>,
    /// Id of the context that runs the code.
    #[serde(default)]
    pub context_id: Option<String>,
    /// Environment variables of this execution, in addition to the capsule's own.
    #[serde(default)]
    pub envs: BTreeMap<String, String>,
    /// Milliseconds until the execution is interrupted, at most one day. Unlimited by default.
    #[serde(default)]
    pub timeout_ms: Option<u32>,
    /// Bytes of output to keep. The head and the tail of longer output are kept. Unlimited by
    /// default.
    #[serde(default)]
    pub max_output_bytes: Option<u32>,
}

/// A context: the state of a language, which lasts from one execution to the next.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CodeContext {
    /// Id of the context.
    pub id: String,
    /// Language of the context.
    pub language: String,
    /// Working directory in which the context starts.
    pub cwd: String,
    /// State: `starting`, `idle`, `busy` or `dead`.
    pub state: String,
    /// Number of executions since the context's last start.
    pub executions: u64,
    /// Memory of the context's processes in bytes. Absent when it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Time of the last execution. Absent before the first one.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_used: Option<OffsetDateTime>,
    /// Last output of threads whose executions had ended. Absent when there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub late_output: String,
}

/// Answer to `GET /v1/capsules/{id}/code/contexts`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CodeContextList {
    /// Contexts in order of their creation.
    pub contexts: Vec<CodeContext>,
}

/// Request body of `POST /v1/capsules/{id}/code/contexts`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCodeContext {
    /// Language of the context. The default is `python`.
    #[serde(default)]
    pub language: Option<String>,
    /// Working directory. The default is the home of the interpreter's account.
    #[serde(default)]
    pub cwd: Option<String>,
}

/// Request body of `POST …/code/contexts/{context_id}/complete`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompleteCode {
    /// Code to complete.
    pub code: String,
    /// Position in the code, in characters. The default is its end.
    #[serde(default)]
    pub cursor: Option<u32>,
}

/// Completions of a piece of code.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct CodeCompletion {
    /// Texts that may replace the part between the two positions.
    #[serde(default)]
    pub matches: Vec<String>,
    /// First position that a match replaces, in characters.
    #[serde(default)]
    pub cursor_start: u64,
    /// Position after the last one that a match replaces, in characters.
    #[serde(default)]
    pub cursor_end: u64,
}

/// A variable of a context.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CodeVariable {
    /// Name of the variable.
    pub name: String,
    /// Name of the value's type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Number of elements or bytes, for types that have a size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Length of each dimension, for arrays and tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<u64>>,
    /// Shortened text of the value.
    pub preview: String,
}

/// Answer to `GET …/code/contexts/{context_id}/variables`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CodeVariableList {
    /// Variables in order of their names.
    pub variables: Vec<CodeVariable>,
}
