"""Tests of the Python package of the earlier system of the same name, unmodified. The package has an
environment of its own. WRENN_BASE_URL ends with `/api`, like the package's default."""

import threading
import time

import pytest
from wrenn import Capsule, WrennClient
from wrenn.exceptions import WrennNotFoundError


@pytest.fixture(scope="module")
def capsule():
    made = Capsule(template="base", vcpus=1, memory_mb=512, timeout=300, wait=True)
    yield made
    made.destroy()


@pytest.fixture(scope="module")
def client():
    return WrennClient()


def test_commands_and_terminals(capsule):
    assert capsule.commands.run("echo hi; id -un").stdout == "hi\nuser\n"
    started = capsule.commands.run("sleep 100", background=True)
    assert started.pid in [one.pid for one in capsule.commands.list()]
    capsule.commands.kill(started.pid)
    events = list(capsule.commands.stream("sh", ["-c", "echo a; exit 3"]))
    assert events[1].data == "a\n" and events[-1].exit_code == 3
    shown = b""
    with capsule.pty() as terminal:
        terminal.write(b"echo $((40+2)); exit\n")
        for event in terminal:
            shown += event.data if isinstance(event.data, bytes) else b""
    assert b"42" in shown


def test_files(capsule):
    files = capsule.files
    files.write("/tmp/a", "hello")
    assert files.read("/tmp/a") == "hello" and files.read_bytes("/tmp/a") == b"hello"
    assert "a" in [entry.name for entry in files.list("/tmp")]
    assert files.exists("/tmp/a") and not files.exists("/tmp/nosuch")
    assert files.make_dir("/tmp/d/e").name == "e"
    files.remove("/tmp/d")
    files.upload_stream("/tmp/u", iter([b"a", b"b"]))
    assert b"".join(files.download_stream("/tmp/u")) == b"ab"


def test_lives_and_snapshots(capsule, client):
    assert capsule.get_info().status == "running" and capsule.is_running()
    capsule.ping()
    assert capsule.get_url(8000).split("://")[1].startswith(f"8000-{capsule.capsule_id}.")
    assert capsule.capsule_id in [one.id for one in Capsule.list()]
    for _ in range(2):
        taken = capsule.create_snapshot("earlier", overwrite=True)
        assert (taken.name, taken.type) == ("earlier", "snapshot")
    kept = {one.name: one.type for one in client.snapshots.list()}
    assert kept["base"] == "base" and kept["earlier"] == "snapshot"
    kept = {one.name: one.type for one in client.snapshots.list(type="snapshot")}
    assert "earlier" in kept and "base" not in kept
    client.snapshots.delete("earlier")
    assert capsule.pause().status == "paused"
    assert Capsule.connect(capsule.capsule_id).is_running()
    with pytest.raises(WrennNotFoundError):
        Capsule.connect("cl-" + "0" * 25)


def test_figures(capsule, client):
    stats = client.capsules.stats("1h")
    assert stats.current.running_count >= 1 and len(stats.series.labels) == 60
    usage = client.capsules.usage()
    assert len(usage.points) == 30 and usage.points[-1].cpu_minutes > 0
    assert client.capsules.metrics(capsule.capsule_id).points[0].mem_bytes > 0


def test_events(client):
    seen = []

    def follow():
        for event in client.events.stream():
            seen.append((event.resource.id, event.event))

    threading.Thread(target=follow, daemon=True).start()
    time.sleep(0.5)
    capsule = Capsule(template="base", wait=True)
    capsule.destroy()
    wanted = {(capsule.capsule_id, "capsule." + what) for what in ("create", "destroy")}
    for _ in range(100):
        if wanted <= set(seen):
            break
        time.sleep(0.1)
    assert wanted <= set(seen), seen
