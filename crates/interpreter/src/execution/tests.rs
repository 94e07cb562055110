//! Tests of executions with their clients.

use super::*;
use serde_json::{Value, json};
use std::time::Duration;

fn execution(options: Options) -> (Arc<Execution>, mpsc::UnboundedReceiver<Signal>) {
    let (signals, heard) = mpsc::unbounded_channel();
    (Execution::new("e".to_owned(), "c", options, signals), heard)
}

/// Reads a stream to its end. Returns its lines and its last part.
async fn read(subscription: &mut Subscription) -> (Vec<Value>, Next) {
    let mut text = Vec::new();
    loop {
        match subscription.next().await {
            Next::Lines(lines) => text.extend_from_slice(&lines),
            last @ (Next::Cut | Next::Ended) => {
                assert!(text.is_empty() || text.ends_with(b"\n"));
                let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                return (lines.map(|line| serde_json::from_slice(line).unwrap()).collect(), last);
            }
        }
    }
}

fn types(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["type"].as_str().unwrap()).collect()
}

fn failure() -> Failure {
    Failure { name: "E".to_owned(), value: "v".to_owned(), traceback: "t".to_owned() }
}

#[tokio::test]
async fn stream_has_every_line_from_start_to_end() {
    let (execution, mut heard) = execution(Options::default());
    let all = Executions::new();
    let mut stream = all.own(&execution);
    execution.count(1);
    execution.text(Stream::Stdout, "a\n").await;
    let Value::Object(data) = json!({"text/plain": "1"}) else { panic!("no object") };
    execution.data(Bundle { main: true, data });
    execution.fail(&failure());
    execution.end();
    execution.end();
    execution.text(Stream::Stdout, "late").await;
    let (lines, last) = read(&mut stream).await;
    let wanted = [
        "execution_started",
        "number_of_executions",
        "stdout",
        "result",
        "error",
        "end_of_execution",
    ];
    assert_eq!((types(&lines), last), (wanted.to_vec(), Next::Ended));
    assert_eq!(lines[0]["execution_id"], "e");
    assert_eq!(lines[0]["context_id"], "c");
    drop(stream);
    assert!(heard.try_recv().is_err(), "a stream that ended has no client that left");
}

#[tokio::test]
async fn long_text_is_several_lines_of_limited_length() {
    let (execution, _heard) = execution(Options::default());
    let all = Executions::new();
    let mut stream = all.own(&execution);
    let text = "\u{1F600}".repeat(50_000);
    execution.text(Stream::Stdout, &text).await;
    execution.end();
    let (lines, _) = read(&mut stream).await;
    let parts: Vec<&str> = lines.iter().filter_map(|line| line["text"].as_str()).collect();
    assert!(parts.len() == 4 && parts.iter().all(|part| part.len() <= line::TEXT_MAX));
    assert_eq!(parts.concat(), text);
}

#[tokio::test]
async fn limited_output_keeps_head_and_tail_around_the_missing_size() {
    let (execution, _heard) = execution(Options { keep: false, max_output: Some(6) });
    let all = Executions::new();
    let mut stream = all.own(&execution);
    execution.text(Stream::Stdout, "abcdefghij").await;
    execution.text(Stream::Stderr, "k").await;
    execution.fail(&failure());
    execution.end();
    let (lines, _) = read(&mut stream).await;
    let wanted =
        ["execution_started", "stdout", "omitted", "stdout", "stderr", "error", "end_of_execution"];
    assert_eq!(types(&lines), wanted);
    assert_eq!(lines[1]["text"], "abc");
    assert_eq!(lines[2], json!({"type": "omitted", "bytes": 5}));
    assert_eq!(lines[3]["text"], "ij");
    assert_eq!(lines[4]["text"], "k");
}

#[tokio::test(start_paused = true)]
async fn silent_stream_has_a_keepalive_each_five_seconds() {
    let (execution, _heard) = execution(Options::default());
    let all = Executions::new();
    let mut stream = all.own(&execution);
    assert!(matches!(stream.next().await, Next::Lines(_)));
    let began = Instant::now();
    for round in 1..=3 {
        assert_eq!(stream.next().await, Next::Lines("{\"type\":\"keepalive\"}\n".into()));
        assert_eq!(began.elapsed().as_secs(), 5 * round);
    }
}

#[tokio::test]
async fn client_that_leaves_is_told_unless_the_execution_is_kept() {
    let (alone, gone) = (Signal::Alone("e".to_owned()), Signal::Gone("e".to_owned()));
    for (keep, told) in [(false, &gone), (true, &alone)] {
        let (execution, mut heard) = execution(Options { keep, max_output: None });
        let all = Executions::new();
        drop(all.attach(&execution, 0).unwrap());
        assert_eq!(heard.try_recv().unwrap(), alone, "only the owner's leaving is more");
        let owner = all.own(&execution);
        drop(all.attach(&execution, 0).unwrap());
        assert!(heard.try_recv().is_err());
        drop(owner);
        assert_eq!(heard.try_recv().unwrap(), *told);
    }
}

#[tokio::test]
async fn cut_stream_does_not_end_and_has_no_client_that_left() {
    let (execution, mut heard) = execution(Options::default());
    let all = Arc::new(Executions::new());
    let mut stream = all.own(&execution);
    let reader = tokio::spawn(async move { read(&mut stream).await });
    tokio::task::yield_now().await;
    all.cut().await;
    let (lines, last) = reader.await.unwrap();
    assert_eq!((types(&lines), last), (vec!["execution_started"], Next::Cut));
    assert_eq!(heard.try_recv().unwrap(), Signal::Alone("e".to_owned()));
    // A stream that begins after the cut is whole.
    execution.end();
    let (lines, last) = read(&mut all.attach(&execution, 1).unwrap()).await;
    assert_eq!((types(&lines), last), (vec!["end_of_execution"], Next::Ended));
}

#[tokio::test(start_paused = true)]
async fn client_that_reads_nothing_has_not_left_when_its_stream_is_cut() {
    let (execution, mut heard) = execution(Options::default());
    let all = Executions::new();
    let stream = all.own(&execution);
    all.insert(Arc::clone(&execution));
    execution.text(Stream::Stdout, &"x".repeat(5 << 20)).await;
    assert_eq!(heard.try_recv().unwrap(), Signal::Hold("e".to_owned(), true));
    all.cut().await;
    assert!(!execution.has_client(), "the stream is still open, and counts no more");
    assert_eq!(heard.try_recv().unwrap(), Signal::Hold("e".to_owned(), false));
    assert_eq!(heard.try_recv().unwrap(), Signal::Alone("e".to_owned()));
    drop(stream);
    assert_eq!(heard.try_recv().unwrap(), Signal::Alone("e".to_owned()));
    assert!(!execution.is_gone());
}

#[tokio::test]
async fn client_that_attaches_late_is_told_the_dropped_lines_first() {
    let (execution, _heard) = execution(Options::default());
    let all = Executions::new();
    for _ in 0..100 {
        execution.text(Stream::Stdout, &"x".repeat(64 << 10)).await;
    }
    execution.end();
    let (lines, _) = read(&mut all.attach(&execution, 1).unwrap()).await;
    assert_eq!(lines[0]["type"], "omitted");
    let gone = lines[0]["lines"].as_u64().unwrap();
    assert!(lines[0]["bytes"].as_u64().unwrap() >= (gone - 1) << 16);
    assert_eq!(1 + gone + lines.len() as u64 - 1, 102, "lines that are gone, and the rest");
}

#[tokio::test]
async fn slow_client_holds_the_kernel_until_it_reads_or_leaves() {
    let (execution, mut heard) = execution(Options { keep: true, max_output: None });
    let all = Executions::new();
    let mut stream = all.own(&execution);
    for _ in 0..70 {
        execution.text(Stream::Stdout, &"x".repeat(64 << 10)).await;
    }
    assert!(execution.is_held());
    assert_eq!(heard.try_recv().unwrap(), Signal::Hold("e".to_owned(), true));
    while execution.is_held() {
        assert!(matches!(stream.next().await, Next::Lines(_)));
    }
    assert_eq!(heard.try_recv().unwrap(), Signal::Hold("e".to_owned(), false));
    for _ in 0..70 {
        execution.text(Stream::Stdout, &"x".repeat(64 << 10)).await;
    }
    assert_eq!(heard.try_recv().unwrap(), Signal::Hold("e".to_owned(), true));
    drop(stream);
    assert_eq!(heard.try_recv().unwrap(), Signal::Hold("e".to_owned(), false));
    assert_eq!(heard.try_recv().unwrap(), Signal::Alone("e".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn ended_executions_are_forgotten_by_age_count_and_size() {
    let all = Executions::new();
    let add = |id: String, ends: bool| {
        let execution = Execution::new(id, "c", Options::default(), mpsc::unbounded_channel().0);
        if ends {
            execution.end();
        }
        all.insert(Arc::clone(&execution));
        execution
    };
    add("running".to_owned(), false);
    for number in 0..100 {
        add(number.to_string(), true);
    }
    assert!(all.find("0").is_none() && all.find("35").is_none());
    assert!(all.find("36").is_some() && all.find("99").is_some() && all.find("running").is_some());
    for number in 0..6 {
        let large = add(format!("large {number}"), false);
        large.text(Stream::Stdout, &"x".repeat(5 << 20)).await;
        large.end();
    }
    all.forget(Instant::now());
    assert!(all.find("large 0").is_none() && all.find("99").is_none());
    assert!(all.find("large 5").is_some() && all.find("running").is_some());
    tokio::time::advance(Duration::from_secs(601)).await;
    all.forget(Instant::now());
    assert!(all.find("large 5").is_none() && all.find("running").is_some());
}
