"""The fork server of kernels. It imports libraries once, and each kernel is a fork of it.

The interpreter speaks to it by lines of JSON over the socket that is its standard input. The server
has one thread, since a fork copies no other. Its arguments are the modules to import.
"""

import atexit
import hashlib
import importlib
import json
import os
import select
import signal
import site
import socket
import sys
import time
import traceback

# Modules that every kernel needs. Each is optional here: a kernel that lacks one says so.
KERNEL_MODULES = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "wrenn_kernel.launch",
    "wrenn_kernel.interrupts",
    "wrenn_kernel.prologue",
    "wrenn_kernel.formatters",
    "wrenn_kernel.inspect_vars",
)
# Modules that a library loads only for its first use.
LATE_MODULES = {"matplotlib.pyplot": ("matplotlib.backends.backend_agg",)}
# Value of oom_score_adj of a kernel, as of all programs of users.
OOM_SCORE = "100"
# Names of folders of installed packages.
SITES = ("site-packages", "dist-packages")
# Bytes that one read takes.
READ = 65536
# Longest text of a failure, in characters.
WHY = 2000


def main(modules):
    """Imports the modules and serves until the interpreter closes the socket."""
    channel = socket.socket(fileno=os.dup(0))
    hide_package()
    load(modules)
    server = Server(channel)
    server.send({"ready": True, "folders": folders()})
    server.serve()


def hide_package():
    """Removes the folder of this package and the server's own folder from the search path.

    Submodules of the package are found by the package itself.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    hidden = ("", os.getcwd(), package)
    sys.path[:] = [entry for entry in sys.path if entry not in hidden]


def leave_out_debugger():
    """Makes the kernel believe that no debugger is installed.

    The kernel would import it after each fork, for a protocol that the interpreter does not speak.
    User's code can still import it.
    """
    if "debugpy" in sys.modules:
        return
    sys.modules["debugpy"] = None
    try:
        importlib.import_module("ipykernel.debugger")
    except ImportError:
        traceback.print_exc(limit=-1)
    finally:
        del sys.modules["debugpy"]


def load(modules):
    """Imports modules. A module that fails is named on standard error and left out."""
    leave_out_debugger()
    late = [name for module in modules for name in LATE_MODULES.get(module, ())]
    for name in [*modules, *late, *KERNEL_MODULES]:
        try:
            importlib.import_module(name)
        except Exception:
            traceback.print_exc(limit=-1)


def folders():
    """Returns the folders of installed packages, whose changes make this server old."""
    found = [*site.getsitepackages()]
    if site.ENABLE_USER_SITE is not None:
        found.append(site.getusersitepackages())
    found += [entry for entry in sys.path if os.path.basename(entry) in SITES]
    return list(dict.fromkeys(found))


class Server:
    """Forks kernels, and reports their ends."""

    def __init__(self, channel):
        self.channel = channel
        self.received = b""
        # Writing ends of the pipes on which forked children wait, by their names.
        self.waiting = {}
        # Names of children, by their pids.
        self.children = {}
        # Randomness of the machine's newest epoch.
        self.seed = b""
        # A handler is needed for the signal to wake the loop.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.woken, self.waker = socket.socketpair()
        for end in (self.woken, self.waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)

    def send(self, line):
        """Sends a line in one write."""
        self.channel.sendall(json.dumps(line).encode() + b"\n")

    def serve(self):
        """Serves until the socket's end."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        poll.register(self.woken, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self.woken.fileno() in ready:
                self.reap()
            if self.channel.fileno() in ready and not self.read():
                return

    def reap(self):
        """Reports the children that have ended."""
        try:
            self.woken.recv(READ)
        except BlockingIOError:
            pass
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            name = self.children.pop(pid, None)
            self.drop(name)
            if name is not None:
                self.send({"ended": name, "status": status})

    def read(self):
        """Takes what has arrived. Returns False at the socket's end."""
        try:
            arrived = self.channel.recv(READ)
        except ConnectionError:
            return False
        *lines, self.received = (self.received + arrived).split(b"\n")
        for line in lines:
            self.take(json.loads(line))
        return bool(arrived)

    def take(self, line):
        """Does what a line asks for."""
        if "start" in line:
            self.start(line["start"])
        elif "go" in line:
            pipe = self.waiting.get(line["go"])
            if pipe is not None:
                os.write(pipe, b"1")
                self.drop(line["go"])
        elif "drop" in line:
            self.drop(line["drop"])
        elif "epoch" in line:
            self.seed = bytes.fromhex(line["epoch"])

    def drop(self, name):
        """Closes the pipe of a child. A child that still waits on it ends."""
        pipe = self.waiting.pop(name, None)
        if pipe is not None:
            os.close(pipe)

    def start(self, request):
        """Forks a child for a request."""
        name = request["id"]
        try:
            waiting, going = os.pipe()
            pid = os.fork()
        except OSError as error:
            self.send({"failed": name, "why": f"cannot fork: {error}"})
            return
        if pid == 0:
            os.close(going)
            self.become_kernel(request, waiting)
        os.close(waiting)
        self.waiting[name] = going
        self.children[pid] = name

    def become_kernel(self, request, waiting):
        """Turns the forked process into a kernel, and never returns."""
        status = 1
        try:
            self.prepare(request)
            if os.read(waiting, 1):
                os.close(waiting)
                status = run_kernel(request, self.seed)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status & 0xFF)

    def prepare(self, request):
        """Leaves all that is the server's, enters the folder, and says so."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in list(self.waiting):
            self.drop(name)
        self.woken.close()
        self.waker.close()
        name, cwd = request["id"], request["cwd"]
        try:
            os.chdir(cwd)
        except OSError as error:
            self.send({"failed": name, "why": error.strerror, "folder": cwd})
            os._exit(1)
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write(OOM_SCORE)
        self.send({"started": name, "pid": os.getpid()})
        self.channel.close()


def run_kernel(request, seed):
    """Runs a kernel to its end. Returns the exit status of its process."""
    from wrenn_kernel import launch, prologue

    # A failed start is written to the server's own standard error, and nothing else is.
    errors = os.dup(2)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    set_environment(request["envs"])
    prologue.reseed(hashlib.sha256(seed + os.urandom(32)).digest())
    try:
        app = launch.prepare(request["connection_file"])
    except BaseException:
        os.write(errors, traceback.format_exc()[-WHY:].encode(errors="replace"))
        raise
    os.close(errors)
    try:
        app.start()
    finally:
        atexit._run_exitfuncs()
    return 0


def set_environment(variables):
    """Replaces the environment, and applies what Python reads from it only at its start."""
    os.environ.clear()
    os.environ.update(variables)
    time.tzset()
    extra = variables.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [entry for entry in extra if entry]


if __name__ == "__main__":
    main(sys.argv[1:])
