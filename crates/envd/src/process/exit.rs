//! A program's end, in the form of the wire.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// A program's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code, or −1 when a signal ended the program.
    pub code: i32,
    pub exited: bool,
    pub status: String,
    pub error: Option<String>,
}

impl From<std::io::Result<ExitStatus>> for Exit {
    fn from(status: std::io::Result<ExitStatus>) -> Self {
        let (code, status) = match status {
            Ok(status) => match status.signal() {
                Some(signal) => (-1, format!("signal: {}", signal_name(signal))),
                None => {
                    let code = status.code().unwrap_or(-1);
                    (code, format!("exit status {code}"))
                }
            },
            Err(error) => (-1, format!("wait: {error}")),
        };
        let error = (code != 0).then(|| status.clone());
        Self { code, exited: code >= 0, status, error }
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGABRT => "aborted",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        _ => return signal.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_by_signal_names_the_signal() {
        let killed = Exit::from(Ok(ExitStatus::from_raw(9)));
        assert_eq!((killed.code, killed.status.as_str()), (-1, "signal: killed"));
        assert!(!killed.exited && killed.error.is_some());
    }
}
