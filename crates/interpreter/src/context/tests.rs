//! Tests of contexts over scripted kernels: order, interrupts, deadlines, deaths and orphans.

mod recovery;

use super::script::{Call, Handle, Script};
use super::*;
use crate::execution::Next;
use crate::kernel::{Exit, Failure, Kind, Memory, Saved, Status};
use crate::settings::Capsule;
use serde_json::json;
use tokio::time::Instant;

struct Bench {
    script: Script,
    services: Arc<Services>,
    context: Arc<Context>,
}

fn record(language: &str) -> Record {
    Record {
        id: Uuid::new_v4().to_string(),
        language: language.to_owned(),
        cwd: "~/x".to_owned(),
        folder: "/tmp".into(),
        default: false,
        pristine: true,
        executions: 0,
        kernel_id: String::new(),
        kernel: None,
        running: None,
    }
}

async fn bench_with(record: Record, script: Script) -> (Bench, Handle) {
    let services = script.services();
    let context = Context::new(&services, record);
    let mut bench = Bench { script, services, context };
    let kernel = bench.script.kernel().await;
    bench.context.started().await.unwrap();
    (bench, kernel)
}

async fn bench(language: &str) -> (Bench, Handle) {
    bench_with(record(language), Script::default()).await
}

fn request(code: &str) -> Request {
    Request {
        code: code.to_owned(),
        envs: BTreeMap::new(),
        timeout: None,
        options: Options::default(),
        by_id: false,
        _permit: None,
    }
}

fn by_id(code: &str) -> Request {
    Request { by_id: true, ..request(code) }
}

fn kept(code: &str) -> Request {
    Request { options: Options { keep: true, max_output: None }, ..request(code) }
}

fn interrupted() -> Kind {
    Kind::Error(Failure {
        name: "KeyboardInterrupt".to_owned(),
        value: String::new(),
        traceback: "line 3".to_owned(),
    })
}

/// Reads a stream to its end, without keepalives.
async fn read(mut stream: Subscription) -> Vec<Value> {
    let mut text = Vec::new();
    while let Next::Lines(lines) = stream.next().await {
        text.extend_from_slice(&lines);
    }
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let lines = lines.map(|line| serde_json::from_slice::<Value>(line).unwrap());
    lines.filter(|line| line["type"] != "keepalive").collect()
}

/// Reads the id of an execution from the first line of its stream.
async fn id_of(stream: &mut Subscription) -> String {
    let Next::Lines(lines) = stream.next().await else { panic!("the stream has no line") };
    let line: Value = serde_json::from_slice(lines.split(|b| *b == b'\n').next().unwrap()).unwrap();
    line["execution_id"].as_str().unwrap().to_owned()
}

fn types(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["type"].as_str().unwrap()).collect()
}

fn error(lines: &[Value]) -> &Value {
    lines.iter().find(|line| line["type"] == "error").unwrap()
}

#[tokio::test(start_paused = true)]
async fn executions_run_one_after_another_in_their_order() {
    let (bench, mut kernel) = bench("python").await;
    let first = bench.context.execute(request("a")).unwrap();
    let second = bench.context.execute(request("b")).unwrap();
    let run = kernel.run().await;
    assert_eq!((run.number, run.code.as_str()), (1, "a"));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(kernel.is_quiet(), "the second waits, and the first is not interrupted");
    assert_eq!(bench.context.view().await.state, Activity::Busy);
    kernel.say(1, Kind::Count(1));
    kernel.print(1, "hello");
    kernel.print(7, "of no execution");
    kernel.say(1, Kind::Ended);
    let lines = read(first).await;
    let wanted = ["execution_started", "number_of_executions", "stdout", "end_of_execution"];
    assert_eq!(types(&lines), wanted);
    assert_eq!(kernel.run().await.code, "b");
    kernel.say(2, Kind::Ended);
    assert_eq!(types(&read(second).await), ["execution_started", "end_of_execution"]);
    let view = bench.context.view().await;
    assert_eq!((view.state, view.executions), (Activity::Idle, 2));
    assert_eq!((view.memory_bytes, view.late_output.as_str()), (Some(5 << 20), "of no execution"));
    assert!(view.last_used.is_some());
}

#[tokio::test(start_paused = true)]
async fn execution_beyond_the_queue_is_refused() {
    let (bench, mut kernel) = bench("python").await;
    let first = bench.context.execute(request("a")).unwrap();
    kernel.run().await;
    let waiting: Vec<_> =
        (0..QUEUE_MAX).map(|_| bench.context.execute(request("b")).unwrap()).collect();
    let refused = bench.context.execute(request("c")).err().unwrap();
    assert_eq!(refused.status, 429);
    kernel.say(1, Kind::Ended);
    read(first).await;
    assert_eq!(kernel.run().await.code, "b");
    assert!(bench.context.execute(request("c")).is_ok(), "one has left the queue");
    drop(waiting);
}

#[tokio::test(start_paused = true)]
async fn client_that_leaves_the_queue_interrupts_nothing() {
    let (bench, mut kernel) = bench("python").await;
    let first = bench.context.execute(request("a")).unwrap();
    let second = bench.context.execute(request("b")).unwrap();
    let third = bench.context.execute(request("c")).unwrap();
    kernel.run().await;
    drop(second);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(kernel.is_quiet());
    kernel.say(1, Kind::Ended);
    read(first).await;
    assert_eq!(kernel.run().await.code, "c");
    kernel.say(2, Kind::Ended);
    read(third).await;
}

#[tokio::test(start_paused = true)]
async fn client_that_leaves_interrupts_its_run_each_second() {
    let (bench, mut kernel) = bench("python").await;
    let stream = bench.context.execute(request("a")).unwrap();
    kernel.run().await;
    let began = Instant::now();
    drop(stream);
    for round in 0..10 {
        assert_eq!(kernel.interrupt().await, round);
        assert_eq!(began.elapsed().as_secs(), u64::from(round));
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(kernel.is_quiet(), "nobody waits, so the kernel lives");
    kernel.say(1, Kind::Ended);
    let next = bench.context.execute(request("b")).unwrap();
    assert_eq!(kernel.run().await.number, 2);
    kernel.say(2, Kind::Ended);
    assert_eq!(types(&read(next).await), ["execution_started", "end_of_execution"]);
}

#[tokio::test(start_paused = true)]
async fn kernel_that_ignores_interrupts_is_killed_for_those_who_wait() {
    for named in [true, false] {
        let (mut bench, mut kernel) = bench("python").await;
        let stream = bench.context.execute(request("a")).unwrap();
        kernel.run().await;
        drop(stream);
        let began = Instant::now();
        let code = if named { by_id("b") } else { request("b") };
        let next = bench.context.execute(code).unwrap();
        let mut fresh = bench.script.kernel().await;
        assert_eq!(began.elapsed().as_secs(), 10);
        while !matches!(kernel.call().await, Call::Dropped) {}
        assert_ne!(fresh.spec.id, kernel.spec.id, "nothing of the killed one harms the new one");
        let run = fresh.run().await;
        assert_eq!((run.number, run.code.as_str()), (1, "b"));
        fresh.say(1, Kind::Ended);
        let lines = read(next).await;
        let told = if named {
            assert_eq!(lines[1]["name"], "ContextRestarted");
            &lines[1]["value"]
        } else {
            assert_eq!(lines[1]["type"], "stderr");
            &lines[1]["text"]
        };
        assert!(told.as_str().unwrap().contains("state is lost"), "{told}");
        assert_eq!(lines.len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn deadline_interrupts_and_ends_with_its_own_error() {
    let (bench, mut kernel) = bench("python").await;
    let limited = Request { timeout: Some(Duration::from_millis(1500)), ..request("a") };
    let stream = bench.context.execute(limited).unwrap();
    kernel.run().await;
    let began = Instant::now();
    assert_eq!(kernel.interrupt().await, 0);
    assert_eq!(began.elapsed().as_millis(), 1500);
    kernel.say(1, interrupted());
    kernel.say(1, Kind::Ended);
    let lines = read(stream).await;
    assert_eq!(types(&lines), ["execution_started", "error", "end_of_execution"]);
    assert_eq!(lines[1]["name"], "ExecutionTimeout");
    assert_eq!(lines[1]["value"], "the execution took longer than 1500 ms");
    assert_eq!(lines[1]["traceback"], "line 3");
}

#[tokio::test(start_paused = true)]
async fn deadline_of_code_that_ignores_it_ends_the_stream_and_not_the_kernel() {
    let (bench, mut kernel) = bench("python").await;
    let limited = Request { timeout: Some(Duration::from_secs(1)), ..request("a") };
    let stream = bench.context.execute(limited).unwrap();
    kernel.run().await;
    let began = Instant::now();
    let lines = read(stream).await;
    assert_eq!(began.elapsed().as_secs(), 11);
    assert!(error(&lines)["value"].as_str().unwrap().contains("does not react"));
    let view = bench.context.view().await;
    assert_eq!(view.state, Activity::Busy);
    kernel.print(1, "afterwards");
    kernel.say(1, Kind::Ended);
    while bench.context.view().await.state == Activity::Busy {}
    assert_eq!(bench.context.view().await.late_output, "afterwards");
    let next = bench.context.execute(request("b")).unwrap();
    while !matches!(kernel.call().await, Call::Run(_)) {}
    kernel.say(2, Kind::Ended);
    assert_eq!(read(next).await.len(), 2, "the state lives, so there is nothing to tell");
}

#[tokio::test(start_paused = true)]
async fn death_is_told_with_its_reason_and_the_context_lives_on() {
    let memory = Some(Memory { peak: 100 << 20, limit: 200 << 20 });
    let oom = Exit { status: Status::Signal(9), out_of_memory: memory };
    let signal = Exit { status: Status::Signal(11), out_of_memory: None };
    for (exit, name, words) in
        [(oom, "OutOfMemory", "100 of the 200 MiB"), (signal, "KernelDied", "signal 11")]
    {
        let (mut bench, mut kernel) = bench("python").await;
        let stream = bench.context.execute(by_id("a")).unwrap();
        kernel.run().await;
        kernel.say(1, Kind::Count(1));
        kernel.exit(exit);
        let lines = read(stream).await;
        assert_eq!(error(&lines)["name"], name);
        assert!(error(&lines)["value"].as_str().unwrap().contains(words));
        assert_eq!(lines.last().unwrap()["type"], "end_of_execution");
        let mut fresh = bench.script.kernel().await;
        assert_eq!((&fresh.spec.cwd, &fresh.spec.envs), (&kernel.spec.cwd, &kernel.spec.envs));
        let next = bench.context.execute(by_id("b")).unwrap();
        assert_eq!(fresh.run().await.number, 1);
        fresh.say(1, Kind::Ended);
        assert_eq!(read(next).await.len(), 2, "the death was told already");
    }
}

#[tokio::test(start_paused = true)]
async fn code_that_quits_its_kernel_has_no_error_and_the_next_code_runs() {
    let (mut bench, mut kernel) = bench("python").await;
    let quits = bench.context.execute(request("quit()")).unwrap();
    kernel.run().await;
    kernel.say(1, Kind::Count(1));
    kernel.say(1, Kind::Ended);
    let wanted = ["execution_started", "number_of_executions", "end_of_execution"];
    assert_eq!(types(&read(quits).await), wanted);
    // The next execution reaches the kernel that is about to end.
    let next = bench.context.execute(by_id("b")).unwrap();
    kernel.run().await;
    kernel.die(Status::Code(0));
    let mut fresh = bench.script.kernel().await;
    assert_eq!(fresh.run().await.code, "b");
    fresh.say(1, Kind::Ended);
    assert_eq!(types(&read(next).await), ["execution_started", "end_of_execution"]);
    assert_eq!(bench.context.view().await.executions, 1);
}

#[tokio::test(start_paused = true)]
async fn code_that_kills_every_kernel_runs_twice_at_most() {
    let (mut bench, mut kernel) = bench("python").await;
    let stream = bench.context.execute(request("a")).unwrap();
    kernel.run().await;
    kernel.die(Status::Code(0));
    let mut fresh = bench.script.kernel().await;
    fresh.run().await;
    fresh.die(Status::Code(0));
    assert_eq!(read(stream).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn death_while_idle_is_told_to_the_next_execution() {
    let (mut bench, mut kernel) = bench("python").await;
    let first = bench.context.execute(request("a")).unwrap();
    kernel.run().await;
    kernel.say(1, Kind::Ended);
    read(first).await;
    kernel.die(Status::Signal(9));
    let mut fresh = bench.script.kernel().await;
    let next = bench.context.execute(by_id("b")).unwrap();
    fresh.run().await;
    fresh.say(1, Kind::Ended);
    let lines = read(next).await;
    assert_eq!(error(&lines)["name"], "KernelDied");
    assert!(error(&lines)["value"].as_str().unwrap().contains("signal 9"));
}

#[tokio::test(start_paused = true)]
async fn kernel_that_dies_at_once_is_not_started_for_ever() {
    let (mut bench, kernel) = bench("python").await;
    kernel.die(Status::Signal(6));
    while bench.context.view().await.state != Activity::Dead {}
    let next = bench.context.execute(request("b")).unwrap();
    let mut fresh = bench.script.kernel().await;
    fresh.run().await;
    fresh.say(1, Kind::Ended);
    assert_eq!(read(next).await.len(), 2, "no state is lost that anybody had");
}

#[tokio::test(start_paused = true)]
async fn orphan_goes_on_and_yields_to_an_execution_with_a_client() {
    let (bench, mut kernel) = bench("python").await;
    let mut owner = bench.context.execute(kept("a")).unwrap();
    let id = id_of(&mut owner).await;
    kernel.run().await;
    drop(owner);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(kernel.is_quiet());
    kernel.print(1, "on");
    let next = bench.context.execute(request("b")).unwrap();
    assert_eq!(kernel.interrupt().await, 0);
    kernel.say(1, interrupted());
    kernel.say(1, Kind::Ended);
    let execution = bench.services.executions.find(&id).unwrap();
    let lines = read(bench.services.executions.attach(&execution, 1).unwrap()).await;
    assert_eq!(types(&lines), ["stdout", "error", "end_of_execution"]);
    assert_eq!(kernel.run().await.code, "b");
    kernel.say(2, Kind::Ended);
    read(next).await;
}

#[tokio::test(start_paused = true)]
async fn orphan_with_an_attached_client_does_not_yield() {
    let (bench, mut kernel) = bench("python").await;
    let mut owner = bench.context.execute(kept("a")).unwrap();
    let id = id_of(&mut owner).await;
    kernel.run().await;
    drop(owner);
    let execution = bench.services.executions.find(&id).unwrap();
    let attached = bench.services.executions.attach(&execution, 0).unwrap();
    let _next = bench.context.execute(request("b")).unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(kernel.is_quiet());
    drop(attached);
    assert_eq!(kernel.interrupt().await, 0);
}

#[tokio::test(start_paused = true)]
async fn cut_streams_interrupt_neither_the_run_nor_those_who_wait() {
    let (bench, mut kernel) = bench("python").await;
    let mut streams = Vec::new();
    for code in ["a", "b"] {
        let stream = bench.context.execute(request(code)).unwrap();
        streams.push(tokio::spawn(read(stream)));
    }
    kernel.run().await;
    bench.services.executions.cut().await;
    for stream in streams {
        assert_eq!(types(&stream.await.unwrap()), ["execution_started"]);
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(kernel.is_quiet());
    kernel.say(1, Kind::Ended);
    assert_eq!(kernel.run().await.code, "b");
}

#[tokio::test(start_paused = true)]
async fn slow_client_holds_the_kernel_and_an_interrupt_lets_it_go() {
    let (bench, mut kernel) = bench("python").await;
    let stream = bench.context.execute(request("a")).unwrap();
    kernel.run().await;
    kernel.print(1, &"x".repeat(5 << 20));
    assert!(matches!(kernel.call().await, Call::Hold(true)));
    assert!(bench.context.interrupt(None).await.unwrap());
    assert!(matches!(kernel.call().await, Call::Hold(false)));
    assert_eq!(kernel.interrupt().await, 0);
    assert!(matches!(kernel.call().await, Call::Hold(true)), "the client is still behind");
    drop(stream);
    assert!(matches!(kernel.call().await, Call::Hold(false)));
}

#[tokio::test(start_paused = true)]
async fn held_kernel_goes_on_once_its_client_has_read() {
    let (bench, mut kernel) = bench("python").await;
    let stream = bench.context.execute(request("a")).unwrap();
    kernel.run().await;
    kernel.print(1, &"x".repeat(5 << 20));
    assert!(matches!(kernel.call().await, Call::Hold(true)));
    let reader = tokio::spawn(read(stream));
    assert!(matches!(kernel.call().await, Call::Hold(false)));
    kernel.say(1, Kind::Ended);
    let lines = reader.await.unwrap();
    let text: usize = lines.iter().filter_map(|line| line["text"].as_str()).map(str::len).sum();
    assert_eq!(text, 5 << 20);
}

#[tokio::test(start_paused = true)]
async fn kernel_hears_of_variables_when_they_changed_and_of_seeds_while_pristine() {
    let (bench, mut kernel) = bench("python").await;
    bench.context.seed([7; SEED]).await;
    let envs = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
    bench.services.set_capsule(Capsule { envs: envs.clone(), ..Capsule::default() });
    let own = BTreeMap::from([("B".to_owned(), "it's\n".to_owned())]);
    let first = bench.context.execute(Request { envs: own.clone(), ..request("a") }).unwrap();
    let setup = kernel.run().await.setup;
    assert_eq!((setup.capsule.as_deref(), &setup.envs), (Some(&envs), &own));
    let seed = setup.seed.unwrap();
    assert!(seed[16..] == [7; 16] && seed[..16] != [7; 16], "each context has a seed of its own");
    kernel.say(1, Kind::Ended);
    read(first).await;
    bench.context.seed([8; SEED]).await;
    let second = bench.context.execute(request("b")).unwrap();
    let setup = kernel.run().await.setup;
    assert!(setup.capsule.is_none() && setup.envs.is_empty() && setup.seed.is_none());
    kernel.say(2, Kind::Ended);
    read(second).await;
}

#[tokio::test(start_paused = true)]
async fn restart_ends_executions_and_applies_folder_and_variables_again() {
    let (mut bench, mut kernel) = bench("python").await;
    let running = bench.context.execute(request("a")).unwrap();
    let waiting = bench.context.execute(request("b")).unwrap();
    kernel.run().await;
    let envs = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
    bench.services.set_capsule(Capsule { envs, ..Capsule::default() });
    bench.context.restart(false).await.unwrap();
    for stream in [running, waiting] {
        let lines = read(stream).await;
        assert_eq!(error(&lines)["name"], "ContextRestarting");
        assert_eq!(error(&lines)["value"], "Context was restarted");
    }
    let mut fresh = bench.script.kernel().await;
    assert_eq!((&fresh.spec.cwd, &*fresh.spec.envs["A"]), (&kernel.spec.cwd, "1"));
    let next = bench.context.execute(by_id("c")).unwrap();
    assert!(fresh.run().await.setup.capsule.is_none(), "the process began with them");
    fresh.say(1, Kind::Ended);
    assert_eq!(read(next).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn failed_start_is_told_and_the_next_execution_tries_again() {
    let mut script = Script::default();
    script.fail_next("no program");
    let services = script.services();
    let context = Context::new(&services, record("python"));
    let refused = context.started().await.unwrap_err();
    assert_eq!(refused.status, 500);
    assert!(refused.text.contains("no program"));
    assert_eq!(context.view().await.state, Activity::Dead);
    script.fail_next("still none");
    let lines = read(context.execute(request("a")).unwrap()).await;
    assert_eq!(error(&lines)["name"], "KernelDied");
    assert!(error(&lines)["value"].as_str().unwrap().contains("still none"));
    let next = context.execute(request("b")).unwrap();
    let mut kernel = script.kernel().await;
    assert_eq!(kernel.run().await.code, "b");
    kernel.say(1, Kind::Ended);
    assert_eq!(types(&read(next).await), ["execution_started", "end_of_execution"]);
}

#[tokio::test(start_paused = true)]
async fn job_whose_client_left_first_never_runs() {
    let (bench, mut kernel) = bench("python").await;
    drop(bench.context.execute(request("a")).unwrap());
    let next = bench.context.execute(request("b")).unwrap();
    assert_eq!(kernel.run().await.code, "b");
    kernel.say(1, Kind::Ended);
    read(next).await;
}

#[tokio::test(start_paused = true)]
async fn line_of_java_and_its_end_are_two_texts() {
    for (language, texts) in [("java", vec!["Hello", "\n"]), ("python", vec!["Hello\n"])] {
        let (bench, mut kernel) = bench(language).await;
        let stream = bench.context.execute(request("a")).unwrap();
        kernel.run().await;
        kernel.print(1, "Hello\n");
        kernel.say(1, Kind::Ended);
        let lines = read(stream).await;
        let got: Vec<&str> = lines.iter().filter_map(|line| line["text"].as_str()).collect();
        assert_eq!(got, texts);
    }
}

#[tokio::test(start_paused = true)]
async fn interrupt_of_a_waiting_execution_drops_it_alone() {
    let (bench, mut kernel) = bench("python").await;
    let _first = bench.context.execute(request("a")).unwrap();
    kernel.run().await;
    let mut second = bench.context.execute(request("b")).unwrap();
    let id = id_of(&mut second).await;
    assert!(bench.context.interrupt(Some(id)).await.unwrap());
    assert!(!bench.context.interrupt(Some("unknown".to_owned())).await.unwrap());
    assert_eq!(error(&read(second).await)["name"], "ExecutionAborted");
    assert!(kernel.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn questions_get_the_kernels_answer_or_a_refusal() {
    let (bench, _kernel) = bench("python").await;
    let question = Question::Complete { code: "pri".to_owned(), cursor: 3 };
    let answer = bench.context.ask(question).await.unwrap();
    assert_eq!(answer, json!({"matches": ["pri"], "cursor_end": 3}));
    let refused = bench.context.ask(Question::Variables).await.unwrap_err();
    assert_eq!(refused.status, 501);
}

#[tokio::test(start_paused = true)]
async fn removed_context_ends_its_executions_and_its_kernel() {
    let (bench, mut kernel) = bench("python").await;
    let stream = bench.context.execute(request("a")).unwrap();
    kernel.run().await;
    bench.context.remove().await;
    assert_eq!(error(&read(stream).await)["name"], "ContextRemoved");
    assert!(matches!(kernel.call().await, Call::Dropped));
    assert_eq!(bench.context.execute(request("b")).err().unwrap().status, 404);
    assert!(crate::state::State::open(bench.script.dir.path()).1.is_empty());
}

#[tokio::test(start_paused = true)]
async fn requests_after_a_removal_end_with_it() {
    let (bench, _kernel) = bench("python").await;
    bench.script.hang_next();
    let context = Arc::clone(&bench.context);
    let restart = tokio::spawn(async move { context.restart(false).await });
    tokio::task::yield_now().await;
    bench.context.remove().await;
    // The task of the context has not seen the removal yet.
    let stream = bench.context.execute(request("b")).unwrap();
    assert_eq!(error(&read(stream).await)["name"], "ContextRemoved");
    assert_eq!(restart.await.unwrap().unwrap_err().status, 404);
}
