//! Tests with subscribers that read, that do not read, and that come late.

use super::*;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use tokio::time::timeout;

/// Time far longer than any test takes.
const LIMIT: Duration = Duration::from_secs(60);
const SIZE: usize = 32 * 1024;
/// A number of pieces larger than a buffer holds.
const MANY: usize = 2 * BEHIND / SIZE;

fn exit() -> Exit {
    Exit::from(Ok(ExitStatus::from_raw(0)))
}

fn hub(patience: Duration) -> Arc<Hub> {
    let mut hub = Hub::new(Arc::default());
    hub.patience = patience;
    Arc::new(hub)
}

fn piece(number: usize) -> Bytes {
    Bytes::from(vec![u8::try_from(number % 256).unwrap(); SIZE])
}

/// Publishes many pieces, on a task of its own.
fn flood(hub: &Arc<Hub>) -> tokio::task::JoinHandle<()> {
    let hub = Arc::clone(hub);
    tokio::spawn(async move {
        for number in 0..MANY {
            hub.publish(Output::Stdout, piece(number)).await;
        }
    })
}

/// Takes `count` pieces and checks that they are the pieces from `first` on.
async fn read(subscription: &mut Subscription, first: usize, count: usize) {
    for number in first..first + count {
        let event = timeout(LIMIT, subscription.next()).await.unwrap();
        let Some(Ok(Event::Data(Output::Stdout, data))) = event else { panic!("{event:?}") };
        assert_eq!(data, piece(number), "piece {number}");
    }
}

async fn read_end(subscription: &mut Subscription) {
    let event = timeout(LIMIT, subscription.next()).await.unwrap();
    assert!(matches!(event, Some(Ok(Event::End(ref end))) if *end == exit()), "{event:?}");
    assert!(timeout(LIMIT, subscription.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn every_subscriber_gets_all_output_and_a_late_one_the_end() {
    let hub = hub(LIMIT);
    let (mut a, mut b) = (hub.subscribe().unwrap(), hub.subscribe().unwrap());
    hub.publish(Output::Stdout, piece(0)).await;
    hub.end(&exit());
    for subscription in [&mut a, &mut b] {
        read(subscription, 0, 1).await;
        read_end(subscription).await;
    }
    read_end(&mut hub.subscribe().unwrap()).await;
}

#[tokio::test]
async fn dropped_subscriber_does_not_block_output() {
    let hub = hub(LIMIT);
    drop(hub.subscribe().unwrap());
    timeout(LIMIT, flood(&hub)).await.unwrap().unwrap();
    let stuck = hub.subscribe().unwrap();
    let publishing = flood(&hub);
    while hub.behind.load(Ordering::Relaxed) < BEHIND {
        tokio::task::yield_now().await;
    }
    drop(stuck);
    timeout(LIMIT, publishing).await.unwrap().unwrap();
    assert_eq!(hub.behind.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn stuck_subscriber_beside_a_reading_one_is_dropped() {
    let hub = hub(Duration::from_millis(20));
    let (mut stuck, mut reader) = (hub.subscribe().unwrap(), hub.subscribe().unwrap());
    let publishing = flood(&hub);
    read(&mut reader, 0, MANY).await;
    timeout(LIMIT, publishing).await.unwrap().unwrap();
    let error = timeout(LIMIT, stuck.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    assert!(stuck.next().await.is_none());
    assert_eq!(hub.behind.load(Ordering::Relaxed), 0);
    hub.end(&exit());
    read_end(&mut reader).await;
}

#[tokio::test]
async fn only_subscriber_applies_backpressure_and_loses_nothing() {
    let hub = hub(Duration::ZERO);
    let mut only = hub.subscribe().unwrap();
    let publishing = flood(&hub);
    while hub.behind.load(Ordering::Relaxed) < BEHIND {
        tokio::task::yield_now().await;
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!publishing.is_finished());
    assert!(hub.behind.load(Ordering::Relaxed) < BEHIND + SIZE + PIECE);
    read(&mut only, 0, MANY).await;
    timeout(LIMIT, publishing).await.unwrap().unwrap();
}

#[tokio::test]
async fn subscriber_that_joins_a_stuck_one_gets_the_output() {
    let hub = hub(Duration::ZERO);
    let mut stuck = hub.subscribe().unwrap();
    let publishing = flood(&hub);
    while hub.behind.load(Ordering::Relaxed) < BEHIND {
        tokio::task::yield_now().await;
    }
    let mut joined = hub.subscribe().unwrap();
    let event = timeout(LIMIT, joined.next()).await.unwrap();
    assert!(matches!(event, Some(Ok(Event::Data(Output::Stdout, _)))), "{event:?}");
    let error = timeout(LIMIT, stuck.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    drop(joined);
    timeout(LIMIT, publishing).await.unwrap().unwrap();
}

#[tokio::test]
async fn program_end_is_published_while_a_subscriber_is_stuck() {
    let hub = hub(LIMIT);
    let (mut stuck, mut other) = (hub.subscribe().unwrap(), hub.subscribe().unwrap());
    let publishing = flood(&hub);
    while hub.behind.load(Ordering::Relaxed) < 2 * BEHIND {
        tokio::task::yield_now().await;
    }
    assert!(!publishing.is_finished());
    hub.release();
    timeout(LIMIT, publishing).await.unwrap().unwrap();
    hub.end(&exit());
    assert!(hub.ended());
    for subscription in [&mut other, &mut stuck] {
        read(subscription, 0, MANY).await;
        read_end(subscription).await;
    }
}

#[tokio::test]
async fn output_after_program_end_is_kept_up_to_its_limit() {
    let hub = hub(LIMIT);
    hub.keep(Output::Stdout, b"before the end");
    hub.end(&exit());
    hub.linger();
    hub.keep(Output::Stdout, &vec![b'a'; KEPT]);
    hub.keep(Output::Stdout, b"tail");
    hub.keep(Output::Stderr, b"error");
    let mut late = hub.subscribe().unwrap();
    let mut kept = Vec::new();
    for _ in 0..2 {
        let event = timeout(LIMIT, late.next()).await.unwrap();
        let Some(Ok(Event::Data(output, data))) = event else { panic!("{event:?}") };
        kept.push((output, data));
    }
    assert_eq!((kept[0].0, kept[0].1.len()), (Output::Stdout, KEPT));
    assert!(kept[0].1.ends_with(b"atail"));
    assert_eq!(kept[1], (Output::Stderr, Bytes::from_static(b"error")));
    read_end(&mut late).await;
    hub.drained();
    timeout(LIMIT, hub.settled()).await.unwrap();
    assert!(matches!(hub.subscribe().unwrap().next().await, Some(Ok(Event::Data(..)))));
    hub.forget();
    hub.keep(Output::Stdout, b"more");
    read_end(&mut hub.subscribe().unwrap()).await;
}

#[tokio::test]
async fn subscribers_of_a_program_are_bounded() {
    let hub = hub(LIMIT);
    let all: Vec<_> = (0..SUBSCRIBERS).map(|_| hub.subscribe().unwrap()).collect();
    let refused = hub.subscribe().err().unwrap();
    assert_eq!(refused.code, ErrorCode::ResourceExhausted);
    drop(all);
    hub.subscribe().unwrap();
}

/// Makes the hub of a terminal.
fn terminal() -> Arc<Hub> {
    Arc::new(Hub::of_terminal(Arc::default(), Replay::new(Arc::default())))
}

/// Takes terminal output up to `count` bytes.
async fn read_bytes(subscription: &mut Subscription, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < count {
        let event = timeout(LIMIT, subscription.next()).await.unwrap();
        let Some(Ok(Event::Data(Output::Pty, data))) = event else { panic!("{event:?}") };
        all.extend_from_slice(&data);
    }
    all
}

#[tokio::test]
async fn subscriber_with_replay_gets_earlier_and_later_output_once() {
    let hub = terminal();
    let mut first = hub.subscribe().unwrap();
    hub.publish(Output::Pty, "one ".into()).await;
    hub.publish(Output::Pty, "two ".into()).await;
    let (mut late, replayed) = hub.subscribe_with_replay().unwrap();
    let mut plain = hub.subscribe().unwrap();
    assert_eq!((replayed, hub.subscribers()), (8, 3));
    hub.publish(Output::Pty, "three".into()).await;
    hub.end(&exit());
    assert_eq!(read_bytes(&mut late, 13).await, b"one two three");
    assert_eq!(read_bytes(&mut first, 13).await, b"one two three");
    assert_eq!(read_bytes(&mut plain, 5).await, b"three");
    for subscription in [&mut late, &mut first, &mut plain] {
        read_end(subscription).await;
    }
    let (mut ended, replayed) = hub.subscribe_with_replay().unwrap();
    assert_eq!((replayed, hub.subscribers()), (13, 0));
    assert_eq!(read_bytes(&mut ended, 13).await, b"one two three");
    read_end(&mut ended).await;
}

#[tokio::test]
async fn replay_at_any_moment_joins_live_output_without_gap_or_repetition() {
    let hub = terminal();
    let publishing = {
        let hub = Arc::clone(&hub);
        tokio::spawn(async move {
            for number in 0..2000_u32 {
                hub.publish(Output::Pty, format!("{number}\n").into()).await;
                if number % 7 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            hub.end(&exit());
        })
    };
    let wanted: String = (0..2000).map(|number: u32| format!("{number}\n")).collect();
    let mut late = Vec::new();
    while !publishing.is_finished() && late.len() < SUBSCRIBERS {
        late.push(hub.subscribe_with_replay().unwrap().0);
        tokio::task::yield_now().await;
    }
    for subscription in &mut late {
        assert_eq!(read_bytes(subscription, wanted.len()).await, wanted.as_bytes());
    }
    publishing.await.unwrap();
}

#[tokio::test]
async fn program_with_pipes_has_no_replay() {
    let hub = hub(LIMIT);
    hub.publish(Output::Stdout, piece(0)).await;
    let (mut late, replayed) = hub.subscribe_with_replay().unwrap();
    hub.end(&exit());
    assert_eq!(replayed, 0);
    read_end(&mut late).await;
}
