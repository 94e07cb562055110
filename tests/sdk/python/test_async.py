"""Tests of the SDK's asyncio half: each feature again."""

import asyncio
import uuid

import e2b
from e2b import AsyncSandbox, PtySize, SandboxQuery, SandboxState


async def raises(kind, awaited):
    try:
        await awaited
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


async def lives():
    mark = uuid.uuid4().hex
    box = await AsyncSandbox.create(timeout=120, metadata={"mark": mark}, envs={"A": "b"})
    try:
        await inside(box)
        listed = AsyncSandbox.list(query=SandboxQuery(metadata={"mark": mark}))
        assert [one.sandbox_id for one in await listed.next_items()] == [box.sandbox_id]
        assert not listed.has_next
        await box.set_timeout(200)
        assert (await box.get_info()).state == SandboxState.RUNNING
        assert (await box.get_metrics())[0].cpu_count == 1
        await box.update_network({"deny_out": ["0.0.0.0/0"]})
        assert (await box.get_info()).network["deny_out"] == ["0.0.0.0/0"]

        await box.files.write("kept", "yes")
        assert await box.pause() and not await box.pause()
        box = await box.connect()
        assert await box.files.read("kept") == "yes"
        taken = await box.create_snapshot()
        other = await AsyncSandbox.create(taken.snapshot_id, timeout=60)
        assert await other.files.read("kept") == "yes" and await other.kill()
        pages = box.list_snapshots()
        assert taken.snapshot_id in [one.snapshot_id for one in await pages.next_items()]
        assert await AsyncSandbox.delete_snapshot(taken.snapshot_id)
        [fork] = await box.fork(timeout=60)
        assert await fork.files.read("kept") == "yes" and await fork.kill()
    finally:
        assert await box.kill()
    assert not await box.is_running()
    await raises(e2b.NotFoundException, AsyncSandbox.connect(box.sandbox_id))


async def inside(box):
    assert (await box.commands.run("echo $A")).stdout == "b\n"
    failed = await raises(e2b.CommandExitException, box.commands.run("exit 3"))
    assert failed.exit_code == 3
    await raises(e2b.TimeoutException, box.commands.run("sleep 9", timeout=1))
    cat = await box.commands.run("cat", background=True, stdin=True)
    await box.commands.send_stdin(cat.pid, "x")
    await box.commands.close_stdin(cat.pid)
    assert (await cat.wait()).stdout == "x"
    outputs = await asyncio.gather(*(box.commands.run(f"echo {i}") for i in range(10)))
    assert [one.stdout for one in outputs] == [f"{i}\n" for i in range(10)]

    shown = bytearray()
    shell = await box.pty.create(PtySize(24, 80), on_data=shown.extend)
    await box.pty.send_stdin(shell.pid, b"stty size; exit\n")
    await shell.wait()
    assert b"24 80" in shown

    await box.files.make_dir("watched")
    seen = asyncio.Queue()
    watch = await box.files.watch_dir("watched", on_event=seen.put_nowait)
    await box.files.write("watched/f", b"1")
    assert (await asyncio.wait_for(seen.get(), 10)).name == "f"
    await watch.stop()
    assert [one.name for one in await box.files.list("watched")] == ["f"]
    await box.git.init("repo")
    assert (await box.git.status("repo")).current_branch


async def sleeps():
    lifecycle = {"on_timeout": "pause", "auto_resume": True}
    box = await AsyncSandbox.create(timeout=3, lifecycle=lifecycle)
    try:
        await box.files.write("kept", "yes")
        for _ in range(300):
            if (await box.get_info()).state == SandboxState.PAUSED:
                break
            await asyncio.sleep(0.1)
        assert (await box.get_info()).state == SandboxState.PAUSED
        assert await box.files.read("kept") == "yes", "it wakes for whoever asks"
    finally:
        assert await box.kill()


def test_one_whose_time_is_over_is_paused_and_wakes():
    asyncio.run(sleeps())


def test_the_async_half_does_all_of_it():
    asyncio.run(lives())
