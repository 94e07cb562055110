"""Tests of E2B's Python SDKs before 2.45, whose requests to the API differ. Versions 2.7 to 2.26 send
the headers that name a sandbox to the API too. `run` gives one URL for the API and for sandboxes."""

import e2b
import pytest
from e2b import Sandbox


def test_sandbox_is_connected_to_paused_resumed_and_killed(create):
    box = create(metadata={"of": "older"})
    assert box.commands.run("python -c 'print(6 * 7)'").stdout == "42\n"
    again = Sandbox.connect(box.sandbox_id)
    again.files.write("kept", "yes")
    box.pause()
    assert not box.is_running()
    resumed = Sandbox.connect(box.sandbox_id, timeout=100)
    assert resumed.files.read("kept") == "yes" and resumed.is_running()
    assert box.connect().commands.run("cat kept").stdout == "yes"
    assert resumed.get_info().sandbox_id == box.sandbox_id
    assert resumed.kill() and not resumed.is_running()
    assert not resumed.kill()
    with pytest.raises(e2b.NotFoundException):
        Sandbox.connect(box.sandbox_id)
