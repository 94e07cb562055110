//! Entry points of the fuzz targets in `fuzz/`. Only the feature `fuzzing` compiles this module, so
//! a production build has no public parser.

use crate::http;
use crate::kernel::{Kind, fuzzing};
use crate::line::{Line, TEXT_MAX, pieces};
use crate::result;
use serde_json::Value;

/// Reads `data` as the stream of a Jupyter kernel's socket, and as the content of its messages.
///
/// # Panics
/// Panics when an event becomes a line that E2B's SDKs cannot read.
pub fn kernel(data: &[u8]) {
    for kind in fuzzing::socket(data).into_iter().chain(fuzzing::content(data)) {
        check(kind);
    }
}

/// Reads `data` as lines of a Node host.
///
/// # Panics
/// Panics when an event becomes a line that E2B's SDKs cannot read.
pub fn host(data: &[u8]) {
    for kind in fuzzing::host(data) {
        check(kind);
    }
}

/// Reads `data` as the body of a request for code, and prepares its run for each kind of kernel.
///
/// # Panics
/// Panics when a refusal cannot be sent, or when a kernel would read another program.
pub fn execute(data: &[u8]) {
    if let Some(envs) = http::fuzzing::execute(data) {
        fuzzing::run(envs);
    }
}

/// Checks the lines of an event.
fn check(kind: Kind) {
    match kind {
        Kind::Text(stream, text) => {
            let mut whole = String::new();
            for piece in pieces(&text) {
                assert!(piece.len() <= TEXT_MAX, "a piece is too long");
                let line = read(&Line::text(stream, piece));
                whole.push_str(line["text"].as_str().unwrap_or_default());
            }
            assert_eq!(whole, text, "the pieces differ from the text");
        }
        Kind::Data(bundle) => {
            let main = bundle.main;
            let line = read(&Line::Result(result::fields(bundle)));
            assert!(line["type"] == "result" && line["is_main_result"] == main, "no result");
            assert!(line["extra"].is_object(), "the line has no extra");
        }
        Kind::Error(failure) => {
            let line = read(&Line::error(&failure));
            assert_eq!(line["traceback"].as_str(), Some(failure.traceback.as_str()));
        }
        Kind::Count(_) | Kind::Ended => {}
    }
}

/// Reads an encoded line, which is one line of ASCII.
fn read(line: &Line<'_>) -> Value {
    let bytes = line.encode();
    assert!(bytes.is_ascii(), "a line is not ASCII");
    assert_eq!(bytes.iter().position(|byte| *byte == b'\n'), Some(bytes.len() - 1), "line ends");
    serde_json::from_slice(&bytes).unwrap_or_default()
}
