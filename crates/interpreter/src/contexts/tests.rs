//! Tests of contexts by their names, their limit and their folders.

use super::*;
use crate::context::script::Script;
use crate::settings::Settings;

fn contexts(script: &Script, most: usize) -> Contexts {
    let settings = Settings { contexts: most, cwd: Some("/tmp".to_owned()), ..Settings::default() };
    Contexts::new(script.services_with(settings))
}

fn ids(contexts: &Contexts) -> Vec<String> {
    contexts.list().iter().map(|context| context.id.clone()).collect()
}

#[tokio::test]
async fn contexts_of_the_start_answer_to_their_languages() {
    let script = Script::default();
    let contexts = contexts(&script, 32);
    contexts.begin(Vec::new());
    let languages: Vec<String> = contexts.list().iter().map(|c| c.language.clone()).collect();
    assert_eq!(languages, ["python", "javascript"]);
    assert!(!contexts.is_ready(), "no kernel is up yet");
    for context in contexts.list() {
        context.started().await.unwrap();
    }
    assert!(contexts.is_ready());
    let python = contexts.default(None).await.unwrap();
    assert_eq!(python.id, contexts.default(Some(" Python ")).await.unwrap().id);
    let js = contexts.default(Some("JS")).await.unwrap();
    assert_eq!((&*js.language, &*js.cwd), ("javascript", "/tmp"));
    let ts = contexts.default(Some("ts")).await.unwrap();
    assert_ne!(ts.id, js.id);
    assert_eq!(contexts.list().len(), 3);
    let made = contexts.create(None, Some("/")).await.unwrap();
    assert_ne!(made.id, contexts.default(None).await.unwrap().id);
    assert_eq!(ids(&contexts).last(), Some(&made.id));
}

#[tokio::test]
async fn removed_default_context_is_made_again_when_asked_for() {
    let script = Script::default();
    let contexts = contexts(&script, 32);
    let first = contexts.default(Some("bash")).await.unwrap();
    contexts.remove(&first.id).await.unwrap();
    let missing = contexts.get(&first.id).err().unwrap();
    assert_eq!(missing.status, 404);
    assert_eq!(missing.text, format!("Context {} not found", first.id));
    let second = contexts.default(Some("bash")).await.unwrap();
    assert_ne!(first.id, second.id);
    assert!(contexts.remove(&first.id).await.is_err());
    let restarted = second.restart(false).await;
    assert!(restarted.is_ok());
    assert_eq!(contexts.default(Some("bash")).await.unwrap().id, second.id);
}

#[tokio::test]
async fn context_beyond_the_limit_is_refused() {
    let script = Script::default();
    let contexts = contexts(&script, 2);
    contexts.create(None, None).await.unwrap();
    let second = contexts.create(Some("js"), None).await.unwrap();
    let refused = contexts.create(None, None).await.err().unwrap();
    assert_eq!(refused.status, 429);
    assert!(refused.text.contains("2 contexts"), "{refused}");
    contexts.remove(&second.id).await.unwrap();
    assert!(contexts.create(None, None).await.is_ok());
}

#[tokio::test]
async fn wrong_language_or_folder_is_refused_and_leaves_nothing() {
    let script = Script::default();
    let contexts = contexts(&script, 32);
    let file = script.dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for (language, cwd, words) in [
        (Some("cobol"), None, "python"),
        (Some(&*"x".repeat(65)), None, "language has more"),
        (None, Some("/nonexistent"), "cwd '/nonexistent'"),
        (None, file.to_str(), "no folder"),
        (None, Some("/a\0"), "cwd has a zero"),
    ] {
        let refused = contexts.create(language, cwd).await.err().unwrap();
        assert_eq!(refused.status, 400, "{refused}");
        assert!(refused.text.contains(words), "{refused}");
    }
    script.fail_next("broken");
    assert_eq!(contexts.create(None, None).await.err().unwrap().status, 500);
    script.fail_next("broken");
    assert_eq!(contexts.default(None).await.err().unwrap().status, 500);
    assert!(contexts.list().is_empty());
    assert!(contexts.default(None).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn context_whose_maker_leaves_ends() {
    let script = Script::default();
    let contexts = contexts(&script, 32);
    script.hang_next();
    let waited = tokio::time::timeout(Duration::from_secs(1), contexts.create(None, None)).await;
    assert!(waited.is_err());
    assert!(contexts.list().is_empty());
    while !crate::state::State::open(script.dir.path()).1.is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn start_that_hangs_fails_after_two_minutes() {
    let script = Script::default();
    let contexts = contexts(&script, 32);
    script.hang_next();
    let refused = contexts.create(None, None).await.err().unwrap();
    assert!(refused.text.contains("longer than 120 s"), "{refused}");
    assert!(contexts.list().is_empty());
}

#[tokio::test]
async fn contexts_of_an_earlier_interpreter_come_first_and_keep_their_names() {
    let mut script = Script::default();
    let before = contexts(&script, 32);
    before.begin(Vec::new());
    let made = before.create(Some("bash"), None).await.unwrap();
    before.release().await;
    let (_, records) = crate::state::State::open(script.dir.path());
    assert_eq!(records.len(), 3);
    let after = contexts(&script, 32);
    after.begin(records);
    assert!(after.is_ready(), "the earlier interpreter was ready");
    assert_eq!(ids(&after), ids(&before));
    let python = after.default(None).await.unwrap();
    assert_eq!(python.id, ids(&before)[0]);
    assert!(after.get(&made.id).is_ok());
    for _ in 0..3 {
        script.kernel().await;
    }
    for _ in 0..3 {
        assert!(script.kernel().await.adopted.is_some());
    }
}

#[tokio::test]
async fn fresh_epoch_reseeds_kernels_and_their_starts() {
    let mut script = Script::default();
    let contexts = contexts(&script, 32);
    let context = contexts.default(None).await.unwrap();
    let mut kernel = script.kernel().await;
    contexts.begin_epoch([9; SEED]).await;
    assert_eq!(script.seeds(), [[9; SEED]]);
    let _stream = context.execute(crate::context::Request {
        code: "1".to_owned(),
        envs: std::collections::BTreeMap::new(),
        timeout: None,
        options: crate::execution::Options::default(),
        by_id: false,
        _permit: None,
    });
    assert!(kernel.run().await.setup.seed.is_some());
}
