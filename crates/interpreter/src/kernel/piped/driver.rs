//! The task that drives one kernel: orders of the context in, messages out.

use super::drain::{Drain, Piece};
use super::lines::Lines;
use super::pipes::{Name, Pipes};
use super::{Inputs, Language, Report};
use crate::kernel::driven::Order;
use crate::kernel::{Event, Exit, Failure, Kind, Message, Run, Status, Stream};
use crate::process::Process;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Bytes of one read. A pipe holds as many.
const READ: usize = 64 * 1024;
/// Time after the end of a run's code in which its markers must arrive.
const GRACE: Duration = Duration::from_secs(1);
/// Reads of each pipe after the end of the process. Programs that it left may still write.
const LAST_READS: usize = 64;
/// Bytes of output that explain a failed start.
const WORDS: usize = 2000;

/// A pipe of output.
struct Tap {
    stream: Stream,
    pipe: pipe::Receiver,
    drain: Drain,
    /// The newest run whose output has ended.
    marked: Option<u64>,
}

/// The pipes from a kernel.
pub(super) struct Taps {
    output: [Tap; 2],
    events: pipe::Receiver,
    lines: Lines,
}

impl Taps {
    pub(super) fn open(pipes: &Pipes, secret: &str) -> io::Result<Self> {
        let tap = |stream, name| {
            let (pipe, drain) = (pipes.receiver(name)?, Drain::new(secret));
            io::Result::Ok(Tap { stream, pipe, drain, marked: None })
        };
        let output = [tap(Stream::Stdout, Name::Stdout)?, tap(Stream::Stderr, Name::Stderr)?];
        Ok(Self { output, events: pipes.receiver(Name::Events)?, lines: Lines::default() })
    }
}

/// A start that the context waits for, and the program's output since then.
struct Startup {
    ready: oneshot::Sender<Result<(), String>>,
    words: String,
}

/// A run whose code has ended, and whose output may not have.
struct Ending {
    run: u64,
    failure: Option<Failure>,
    since: Instant,
}

pub(super) struct Driver<L> {
    process: Arc<Process>,
    language: L,
    taps: Taps,
    inputs: Inputs,
    orders: mpsc::UnboundedReceiver<Order>,
    messages: mpsc::UnboundedSender<Message>,
    buffer: Vec<u8>,
    startup: Option<Startup>,
    /// Number of the run under way.
    active: Option<u64>,
    /// Number of the newest run.
    newest: u64,
    ending: Option<Ending>,
    held: bool,
}

impl<L: Language> Driver<L> {
    pub(super) fn new(
        process: Arc<Process>,
        language: L,
        taps: Taps,
        inputs: Inputs,
        orders: mpsc::UnboundedReceiver<Order>,
        messages: mpsc::UnboundedSender<Message>,
    ) -> Self {
        Self {
            process,
            language,
            taps,
            inputs,
            orders,
            messages,
            buffer: vec![0; READ],
            startup: None,
            active: None,
            newest: 0,
            ending: None,
            held: false,
        }
    }

    /// Greets a program that has just started. `ready` learns when it takes runs.
    pub(super) fn start(mut self, ready: oneshot::Sender<Result<(), String>>) -> Self {
        self.startup = Some(Startup { ready, words: String::new() });
        self.language.greet(&self.inputs);
        self
    }

    /// Greets a program of an earlier interpreter.
    pub(super) fn resume(mut self, run: u64) -> Self {
        self.newest = run;
        self.active = (run > 0).then_some(run);
        self.language.greet_again(&self.inputs, run);
        self
    }

    /// Drives the kernel until its end, or until the context drops it.
    pub(super) async fn drive(mut self) {
        let mut end = Box::pin(self.process.end());
        loop {
            let flows = !self.held;
            let due = self.ending.as_ref().map(|ending| ending.since + GRACE);
            let [stdout, stderr] = &self.taps.output;
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(order) => self.take(order),
                    None => return,
                },
                _ = stdout.pipe.readable(), if flows => { self.read_output(0); }
                _ = stderr.pipe.readable(), if flows => { self.read_output(1); }
                _ = self.taps.events.readable(), if flows => { self.read_events(); }
                () = wait(due), if flows => self.finish(),
                exit = &mut end => return self.die(exit),
            }
            // A pipe that is always full must not keep the context from holding the kernel.
            tokio::task::yield_now().await;
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Run(run) => self.begin(run),
            Order::Interrupt(round) => self.interrupt(round),
            Order::Hold(held) => self.hold(held),
            Order::Ask(question, answer) => self.language.ask(&self.inputs, question, answer),
        }
    }

    fn begin(&mut self, run: Run) {
        let number = run.number;
        (self.active, self.newest) = (Some(number), number);
        self.emit(number, Kind::Count(number));
        match self.language.run(&self.inputs, run) {
            Ok(warnings) => {
                for warning in warnings {
                    self.emit(number, Kind::Text(Stream::Stderr, warning));
                }
            }
            Err(failure) => self.end(number, Some(failure)),
        }
    }

    fn interrupt(&mut self, round: u32) {
        let Some(run) = self.active else { return };
        for signal in L::signals(round) {
            self.process.signal(*signal);
        }
        self.language.interrupt(&self.inputs, run);
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
        if let Some(ending) = &mut self.ending {
            ending.since = Instant::now();
        }
    }

    /// Reads one of the two outputs. Returns `false` if there is nothing to read.
    fn read_output(&mut self, at: usize) -> bool {
        let tap = &mut self.taps.output[at];
        let Some(count) = tap.pipe.try_read(&mut self.buffer).ok().filter(|count| *count > 0)
        else {
            return false;
        };
        let stream = tap.stream;
        for piece in tap.drain.push(&self.buffer[..count]) {
            match piece {
                Piece::Text(text) => self.text(stream, text),
                Piece::Mark(run) => self.taps.output[at].marked = Some(run),
            }
        }
        self.finish_if_drained();
        true
    }

    /// Reads the pipe of events. Returns `false` if there is nothing to read.
    fn read_events(&mut self) -> bool {
        let read = self.taps.events.try_read(&mut self.buffer);
        let Some(count) = read.ok().filter(|count| *count > 0) else { return false };
        let Ok(lines) = self.taps.lines.push(&self.buffer[..count]) else {
            self.refuse();
            return false;
        };
        for line in lines {
            match self.language.read(line) {
                Some(Report::Event(run, kind)) => self.emit(run, kind),
                Some(Report::Ended(run, failure)) => self.ended(run, failure),
                None => {}
            }
        }
        true
    }

    /// Kills a kernel that breaks the protocol, since its further output cannot be read.
    fn refuse(&mut self) {
        self.taps.lines = Lines::default();
        let failure = Failure {
            name: "KernelError".to_owned(),
            value: "the kernel sent an event longer than 64 MiB and was killed".to_owned(),
            traceback: String::new(),
        };
        self.emit(self.newest, Kind::Error(failure));
        self.process.signal(libc::SIGKILL);
    }

    fn text(&mut self, stream: Stream, text: String) {
        if let Some(startup) = &mut self.startup {
            if startup.words.len() < READ {
                startup.words.push_str(&text);
            }
            return;
        }
        let text = self.language.clean(stream, text);
        if !text.is_empty() {
            self.emit(self.newest, Kind::Text(stream, text));
        }
    }

    /// Notes that the code of a run has ended. Reports about earlier runs are late.
    fn ended(&mut self, run: u64, failure: Option<Failure>) {
        let is_expected = self.startup.is_some() || self.active == Some(run);
        if is_expected && self.ending.is_none() {
            self.ending = Some(Ending { run, failure, since: Instant::now() });
            self.finish_if_drained();
        }
    }

    fn finish_if_drained(&mut self) {
        let Some(ending) = &self.ending else { return };
        if self.taps.output.iter().all(|tap| tap.marked >= Some(ending.run)) {
            self.finish();
        }
    }

    /// Tells that the run has ended, or that the start has.
    fn finish(&mut self) {
        let Some(ending) = self.ending.take() else { return };
        match self.startup.take() {
            // A context that does not wait any more drops the kernel.
            Some(startup) => _ = startup.ready.send(Ok(())),
            None => self.end(ending.run, ending.failure),
        }
    }

    fn end(&mut self, run: u64, failure: Option<Failure>) {
        self.active = None;
        if let Some(failure) = failure {
            self.emit(run, Kind::Error(failure));
        }
        self.emit(run, Kind::Ended);
    }

    /// Tells of the end of the process, after all that it has written.
    fn die(&mut self, exit: Exit) {
        for at in [0, 1] {
            let _ = (0..LAST_READS).all(|_| self.read_output(at));
            let tap = &mut self.taps.output[at];
            let (stream, rest) = (tap.stream, tap.drain.finish());
            self.text(stream, rest);
        }
        let _ = (0..LAST_READS).all(|_| self.read_events());
        match self.startup.take() {
            Some(startup) => _ = startup.ready.send(Err(words(exit, &startup.words))),
            None => self.finish(),
        }
        let _ = self.messages.send(Message::Died(exit));
    }

    fn emit(&self, run: u64, kind: Kind) {
        // A context that does not listen any more drops the kernel.
        let _ = self.messages.send(Message::Event(Event { run, kind }));
    }
}

/// Waits until a time, or for ever.
async fn wait(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Describes a failed start by the end of the program's output.
fn words(exit: Exit, output: &str) -> String {
    let output = output.trim();
    let skipped = output.chars().count().saturating_sub(WORDS);
    let output: String = output.chars().skip(skipped).collect();
    let status = match exit.status {
        Status::Code(code) => format!("exit status {code}"),
        Status::Signal(signal) => format!("signal {signal}"),
        Status::Unknown => "unknown status".to_owned(),
    };
    format!("it ended at once ({status}): {output}")
}
