//! Streams of executions: line by line, and as a whole.

use reqwest::Response;
use serde_json::Value;
use std::time::Duration;

/// Time limit for a line. The interpreter sends a keepalive each 5 s.
const LINE: Duration = Duration::from_secs(60);

/// The stream of an execution.
pub(crate) struct Execution {
    pub id: String,
    pub context: String,
    answer: Response,
    buffer: Vec<u8>,
    /// Set once the stream has ended, with its last chunk or without.
    whole: Option<bool>,
    lines: Vec<Value>,
}

/// All lines of an execution, without keepalives.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub lines: Vec<Value>,
    /// Set if the stream ended with its last chunk.
    pub whole: bool,
}

impl Execution {
    /// Reads the first line, which names the execution.
    pub(crate) async fn begin(answer: Response) -> Self {
        let mut this = Self::attached(answer, "");
        let first = this.next().await.expect("the stream is empty");
        assert_eq!(first["type"], "execution_started", "{first}");
        this.id = first["execution_id"].as_str().unwrap().to_owned();
        this.context = first["context_id"].as_str().unwrap().to_owned();
        this
    }

    /// Takes the stream of a later client.
    pub(crate) fn attached(answer: Response, id: &str) -> Self {
        let (id, context) = (id.to_owned(), String::new());
        Self { id, context, answer, buffer: Vec::new(), whole: None, lines: Vec::new() }
    }

    /// Returns the next line that is no keepalive. `None` is the end.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                assert!(line.is_ascii(), "{}", String::from_utf8_lossy(&line));
                let line: Value = serde_json::from_slice(&line).unwrap();
                if line["type"] != "keepalive" {
                    self.lines.push(line.clone());
                    return Some(line);
                }
            }
            if self.whole.is_some() {
                return None;
            }
            let chunk = tokio::time::timeout(LINE, self.answer.chunk()).await;
            match chunk.expect("no line and no keepalive came in time") {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) => self.whole = Some(true),
                Err(_) => self.whole = Some(false),
            }
        }
    }

    /// Reads until the standard output so far contains a text.
    pub(crate) async fn until(&mut self, text: &str) {
        let mut output = String::new();
        while !output.contains(text) {
            let line = self.next().await;
            let line = line.unwrap_or_else(|| panic!("`{text}` did not come: {:?}", self.lines));
            if line["type"] == "stdout" {
                output.push_str(line["text"].as_str().unwrap());
            }
        }
    }

    /// Reads to the end.
    pub(crate) async fn rest(mut self) -> Outcome {
        while self.next().await.is_some() {}
        Outcome { lines: self.lines, whole: self.whole.unwrap_or(false) }
    }
}

impl Outcome {
    /// Reports whether the execution has ended, and not only its stream.
    pub(crate) fn has_ended(&self) -> bool {
        self.whole && self.lines.last().is_some_and(|line| line["type"] == "end_of_execution")
    }

    /// Returns all lines of a type.
    pub(crate) fn all(&self, kind: &str) -> Vec<&Value> {
        self.lines.iter().filter(|line| line["type"] == kind).collect()
    }

    fn text_of(&self, kind: &str) -> String {
        self.all(kind).iter().map(|line| line["text"].as_str().unwrap()).collect()
    }

    pub(crate) fn stdout(&self) -> String {
        self.text_of("stdout")
    }

    pub(crate) fn stderr(&self) -> String {
        self.text_of("stderr")
    }

    /// Returns the number that the kernel gave the execution.
    pub(crate) fn count(&self) -> u64 {
        self.all("number_of_executions")[0]["execution_count"].as_u64().unwrap()
    }

    /// Returns the text of the last expression's value.
    pub(crate) fn value(&self) -> &str {
        let mut values = self.all("result").into_iter();
        let main = values.find(|line| line["is_main_result"] == true);
        main.unwrap_or_else(|| panic!("no value: {:?}", self.lines))["text"].as_str().unwrap()
    }

    /// Returns the error of an execution that has ended.
    pub(crate) fn error(&self) -> &Value {
        assert!(self.has_ended(), "{:?}", self.lines);
        let errors = self.all("error");
        assert_eq!(errors.len(), 1, "{:?}", self.lines);
        errors[0]
    }

    /// Checks that the execution has ended without an error, and returns it.
    pub(crate) fn ok(self) -> Self {
        assert!(self.has_ended() && self.all("error").is_empty(), "{:?}", self.lines);
        self
    }

    /// Checks the name of the error, and a part of its value.
    pub(crate) fn fails(&self, name: &str, holding: &str) {
        let error = self.error();
        assert_eq!(error["name"], name, "{error}");
        assert!(error["value"].as_str().unwrap().contains(holding), "`{holding}` not in {error}");
        assert!(error["traceback"].is_string(), "{error}");
    }
}
