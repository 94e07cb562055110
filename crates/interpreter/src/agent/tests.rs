//! Tests of the socket to envd, over a pair of sockets.

use super::*;
use crate::context::script::{Call, Handle, Script};
use crate::kernel::Kind;
use crate::settings::Settings;
use tokio::io::Lines;

struct Envd {
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
    contexts: Arc<Contexts>,
    known: oneshot::Receiver<()>,
}

impl Envd {
    async fn tell(&mut self, line: &str) {
        self.write.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.lines.next_line().await.unwrap().unwrap()).unwrap()
    }
}

fn envd(script: &Script) -> Envd {
    let settings = Settings { warm: vec!["python".to_owned()], ..Settings::default() };
    let contexts = Arc::new(Contexts::new(script.services_with(settings)));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (first, known) = oneshot::channel();
    tokio::spawn(serve(theirs, Arc::clone(&contexts), first));
    let (read, write) = ours.into_split();
    Envd { lines: BufReader::new(read).lines(), write, contexts, known }
}

#[tokio::test]
async fn settings_are_taken_and_the_first_are_awaited() {
    let script = Script::default();
    let mut envd = envd(&script);
    envd.tell(r#"{"settings":{"token":"t","envs":{"A":"1"},"workdir":null,"path":"/bin"}}"#).await;
    (&mut envd.known).await.unwrap();
    let capsule = envd.contexts.services.capsule().capsule;
    assert_eq!((capsule.token.as_deref(), &*capsule.envs["A"]), (Some("t"), "1"));
}

#[tokio::test]
async fn epoch_seeds_only_copies_and_names_a_wrong_seed() {
    let script = Script::default();
    let mut envd = envd(&script);
    let seed = "0a".repeat(SEED);
    envd.tell(&format!(r#"{{"id":1,"epoch":{{"fresh":false,"seed":"{seed}"}}}}"#)).await;
    assert_eq!(envd.hear().await, serde_json::json!({"done": 1}));
    assert!(script.seeds().is_empty());
    envd.tell(&format!(r#"{{"id":2,"epoch":{{"fresh":true,"seed":"{seed}"}}}}"#)).await;
    assert_eq!(envd.hear().await, serde_json::json!({"done": 2}));
    assert_eq!(script.seeds(), [[10; SEED]]);
    envd.tell(r#"{"id":3,"epoch":{"fresh":true,"seed":"0é"}}"#).await;
    let answer = envd.hear().await;
    assert_eq!(answer["failed"], 3);
    assert!(answer["why"].as_str().unwrap().contains("epoch.seed"));
}

#[tokio::test]
async fn preparation_cuts_streams() {
    let script = Script::default();
    let mut envd = envd(&script);
    let executions = &envd.contexts.services.executions;
    let (signals, _heard) = mpsc::unbounded_channel();
    let execution = crate::execution::Execution::new(
        "e".to_owned(),
        "c",
        crate::execution::Options::default(),
        signals,
    );
    let mut stream = executions.own(&execution);
    let reader = tokio::spawn(async move {
        loop {
            let next = stream.next().await;
            if !matches!(next, crate::execution::Next::Lines(_)) {
                return next;
            }
        }
    });
    envd.tell(r#"{"id":4,"prepare":{"warm":false}}"#).await;
    assert_eq!(envd.hear().await, serde_json::json!({"done": 4}));
    assert_eq!(reader.await.unwrap(), crate::execution::Next::Cut);
}

/// Answers the run of a kernel, which must be the next call.
async fn answer_run(kernel: &mut Handle) {
    let run = kernel.run().await;
    kernel.say(run.number, Kind::Ended);
}

#[tokio::test]
async fn warm_step_runs_code_and_leaves_contexts_as_new() {
    let mut script = Script::default();
    let mut envd = envd(&script);
    envd.contexts.begin(Vec::new());
    let mut kernel = script.kernel().await;
    envd.tell(r#"{"id":5,"prepare":{"warm":true}}"#).await;
    answer_run(&mut kernel).await;
    assert!(matches!(kernel.call().await, Call::Dropped));
    let mut fresh = script.kernel().await;
    assert_eq!(envd.hear().await, serde_json::json!({"done": 5}));
    assert!(fresh.is_quiet());
    let view = envd.contexts.list()[0].view().await;
    assert_eq!((view.executions, view.last_used), (0, None));
    let seed = "0b".repeat(SEED);
    envd.tell(&format!(r#"{{"id":6,"epoch":{{"fresh":true,"seed":"{seed}"}}}}"#)).await;
    envd.hear().await;
    let stream = envd.contexts.default(None).await.unwrap().execute(crate::context::Request {
        code: "1".to_owned(),
        envs: std::collections::BTreeMap::new(),
        timeout: None,
        options: crate::execution::Options::default(),
        by_id: false,
        _permit: None,
    });
    assert!(stream.is_ok());
    assert!(fresh.run().await.setup.seed.is_some(), "the warmed context is pristine again");
}

#[tokio::test]
async fn line_without_end_stops_the_reading() {
    let script = Script::default();
    let mut envd = envd(&script);
    let long = vec![b'x'; usize::try_from(MESSAGE_MAX).unwrap() + 1];
    // The other side may close before it has read everything.
    let _ = envd.write.write_all(&long).await;
    assert!(!matches!(envd.lines.next_line().await, Ok(Some(_))));
}
