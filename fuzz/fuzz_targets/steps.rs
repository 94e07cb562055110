//! Steps of a build as E2B's clients send them. Anyone with a key may send any JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recipe::e2b::{self, WireStep};
use recipe::resolve::{CopyWork, Program, RunWork, Work};
use recipe::{Base, Config, Recipe, Source};
use serde::Deserialize;

/// Part of the request that becomes a recipe.
#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    image: String,
    #[serde(default)]
    force: bool,
    steps: Vec<WireStep>,
}

fuzz_target!(|data: &[u8]| {
    let Ok(body) = serde_json::from_slice::<Body>(data) else { return };
    let (count, forced) = (body.steps.len(), body.force);
    let Ok(recipe) = e2b::recipe(Source::Image(body.image), body.steps, forced) else { return };
    let stage = &recipe.stages[0];
    assert_eq!((recipe.stages.len(), stage.steps.len()), (1, count));
    assert!(!forced || stage.steps.first().is_none_or(|step| step.force), "the cache is used");
    for step in &stage.steps {
        assert!(!e2b::text(&step.action).is_empty(), "a step without a text");
    }
    if recipe.check().is_err() {
        return;
    }
    let json = serde_json::to_string(&recipe).expect("a recipe is JSON");
    let again: Recipe = serde_json::from_str(&json).expect("its JSON is a recipe");
    assert_eq!(again, recipe);
    let base = Base { identity: "sha256:00".to_owned(), config: Config::default() };
    let Ok(plan) = recipe::resolve(&recipe, "amd64", &|_| Some(&base)) else { return };
    let numbers = plan.stages[0].steps.iter().map(|step| step.number);
    assert!(numbers.filter(|number| *number > 0).eq(1..=count), "steps are lost or out of order");
    plan.stages[0].steps.iter().for_each(|step| check(&step.work));
});

/// Checks that the guest gets final paths and a program.
fn check(work: &Work) {
    match work {
        Work::Run(RunWork { program, workdir, .. }) => {
            let named = match program {
                Program::Argv(words) => words.first().is_some_and(|word| !word.is_empty()),
                Program::Script(text) => !text.is_empty(),
            };
            assert!(named && workdir.starts_with('/'), "{work:?}");
        }
        Work::Copy(CopyWork { dest, owner, .. }) => {
            assert!(dest.starts_with('/') && !owner.is_empty(), "{work:?}");
        }
        Work::Workdir { path, .. } => assert!(path.starts_with('/'), "{work:?}"),
        Work::User { .. } | Work::Nothing => {}
    }
}
