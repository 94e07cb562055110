//! The guest's console, which the host keeps.

use crate::open::OPEN_FLAGS;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

/// Writes a line to the console. Never waits for a named pipe or a terminal
/// that root in the guest may have put in its place.
pub(crate) fn console(line: &str) {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).custom_flags(OPEN_FLAGS);
    if let Ok(mut console) = options.open("/dev/console") {
        let _ = writeln!(console, "{line}");
    }
}
