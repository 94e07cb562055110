//! Tests of the driver, against a kernel that the test plays.

use super::*;
use crate::kernel::Setup;
use crate::kernel::jupyter::{Connection, Files, Transport};
use crate::kernel::message::Signer;
use crate::process::{Program, User};
use bytes::Bytes;
use std::time::Duration;

/// A driver whose requests are kept, for a process that sleeps.
struct Rig {
    driver: Driver,
    messages: mpsc::UnboundedReceiver<Message>,
    requests: mpsc::UnboundedReceiver<Vec<u8>>,
    _orders: mpsc::UnboundedSender<Order>,
    process: Arc<Process>,
    _run: tempfile::TempDir,
}

impl Rig {
    async fn new(dialect: Dialect) -> Self {
        let program = Program {
            path: "sleep".into(),
            args: vec!["60".into()],
            envs: BTreeMap::new(),
            cwd: "/".into(),
            files: vec![],
            oom_score: 0,
        };
        let process = Arc::new(Process::start(program, &User::current(), "test").await.unwrap());
        let run = tempfile::tempdir().unwrap();
        let files = Files::make(run.path(), "c").unwrap();
        let connection: Connection = files.connect(Transport::Ipc, &User::current()).unwrap();
        let facts = Facts { connection, files, interrupt: InterruptMode::Signal, dialect };
        let (shell, requests) = mpsc::unbounded_channel();
        let link = Link { signer: Signer::new(""), shell, control: None };
        let (orders, receiver) = mpsc::unbounded_channel();
        let (sender, messages) = mpsc::unbounded_channel();
        let driver = Driver::new(&process, &facts, link, receiver, sender);
        Self { driver, messages, requests, _orders: orders, process, _run: run }
    }

    fn run(&mut self, number: u64, setup: Setup) {
        self.driver.obey(Order::Run(Run { number, code: "1".into(), setup }));
    }

    /// Kinds of the requests that were sent, from their headers.
    fn sent(&mut self) -> Vec<String> {
        let mut kinds = Vec::new();
        while let Ok(bytes) = self.requests.try_recv() {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let found = text.split("\"msg_type\":\"").skip(1);
            kinds.extend(found.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
        }
        kinds
    }

    fn publish(&mut self, cause: Cause, kind: &str, content: &Value) {
        self.driver.published(&message(cause, kind, content));
    }

    fn status(&mut self, cause: Cause, state: &str) {
        self.publish(cause, "status", &json!({"execution_state": state}));
    }

    fn reply(&mut self, cause: Cause, content: &Value) {
        self.driver.replied(&message(cause, "execute_reply", content));
    }

    /// Messages of the driver, in short form.
    fn got(&mut self) -> Vec<String> {
        let next = || self.messages.try_recv().ok();
        std::iter::from_fn(next).map(|message| format!("{message:?}")).collect()
    }
}

fn message(cause: Cause, kind: &str, content: &Value) -> Incoming {
    let header = json!({"msg_type": kind}).to_string();
    let parent = json!({"msg_id": cause.id("session")}).to_string();
    let parts = ["<IDS|MSG>", "", &header, &parent, "{}", &content.to_string()];
    let frames = parts.map(|part| Bytes::copy_from_slice(part.as_bytes()));
    Signer::new("").read(&frames).unwrap()
}

fn code(run: u64) -> Cause {
    Cause { run, part: Part::Code }
}

fn ended(run: u64) -> String {
    format!("Event(Event {{ run: {run}, kind: Ended }})")
}

#[tokio::test]
async fn run_ends_with_reply_and_idle_in_either_order() {
    let mut rig = Rig::new(Dialect::Python).await;
    let ok = json!({"status": "ok", "execution_count": 4});
    rig.run(1, Setup::default());
    assert_eq!(rig.sent(), ["execute_request"]);
    rig.status(code(1), "busy");
    rig.reply(code(1), &ok);
    assert!(rig.got().is_empty(), "the input may still come, behind output");
    rig.status(code(1), "idle");
    let count = "Event(Event { run: 1, kind: Count(4) })".to_owned();
    assert_eq!(rig.got(), [count, ended(1)], "no input told the count");
    rig.run(2, Setup::default());
    rig.publish(code(2), "execute_input", &json!({"execution_count": 5}));
    rig.status(code(1), "idle");
    rig.reply(code(1), &ok);
    rig.status(code(2), "idle");
    assert_eq!(rig.got(), ["Event(Event { run: 2, kind: Count(5) })"], "of another run");
    rig.reply(code(2), &ok);
    assert_eq!(rig.got(), [ended(2)]);
}

#[tokio::test]
async fn reply_without_idle_ends_the_run_after_two_seconds() {
    let mut rig = Rig::new(Dialect::R).await;
    rig.run(1, Setup::default());
    rig.reply(code(1), &json!({"status": "abort"}));
    let late = rig.driver.current.as_ref().unwrap().late.unwrap() - Instant::now();
    assert!(late > Duration::from_secs(1) && late <= IDLE_TIME, "{late:?}");
    assert!(rig.got().is_empty());
    rig.driver.end_run();
    let got = rig.got();
    assert!(got.len() == 2 && got[0].contains("ExecutionAborted"), "{got:?}");
    assert_eq!(got[1], ended(1));
}

#[tokio::test(start_paused = true)]
async fn held_kernel_publishes_the_rest_of_a_run_after_its_reply() {
    let mut rig = Rig::new(Dialect::Python).await;
    let left = |rig: &Rig| rig.driver.late().map(|late| late - Instant::now());
    rig.run(1, Setup::default());
    rig.status(code(1), "busy");
    rig.reply(code(1), &json!({"status": "ok", "execution_count": 1}));
    assert_eq!(left(&rig), Some(IDLE_TIME));
    rig.driver.obey(Order::Hold(true));
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(left(&rig), None, "a kernel that stands still cannot tell its end");
    rig.driver.obey(Order::Hold(false));
    assert_eq!(left(&rig), Some(IDLE_TIME));
    tokio::time::advance(Duration::from_secs(1)).await;
    rig.publish(code(1), "stream", &json!({"name": "stdout", "text": "t"}));
    assert_eq!(left(&rig), Some(IDLE_TIME), "output is no silence");
    rig.status(code(1), "idle");
    assert_eq!(rig.got().last(), Some(&ended(1)));
}

#[tokio::test(start_paused = true)]
async fn idle_status_without_a_reply_ends_the_run_after_two_seconds() {
    let mut rig = Rig::new(Dialect::Python).await;
    rig.run(1, Setup::default());
    rig.status(code(1), "busy");
    rig.status(code(1), "idle");
    assert!(rig.got().is_empty());
    assert_eq!(rig.driver.late(), Some(Instant::now() + IDLE_TIME));
    rig.reply(code(1), &json!({"status": "ok", "execution_count": 1}));
    assert_eq!(rig.got().last(), Some(&ended(1)), "a reply that comes is awaited no longer");
}

#[tokio::test]
async fn question_during_a_run_is_refused_at_once() {
    let mut rig = Rig::new(Dialect::Python).await;
    rig.run(1, Setup::default());
    rig.sent();
    let (sender, answer) = oneshot::channel();
    rig.driver.obey(Order::Ask(Question::Variables, sender));
    assert!(answer.await.is_err());
    assert!(rig.sent().is_empty(), "the kernel would answer after the run");
}

#[tokio::test]
async fn error_is_told_once() {
    let mut rig = Rig::new(Dialect::Python).await;
    let error = json!({"status": "error", "ename": "E", "evalue": "v"});
    rig.run(1, Setup::default());
    rig.publish(code(1), "error", &error);
    rig.reply(code(1), &error);
    assert_eq!(rig.got().iter().filter(|got| got.contains("Failure")).count(), 1);
    rig.status(code(1), "idle");
    rig.run(2, Setup::default());
    rig.reply(code(2), &error);
    rig.status(code(2), "idle");
    assert!(rig.got().iter().any(|got| got.contains("run: 2, kind: Error")));
    // The reply overtakes the output and the error, which come by another socket.
    rig.run(3, Setup::default());
    rig.reply(code(3), &error);
    rig.publish(code(3), "stream", &json!({"name": "stdout", "text": "before"}));
    rig.publish(code(3), "error", &error);
    rig.status(code(3), "idle");
    let got = rig.got();
    assert!(got[0].contains("before") && got[1].contains("Error") && got.len() == 3, "{got:?}");
}

#[tokio::test]
async fn silent_code_goes_around_the_users_in_one_write() {
    let mut rig = Rig::new(Dialect::Python).await;
    let envs = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
    rig.run(1, Setup { envs, ..Setup::default() });
    let requests = rig.requests.try_recv().unwrap();
    let text = String::from_utf8_lossy(&requests).into_owned();
    assert_eq!(text.matches("execute_request").count(), 3);
    let order = ["prologue.apply(", "\"code\":\"1\"", "prologue.restore()"];
    let places: Vec<usize> = order.iter().map(|part| text.find(part).unwrap()).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert!(rig.requests.try_recv().is_err());
    let before = Cause { run: 1, part: Part::Before };
    rig.publish(before, "execute_input", &json!({"execution_count": 9}));
    rig.publish(before, "error", &json!({"ename": "E", "evalue": "v"}));
    rig.reply(before, &json!({"status": "error"}));
    rig.status(before, "idle");
    let got = rig.got();
    assert!(got.len() == 1 && got[0].contains("variables could not be set: E: v"), "{got:?}");
}

#[tokio::test]
async fn first_interrupt_waits_for_the_users_code() {
    let mut rig = Rig::new(Dialect::Python).await;
    rig.driver.obey(Order::Interrupt(0));
    rig.run(1, Setup::default());
    rig.driver.obey(Order::Interrupt(0));
    assert_eq!(rig.sent(), ["execute_request"]);
    rig.status(code(1), "busy");
    assert_eq!(rig.sent(), ["kernel_info_request"]);
    let exit = tokio::time::timeout(Duration::from_secs(20), rig.process.end()).await.unwrap();
    assert_eq!(exit.status, crate::kernel::Status::Signal(libc::SIGINT));
}

#[tokio::test]
async fn adopted_run_ends_with_any_reply() {
    let mut rig = Rig::new(Dialect::Python).await;
    rig.driver.resume(7);
    assert_eq!(rig.sent(), ["kernel_info_request"]);
    rig.status(code(7), "busy");
    rig.publish(code(7), "stream", &json!({"name": "stdout", "text": "t"}));
    rig.status(code(7), "idle");
    assert_eq!(rig.got().len(), 1);
    rig.reply(Cause { run: 7, part: Part::Info }, &json!({}));
    assert_eq!(rig.got(), [ended(7)]);
}

#[tokio::test]
async fn line_of_java_comes_apart_from_its_end() {
    let mut rig = Rig::new(Dialect::Java).await;
    rig.run(1, Setup::default());
    for text in ["a\n", "\n", "b"] {
        rig.publish(code(1), "stream", &json!({"text": text}));
    }
    let texts = rig.got().join("");
    let found: Vec<&str> = texts.split("Text(Stdout, ").skip(1).collect();
    let starts = ["\"a\")", "\"\\n\")", "\"\\n\")", "\"b\")"];
    assert_eq!(found.len(), starts.len(), "{texts}");
    assert!(found.iter().zip(starts).all(|(text, start)| text.starts_with(start)), "{texts}");
}

#[tokio::test]
async fn questions_are_answered_by_their_replies() {
    let mut rig = Rig::new(Dialect::Python).await;
    let ask = |rig: &mut Rig, question| {
        let (sender, answer) = oneshot::channel();
        rig.driver.obey(Order::Ask(question, sender));
        answer
    };
    let complete = ask(&mut rig, Question::Complete { code: "a".into(), cursor: 1 });
    let variables = ask(&mut rig, Question::Variables);
    assert_eq!(rig.sent(), ["complete_request", "execute_request"]);
    let question = |number| Cause { run: 0, part: Part::Question(number) };
    let data = json!({"data": {"application/json": [{"name": "x"}]}, "status": "ok"});
    rig.reply(question(2), &json!({"status": "ok", "user_expressions": {"answer": data}}));
    assert_eq!(variables.await.unwrap(), json!([{"name": "x"}]));
    let content = json!({"matches": ["ab"], "cursor_start": 0, "cursor_end": 1, "status": "ok"});
    rig.driver.replied(&message(question(1), "complete_reply", &content));
    assert_eq!(complete.await.unwrap()["matches"], json!(["ab"]));
    rig.driver.dialect = Dialect::Other;
    assert!(ask(&mut rig, Question::Variables).await.is_err(), "no answer is there");
}
