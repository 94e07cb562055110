"""Fixtures of the tests: a real kernel with the formatters, and a closer of figures."""

import os
import queue
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PACKAGE))
os.environ.setdefault("MPLBACKEND", "agg")
# The repository stays clean: kernels inherit this, and this process is told here.
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
sys.dont_write_bytecode = True

import pytest

# Longest wait for a kernel's answer, in seconds.
PATIENCE = 60


class Kernel:
    """A kernel of IPython in its own process, driven by its protocol."""

    def __init__(self, folder):
        from jupyter_client.manager import start_new_kernel

        environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "IPYTHONDIR": str(folder)}
        environment.pop("MPLBACKEND", None)
        self.manager, self.client = start_new_kernel(
            kernel_name="python3",
            startup_timeout=PATIENCE,
            env=environment,
            cwd=str(folder),
            extra_arguments=[
                "--HistoryManager.enabled=False",
                "--InteractiveShell.colors=nocolor",
                "--IPKernelApp.exec_lines=from wrenn_kernel import formatters",
                "--IPKernelApp.exec_lines=formatters.install(get_ipython())",
                "--IPKernelApp.exec_lines=del formatters",
            ],
        )

    def run(self, code):
        """Runs code, and returns the messages that it caused."""
        request = self.client.execute(code, allow_stdin=False, stop_on_error=False)
        return self.collect(request)

    def wait_for(self, request, kind):
        """Waits for a message of a kind that a request causes."""
        while self.next_of(request)[0] != kind:
            pass

    def collect(self, request):
        """Collects the messages of a request until the kernel is idle."""
        messages = []
        while True:
            kind, content = self.next_of(request)
            if kind == "status" and content["execution_state"] == "idle":
                return Messages(messages)
            messages.append((kind, content))

    def next_of(self, request):
        """Returns kind and content of the next message that a request causes."""
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError("the kernel said nothing") from None
            if message["parent_header"].get("msg_id") == request:
                return message["msg_type"], message["content"]

    def close(self):
        """Ends the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


class Messages:
    """The messages of one execution."""

    def __init__(self, messages):
        self.messages = messages

    def results(self):
        """Returns the data of all results and displays, in their order."""
        kinds = ("execute_result", "display_data")
        return [content["data"] for kind, content in self.messages if kind in kinds]

    def text(self, name):
        """Returns all text of a stream."""
        return "".join(content["text"] for kind, content in self.messages
                       if kind == "stream" and content["name"] == name)

    def errors(self):
        """Returns the names of the errors."""
        return [content["ename"] for kind, content in self.messages if kind == "error"]

    def only(self):
        """Returns the data of the only result, and asserts that nothing went wrong."""
        assert self.errors() == []
        assert self.text("stderr") == ""
        (data,) = self.results()
        return data


@pytest.fixture(scope="session")
def kernel(tmp_path_factory):
    """One kernel for all tests."""
    kernel = Kernel(tmp_path_factory.mktemp("kernel"))
    yield kernel
    kernel.close()


@pytest.fixture
def fresh_kernel(tmp_path):
    """A kernel that has loaded no library."""
    kernel = Kernel(tmp_path)
    yield kernel
    kernel.close()


@pytest.fixture(autouse=True)
def figures_are_closed():
    """Closes the figures of a test."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
