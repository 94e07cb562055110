"""Floor of the code interpreter's figures: Jupyter's own client drives the same kernel, in the same
guest. No service is between. Prints the seconds of each round as a list in JSON.

usage: code_floor.py run ROUNDS | start ROUNDS | output BYTES ROUNDS |
    prints COUNT ROUNDS
"""

import json
import os
import subprocess
import sys
import time

from jupyter_client.manager import KernelManager

PACKAGE = "/usr/local/lib/wrenn/python"
# Starts the kernel with the settings that the interpreter gives it.
LAUNCH = f"import sys; sys.path.insert(0, {PACKAGE!r}); from wrenn_kernel import launch; " \
    "launch.prepare(sys.argv[1]).start()"
LIBRARIES = "import numpy, pandas, matplotlib.pyplot"
# Longest wait for a message, in seconds.
PATIENCE = 300


class Kernel:
    """A kernel and its client."""

    def __init__(self):
        self.manager = KernelManager(kernel_name="python3", transport="ipc")
        self.manager.kernel_spec.argv = [sys.executable, "-c", LAUNCH, "{connection_file}"]
        self.manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)

    def run(self, code):
        """Runs code until the kernel is idle. Returns the bytes of its output."""
        request = self.client.execute(code, allow_stdin=False)
        size = 0
        while True:
            message = self.client.get_iopub_msg(timeout=PATIENCE)
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            size += len(content.get("text", "")) if message["msg_type"] == "stream" else 0
            if message["msg_type"] == "status" and content["execution_state"] == "idle":
                self.client.get_shell_msg(timeout=PATIENCE)
                return size

    def end(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def timed(work):
    """Returns the seconds that work takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def start():
    """Starts a kernel with the libraries and gets its first result."""
    kernel = Kernel()
    kernel.run(f"{LIBRARIES}\n1")
    kernel.end()


def output(kernel, size):
    """Has the kernel write lines of 1,000 bytes."""
    code = f"import sys\nfor i in range({size // 1000}):\n    sys.stdout.write('x' * 999 + '\\n')"
    written = kernel.run(code)
    assert written == size, f"{written} of {size} bytes arrived"


def prints(kernel, count):
    """Has the kernel write small outputs, each in a message of its own."""
    written = kernel.run(f"for i in range({count}):\n    print(i, flush=True)")
    wanted = sum(len(f"{i}\n") for i in range(count))
    assert written == wanted, f"{written} of {wanted} bytes arrived"


def main(kind, *numbers):
    os.environ.setdefault("MPLBACKEND", "agg")
    numbers = [int(number) for number in numbers]
    if kind == "start":
        return [timed(start) for _ in range(numbers[0])]
    kernel = Kernel()
    try:
        if kind == "run":
            return [timed(lambda: kernel.run("1")) for _ in range(numbers[0])]
        work = prints if kind == "prints" else output
        return [timed(lambda: work(kernel, numbers[0])) for _ in range(numbers[1])]
    finally:
        kernel.end()


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
