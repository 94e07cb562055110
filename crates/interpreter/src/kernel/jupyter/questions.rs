//! Questions about a kernel's state, and the answers in its replies.

use super::Dialect;
use super::events::Part;
use crate::kernel::Question;
use crate::kernel::message::Incoming;
use serde_json::{Value, json};
use std::collections::HashMap;
use tokio::sync::oneshot;

/// Most questions that may wait for an answer.
const QUESTIONS_MAX: usize = 32;

/// Questions that wait for their answers.
#[derive(Default)]
pub(super) struct Questions {
    waiting: HashMap<u64, oneshot::Sender<Value>>,
    asked: u64,
}

impl Questions {
    /// Adds a question, and returns the part of its id. Returns `None` if too many wait.
    pub(super) fn add(&mut self, answer: oneshot::Sender<Value>) -> Option<Part> {
        self.waiting.retain(|_, waiting| !waiting.is_closed());
        if self.waiting.len() >= QUESTIONS_MAX {
            return None;
        }
        self.asked += 1;
        self.waiting.insert(self.asked, answer);
        Some(Part::Question(self.asked))
    }

    /// Answers a question by a reply. A reply without an answer drops the question.
    pub(super) fn answer(&mut self, number: u64, reply: &Incoming) {
        let Some(answer) = self.waiting.remove(&number) else { return };
        if let Some(value) = reply.tree().ok().and_then(|content| read(&reply.kind, content)) {
            let _ = answer.send(value);
        }
    }
}

/// Makes the kind and the content of a question's request. Returns `None` for a question that a
/// kernel of this dialect cannot answer.
pub(super) fn request(question: &Question, dialect: Dialect) -> Option<(&'static str, Value)> {
    match question {
        Question::Complete { code, cursor } => {
            Some(("complete_request", json!({"code": code, "cursor_pos": cursor})))
        }
        Question::Variables => {
            let expressions = json!({"answer": dialect.variables()?});
            Some(("execute_request", execution("", true, &expressions)))
        }
    }
}

/// Makes the content of a request to execute code.
pub(super) fn execution(code: &str, silent: bool, expressions: &Value) -> Value {
    json!({
        "code": code, "silent": silent, "store_history": !silent, "allow_stdin": false,
        // Otherwise an error would abort the silent code after the user's.
        "stop_on_error": false, "user_expressions": expressions,
    })
}

/// Reads the answer out of a reply.
fn read(kind: &str, mut content: Value) -> Option<Value> {
    match kind {
        "complete_reply" => Some(json!({
            "matches": content.get_mut("matches").map_or_else(|| json!([]), Value::take),
            "cursor_start": content.get("cursor_start")?.as_u64()?,
            "cursor_end": content.get("cursor_end")?.as_u64()?,
        })),
        "execute_reply" => {
            let data = content.pointer_mut("/user_expressions/answer/data")?;
            Some(data.get_mut("application/json")?.take())
        }
        _ => None,
    }
}
