//! Values, displays and errors as clients get them, from Python with libraries, Node and bash.

use crate::Server;
use serde_json::{Value, json};

/// Libraries of the template that the fork server imports.
fn libraries() -> Value {
    json!({ "python": { "preload": ["numpy", "pandas", "matplotlib.pyplot", "PIL.Image"] } })
}

#[tokio::test]
async fn values_of_python_have_text_json_tables_charts_and_pictures() {
    let server = Server::with(libraries()).await;
    assert_eq!(server.run("x = 41\nx + 1").await.ok().value(), "42");
    assert_eq!(server.run("'it'").await.ok().value(), "it");
    let listed = server.run("[1, {'a': None}, 'é']").await.ok();
    assert_eq!(listed.all("result")[0]["json"], json!([1, { "a": null }, "é"]));

    let table = "import pandas as pd\n\
        pd.DataFrame({'n': [1.5, float('nan')], 'at': pd.to_datetime(['2026-01-02', None])})";
    let table = server.run(table).await.ok();
    let result = table.all("result")[0].clone();
    assert_eq!(result["data"]["n"], json!([1.5, null]), "{result}");
    assert!(result["data"]["at"][0].as_str().unwrap().starts_with("2026-01-02"), "{result}");
    assert!(result["html"].is_string() && table.stderr().is_empty(), "{result}");

    let chart = "import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [2, 2])\nplt.title('T')\n\
        plt.xlabel('Time (s)')\nplt.show()";
    let chart = server.run(chart).await.ok();
    let result = chart.all("result")[0];
    assert_eq!(result["is_main_result"], false, "{result}");
    assert!(result["png"].as_str().unwrap().starts_with("iVBORw0KGgo"));
    let (chart, extra) = (&result["chart"], &result["extra"]);
    assert_eq!((&chart["type"], &chart["title"], extra), (&json!("bar"), &json!("T"), &json!({})));
    assert_eq!((&chart["x_unit"], &chart["y_unit"]), (&json!("s"), &Value::Null));
    let bar = &chart["elements"][1];
    assert_eq!((&bar["label"], bar["value"].as_f64()), (&json!("b"), Some(2.0)), "{chart}");

    let left_open = server.run("plt.plot([1, 2]); x").await.ok();
    assert_eq!(left_open.value(), "41");
    assert_eq!(left_open.all("result").len(), 2, "an open figure is shown at the end");
    let image = "from PIL import Image\nImage.new('RGB', (2, 2))";
    assert!(server.run(image).await.ok().all("result")[0]["png"].is_string());
    let latex = "from IPython.display import display\n\
        display({'text/latex': '$x$', 'a/b': 1}, raw=True)";
    let latex = server.run(latex).await.ok();
    let result = latex.all("result")[0];
    assert_eq!((&result["latex"], &result["text"]), (&json!("$x$"), &Value::Null), "{result}");
    assert_eq!((&result["a/b"], &result["extra"]), (&json!(1), &json!({ "a/b": 1 })));
    let nan = server.run("display({'application/json': {'n': float('nan')}}, raw=True)").await.ok();
    assert_eq!(nan.all("result")[0]["json"]["n"], Value::Null);
    assert!(nan.stderr().is_empty(), "{}", nan.stderr());
}

#[tokio::test]
async fn format_over_its_limit_is_left_out_and_named_with_size_and_limit() {
    let server = Server::with(libraries()).await;
    let frame = "import pandas as pd\npd.DataFrame({'a': range(100_001)})";
    let frame = server.run(frame).await.ok();
    let result = frame.all("result")[0];
    let note = json!({ "omitted": { "e2b/data": { "cells": 100_001, "limit": 100_000 } } });
    assert_eq!((&result["data"], &result["extra"]), (&Value::Null, &note));
    assert!(result["text"].is_string() && result["omitted"] == note["omitted"]);
    let long = "from IPython.display import display\n\
        display({'text/html': 'x' * (33 << 20), 'text/plain': 'y'}, raw=True)";
    let long = server.run(long).await.ok();
    let result = long.all("result")[0];
    let note = json!({ "omitted": { "text/html": { "bytes": 33 << 20, "limit": 32 << 20 } } });
    assert_eq!((&result["text"], &result["html"]), (&json!("y"), &Value::Null));
    assert_eq!(result["extra"], note);
}

#[tokio::test]
async fn standard_input_is_at_its_end_in_every_language() {
    let server = Server::start().await;
    server.run("input()").await.fails("StdinNotImplementedError", "");
    assert_eq!(server.run("import os; os.read(0, 9)").await.ok().value(), "b''");
    let read = "(await import('node:fs')).readFileSync(0).length";
    assert_eq!(server.run_in("js", read).await.ok().value(), "0");
    let read = server.run_in("bash", "read line; echo \"[$line] $?\"").await.ok();
    assert_eq!(read.stdout(), "[] 1\n");
}

#[tokio::test]
async fn python_errors_have_name_value_and_the_users_lines() {
    let server = Server::start().await;
    let code = "def f():\n    return 1 / 0\n\nf()";
    for envs in [json!({}), json!({ "A": "line\nquote'\\" })] {
        let outcome = server.ran(json!({ "code": code, "env_vars": envs })).await;
        outcome.fails("ZeroDivisionError", "division by zero");
        let traceback = outcome.error()["traceback"].as_str().unwrap().to_owned();
        assert!(traceback.contains("----> 4 f()") && traceback.contains("----> 2 "), "{traceback}");
        assert!(traceback.lines().count() > 8, "its entries are lines: {traceback}");
        assert!(!traceback.contains('\u{1b}'), "colours: {traceback}");
    }
    server.run("1 +").await.fails("SyntaxError", "invalid syntax");
    // A cell that is a syntax error counts too, and steps of our own do not.
    let outcome = server.run("    a = 1\n    a").await.ok();
    assert_eq!((outcome.count(), outcome.value()), (4, "1"));
    let input = server.run("input()").await;
    input.fails("StdinNotImplementedError", "");
    let own = "import subprocess, os\nsubprocess.run(['echo', 'child'])\nos.system('echo shell')\n\
        !echo magic\n%pwd";
    let outcome = server.run(own).await.ok();
    for word in ["child", "shell", "magic"] {
        assert!(outcome.stdout().contains(word), "{word}: {:?}", outcome.lines);
    }
    assert_eq!(outcome.value(), server.path("home").to_str().unwrap());
    let awaited = server
        .run(
            "import asyncio\nawait asyncio.sleep(0.01)\n\
        async def two():\n    return 2\nasyncio.run(two())",
        )
        .await
        .ok();
    assert_eq!(awaited.value(), "2");
}

#[tokio::test]
async fn javascript_and_typescript_keep_state_and_show_values() {
    let server = Server::start().await;
    let outcome = server.run_in("js", "const a = 20; let b = a + 1\nconsole.log('log')").await.ok();
    assert_eq!(outcome.stdout(), "log\n");
    assert_eq!(server.run_in("javascript", "a + b").await.ok().value(), "41");
    let awaited = "const { sep } = await import('node:path')\nawait Promise.resolve(sep)";
    assert_eq!(server.run_in("js", awaited).await.ok().value(), "/");
    let imported = server.run_in("js", "import fs from 'node:fs'\ntypeof fs.readFileSync").await;
    assert_eq!(imported.ok().value(), "function");
    let object = server.run_in("js", "({ a: [1, null], s: '\\u2028' })").await.ok();
    assert_eq!(object.all("result")[0]["json"], json!({ "a": [1, null], "s": "\u{2028}" }));
    let failed = server.run_in("js", "const x = 1\nnull.field").await;
    failed.fails("TypeError", "null");
    assert!(failed.error()["traceback"].as_str().unwrap().contains(":2"), "{:?}", failed.lines);
    assert_eq!(server.run_in("js", "a").await.ok().value(), "20", "the state is kept");
    let typed =
        "interface P { n: number }\nenum E { A = 7 }\nconst p: P = { n: E.A }; p.n as number";
    assert_eq!(server.run_in("ts", typed).await.ok().value(), "7");
    server.run_in("ts", "a").await.fails("ReferenceError", "a");
}

#[tokio::test]
async fn bash_keeps_state_and_reports_the_status() {
    let server = Server::start().await;
    let outcome = server.run_in("bash", "x=5; f() { echo \"$1-$x\"; }\ncd /tmp; echo e >&2").await;
    let outcome = outcome.ok();
    assert_eq!((outcome.stdout(), outcome.stderr()), (String::new(), "e\n".to_owned()));
    let outcome = server.run_in("bash", "f a\npwd\nprintf 'no end'").await.ok();
    assert_eq!(outcome.stdout(), "a-5\n/tmp\nno end");
    let failed = server.run_in("bash", "echo before; false").await;
    failed.fails("ExitStatus", "1");
    assert_eq!(failed.stdout(), "before\n");
    let broken = server.run_in("bash", "if true; then").await;
    assert!(broken.has_ended() && !broken.all("error").is_empty(), "{:?}", broken.lines);
    assert!(broken.stderr().contains("syntax error"), "{:?}", broken.lines);
    assert_eq!(server.run_in("bash", "echo $x").await.ok().stdout(), "5\n");
}

#[tokio::test]
async fn odd_characters_arrive_and_no_text_hangs_an_execution() {
    let server = Server::start().await;
    let odd = "a\u{2028}b\u{2029}c\u{85}d\u{0}e\u{7f}f\u{1f600}g\u{7d}\u{fffd}h\r\ti";
    let literal = odd.chars().map(|c| format!("\\U{:08x}", u32::from(c))).collect::<String>();
    let outcome = server.run(&format!("print('{literal}', end='')\n'{literal}'")).await.ok();
    assert_eq!(outcome.stdout(), odd);
    let outcome = server.ran(json!({ "code": format!("x = '''{odd}'''") })).await;
    assert!(outcome.has_ended(), "a NUL in the code: {:?}", outcome.lines);
    // Lone halves of a pair cannot be written as UTF-8.
    for code in
        ["print('\\ud83d')", "print('\\udc80', flush=True)", "'a\\ud83d'", "raise E('\\ud83d')"]
    {
        let outcome = server.run(code).await;
        assert!(outcome.has_ended(), "{code}: {:?}", outcome.lines);
    }
    let raw = "import os\nos.write(1, b'\\xf0\\x9f')\nos.write(1, b'\\x98\\x80 \\xff')";
    assert!(server.run(raw).await.has_ended());
    assert_eq!(server.run("1 + 1").await.ok().value(), "2");
    for language in ["js", "ts"] {
        let outcome = server.run_in(language, &format!("console.log({})", json!(odd))).await.ok();
        assert_eq!(outcome.stdout(), format!("{odd}\n"), "{language}");
        let outcome = server.run_in(language, "console.log('\\ud83d'); '\\ud83d'").await;
        assert!(outcome.has_ended(), "{language}: {:?}", outcome.lines);
    }
    let outcome =
        server.run_in("bash", "printf 'a\\342\\200\\250b\\0c'; printf '\\360\\237'").await.ok();
    assert!(outcome.stdout().starts_with("a\u{2028}b\u{0}c"), "{:?}", outcome.lines);
}
