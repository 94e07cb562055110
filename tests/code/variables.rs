//! Variables of an execution: exact values, and the earlier ones afterwards.

use crate::Server;
use serde_json::json;

/// A value with everything that a shell or a source line would misread.
const ODD: &str = "a'b\"c\\d\ne\tf$HOME`id`\u{2028}é";

#[tokio::test]
async fn variables_of_one_execution_are_exact_and_gone_afterwards() {
    let server = Server::start().await;
    let long = "x".repeat(65_536);
    for (language, print) in [
        ("python", "import os; print(os.environ.get('ODD', 'none'), end='')"),
        ("javascript", "process.stdout.write(process.env.ODD ?? 'none')"),
        ("bash", "printf %s \"${ODD-none}\""),
    ] {
        for value in [ODD, &long, ""] {
            let envs = json!({ "ODD": value, "PATH": "/nowhere" });
            let body = json!({ "code": print, "language": language, "env_vars": envs });
            let outcome = server.ran(body).await.ok();
            assert!(outcome.stdout() == value, "{language}: {:?}", outcome.lines);
            assert_eq!(server.run_in(language, print).await.ok().stdout(), "none", "{language}");
        }
    }
    // The path of programs is as before, for child processes too.
    assert_eq!(server.run("!ls /dev/null").await.ok().stdout().trim(), "/dev/null");
    assert_eq!(server.run_in("bash", "ls /dev/null").await.ok().stdout(), "/dev/null\n");
    let code = "(await import('node:child_process')).execSync('ls /dev/null').toString()";
    assert_eq!(server.run_in("js", code).await.ok().value(), "/dev/null\\n");
}

#[tokio::test]
async fn variable_that_the_code_itself_sets_outlives_the_execution() {
    let server = Server::start().await;
    server.run("import os; os.environ['OWN'] = 'kept'").await.ok();
    assert_eq!(server.run("os.environ['OWN']").await.ok().value(), "kept");
    let body = json!({ "code": "1 / 0", "env_vars": { "OWN": "other" } });
    server.ran(body).await.fails("ZeroDivisionError", "");
    assert_eq!(server.run("os.environ['OWN']").await.ok().value(), "kept");
    let body = json!({ "code": "1", "env_vars": { "A=B": "x" } });
    let (status, text) = server.ask(reqwest::Method::POST, "/execute", Some(body)).await;
    assert_eq!(status, 422);
    assert!(text.as_str().unwrap().contains("env_vars: 'A=B'"), "{text}");
}
