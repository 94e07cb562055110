//! The JSON form of recipes, and the rules of their form.

use super::*;
use serde_json::json;

fn recipe(steps: Value) -> Result<Recipe, serde_json::Error> {
    let source = json!({"image": "debian"});
    serde_json::from_value(
        json!({"dialect": "steps", "stages": [{"source": source, "steps": steps}]}),
    )
}

#[test]
fn steps_round_trip_through_json() {
    let steps = json!([
        {"run": {"command": "make"}},
        {"run": {"command": ["a", "b"], "user": "root", "mounts": [{"tmpfs": {"target": "/t"}}]}},
        {"run": {"command": {"script": "#!/bin/x\n"}}, "line": 3},
        {"copy": {"sources": ["a"], "dest": "/x/", "mode": "0644", "files": "0".repeat(64)}},
        {"workdir": "/x"},
        {"user": "1000:1000"},
        {"env": {"A": "b", "B": ""}, "force": true},
        {"arg": {"name": "X", "default": "y"}},
        {"healthcheck": {}},
    ]);
    let read = recipe(steps.clone()).unwrap();
    read.check().unwrap();
    let mut written = serde_json::to_value(&read).unwrap();
    assert_eq!(written["stages"][0]["steps"].take(), steps);
    assert!(read.stages[0].steps[6].force);
}

#[test]
fn capsule_as_source_round_trips_and_needs_an_id() {
    let of = |id: &str| -> Recipe {
        serde_json::from_value(json!({"dialect": "steps", "stages": [{"source": {"capsule": id}}]}))
            .unwrap()
    };
    let id = types::CapsuleId::new().to_string();
    let recipe = of(&id);
    recipe.check().unwrap();
    assert_eq!(recipe.stages[0].source, Source::Capsule(id.clone()));
    let written = serde_json::to_value(&recipe).unwrap();
    assert_eq!(written["stages"][0]["source"], json!({ "capsule": id }));
    for bad in ["", "cl-1", "../x"] {
        let error = of(bad).check().unwrap_err();
        assert_eq!(error.place, "stages[0].source");
    }
}

#[test]
fn sources_of_a_stage_are_its_own_and_those_of_its_copies() {
    let copy = |from: Value| json!({"copy": {"sources": ["a"], "dest": "/", "from": from}});
    let steps = json!([
        {"copy": {"sources": ["a"], "dest": "/"}},
        copy(json!({"template": "tools"})),
        {"user": "app"},
        copy(json!("scratch")),
    ]);
    let read = recipe(steps).unwrap();
    let found: Vec<Source> = read.stages[0].sources().cloned().collect();
    let image = Source::Image("debian".to_owned());
    assert_eq!(found, [image, Source::Template("tools".to_owned()), Source::Scratch]);
}

#[test]
fn unknown_or_doubled_action_is_refused() {
    for (steps, word) in [
        (json!([{"walk": {}}]), "walk"),
        (json!([{"user": "a", "workdir": "/"}]), "exactly one"),
        (json!([{}]), "exactly one"),
        (json!([{"run": {"command": "x", "shel": []}}]), "shel"),
        (json!([{"run": {}}]), "command"),
        (json!([{"user": "a", "force": 1}]), "bool"),
    ] {
        let error = recipe(steps).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn recipe_beyond_a_limit_is_refused_with_its_place() {
    let user = |text: &str| json!([{"user": text}]);
    let copy = |copy: Value| json!([{"copy": copy}]);
    for (steps, word) in [
        (user("a\0"), "NUL"),
        (user(&"a".repeat(TEXT_MAX + 1)), "bytes"),
        (json!(vec![json!({"user": "a"}); STEPS_MAX + 1]), "1000 steps"),
        (json!(vec![json!({"user": "a".repeat(TEXT_MAX)}); 33]), "together"),
        (copy(json!({"dest": "/", "sources": ["a"], "files": "A".repeat(64)})), "hexadecimal"),
        (copy(json!({"dest": "/", "sources": []})), "source"),
        (copy(json!({"dest": "/", "sources": ["a"], "from": {"stage": 0}})), "before"),
        (json!([{"expose": vec!["1"; TEXTS_MAX + 1]}]), "1000 texts"),
    ] {
        let error = recipe(steps).unwrap().check().unwrap_err();
        assert!(error.message.contains(word), "{error}");
        assert!(error.place.starts_with("stages"), "{error}");
    }
}
