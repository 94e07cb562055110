//! A private image and two teams: what one team may pull opens nothing for the other. These builds
//! have no steps, so no guest runs.

use super::{machines, with, workshop};
use serde_json::{Value, json};
use tests::{Build, Client, Image, Tree, Workshop};

const USER: &str = "puller-of-team-a";
const PASSWORD: &str = "hunter2-of-team-a";

fn login(password: &str) -> Value {
    json!({ "basic": { "username": USER, "password": password } })
}

fn of(workshop: &Workshop, image: &str) -> Value {
    json!({ "name": "web", "from": { "image": workshop.registry.reference(image) } })
}

/// Asks for the image by each of its names, and with a wrong login. Each build must fail.
async fn denied(workshop: &Workshop, client: &Client, digest: &str) {
    for body in [
        of(workshop, "private:1"),
        of(workshop, &format!("private@{digest}")),
        with(of(workshop, "private:1"), json!({ "login": login("wrong") })),
    ] {
        client.attempt(&body).await.failed("base", "access denied");
    }
}

/// Returns the requests for blobs since the last look.
fn blobs(workshop: &Workshop) -> Vec<String> {
    let asked = workshop.registry.take_requests();
    asked.into_iter().filter(|request| request.contains("/blobs/")).collect()
}

fn digest_of(build: &Build) -> &str {
    build.body["images"][0]["digest"].as_str().unwrap()
}

#[tokio::test]
async fn image_that_one_team_pulled_by_its_login_is_closed_to_another() {
    let workshop = workshop().await;
    let platform = &workshop.platform;
    // The first user is an admin of the platform, and takes no part.
    platform.user("root@example.com").await;
    let a = platform.user("a@example.com").await;
    let b = platform.user("b@example.com").await;
    let private = Image::busybox().layer(Tree::new().file("secret", 0o644, "of a\n"));
    let digest = workshop.registry.push("private:1", &private);
    workshop.registry.demand_basic(USER, PASSWORD);
    let path = format!("/v1/registries/{}", workshop.registry.host());
    a.put(&path, &login(PASSWORD)).await.expect(200);
    let built = a.build(&of(&workshop, "private:1")).await;
    assert_eq!(digest_of(&built), digest);
    assert!(!blobs(&workshop).is_empty());

    denied(&workshop, &b, &digest).await;
    // Without a question to the registry, the host's image counts for teams that have read it.
    for name in ["private:1".to_owned(), format!("private@{digest}")] {
        let kept = with(of(&workshop, &name), json!({ "pull": "missing" }));
        b.attempt(&kept).await.failed("base", "access denied");
    }
    assert_eq!(blobs(&workshop), [] as [String; 0]);
    // Neither the name nor the id of the other team's template is a way in.
    for name in ["web", &format!("web@{}", built.id)] {
        let over = json!({ "name": "mine", "from": { "template": name } });
        let answer = b.post("/v1/builds", &over).await;
        assert_eq!(answer.status, 404, "{name}: {}", answer.body);
    }
    // The own login opens it. The host has the files, and yet asks the registry for access.
    let own = with(of(&workshop, "private:1"), json!({ "login": login(PASSWORD) }));
    assert_eq!(digest_of(&b.build(&own).await), digest);
    let asked = workshop.registry.take_requests();
    assert!(asked.iter().any(|request| request.contains("/manifests/")), "{asked:?}");
    assert!(asked.iter().all(|request| !request.contains("/blobs/sha256")), "{asked:?}");
    // The login was for one build. After it, each team is where it was.
    denied(&workshop, &b, &digest).await;
    a.delete(&path).await.expect(204);
    denied(&workshop, &a, &digest).await;
    assert_eq!(machines(platform).await, 0, "no guest ran");
    workshop.finish();
}
