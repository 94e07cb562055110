//! Signals to any process of the guest, also to those that no caller started.

use super::registry::{Registry, Selector};
use crate::error::{Error, Result};
use connectrpc::ErrorCode;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

/// Returns the signal of a name without `SIG`. `None` for a signal that callers may not send.
pub(crate) fn by_name(name: &str) -> Option<Signal> {
    Some(match name {
        "TERM" => Signal::TERM,
        "KILL" => Signal::KILL,
        "INT" => Signal::INT,
        "HUP" => Signal::HUP,
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        _ => return None,
    })
}

/// Signals a process. A program that a caller started gets the signal with its whole group; any
/// other process gets it alone. Returns `false` when there is no such process.
///
/// # Errors
/// Returns `permission_denied` for envd itself.
pub(crate) fn send(registry: &Registry, selector: &Selector, signal: Signal) -> Result<bool> {
    if let Ok(process) = registry.get(selector) {
        return match process.signal(signal) {
            Ok(()) => Ok(true),
            Err(error) if error.code == ErrorCode::NotFound => Ok(false),
            Err(error) => Err(error),
        };
    }
    match selector {
        Selector::Pid(pid) => send_alone(*pid, signal),
        Selector::Tag(_) => Ok(false),
    }
}

fn send_alone(pid: u32, signal: Signal) -> Result<bool> {
    if pid == 1 || pid == std::process::id() {
        let message = format!("process {pid} belongs to the platform");
        return Err(Error::new(ErrorCode::PermissionDenied, message));
    }
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
    match kill_process(pid, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(Error::io("cannot signal the process", &error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn process_that_no_caller_started_is_signalled_once() {
        let registry = Registry::default();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let selector = Selector::Pid(child.id());
        assert!(send(&registry, &selector, by_name("HUP").unwrap()).unwrap());
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGHUP));
        assert!(!send(&registry, &selector, Signal::HUP).unwrap(), "the process has ended");
        assert!(!send(&registry, &Selector::Tag("none".to_owned()), Signal::HUP).unwrap());
        assert!(!send(&registry, &Selector::Pid(0), Signal::HUP).unwrap());
    }

    #[test]
    fn first_process_and_envd_itself_get_no_signal() {
        for pid in [1, std::process::id()] {
            let error = send(&Registry::default(), &Selector::Pid(pid), Signal::KILL).unwrap_err();
            assert_eq!(error.code, ErrorCode::PermissionDenied, "{error}");
        }
        assert!(by_name("SIGTERM").is_none() && by_name("SEGV").is_none());
    }
}
