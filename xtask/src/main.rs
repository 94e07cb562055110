//! Developer tasks: `tidy` (rules that no lint covers) and `openapi` (writes `openapi.json`).
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a developer's tool")]

mod tidy;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let task = std::env::args().nth(1).unwrap_or_default();
    let faults = match task.as_str() {
        "tidy" => tidy::faults(&root),
        "openapi" => write_openapi(&root),
        _ => vec!["usage: cargo xtask tidy | openapi".to_owned()],
    };
    for fault in &faults {
        eprintln!("{fault}");
    }
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn write_openapi(root: &Path) -> Vec<String> {
    let document = control_plane::openapi().to_pretty_json();
    let text = document.map(|text| text + "\n").map_err(|e| e.to_string());
    let written = text.and_then(|text| {
        std::fs::write(root.join("openapi.json"), text).map_err(|e| e.to_string())
    });
    written.err().into_iter().collect()
}
