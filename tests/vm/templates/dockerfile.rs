//! Dockerfiles on a real guest: several stages, arguments, heredocs, and the command line.

use super::{capsule_of, delete, workshop};
use serde_json::json;
use tests::{Build, Tree};

/// Returns the lines of a build that tell of its RUN and COPY steps.
fn of_files(build: &Build) -> Vec<&String> {
    build.lines.iter().filter(|line| line.contains("] RUN ") || line.contains("] COPY ")).collect()
}

#[tokio::test]
async fn dockerfile_of_several_stages_copies_between_them() {
    let workshop = workshop().await;
    let client = &workshop.client;
    let host = workshop.registry.host();
    let context = Tree::new()
        .file("main.txt", 0o644, "main\n")
        .file("assets/a.css", 0o644, "a\n")
        .file("assets/b.css", 0o644, "b\n");
    let context = client.upload(context).await;
    let text = format!(
        r#"ARG TAG=1
FROM {host}/app:$TAG AS build
ARG SECRET_SHAPE=round
WORKDIR /src
COPY main.txt .
RUN tr a-z A-Z < main.txt > out.txt; echo $SECRET_SHAPE > shape.txt

FROM {host}/app:missing AS unused
RUN false

FROM {host}/app:1
ENV A="one two" \
    B=$A-x
COPY --from=build --chown=app:staff --chmod=600 /src/out.txt /data/
COPY --from=build /src/shape.txt /data/shape.txt
COPY assets/*.css /data/css/
COPY --from={host}/app:1 /etc/passwd /data/users
COPY <<END /data/note
written by $A
END
RUN ["/bin/sh", "-c", "echo exec-form $0"]
WORKDIR /data
WORKDIR css
USER app
EXPOSE 80
CMD ["httpd"]
"#
    );
    let body = json!({
        "name": "staged", "dockerfile": text, "context": context, "args": { "SECRET_SHAPE": "square" },
        "memory_mib": 256, "disk_mib": 512,
    });
    let built = client.build(&body).await;
    assert_eq!(built.count("exec-form"), 2, "the step and its output: {:?}", built.lines);
    let id = capsule_of(client, "staged").await;
    let look = "pwd; ls; cat ../out.txt ../shape.txt ../note; stat -c '%U %G %a' ../out.txt; \
        head -n 1 ../users; echo ${SECRET_SHAPE:-no-arg} \"$A\"";
    let wanted = "/data/css\na.css\nb.css\nMAIN\nsquare\nwritten by one two\napp staff 600\n\
        root:x:0:0:root:/root:/bin/sh\nno-arg one two\n";
    assert_eq!(client.out(&id, look).await, wanted);
    // The same context runs no step again, in any stage.
    let again = client.build(&body).await;
    let steps = of_files(&again);
    assert!(
        steps.len() >= 6 && steps.iter().all(|line| line.starts_with("CACHED")),
        "{:?}",
        again.lines
    );
    // A context is one archive, so another one runs its COPY steps and all later ones.
    let other = Tree::new()
        .file("main.txt", 0o644, "other\n")
        .file("assets/a.css", 0o644, "a\n")
        .file("assets/b.css", 0o644, "b\n");
    let mut changed = body.clone();
    changed["context"] = client.upload(other).await.into();
    let changed = client.build(&changed).await;
    assert_eq!(changed.count("CACHED [build 2/4] WORKDIR /src"), 1, "{:?}", changed.lines);
    let steps = of_files(&changed);
    assert!(steps.iter().all(|line| !line.starts_with("CACHED")), "{:?}", changed.lines);
    let newer = capsule_of(client, "staged").await;
    assert_eq!(client.out(&newer, "cat ../out.txt").await, "OTHER\n");
    delete(client, &newer).await;
    delete(client, &id).await;
    workshop.finish();
}

#[tokio::test]
async fn command_line_builds_a_folder_with_a_dockerfile() {
    let workshop = workshop().await;
    let (client, platform) = (&workshop.client, &workshop.platform);
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let host = workshop.registry.host();
    write("Dockerfile", &format!("FROM {host}/app:1\nCOPY . /ctx/\nRUN ls /ctx > /seen\n"));
    write("keep.txt", "k");
    write("drop.log", "d");
    write(".dockerignore", "*.log\nDockerfile\n.dockerignore\n");
    let folder = dir.path().to_str().unwrap();
    let sized = ["--memory", "256", "--disk", "512", "--plain"];
    let build = |more: &[&str]| {
        let mut words = vec!["template", "build", "cli:v1", folder];
        words.extend(sized);
        words.extend(more);
        platform.run(&words)
    };
    let out = build(&["--tag", "other"]);
    let told = |out: &std::process::Output| {
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
    };
    assert_eq!(out.status.code(), Some(0), "{}", told(&out));
    assert!(told(&out).contains("wrenn capsule create cli:v1"), "{}", told(&out));
    let id = capsule_of(client, "cli:other").await;
    assert_eq!(client.out(&id, "cat /seen").await, "keep.txt\n");
    let again = build(&[]);
    assert!(again.status.success() && told(&again).contains("CACHED"), "{}", told(&again));
    write("Dockerfile", &format!("FROM {host}/app:1\nRUN echo why-not >&2; exit 7\n"));
    let failed = build(&[]);
    assert_eq!(failed.status.code(), Some(1), "{}", told(&failed));
    assert!(told(&failed).contains("why-not") && told(&failed).contains("exit status 7"));
    delete(client, &id).await;
    workshop.finish();
}
