//! Output under pressure: nothing is lost, in order, within a limit of memory.

use crate::Server;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// Most bytes of a line's text.
const TEXT_MAX: usize = 64 * 1024;
/// Most memory of the interpreter, in MiB. It is far below the output of these tests.
const MEMORY_MIB: u64 = 64;

/// Most memory by which a kernel grows while its client is asleep, in MiB. The output of the test is
/// larger.
const GROWTH_MIB: u64 = 96;

/// Hashes the output of code that also prints the hash, as its last line. The client is asleep at
/// the beginning.
async fn compare(server: &Server, language: &str, code: &str, bytes: usize) {
    let mut execution = server.execute(json!({ "code": code, "language": language })).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (mut hash, mut seen, mut tail) = (Sha256::new(), 0, String::new());
    let mut last = String::new();
    while let Some(line) = execution.next().await {
        let kind = line["type"].as_str().unwrap().to_owned();
        if kind == "stdout" {
            let text = line["text"].as_str().unwrap();
            assert!(text.len() <= TEXT_MAX, "a line of {} bytes", text.len());
            let rest = text.len().min(bytes - seen);
            hash.update(&text[..rest]);
            seen += rest;
            tail.push_str(&text[rest..]);
        }
        assert!(kind != "error", "{line}");
        last = kind;
    }
    assert_eq!((seen, last.as_str()), (bytes, "end_of_execution"), "{language}");
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(tail.trim(), hash, "{language}");
}

#[tokio::test]
async fn hundred_megabytes_of_python_arrive_whole_with_little_memory() {
    let server = Server::start().await;
    let code = "import hashlib, sys\nhash = hashlib.sha256()\n\
        for i in range(100_000):\n    line = f'{i:0999d}\\n'\n    \
        hash.update(line.encode())\n    sys.stdout.write(line)\n\
        print(hash.hexdigest())";
    compare(&server, "python", code, 100_000_000).await;
    assert!(server.peak_mib() < MEMORY_MIB, "{} MiB", server.peak_mib());
    assert_eq!(server.run("i").await.ok().value(), "99999");
}

#[tokio::test]
async fn output_of_node_and_bash_arrives_whole() {
    let server = Server::start().await;
    let code = "const hash = (await import('node:crypto')).createHash('sha256')\n\
        for (let i = 0; i < 20000; i++) {\n  const line = String(i).padStart(999, '0') + '\\n'\n  \
        hash.update(line)\n  process.stdout.write(line)\n}\nconsole.log(hash.digest('hex'))";
    compare(&server, "javascript", code, 20_000_000).await;
    let code = "seq -f '%0999.0f' 1 20000 | tee >(sha256sum | cut -c 1-64 >\"$HOME/sum\")\n\
        until [ -s \"$HOME/sum\" ]; do sleep 0.1; done\ncat \"$HOME/sum\"";
    compare(&server, "bash", code, 20_000_000).await;
    assert!(server.peak_mib() < MEMORY_MIB, "{} MiB", server.peak_mib());
}

#[tokio::test]
async fn one_line_of_a_hundred_megabytes_arrives_whole_in_pieces() {
    let server = Server::start().await;
    for (language, code, bytes) in [
        ("python", "print('x' * 99_999_999)", 100_000_000),
        ("javascript", "console.log('x'.repeat(19_999_999))", 20_000_000),
        ("bash", "head -c 19999999 /dev/zero | tr '\\0' x; echo", 20_000_000),
    ] {
        let mut execution = server.execute(json!({ "code": code, "language": language })).await;
        let mut seen = 0;
        while let Some(line) = execution.next().await {
            assert!(line["type"] != "error", "{line}");
            let text = line["text"].as_str().unwrap_or_default();
            let is_right = text.trim_end_matches('\n').bytes().all(|byte| byte == b'x');
            assert!(text.len() <= TEXT_MAX && is_right, "{language}: {} bytes", text.len());
            seen += text.len();
        }
        assert_eq!(seen, bytes, "{language}");
        assert!(execution.rest().await.has_ended(), "{language}");
    }
    assert!(server.peak_mib() < MEMORY_MIB, "{} MiB", server.peak_mib());
    assert_eq!(server.run("1 + 1").await.ok().value(), "2");
}

#[tokio::test]
async fn flushed_prints_and_displays_reach_a_client_that_slept() {
    let server = Server::start().await;
    let code = "import resource\nfrom IPython.display import display\n\
        used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n\
        before = used()\nfor i in range(20_000):\n    print(i, flush=True)\n\
        for i in range(3000):\n    display({'text/html': f'{i} ' + 'x' * 20_000}, raw=True)\n\
        print('all')\nused() - before";
    let execution = server.execute(json!({ "code": code })).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let outcome = execution.rest().await.ok();
    let wanted: String = (0..20_000).map(|i| format!("{i}\n")).collect();
    assert!(outcome.stdout() == format!("{wanted}all\n"), "{} bytes", outcome.stdout().len());
    let grown: u64 = outcome.value().parse().unwrap();
    assert!(grown < GROWTH_MIB, "the kernel grew by {grown} MiB");
    let mut shown = outcome.all("result");
    shown.retain(|line| line["is_main_result"] == false);
    let numbers: Vec<usize> = shown
        .iter()
        .map(|line| line["html"].as_str().unwrap().split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(numbers, (0..3000).collect::<Vec<_>>());
}

#[tokio::test]
async fn slow_client_holds_up_its_own_context_alone() {
    let server = Server::start().await;
    let other = server.context("python").await;
    // The sockets of an unread answer hold tens of megabytes.
    let code = "for i in range(400_000):\n    print('x' * 999)\n    \
        if i % 1000 == 0: open('at', 'w').write(str(i))\nopen('done', 'w').close()";
    let slow = server.execute(json!({ "code": code })).await;
    let at = || std::fs::read_to_string(server.path("home/at")).unwrap_or_default();
    tests::eventually("the writer stands still", async || {
        let before = at();
        tokio::time::sleep(Duration::from_secs(1)).await;
        (!before.is_empty() && before == at()).then_some(())
    })
    .await;
    assert!(!server.path("home/done").exists(), "the writer was not held up");
    assert_eq!(
        server.ran(json!({ "code": "6 * 7", "context_id": other })).await.ok().value(),
        "42"
    );
    assert_eq!(server.get(&format!("/contexts/{}", slow.context)).await["state"], "busy");
    drop(slow);
    assert_eq!(server.run("6 * 7").await.ok().value(), "42");
    assert!(!server.path("home/done").exists());
}

#[tokio::test]
async fn limit_of_output_keeps_head_and_tail() {
    let server = Server::start().await;
    let code = "for i in range(10_000):\n    print(f'{i:09d}')\n1 / 0";
    let outcome = server.ran(json!({ "code": code, "max_output_bytes": 1000 })).await;
    outcome.fails("ZeroDivisionError", "");
    let text = outcome.stdout();
    assert_eq!(text.len(), 1000);
    assert!(text.starts_with("000000000\n") && text.ends_with("000009999\n"), "{text}");
    assert_eq!(outcome.all("omitted")[0]["bytes"], 99_000, "{:?}", outcome.lines);
}

#[tokio::test]
async fn output_of_a_thread_after_its_execution_is_kept_with_the_context() {
    let server = Server::start().await;
    let code = "import threading, time\ndef late():\n    time.sleep(1)\n    print('late')\n\
        thread = threading.Thread(target=late)\nthread.start()";
    let outcome = server.run(code).await.ok();
    assert_eq!(outcome.stdout(), "");
    tests::eventually("the context has the late output", async || {
        let list = server.get("/contexts").await;
        (list[0]["late_output"] == "late\n").then_some(())
    })
    .await;
    assert_eq!(server.run("print('own')").await.ok().stdout(), "own\n");
}
