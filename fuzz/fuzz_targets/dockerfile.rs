//! A Dockerfile, which anyone with a key may send, over a base whose configuration is hostile too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recipe::dockerfile::Options;
use recipe::{Base, Config, Dockerfile, Recipe};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = recipe::dockerfile::trigger(text);
    let Ok(file) = Dockerfile::parse(text) else { return };
    let Ok(recipe) = file.recipe(&Options::default()) else { return };
    assert_eq!(recipe.check(), Ok(()), "a parsed recipe breaks its own rules");
    let json = serde_json::to_string(&recipe).expect("a recipe is JSON");
    let again: Recipe = serde_json::from_str(&json).expect("its JSON is a recipe");
    assert_eq!(again, recipe);
    let onbuild = text.lines().take(3).map(str::to_owned).collect();
    let config = Config { onbuild, ..Config::default() };
    let base = Base { identity: "sha256:00".to_owned(), config };
    if let Ok(plan) = recipe::resolve(&recipe, "amd64", &|_| Some(&base)) {
        assert_eq!(plan.stages.len(), recipe.stages.len());
    }
});
