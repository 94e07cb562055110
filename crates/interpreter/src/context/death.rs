//! Errors that tell why a kernel's state is lost. Pure.

use crate::kernel::{Exit, Failure, Memory, Status};

const MIB: u64 = 1 << 20;

/// Describes the end of a kernel. `None` means that the code asked for it, such as by `quit()`.
pub(super) fn describe(exit: &Exit) -> Option<Failure> {
    if let (Status::Signal(_) | Status::Unknown, Some(memory)) = (exit.status, exit.out_of_memory) {
        return Some(failure("OutOfMemory", out_of_memory(memory)));
    }
    let why = match exit.status {
        Status::Code(0) => return None,
        Status::Code(code) => format!("exit status {code}"),
        Status::Signal(signal) => format!("signal {signal}"),
        Status::Unknown => "its status is unknown".to_owned(),
    };
    Some(failure("KernelDied", format!("the kernel died ({why}); its state is lost")))
}

fn out_of_memory(Memory { peak, limit }: Memory) -> String {
    let (peak, limit) = (peak / MIB, limit / MIB);
    format!(
        "the kernel was killed: it used {peak} of the {limit} MiB that programs here may have; \
         its state is lost"
    )
}

/// Describes the kill of a kernel that ignored interrupts.
pub(super) fn killed(seconds: u64) -> Failure {
    let value = format!(
        "the context was restarted and its state is lost: earlier code did not react to an \
         interrupt for {seconds} s"
    );
    failure("ContextRestarted", value)
}

/// Describes a kernel that a later interpreter did not find.
pub(super) fn lost() -> Failure {
    let value = "the context was restarted and its state is lost: its kernel ended together with \
                 an earlier interpreter";
    failure("ContextRestarted", value.to_owned())
}

/// Describes the end of an execution by the restart of its context, in E2B's words.
pub(super) fn restarting() -> Failure {
    failure("ContextRestarting", "Context was restarted".to_owned())
}

pub(super) fn removed() -> Failure {
    failure("ContextRemoved", "the context was removed".to_owned())
}

/// Describes an execution whose client left before its turn.
pub(super) fn aborted() -> Failure {
    failure("ExecutionAborted", "Execution was aborted".to_owned())
}

/// Describes a kernel that did not start.
pub(super) fn not_started(why: &str) -> Failure {
    failure("KernelDied", why.to_owned())
}

/// Describes a deadline. `has_ended` is unset if the code still runs.
pub(super) fn timed_out(limit_ms: u128, traceback: String, has_ended: bool) -> Failure {
    let mut value = format!("the execution took longer than {limit_ms} ms");
    if !has_ended {
        value.push_str(" and does not react to an interrupt");
    }
    Failure { name: "ExecutionTimeout".to_owned(), value, traceback }
}

fn failure(name: &str, value: String) -> Failure {
    Failure { name: name.to_owned(), value, traceback: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_of_a_kernel_has_its_words() {
        let memory = Some(Memory { peak: 1900 * MIB + 5, limit: 1950 * MIB });
        for (status, out_of_memory, name, words) in [
            (Status::Signal(11), None, "KernelDied", "signal 11"),
            (Status::Code(3), None, "KernelDied", "exit status 3"),
            (Status::Unknown, None, "KernelDied", "unknown"),
            (Status::Signal(9), memory, "OutOfMemory", "it used 1900 of the 1950 MiB"),
            (Status::Unknown, memory, "OutOfMemory", "1900"),
            // A child was killed, and the code then ended its kernel.
            (Status::Code(3), memory, "KernelDied", "exit status 3"),
        ] {
            let failure = describe(&Exit { status, out_of_memory }).unwrap();
            assert_eq!(failure.name, name);
            assert!(failure.value.contains(words), "{}", failure.value);
        }
        assert!(describe(&Exit { status: Status::Code(0), out_of_memory: None }).is_none());
    }
}
