"""Tests inside a sandbox: commands, terminals, files, watches, git."""

import threading

import e2b
import pytest
from e2b import FileType, PtySize


def test_commands_say_what_they_wrote_and_how_they_ended(box):
    run = box.commands.run
    result = run("echo $A; pwd; echo e >&2", envs={"A": "ü"}, cwd="/usr")
    assert (result.stdout, result.stderr, result.exit_code) == ("ü\n/usr\n", "e\n", 0)
    assert run("id -un", user="root").stdout == "root\n"
    assert run("python -c 'print(6 * 7)'").stdout == "42\n"
    assert run("sudo -n id -un; sudo echo [$A]").stdout == "root\n[]\n"
    with pytest.raises(e2b.CommandExitException) as failed:
        run("exit 4")
    assert failed.value.exit_code == 4
    with pytest.raises(e2b.TimeoutException):
        run("sleep 10", timeout=1)
    with pytest.raises(e2b.AuthenticationException):
        run("true", user="nosuch")
    with pytest.raises(e2b.InvalidArgumentException):
        run("true", cwd="/nosuch")
    assert len(run("printf '%08191d' 0; printf '\\xe2'").stdout) >= 8191


def test_commands_are_fed_listed_attached_to_and_killed(box):
    seen = []
    box.commands.run("echo a; echo b >&2", on_stdout=seen.append, on_stderr=seen.append)
    assert sorted(seen) == ["a\n", "b\n"]
    cat = box.commands.run("cat", background=True, stdin=True)
    box.commands.send_stdin(cat.pid, "hello\n")
    assert next(iter(cat))[0] == "hello\n"
    assert cat.pid in [process.pid for process in box.commands.list()]
    assert box.commands.run(f"kill -0 {cat.pid}").exit_code == 0
    assert box.commands.kill(cat.pid) and not box.commands.kill(999_999)
    count = box.commands.run("wc -c", background=True, stdin=True)
    box.commands.send_stdin(count.pid, "12345")
    box.commands.close_stdin(count.pid)
    assert count.wait().stdout.strip() == "5"
    late = box.commands.run("sleep 1; echo late", background=True)
    late.disconnect()
    assert box.commands.connect(late.pid).wait().stdout == "late\n"
    with pytest.raises(e2b.NotFoundException):
        box.commands.connect(999_999)


def test_many_at_once_do_not_mix(box):
    seen = {}
    act = lambda i: seen.update({i: box.commands.run(f"echo {i}").stdout})
    threads = [threading.Thread(target=act, args=(i,)) for i in range(20)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert seen == {i: f"{i}\n" for i in range(20)}


def test_terminals_have_sizes_and_exit_codes(box):
    shell = box.pty.create(PtySize(rows=24, cols=80), envs={"A": "b"}, cwd="/tmp")
    box.pty.resize(shell.pid, PtySize(rows=50, cols=132))
    box.pty.send_stdin(shell.pid, b"stty size; echo $A-$PWD; tput cols; exit 3\n")
    shown = b""
    with pytest.raises(e2b.CommandExitException) as ended:
        for _, _, data in shell:
            shown += data or b""
        shell.wait()
    assert ended.value.exit_code == 3
    assert b"50 132" in shown and b"b-/tmp" in shown, shown
    other = box.pty.create(PtySize(rows=1, cols=1))
    assert box.pty.kill(other.pid)


def test_files_are_written_read_listed_moved_and_removed(box, mark):
    files, at = box.files, lambda name: f"/home/user/{mark}/{name}"
    files.write(at("a"), "hi")
    assert files.read(at("a")) == "hi" and files.read(at("a"), format="bytes") == b"hi"
    files.write(at("empty"), "")
    assert files.read(at("empty")) == ""
    big = "x" * 3_000_000
    files.write(at("big"), big)
    assert files.read(at("big")) == big
    assert sum(map(len, files.read(at("big"), format="stream"))) == len(big)
    info = files.get_info(at("a"))
    assert (info.type, info.size, info.owner) == (FileType.FILE, 2, "user")
    assert info.permissions == "-rw-r--r--"
    box.commands.run(f"ln -s {at('a')} {at('link')}")
    link = files.get_info(at("link"))
    assert (link.type, link.symlink_target) == (FileType.FILE, at("a"))
    box.commands.run(f"ln -s {at('d')} {at('into')}; mkdir {at('d')}")
    into = files.get_info(at("into"))
    assert (into.type, into.symlink_target) == (FileType.DIR, at("d"))
    listed = {entry.name: entry for entry in files.list(f"/home/user/{mark}")}
    assert (listed["into"].type, listed["into"].symlink_target) == (FileType.DIR, at("d"))
    box.commands.run(f"rm {at('into')}; rmdir {at('d')}")
    assert files.exists(at("a")) and not files.exists(at("nosuch"))
    assert files.make_dir(at("d/e")) and not files.make_dir(at("d/e"))
    names = [entry.name for entry in files.list(f"/home/user/{mark}", depth=2)]
    assert names == ["a", "big", "d", "e", "empty", "link"]
    files.rename(at("a"), at("b/c"))
    files.remove(at("b"))
    files.remove(at("b"))
    with pytest.raises(e2b.NotFoundException):
        files.read(at("a"))
    with pytest.raises(e2b.InvalidArgumentException):
        files.list(at("big"))
    written = files.write_files([{"path": at("1"), "data": "1"}, {"path": at("2"), "data": b"2"}])
    assert [one.path for one in written] == [at("1"), at("2")]
    files.write("relative", "r", user="root")
    assert box.commands.run("cat /root/relative", user="root").stdout == "r"


def test_metadata_of_files_is_kept_until_the_next_write(box, mark):
    box.files.write(mark, "x", metadata={"a": "b"})
    assert box.files.get_info(mark).metadata == {"a": "b"}
    box.files.write(mark, "x")
    assert not box.files.get_info(mark).metadata


def test_watchers_tell_of_one_new_file_in_three_events(box, mark):
    box.files.make_dir(mark)
    watch = box.files.watch_dir(mark, recursive=True, include_entry=True)
    box.files.write(f"{mark}/f", "x")
    events = watch.get_new_events()
    assert [event.type.value for event in events] == ["create", "chmod", "write"]
    assert events[-1].entry.name == "f" and events[-1].name == "f"
    box.commands.run(f"mkdir -p {mark}/new/deep && echo x >{mark}/new/deep/g")
    told = [event.type.value for event in watch.get_new_events() if event.name == "new/deep/g"]
    assert told[:2] == ["create", "write"], told
    watch.stop()
    with pytest.raises(e2b.NotFoundException):
        box.files.watch_dir(f"{mark}/nosuch")


def test_git_clones_commits_and_branches(box, mark):
    git, at = box.git, f"/home/user/{mark}"
    git.init(f"{at}/one", initial_branch="main")
    box.files.write(f"{at}/one/f", "1")
    git.configure_user("A", "a@example.com")
    git.add(f"{at}/one")
    git.commit(f"{at}/one", "first")
    git.create_branch(f"{at}/one", "next")
    status = git.status(f"{at}/one")
    assert status.current_branch == "next" and status.is_clean
    git.clone(f"{at}/one", path=f"{at}/two")
    assert box.files.read(f"{at}/two/f") == "1"
    assert set(git.branches(f"{at}/one").branches) == {"main", "next"}
