//! Tests of traces without an exporter.

use super::*;

const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn valid_header_is_read_and_written_unchanged() {
    for text in [GIVEN, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"] {
        assert_eq!(TraceParent::parse(text).unwrap().to_string(), text);
    }
    let given = TraceParent::parse(GIVEN).unwrap();
    assert_eq!(given.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(given.parts().1, 0x00f0_67aa_0ba9_02b7);
}

#[test]
fn later_version_with_further_fields_is_read_as_version_0() {
    let later = format!("cc{}-what-the-future-knows", &GIVEN[2..]);
    assert_eq!(TraceParent::parse(&later).unwrap().to_string(), GIVEN);
    let flags = TraceParent::parse(&format!("{}ff", &GIVEN[..53])).unwrap();
    assert_eq!(flags.to_string(), GIVEN, "unknown flags are not passed on");
}

#[test]
fn malformed_header_is_refused() {
    let replaced = |from: &str, to: &str| GIVEN.replacen(from, to, 1);
    for text in [
        String::new(),
        "00".to_owned(),
        GIVEN[..54].to_owned(),
        format!("{GIVEN}-more"),
        format!("{GIVEN} "),
        replaced("00-", "ff-"),
        replaced("00-", "0g-"),
        replaced("4bf9", "4BF9"),
        replaced("4bf9", "+bf9"),
        replaced("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
        replaced("00f067aa0ba902b7", &"0".repeat(16)),
        replaced("4bf92f35", "4bf92f3-"),
        replaced("-01", "_01"),
        format!("{}é", &GIVEN[..54]),
        "é".repeat(40),
    ] {
        assert_eq!(TraceParent::parse(&text), None, "{text}");
    }
}

#[test]
fn new_traces_differ_and_are_valid() {
    let (one, two) = (TraceParent::random(), TraceParent::random());
    assert_ne!(one.trace_id(), two.trace_id());
    assert_eq!(TraceParent::parse(&one.to_string()), Some(one));
}

#[tokio::test]
async fn work_of_a_request_knows_its_trace_and_other_work_knows_none() {
    assert_eq!(TraceParent::current(), None);
    let given = TraceParent::parse(GIVEN);
    let trace = Trace::begin("GET /v1/capsules", given);
    trace.scope(async { assert_eq!(TraceParent::current(), given) }).await;
    assert_eq!(TraceParent::current(), None);
}

#[tokio::test]
async fn detached_work_keeps_the_trace_and_a_spawned_task_has_none() {
    let tasks = crate::Tasks::default();
    let given = TraceParent::parse(GIVEN);
    let work = async {
        let detached = tasks.detached(async { TraceParent::current() }).await;
        assert_eq!(detached, Some(given));
        let (sender, receiver) = tokio::sync::oneshot::channel();
        tasks.spawn(async {
            let _ = sender.send(TraceParent::current());
        });
        assert_eq!(receiver.await.unwrap(), None);
    };
    Trace::begin("GET /v1/capsules", given).scope(work).await;
    tasks.finish().await;
}

#[tokio::test]
async fn stage_returns_the_result_of_its_work() {
    let done: Result<u8, &str> = stage("wrenn_test_seconds", "one", async { Ok(1) }).await;
    assert_eq!(done, Ok(1));
    let failed: Result<u8, &str> =
        operation("wrenn_test_seconds", "two", async { Err("it fails") }).await;
    assert_eq!(failed, Err("it fails"));
}
