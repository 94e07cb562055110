//! Kernels that do as a test says, for tests of contexts and of everything above them.

use crate::kernel::{
    Event, Exit, Kernel, Kind, Message, Question, Run, SEED, Saved, StartError, StartSpec, Started,
    Status, Stream,
};
use crate::launch::{Launch, Start};
use crate::lock::lock;
use crate::process::User;
use crate::services::Services;
use crate::settings::Settings;
use crate::state::State;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, oneshot};

/// A call of a context to its kernel.
#[derive(Debug)]
pub(crate) enum Call {
    Run(Run),
    Interrupt(u32),
    Hold(bool),
    Released,
    Dropped,
}

/// The starts of all kernels of a test.
pub(crate) struct Script {
    launch: Arc<Scripted>,
    started: mpsc::UnboundedReceiver<Handle>,
    pub dir: tempfile::TempDir,
}

struct Scripted {
    starts: mpsc::UnboundedSender<Handle>,
    /// Reasons why the next starts fail.
    failures: Mutex<Vec<String>>,
    /// Set if the next start never ends.
    hangs: AtomicBool,
    seeds: Mutex<Vec<[u8; SEED]>>,
}

/// A test's end of a kernel.
pub(crate) struct Handle {
    pub spec: StartSpec,
    pub adopted: Option<Saved>,
    calls: mpsc::UnboundedReceiver<Call>,
    messages: mpsc::UnboundedSender<Message>,
}

struct ScriptedKernel {
    calls: mpsc::UnboundedSender<Call>,
    run: u64,
}

impl Default for Script {
    fn default() -> Self {
        let (starts, started) = mpsc::unbounded_channel();
        let launch = Arc::new(Scripted {
            starts,
            failures: Mutex::default(),
            hangs: AtomicBool::new(false),
            seeds: Mutex::default(),
        });
        Self { launch, started, dir: tempfile::tempdir().unwrap() }
    }
}

impl Script {
    /// Makes the parts of contexts, with an empty state file.
    pub(crate) fn services(&self) -> Arc<Services> {
        self.services_with(Settings::default())
    }

    pub(crate) fn services_with(&self, settings: Settings) -> Arc<Services> {
        let (state, _) = State::open(self.dir.path());
        let launch: Arc<dyn Launch> = Arc::clone(&self.launch) as Arc<dyn Launch>;
        Arc::new(Services::new(Arc::new(settings), User::current(), launch, state))
    }

    /// Waits for the next start of a kernel.
    pub(crate) async fn kernel(&mut self) -> Handle {
        self.started.recv().await.unwrap()
    }

    /// Lets the next start fail.
    pub(crate) fn fail_next(&self, why: &str) {
        lock(&self.launch.failures).push(why.to_owned());
    }

    /// Lets the next start never end.
    pub(crate) fn hang_next(&self) {
        self.launch.hangs.store(true, Ordering::Relaxed);
    }

    pub(crate) fn seeds(&self) -> Vec<[u8; SEED]> {
        lock(&self.launch.seeds).clone()
    }
}

impl Scripted {
    fn begin(&self, spec: StartSpec, adopted: Option<Saved>) -> Result<Started, StartError> {
        if let Some(why) = lock(&self.failures).pop() {
            return Err(StartError::Failed { language: spec.language, why });
        }
        let (calls, called) = mpsc::unbounded_channel();
        let (messages, received) = mpsc::unbounded_channel();
        let run = adopted.as_ref().map_or(0, |saved| saved.run);
        let _ = self.starts.send(Handle { spec, adopted, calls: called, messages });
        let kernel = Box::new(ScriptedKernel { calls, run });
        Ok(Started { kernel, messages: received })
    }
}

impl Launch for Scripted {
    fn start(self: Arc<Self>, spec: StartSpec) -> Start {
        async move {
            if self.hangs.swap(false, Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            self.begin(spec, None)
        }
        .boxed()
    }

    fn adopt(self: Arc<Self>, spec: StartSpec, saved: Saved) -> Start {
        async move { self.begin(spec, Some(saved)) }.boxed()
    }

    fn languages(&self) -> Vec<String> {
        ["bash", "java", "javascript", "python", "typescript"].map(str::to_owned).to_vec()
    }

    fn ready(self: Arc<Self>) -> BoxFuture<'static, Result<(), StartError>> {
        async { Ok(()) }.boxed()
    }

    fn epoch(&self, seed: [u8; SEED]) {
        lock(&self.seeds).push(seed);
    }
}

impl Kernel for ScriptedKernel {
    fn run(&mut self, run: Run) {
        self.run = run.number;
        let _ = self.calls.send(Call::Run(run));
    }

    fn interrupt(&mut self, round: u32) {
        let _ = self.calls.send(Call::Interrupt(round));
    }

    fn hold(&mut self, held: bool) {
        let _ = self.calls.send(Call::Hold(held));
    }

    fn ask(&mut self, question: Question, answer: oneshot::Sender<Value>) {
        if let Question::Complete { code, cursor } = question {
            let _ = answer.send(json!({"matches": [code], "cursor_end": cursor}));
        }
    }

    fn memory(&self) -> Option<u64> {
        Some(5 << 20)
    }

    fn saved(&self) -> Option<Saved> {
        Some(Saved { pid: 1, started: 2, group: None, run: self.run, driver: json!("d") })
    }

    fn release(self: Box<Self>) {
        let _ = self.calls.send(Call::Released);
    }
}

impl Drop for ScriptedKernel {
    fn drop(&mut self) {
        let _ = self.calls.send(Call::Dropped);
    }
}

impl Handle {
    /// Waits for the next call.
    pub(crate) async fn call(&mut self) -> Call {
        self.calls.recv().await.unwrap()
    }

    /// Waits for a run, which must be the next call.
    pub(crate) async fn run(&mut self) -> Run {
        let call = self.call().await;
        if let Call::Run(run) = call { run } else { panic!("{call:?} is no run") }
    }

    /// Waits for the next interrupt. Returns its round.
    pub(crate) async fn interrupt(&mut self) -> u32 {
        let call = self.call().await;
        if let Call::Interrupt(round) = call { round } else { panic!("{call:?} is no interrupt") }
    }

    /// Reports whether no call has come since the last one.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.calls.try_recv().is_err()
    }

    pub(crate) fn say(&self, run: u64, kind: Kind) {
        let _ = self.messages.send(Message::Event(Event { run, kind }));
    }

    pub(crate) fn print(&self, run: u64, text: &str) {
        self.say(run, Kind::Text(Stream::Stdout, text.to_owned()));
    }

    pub(crate) fn die(&self, status: Status) {
        self.exit(Exit { status, out_of_memory: None });
    }

    pub(crate) fn exit(&self, exit: Exit) {
        let _ = self.messages.send(Message::Died(exit));
    }
}
