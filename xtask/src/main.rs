//! Developer tasks: `tidy` (rules no lint covers).

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::FAILURE
}
