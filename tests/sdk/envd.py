"""Runs E2B's official Python SDK, unmodified. It runs against envd on this machine (its debug mode).
With PROXY_URL, it runs against a capsule through the sandbox proxy, with envd's own token."""

import json
import os
import subprocess
import threading

import e2b
from e2b import FileType, PtySize, Sandbox
from packaging.version import Version

USER = "root"
HOME = "/tmp/wrenn-sdk-test"
PROXY = os.environ.get("PROXY_URL")


def behind_the_proxy():
    capsule = os.environ["CAPSULE"]
    with open(f"{os.environ['WRENN_DIR']}/capsules/{capsule}/capsule.json") as record:
        token = json.load(record)["envd_token"]
    # `Sandbox.create` sets the same headers from the API's answer.
    headers = {"X-Access-Token": token, "E2b-Sandbox-Id": capsule, "E2b-Sandbox-Port": "49983"}
    config = e2b.ConnectionConfig(sandbox_url=PROXY, extra_sandbox_headers=headers)
    return Sandbox(
        sandbox_id=capsule,
        sandbox_domain=None,
        envd_version=Version("0.6.13"),
        envd_access_token=token,
        traffic_access_token=None,
        connection_config=config,
    )


box = behind_the_proxy() if PROXY else Sandbox.create()
run = lambda command, **more: box.commands.run(command, user=USER, **more)


def raises(kind, act):
    try:
        act()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def commands_return_output_and_exit_code():
    result = run("id -un; echo $A; pwd", envs={"A": "ü"}, cwd="/usr")
    assert (result.stdout, result.exit_code) == ("root\nü\n/usr\n", 0), result
    assert run("sudo -n echo [$A] 2>/dev/null || echo [$A]").stdout == "[]\n"
    assert raises(e2b.CommandExitException, lambda: run("echo e >&2; exit 4")).exit_code == 4
    raises(e2b.TimeoutException, lambda: run("sleep 10", timeout=1))
    raises(e2b.TimeoutException, lambda: run("yes", timeout=1))
    raises(e2b.AuthenticationException, lambda: box.commands.run("true", user="nosuch"))
    raises(e2b.InvalidArgumentException, lambda: run("true", cwd="/nosuch"))


def output_streams_and_broken_bytes_do_no_harm():
    seen = []
    run("echo a; echo b >&2", on_stdout=seen.append, on_stderr=seen.append)
    assert sorted(seen) == ["a\n", "b\n"], seen
    assert len(run("printf '%08191d' 0; printf '\\xe2'").stdout) >= 8191


def processes_are_fed_listed_killed_and_attached_to_late():
    cat = run("cat", background=True, stdin=True)
    box.commands.send_stdin(cat.pid, "hello\n")
    assert next(iter(cat))[0] == "hello\n"
    assert cat.pid in [process.pid for process in box.commands.list()]
    assert box.commands.kill(cat.pid) and not box.commands.kill(999_999)
    count = run("wc -c", background=True, stdin=True)
    box.commands.send_stdin(count.pid, "12345")
    box.commands.close_stdin(count.pid)
    assert count.wait().stdout.strip() == "5"
    late = run("sleep 0.5; echo late", background=True)
    late.disconnect()
    assert box.commands.connect(late.pid).wait().stdout == "late\n"


def many_at_once_do_not_mix():
    seen = {}
    act = lambda i: seen.update({i: run(f"echo {i}").stdout})
    threads = [threading.Thread(target=act, args=(i,)) for i in range(30)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert seen == {i: f"{i}\n" for i in range(30)}


def terminals_have_sizes_and_exit_codes():
    shell = box.pty.create(PtySize(rows=24, cols=80), user=USER)
    box.pty.resize(shell.pid, PtySize(rows=50, cols=132))
    box.pty.send_stdin(shell.pid, b"stty size; exit 3\n")
    shown = b""
    def read():
        nonlocal shown
        for _, _, data in shell:
            shown += data or b""
        shell.wait()
    assert raises(e2b.CommandExitException, read).exit_code == 3
    assert b"50 132" in shown, shown


def files_are_written_read_listed_moved_and_removed():
    files, at = box.files, lambda name: f"{HOME}/{name}"
    files.write(at("a"), "hi", user=USER)
    assert files.read(at("a"), user=USER) == "hi"
    assert files.read(at("a"), format="bytes", user=USER) == b"hi"
    files.write(at("empty"), "", user=USER)
    assert files.read(at("empty"), user=USER) == ""
    big = "x" * 3_000_000
    files.write(at("big"), big, user=USER)
    assert files.read(at("big"), user=USER) == big
    assert sum(map(len, files.read(at("big"), format="stream", user=USER))) == len(big)
    info = files.get_info(at("a"), user=USER)
    assert (info.type, info.size, info.permissions) == (FileType.FILE, 2, "-rw-r--r--"), info
    assert files.exists(at("a"), user=USER) and not files.exists(at("nosuch"), user=USER)
    assert files.make_dir(at("d/e"), user=USER) and not files.make_dir(at("d/e"), user=USER)
    assert [e.name for e in files.list(HOME, depth=2, user=USER)] == ["a", "big", "d", "e", "empty"]
    files.rename(at("a"), at("b/c"), user=USER)
    files.remove(at("b"), user=USER)
    files.remove(at("b"), user=USER)
    raises(e2b.NotFoundException, lambda: files.read(at("a"), user=USER))
    written = files.write_files([{"path": at("1"), "data": "1"}, {"path": at("2"), "data": b"2"}], user=USER)
    assert [one.path for one in written] == [at("1"), at("2")]


def metadata_of_files_is_kept_until_the_next_write():
    box.files.write(f"{HOME}/meta", "x", metadata={"a": "b"}, user=USER)
    assert box.files.get_info(f"{HOME}/meta", user=USER).metadata == {"a": "b"}
    box.files.write(f"{HOME}/meta", "x", user=USER)
    assert not box.files.get_info(f"{HOME}/meta", user=USER).metadata


def watchers_tell_of_one_new_file_in_three_events():
    box.files.make_dir(f"{HOME}/w", user=USER)
    watch = box.files.watch_dir(f"{HOME}/w", recursive=True, user=USER)
    box.files.write(f"{HOME}/w/f", "x", user=USER)
    assert [event.type.value for event in watch.get_new_events()] == ["create", "chmod", "write"]
    watch.stop()


def git_works_and_health_is_told():
    box.git.init(f"{HOME}/repo", user=USER)
    assert box.git.status(f"{HOME}/repo", user=USER).current_branch
    assert box.is_running()


run(f"rm -rf {HOME} && mkdir -p {HOME}")
checks = [value for value in list(globals().values()) if callable(value) and getattr(value, "__module__", "") == __name__]
checks = [check for check in checks if check.__name__ not in ("raises", "behind_the_proxy", "<lambda>")]
assert len(checks) == 9, checks
for check in checks:
    check()
    print("ok", check.__name__.replace("_", " "))
run(f"rm -rf {HOME}")
if PROXY:
    # A command that runs when the capsule ends gets an error of the SDK's own.
    waiting = run("sleep 100", background=True)
    subprocess.run([os.environ["WRENN"], "capsule", "kill", box.sandbox_id], check=True)
    told = str(raises(Exception, waiting.wait))
    assert "not found" in told or "end of life" in told, told
    assert not box.is_running()
    print("ok a capsule that was ended is told from one that does not answer")
