"""Tests of the fork server with real kernels: starts, ends, variables, seeds."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent
PROLOGUE = "__import__('wrenn_kernel.prologue').prologue"
# Longest wait for an answer, in seconds.
PATIENCE = 60
PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


class Server:
    """A fork server, spoken to as the interpreter does."""

    def __init__(self, folder):
        self.folder = folder
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(PATIENCE)
        self.lines = self.channel.makefile("r")
        self.kernels = []
        variables = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(PACKAGE)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wrenn_kernel.server", "numpy", "no_such_module"],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=variables,
        )
        theirs.close()
        self.ready = self.line()

    def line(self):
        return json.loads(self.lines.readline())

    def send(self, line):
        self.channel.sendall(json.dumps(line).encode() + b"\n")

    def request(self, name, cwd="/tmp", **variables):
        """Asks for a fork, and returns the first line about it."""
        path = self.folder / f"{name}.json"
        connection = dict(zip(PORTS, range(1, 6)), transport="ipc", ip=str(self.folder / name))
        path.write_text(json.dumps({**connection, "key": "", "signature_scheme": "hmac-sha256"}))
        envs = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **variables}
        start = {"id": name, "connection_file": str(path), "cwd": cwd, "envs": envs}
        self.send({"start": start})
        return self.line()

    def kernel(self, name, **options):
        started = self.request(name, **options)
        assert started["started"] == name
        self.send({"go": name})
        kernel = Kernel(self.folder / f"{name}.json", started["pid"])
        self.kernels.append(kernel)
        return kernel

    def close(self):
        for kernel in self.kernels:
            kernel.kill()
        self.hang_up()

    def hang_up(self):
        """Closes the socket, and returns the server's exit status."""
        self.lines.close()
        self.channel.close()
        return self.process.wait(PATIENCE)


class Kernel:
    """A forked kernel."""

    def __init__(self, connection_file, pid):
        from jupyter_client import BlockingKernelClient

        self.pid = pid
        self.client = BlockingKernelClient()
        self.client.load_connection_file(str(connection_file))
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)

    def value(self, code):
        """Runs code, and returns the text of its value, its output or its error."""
        found = []
        self.client.execute_interactive(
            code, allow_stdin=False, timeout=PATIENCE, output_hook=lambda m: found.append(text(m))
        )
        return "".join(found)

    def silently(self, code):
        reply = self.client.execute(code, silent=True, reply=True, timeout=PATIENCE)
        assert reply["content"]["status"] == "ok", reply["content"]

    def apply(self, **given):
        given = {"set": {}, "removed": [], "run": {}, "seed": None, **given}
        encoded = base64.b64encode(json.dumps(given).encode()).decode()
        self.silently(f"{PROLOGUE}.apply('{encoded}')")

    def kill(self):
        self.client.stop_channels()
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def text(message):
    content = message["content"]
    return content.get("text") or content.get("data", {}).get("text/plain") or content.get("ename", "")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("s"))
    yield made
    made.close()


def test_kernel_has_the_folder_and_the_environment_of_its_request(server):
    kernel = server.kernel("a", cwd="/usr", A="it's\n")
    assert server.ready["ready"] and server.ready["folders"]
    assert kernel.value("import os; os.getcwd(), os.environ['A']") == "('/usr', \"it's\\n\")"
    assert kernel.value("'PYTHONPATH' in os.environ, os.getsid(0) == os.getpid()") == "(False, True)"
    assert kernel.value(f"import sys; {str(PACKAGE)!r} in sys.path") == "False"
    assert kernel.value("open('/proc/self/oom_score_adj').read()") == "'100\\n'"


def test_folder_that_cannot_be_entered_is_reported(server):
    failed = server.request("b", cwd="/no/such")
    assert (failed["failed"], failed["folder"]) == ("b", "/no/such")
    assert server.line() == {"ended": "b", "status": 256}


def test_ends_are_reported_with_their_status(server):
    for name, code, status in (
        ("c", "quit()", 0),
        ("d", "import os; os._exit(3)", 768),
        ("e", "import os; os.kill(os.getpid(), 9)", 9),
    ):
        server.kernel(name).client.execute(code)
        assert server.line() == {"ended": name, "status": status}


def test_dropped_fork_ends(server):
    assert server.request("f")["started"] == "f"
    server.send({"drop": "f"})
    assert server.line() == {"ended": "f", "status": 256}


def test_variables_of_a_run_are_restored(server):
    kernel = server.kernel("g", A="1")
    look = "import os; [os.environ.get(name) for name in ('A', 'B', 'C')]"
    path = kernel.value("import os; os.environ['PATH']")
    kernel.apply(set={"B": "2'\"\n"}, run={"A": "x", "C": "y", "PATH": "/none"})
    assert kernel.value(look) == repr(["x", "2'\"\n", "y"])
    kernel.silently(f"{PROLOGUE}.restore()")
    assert kernel.value(look) == repr(["1", "2'\"\n", None])
    assert kernel.value("os.environ['PATH']") == path
    kernel.apply(removed=["B"])
    assert kernel.value(look) == repr(["1", None, None])


def test_kernels_draw_different_numbers_and_a_seed_repeats_them(server):
    code = "import random, numpy; random.random(), numpy.random.rand()"
    first, second = server.kernel("h"), server.kernel("i")
    assert first.value(code) != second.value(code)
    values = []
    for kernel in (first, second):
        kernel.apply(seed="ab" * 32)
        values.append(kernel.value(code))
    assert values[0] == values[1]


def test_texts_without_a_form_in_utf8_arrive(server):
    kernel = server.kernel("j")
    assert kernel.value("print('a\\ud800b😀')") == "a\ud800b😀\n"
    assert kernel.value("b'\\xff'.decode(errors='surrogateescape')") == repr("\udcff")


def test_forgotten_values_cause_no_warning(server):
    kernel = server.kernel("k")
    assert [kernel.value(str(number)) for number in range(40)] == [str(n) for n in range(40)]


def test_figures_are_shown_under_agg(server):
    pytest.importorskip("matplotlib")
    kernel = server.kernel("l", MPLBACKEND="Agg")
    found = []
    kernel.client.execute_interactive(
        "import matplotlib.pyplot as plt; _ = plt.plot([1])",
        timeout=PATIENCE,
        output_hook=lambda message: found.append(message["content"].get("data", {})),
    )
    assert [data for data in found if "image/png" in data]
    assert kernel.value("plt.get_fignums(), plt.get_backend().lower()") == "([], 'agg')"


def reply(kernel, request):
    """Waits for the reply to a request."""
    while True:
        message = kernel.client.get_shell_msg(timeout=PATIENCE)
        if message["parent_header"].get("msg_id") == request:
            return message["content"]


def test_interrupt_at_the_end_of_code_loses_neither_the_reply_nor_the_state(server):
    kernel = server.kernel("n")
    kernel.value("kept = 5")
    code = "import time\nend = time.time() + 0.004\nwhile time.time() < end: pass"
    for step in range(150):
        request = kernel.client.execute(code, stop_on_error=False)
        time.sleep(0.004 + step % 30 / 5000)
        os.killpg(kernel.pid, signal.SIGINT)
        assert reply(kernel, request)["status"] in ("ok", "error")
    assert kernel.value("kept") == "5"


@pytest.mark.parametrize(
    "code, names",
    [
        ("while True: pass", ["KeyboardInterrupt"]),
        ("import time; time.sleep(99)", ["KeyboardInterrupt"]),
        ("def f():\n    while True: pass\nf()", ["KeyboardInterrupt"]),
        ("import asyncio; await asyncio.sleep(0)\nwhile True: pass", ["KeyboardInterrupt"]),
        ("import asyncio; await asyncio.sleep(99)", ["CancelledError", "KeyboardInterrupt"]),
    ],
)
def test_interrupt_ends_a_cell(server, code, names):
    kernel = server.kernel(f"o{abs(hash(code))}")
    request = kernel.client.execute(code, stop_on_error=False)
    time.sleep(1)
    os.killpg(kernel.pid, signal.SIGINT)
    kernel.client.kernel_info()
    content = reply(kernel, request)
    assert content["ename"] in names
    assert "interrupts.py" not in "".join(content["traceback"])
    assert kernel.value("1 + 1") == "2"


def test_kernels_outlive_the_server(tmp_path):
    server = Server(tmp_path)
    kernel = server.kernel("m")
    try:
        assert server.hang_up() == 0
        assert kernel.value("1 + 1") == "2"
    finally:
        kernel.kill()
