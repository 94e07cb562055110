//! Tests of contexts after a crash or a planned end of the interpreter.

use super::*;

#[tokio::test(start_paused = true)]
async fn state_file_names_the_run_before_the_kernel_gets_it() {
    let (bench, mut kernel) = bench("python").await;
    let mut stream = bench.context.execute(kept("a")).unwrap();
    let id = id_of(&mut stream).await;
    kernel.run().await;
    let (_, records) = crate::state::State::open(bench.script.dir.path());
    assert_eq!(records[0].running.as_ref(), Some(&id));
    assert_eq!(records[0].kernel.as_ref().unwrap().run, 1);
    assert!(!records[0].pristine);
    kernel.say(1, Kind::Ended);
    read(stream).await;
    let (_, records) = crate::state::State::open(bench.script.dir.path());
    assert!(records[0].running.is_none());
}

fn crashed(run: u64) -> Record {
    let driver = json!("d");
    Record {
        pristine: false,
        executions: run,
        kernel_id: "k".to_owned(),
        kernel: Some(Saved { pid: 1, started: 2, group: None, run, driver }),
        running: Some("e".to_owned()),
        ..record("python")
    }
}

#[tokio::test(start_paused = true)]
async fn kernel_of_an_earlier_interpreter_goes_on_with_its_execution() {
    let (bench, mut kernel) = bench_with(crashed(4), Script::default()).await;
    assert_eq!(kernel.spec.id, "k");
    assert_eq!(kernel.adopted.as_ref().unwrap().run, 4);
    assert_eq!(bench.context.view().await.state, Activity::Busy);
    let execution = bench.services.executions.find("e").unwrap();
    let attached = bench.services.executions.attach(&execution, 1).unwrap();
    kernel.print(4, "on");
    kernel.say(4, Kind::Ended);
    assert_eq!(types(&read(attached).await), ["stdout", "end_of_execution"]);
    let next = bench.context.execute(by_id("b")).unwrap();
    let run = kernel.run().await;
    assert_eq!(run.number, 5);
    assert!(run.setup.capsule.is_some(), "the variables may have changed meanwhile");
    kernel.say(5, Kind::Ended);
    assert_eq!(read(next).await.len(), 2, "no state is lost");
}

#[tokio::test(start_paused = true)]
async fn kernel_that_is_not_found_again_is_replaced_and_the_loss_is_told() {
    let script = Script::default();
    script.fail_next("it is gone");
    let (bench, mut kernel) = bench_with(crashed(4), script).await;
    assert!(kernel.adopted.is_none());
    let execution = bench.services.executions.find("e").unwrap();
    let lines = read(bench.services.executions.attach(&execution, 0).unwrap()).await;
    assert_eq!(error(&lines)["name"], "ContextRestarted");
    let next = bench.context.execute(by_id("b")).unwrap();
    assert_eq!(kernel.run().await.number, 1);
    kernel.say(1, Kind::Ended);
    assert_eq!(error(&read(next).await)["name"], "ContextRestarted");
}

#[tokio::test(start_paused = true)]
async fn released_kernel_stays_in_the_state_file() {
    let (bench, mut kernel) = bench("python").await;
    bench.context.release().await;
    assert!(matches!(kernel.call().await, Call::Released));
    let (_, records) = crate::state::State::open(bench.script.dir.path());
    assert!(records[0].kernel.is_some());
}
