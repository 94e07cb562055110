//! The committed OpenAPI document equals the one that the code generates and serves.

use tests::{Driver, Platform};

#[test]
fn committed_openapi_document_is_current() {
    let committed = include_str!("../../openapi.json");
    let made = control_plane::openapi().to_pretty_json().unwrap() + "\n";
    assert!(committed == made, "openapi.json is out of date: run `cargo xtask openapi`");
}

#[test]
fn operation_ids_are_unique() {
    let document: serde_json::Value =
        serde_json::from_str(include_str!("../../openapi.json")).unwrap();
    let mut names = Vec::new();
    for item in document["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values() {
            names.push(operation["operationId"].as_str().unwrap().to_owned());
            for (status, answer) in operation["responses"].as_object().unwrap() {
                assert!(answer["description"].is_string(), "{names:?} {status}");
            }
        }
    }
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn former_names_of_fields_are_deprecated_and_optional() {
    let document = serde_json::to_value(control_plane::openapi()).unwrap();
    for (name, renames) in api::RENAMED {
        let schema = &document["components"]["schemas"][*name];
        let frames = schema["oneOf"].as_array().into_iter().flatten();
        let objects = frames.chain([schema]);
        for api::Rename { former, current, .. } in *renames {
            let of = |field: &str| objects.clone().find(|o| o["properties"][field].is_object());
            let object = of(current).unwrap_or_else(|| panic!("{name} has no {current}"));
            let (old, new) = (&object["properties"][*former], &object["properties"][*current]);
            assert_eq!((&old["deprecated"], &old["type"]), (&true.into(), &new["type"]), "{name}");
            assert!(new["deprecated"].is_null() && new["description"].is_string(), "{current}");
            let told = old["description"].as_str().unwrap();
            assert!(told.starts_with(&format!("Former name of `{current}`. ")), "{told}");
            let required = object["required"].as_array();
            assert!(!required.is_some_and(|all| all.contains(&(*former).into())), "{former}");
        }
    }
}

#[tokio::test]
async fn openapi_document_and_page_load_from_no_other_host() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client_with("");
    let served = client.get("/openapi.json").await.expect(200);
    let committed: serde_json::Value =
        serde_json::from_str(include_str!("../../openapi.json")).unwrap();
    assert_eq!(served, committed);
    let page = client.request(reqwest::Method::GET, "/docs").send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'"), "{policy}");
    let html = page.text().await.unwrap();
    assert!(html.contains("/openapi.json"));
    assert!(!html.contains("http://") && !html.contains("https://"), "the page names another host");
    platform.finish();
}
