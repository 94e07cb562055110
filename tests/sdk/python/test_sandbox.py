"""Tests of sandboxes: creation, lists, lifetimes, pauses, snapshots, forks, metrics and ends."""

import datetime
import threading
import time
from importlib.metadata import version

import e2b
import pytest
from e2b import Sandbox, SandboxQuery, SandboxState
from packaging.version import Version

# The SDK of the generation before lacks these features, or differs in them.
new = pytest.mark.skipif(Version(version("e2b")) < Version("2.53"), reason="not in this SDK")

BOOT = "/proc/sys/kernel/random/boot_id"


def ids(listed):
    return [one.sandbox_id for one in listed]


def until(condition, seconds=30):
    """Waits until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.1)


def test_a_sandbox_is_what_was_asked_for(box):
    result = box.commands.run("id -un; pwd; echo $SHARED; echo $WRENN_SANDBOX_ID")
    assert result.stdout == f"user\n/home/user\nü\n{box.sandbox_id}\n"
    assert box.is_running()
    info = box.get_info()
    assert (info.state, info.name) == (SandboxState.RUNNING, "base")
    assert info.metadata == {"suite": "shared"} and info.template_id
    assert info.started_at < info.end_at and info.cpu_count == 1 and info.memory_mb == 512
    again = Sandbox.connect(box.sandbox_id)
    assert again.commands.run("echo again").stdout == "again\n"


def test_what_is_wrong_is_told(mark):
    with pytest.raises(e2b.SandboxException, match="404.*template not found"):
        Sandbox.create(mark)
    with pytest.raises(e2b.SandboxException, match="400.*timeout"):
        Sandbox.create(timeout=10**7)
    with pytest.raises(e2b.AuthenticationException):
        Sandbox.create(api_key="e2b_" + "0" * 40)
    with pytest.raises(e2b.NotFoundException):
        Sandbox.connect(mark)
    with pytest.raises(e2b.NotFoundException):
        Sandbox.get_info("cl-" + "0" * 25)
    assert not Sandbox.kill(mark)
    with pytest.raises(e2b.SandboxException, match="egressProxy is not supported"):
        Sandbox.create(network={"egress_proxy": {"address": "1.2.3.4:1"}})


@new
def test_one_that_is_killed_is_gone_and_its_streams_end(create, mark):
    one = create(metadata={"mark": mark})
    sleeping = one.commands.run("sleep 100", background=True)
    threading.Timer(0.5, one.kill).start()
    with pytest.raises(e2b.TimeoutException, match="killed or reached its end of life"):
        sleeping.wait()
    until(lambda: not one.is_running())
    assert Sandbox.list(query=SandboxQuery(metadata={"mark": mark})).next_items() == []
    assert not one.kill()
    with pytest.raises(e2b.NotFoundException):
        one.get_info()
    with pytest.raises(e2b.TimeoutException):
        one.commands.run("true")


@new
def test_one_that_comes_to_its_end_says_so(create):
    one = create(timeout=5)
    with pytest.raises(e2b.TimeoutException, match="killed or reached its end of life"):
        one.commands.run("sleep 100")


def test_lists_are_filtered_ordered_and_paged(create, mark):
    odd = {"mark": mark, "a b": "c&d=e%"}
    made = [create(metadata=odd) for _ in range(3)]
    wanted = [one.sandbox_id for one in made]
    query = SandboxQuery(metadata=odd)
    pages = Sandbox.list(query=query, limit=2)
    assert ids(pages.next_items()) == wanted[:0:-1] and pages.has_next
    assert ids(pages.next_items()) == wanted[:1] and not pages.has_next
    # A full last page has no page after it.
    pages = Sandbox.list(query=query, limit=3, order="asc")
    assert ids(pages.next_items()) == wanted and not pages.has_next
    since = made[1].get_info().started_at
    find = lambda **more: ids(Sandbox.list(query=SandboxQuery(metadata={"mark": mark}, **more)).next_items())
    assert find(started_after=since) == wanted[:0:-1]
    assert find(template="base") == wanted[::-1] and find(template=mark) == []
    assert ids(Sandbox.list(query=SandboxQuery(metadata={"mark": mark, "a b": "other"})).next_items()) == []
    made[0].pause()
    assert find(state=[SandboxState.PAUSED]) == wanted[:1]
    assert find(state=[SandboxState.RUNNING]) == wanted[:0:-1]
    assert len(find()) == 3


def is_gone(sandbox):
    try:
        sandbox.get_info()
    except e2b.NotFoundException:
        return True
    return False


def test_time_is_set_moved_and_over(create):
    one = create(timeout=60)
    end = one.get_info().end_at
    one.connect(timeout=10)
    assert one.get_info().end_at == end, "one that connects takes no time away"
    one.connect(timeout=500)
    assert one.get_info().end_at > end
    one.set_timeout(20)
    assert one.get_info().end_at < end
    one.set_timeout(0)
    until(lambda: not one.is_running())
    # The host ends the sandbox, and the platform notes it right after.
    until(lambda: is_gone(one))


@new
def test_a_pause_keeps_all_or_the_disk(create):
    one = create()
    one.files.write("kept", "x" * 100_000)
    counting = one.commands.run("while :; do i=$((i+1)); echo $i >count; sleep 0.1; done", background=True)
    boot = one.files.read(BOOT)
    assert one.pause() is True and one.pause() is False
    assert one.get_info().state == SandboxState.PAUSED
    one = one.connect()
    assert one.files.read("kept") == "x" * 100_000 and one.files.read(BOOT) == boot
    before = int(one.files.read("count"))
    until(lambda: int(one.files.read("count") or 0) > before)
    assert counting.pid in [process.pid for process in one.commands.list()]
    one.pause(mode="filesystem")
    one = one.connect()
    assert one.files.read("kept") == "x" * 100_000 and one.files.read(BOOT) != boot
    one.pause()
    assert one.kill(), "one that is paused is killed as any"


def test_one_that_was_paused_goes_on(create):
    one = create()
    one.files.write("kept", "yes")
    one.pause()
    assert one.get_info().state == SandboxState.PAUSED
    assert not one.is_running()
    with pytest.raises(e2b.TimeoutException):
        one.commands.run("true")
    again = Sandbox.connect(one.sandbox_id)
    assert again.files.read("kept") == "yes" and again.is_running()


def test_one_whose_time_is_over_is_paused_and_wakes(create):
    one = create(timeout=3, lifecycle={"on_timeout": "pause", "auto_resume": True})
    one.files.write("kept", "yes")
    until(lambda: one.get_info().state == SandboxState.PAUSED)
    assert one.files.read("kept") == "yes"
    assert one.get_info().state == SandboxState.RUNNING
    info = one.get_info()
    assert info.lifecycle["on_timeout"] == "pause" and info.lifecycle["auto_resume"]


def test_one_that_is_connected_to_while_it_is_paused_goes_on(create):
    one = create(lifecycle={"on_timeout": "pause"})
    one.files.write("kept", "yes")
    one.set_timeout(0)
    until(lambda: not one.is_running())
    assert one.connect().files.read("kept") == "yes"


@new
def test_one_that_does_not_wake_by_itself_says_so(create):
    one = create(lifecycle={"on_timeout": {"action": "pause", "mode": "filesystem"}})
    boot = one.files.read(BOOT)
    one.set_timeout(0)
    until(lambda: one.get_info().state == SandboxState.PAUSED)
    with pytest.raises(e2b.SandboxException):
        one.files.read(BOOT)
    assert one.connect().files.read(BOOT) != boot


def test_snapshots_are_templates_of_their_own(box, create, mark):
    sleep = box.commands.run("sleep 1000", background=True)
    box.files.write(mark, "1")
    first = box.create_snapshot(name=mark)
    assert first.names == [mark]
    one = create(mark)
    assert one.files.read(mark) == "1"
    assert one.commands.run("pgrep -x sleep").stdout, "what ran goes on in it"
    box.files.write(mark, "2")
    second = box.create_snapshot(name=mark)
    assert create(f"{mark}:default").files.read(mark) == "2"
    assert not Sandbox.delete_snapshot(first.snapshot_id), "its name went over to the second"
    unnamed = one.create_snapshot()
    sleep.kill()
    listed = [each.snapshot_id for each in box.list_snapshots().next_items()]
    assert second.snapshot_id in listed and unnamed.snapshot_id not in listed
    found = Sandbox.list_snapshots(name=mark).next_items()
    assert [each.snapshot_id for each in found] == [second.snapshot_id]
    assert Sandbox.list_snapshots(name=mark + "x").next_items() == []
    pages = Sandbox.list_snapshots(limit=1)
    assert len(pages.next_items()) == 1 and pages.has_next
    for each in (second, unnamed):
        assert Sandbox.delete_snapshot(each.snapshot_id)
        assert not Sandbox.delete_snapshot(each.snapshot_id)


def test_a_snapshot_of_the_disk_boots(box, create, mark):
    box.files.write(mark, "disk")
    taken = box.create_snapshot(mode="filesystem")
    one = create(taken.snapshot_id)
    assert one.files.read(mark) == "disk" and one.files.read(BOOT) != box.files.read(BOOT)
    assert box.files.read(mark) == "disk", "the source goes on"
    assert Sandbox.delete_snapshot(taken.snapshot_id)


def test_forks_are_others_with_the_same_past(box, mark):
    sleep = box.commands.run("sleep 1000", background=True)
    box.files.write(mark, "before")
    forks = box.fork(count=2, timeout=60)
    assert len({box.sandbox_id} | {one.sandbox_id for one in forks}) == 3
    for one in forks:
        assert one.files.read(mark) == "before" and one.commands.run("pgrep -x sleep").stdout
        one.files.write(mark, one.sandbox_id)
        assert one.commands.run("echo $WRENN_SANDBOX_ID").stdout.strip() == one.sandbox_id
    assert box.files.read(mark) == "before" and sleep.kill()
    assert all(one.kill() for one in forks)


def test_figures_are_those_of_the_guest(box):
    figures = box.get_metrics()
    assert figures and figures[-1].cpu_count == 1
    assert 0 < figures[-1].mem_used < figures[-1].mem_total <= 512 << 20
    assert 0 < figures[-1].disk_used < figures[-1].disk_total
    day = datetime.timedelta(days=1)
    long_ago = datetime.datetime.now() - day
    assert box.get_metrics(start=long_ago - day, end=long_ago) == []


@new
def test_a_create_that_is_repeated_by_its_key_makes_one(create, mark):
    one = create(idempotency_key=mark)
    assert create(idempotency_key=mark).sandbox_id == one.sandbox_id
    with pytest.raises(e2b.SandboxException, match="422"):
        create(idempotency_key=mark, envs={"OTHER": "1"})


def test_the_internet_is_turned_off_and_on(create):
    # No server answers at this address. The kind of failure tells whether the capsule may try.
    reach = "timeout 2 bash -c '</dev/tcp/198.41.0.4/53' 2>&1; echo $?"
    one = create(allow_internet_access=False)
    assert one.get_info().allow_internet_access is False
    assert one.commands.run(reach).stdout.strip().endswith("124")
    one.update_network({"allow_out": ["198.41.0.4"], "deny_out": ["0.0.0.0/0"]})
    info = one.get_info()
    assert info.network["allow_out"] == ["198.41.0.4"] and info.network["deny_out"] == ["0.0.0.0/0"]
    one.update_network({})
    assert one.get_info().allow_internet_access is True
    with pytest.raises(e2b.SandboxException, match="400.*allow"):
        one.update_network({"allow_out": ["example.com"]})
