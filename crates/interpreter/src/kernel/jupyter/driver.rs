//! The task of one kernel: sends requests, turns replies and published messages into the messages
//! of a context, and ends with the kernel.
//!
//! A run ends when its reply and its idle status are both there. They come over two sockets, in any
//! order. A reply or an idle status alone ends the run after a silence all the same.

use super::dialect::Changes;
use super::events::{self, Cause, Part, Published};
use super::link::{Inputs, Link, Received};
use super::questions::{self, Questions, execution};
use super::{Dialect, Facts, InterruptMode};
use crate::kernel::driven::Order;
use crate::kernel::message::Incoming;
use crate::kernel::{Event, Exit, Failure, Kind, Message, Question, Run, Stream};
use crate::process::Process;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

/// Silence to the end of a run of which only the reply or only the idle status is there.
const IDLE_TIME: Duration = Duration::from_secs(2);
/// Time in which a kernel that has closed a socket must end by itself.
const QUIT: Duration = Duration::from_secs(2);

/// State of a kernel's task.
pub(super) struct Driver {
    /// Weak, since the end of the context's own reference ends the process.
    process: Weak<Process>,
    end: Pin<Box<dyn Future<Output = Exit> + Send>>,
    interrupt: InterruptMode,
    dialect: Dialect,
    orders: mpsc::UnboundedReceiver<Order>,
    messages: mpsc::UnboundedSender<Message>,
    link: Link,
    current: Option<Current>,
    held: bool,
    /// The capsule's variables that the kernel has.
    capsule: BTreeMap<String, String>,
    questions: Questions,
}

/// The run under way.
#[derive(Debug, Default)]
struct Current {
    number: u64,
    progress: Progress,
    /// Set for an interrupt that waits for the begin of the user's code.
    interrupted: bool,
    counted: bool,
    failed: bool,
    /// Facts of the reply, for the case that the kernel does not publish them.
    count: Option<Kind>,
    failure: Option<Failure>,
    idle: bool,
    /// Time at which the run ends with its reply or its idle status alone.
    late: Option<Instant>,
}

/// Progress of a run.
#[derive(Debug, Default, PartialEq, Eq)]
enum Progress {
    #[default]
    Sent,
    /// The kernel runs the user's code.
    Begun,
    /// An earlier interpreter sent the run, and missed a part of its messages. The next reply of any
    /// kind tells of its end.
    Adopted,
}

impl Driver {
    pub(super) fn new(
        process: &Arc<Process>,
        facts: &Facts,
        link: Link,
        orders: mpsc::UnboundedReceiver<Order>,
        messages: mpsc::UnboundedSender<Message>,
    ) -> Self {
        Self {
            process: Arc::downgrade(process),
            end: Box::pin(process.end()),
            interrupt: facts.interrupt,
            dialect: facts.dialect,
            orders,
            messages,
            link,
            current: None,
            held: false,
            capsule: BTreeMap::new(),
            questions: Questions::default(),
        }
    }

    /// Tells a kernel of its process's environment, if its language hides it.
    pub(super) fn boot(&mut self, envs: &BTreeMap<String, String>) {
        if self.dialect.hides_environment() {
            let changes = Changes { set: envs.clone(), ..Changes::default() };
            if let Some(code) = self.dialect.before(&changes) {
                self.link.send_shell(self.execute(0, Part::Before, &code));
            }
        }
    }

    /// Takes over the newest run of an earlier interpreter, which may have ended.
    pub(super) fn resume(&mut self, run: u64) {
        let progress = Progress::Adopted;
        self.current = Some(Current { number: run, progress, ..Current::default() });
        self.wake(run);
    }

    /// Drives the kernel until its end, or until the context drops it.
    pub(super) async fn drive(mut self, mut inputs: Inputs) {
        loop {
            let late = self.late();
            tokio::select! {
                received = inputs.next() => match received {
                    Received::Published(message) => self.published(&message),
                    Received::Replied(message) => self.replied(&message),
                    Received::Nothing => {}
                    Received::Closed(why) => return self.closed(why, inputs).await,
                },
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order),
                    None => return,
                },
                exit = &mut self.end => return self.died(exit, inputs).await,
                () = at(late) => self.end_run(),
            }
        }
    }

    /// Ends a kernel that has closed a socket. Most often its process ends by itself, as with
    /// `quit()`. A kernel that broke a rule is killed, and the user is told the rule.
    async fn closed(mut self, why: Option<String>, inputs: Inputs) {
        let patience = if why.is_some() { Duration::ZERO } else { QUIT };
        if let (Some(why), Some(current)) = (why, &self.current) {
            let text = format!("[{why}, and is killed]\n");
            self.send(current.number, Kind::Text(Stream::Stderr, text));
        }
        let exit = match tokio::time::timeout(patience, &mut self.end).await {
            Ok(exit) => exit,
            Err(_) => {
                self.kill();
                (&mut self.end).await
            }
        };
        self.died(exit, inputs).await;
    }

    fn kill(&self) {
        if let Some(process) = self.process.upgrade() {
            process.signal(libc::SIGKILL);
            process.signal_alone(libc::SIGKILL);
        }
    }

    /// Tells of the kernel's end, after the last of its output.
    async fn died(mut self, exit: Exit, mut inputs: Inputs) {
        let since = Instant::now();
        while let Some(message) = inputs.drain(since).await {
            self.published(&message);
        }
        let _ = self.messages.send(Message::Died(exit));
    }

    /// Returns the time at which the run ends without its last message. A kernel that stands still
    /// may have output to publish, with its status behind.
    fn late(&self) -> Option<Instant> {
        self.current.as_ref().and_then(|current| current.late).filter(|_| !self.held)
    }

    /// Waits anew for the last message of a run.
    fn wait_anew(&mut self) {
        if let Some(late) = self.current.as_mut().and_then(|current| current.late.as_mut()) {
            *late = Instant::now() + IDLE_TIME;
        }
    }

    fn published(&mut self, message: &Incoming) {
        let cause = Cause::read(&message.parent);
        let of_code = cause.part == Part::Code && self.is_current(cause.run);
        if of_code {
            self.wait_anew();
        }
        match events::read(message) {
            Published::Busy if of_code => self.begin(),
            Published::Idle if of_code => self.idle(),
            Published::Busy | Published::Idle => {}
            Published::Events(events) => {
                events.into_iter().for_each(|event| self.event(cause, event));
            }
        }
    }

    fn is_current(&self, run: u64) -> bool {
        self.current.as_ref().is_some_and(|current| current.number == run)
    }

    /// Hands an event on. Code of ours has neither counts nor errors to show.
    fn event(&mut self, cause: Cause, mut kind: Kind) {
        let silent = matches!(cause.part, Part::Before | Part::After);
        if silent && let Kind::Error(failure) = &kind {
            kind = Kind::Text(Stream::Stderr, events::setup_failed(failure));
        }
        let (counts, fails) = (matches!(kind, Kind::Count(_)), matches!(kind, Kind::Error(_)));
        if (counts || fails) && !matches!(cause.part, Part::Code | Part::Other) {
            return;
        }
        if let Some(current) = &mut self.current
            && current.number == cause.run
        {
            current.counted |= counts;
            current.failed |= fails;
        }
        self.emit(cause.run, kind);
    }

    /// Sends an event, a line of some languages without its end.
    fn emit(&self, run: u64, mut kind: Kind) {
        let mut line_end = None;
        if let Kind::Text(stream, text) = &mut kind
            && self.dialect.splits_line_ends()
            && text.len() > 1
            && text.ends_with('\n')
        {
            text.pop();
            line_end = Some(Kind::Text(*stream, "\n".to_owned()));
        }
        self.send(run, kind);
        if let Some(line_end) = line_end {
            self.send(run, line_end);
        }
    }

    fn send(&self, run: u64, kind: Kind) {
        let _ = self.messages.send(Message::Event(Event { run, kind }));
    }

    /// Notes that the kernel runs the user's code, and delivers an interrupt that waited for this.
    fn begin(&mut self) {
        let Some(current) = &mut self.current else { return };
        if current.progress == Progress::Sent {
            current.progress = Progress::Begun;
        }
        if std::mem::take(&mut current.interrupted) {
            self.interrupt_now(0);
        }
    }

    fn idle(&mut self) {
        let Some(current) = &mut self.current else { return };
        current.idle = true;
        match current.late {
            Some(_) => self.end_run(),
            // An interrupt at the very end of the code can lose the reply.
            None => current.late = Some(Instant::now() + IDLE_TIME),
        }
    }

    fn replied(&mut self, message: &Incoming) {
        let cause = Cause::read(&message.parent);
        match cause.part {
            Part::Code if self.is_current(cause.run) => self.code_replied(message),
            Part::Question(number) => self.questions.answer(number, message),
            Part::Before | Part::Code | Part::After | Part::Info | Part::Other => {}
        }
        // The kernel takes one request after the other.
        if self.current.as_ref().is_some_and(|run| run.progress == Progress::Adopted) {
            self.end_run();
        }
    }

    /// Takes the reply to the user's code. Its error may come by the other socket too, behind the
    /// output, or not be published at all. So the end of the run tells what was not published.
    fn code_replied(&mut self, message: &Incoming) {
        let content = message.tree().unwrap_or_default();
        let Some(current) = &mut self.current else { return };
        current.count = events::count(&content);
        current.failure = events::reply_failure(&content);
        current.late = Some(Instant::now() + IDLE_TIME);
        if current.idle {
            self.end_run();
        }
    }

    fn end_run(&mut self) {
        let Some(current) = self.current.take() else { return };
        if let Some(count) = current.count.filter(|_| !current.counted) {
            self.emit(current.number, count);
        }
        if let Some(failure) = current.failure.filter(|_| !current.failed) {
            self.emit(current.number, Kind::Error(failure));
        }
        self.send(current.number, Kind::Ended);
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Run(run) => self.run(&run),
            Order::Interrupt(round) => self.interrupt(round),
            Order::Hold(held) => {
                self.held = held;
                self.wait_anew();
            }
            Order::Ask(question, answer) => self.ask(&question, answer),
        }
    }

    /// Sends the user's code, with silent code before and after it as needed.
    fn run(&mut self, run: &Run) {
        // A run that an adopted kernel never ended is over for the context.
        self.end_run();
        let number = run.number;
        let changes = Changes::of(&run.setup, &mut self.capsule);
        if self.dialect == Dialect::Other && !changes.run.is_empty() {
            let text = "[variables cannot be set in a running kernel of this language]\n";
            self.send(number, Kind::Text(Stream::Stderr, text.to_owned()));
        }
        let mut requests = Vec::new();
        if let Some(code) = self.dialect.before(&changes) {
            requests.extend(self.execute(number, Part::Before, &code));
        }
        requests.extend(self.execute(number, Part::Code, &run.code));
        if let Some(code) = self.dialect.after(&changes) {
            requests.extend(self.execute(number, Part::After, &code));
        }
        self.current = Some(Current { number, ..Current::default() });
        self.link.send_shell(requests);
    }

    /// Encodes a request to execute code. All but the user's code is silent.
    fn execute(&self, run: u64, part: Part, code: &str) -> Vec<u8> {
        let silent = part != Part::Code;
        self.request(Cause { run, part }, "execute_request", &execution(code, silent, &json!({})))
    }

    fn request(&self, cause: Cause, kind: &str, content: &Value) -> Vec<u8> {
        let signer = &self.link.signer;
        signer.request(&cause.id(signer.session()), kind, content)
    }

    /// Interrupts the run. The first attempt waits until the kernel runs the user's code, so that it
    /// does not end the silent code before.
    fn interrupt(&mut self, round: u32) {
        let Some(current) = &mut self.current else { return };
        if round == 0 && current.progress == Progress::Sent {
            current.interrupted = true;
        } else {
            self.interrupt_now(round);
        }
    }

    fn interrupt_now(&self, round: u32) {
        let Some(current) = &self.current else { return };
        let run = current.number;
        match self.interrupt {
            InterruptMode::Signal => self.signal(round),
            InterruptMode::Message => {
                let cause = Cause { run, part: Part::Info };
                self.link.send_control(self.request(cause, "interrupt_request", &json!({})));
            }
        }
        self.wake(run);
    }

    fn signal(&self, round: u32) {
        let Some(process) = self.process.upgrade() else { return };
        process.signal(libc::SIGINT);
        if round > 0 {
            process.signal_alone(libc::SIGCONT);
        }
    }

    /// Sends a request without effect. Python's event loop notices a signal only when it wakes.
    fn wake(&self, run: u64) {
        let cause = Cause { run, part: Part::Info };
        self.link.send_shell(self.request(cause, "kernel_info_request", &json!({})));
    }

    fn ask(&mut self, question: &Question, answer: oneshot::Sender<Value>) {
        // The kernel would answer after the run, when nobody waits any more.
        if self.current.is_some() {
            return;
        }
        let Some((kind, content)) = questions::request(question, self.dialect) else { return };
        if let Some(part) = self.questions.add(answer) {
            let cause = Cause { run: 0, part };
            self.link.send_shell(self.request(cause, kind, &content));
        }
    }
}

/// Waits until a time. Without one, waits for ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
