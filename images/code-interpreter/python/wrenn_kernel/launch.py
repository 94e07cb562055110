"""Prepares IPython's kernel in a process that the fork server has forked."""

import functools
import json
import os
import sys
import threading
import warnings

import IPython
from ipykernel.kernelapp import IPKernelApp
from jupyter_client.jsonutil import json_clean, json_default
from traitlets.config import Config

# Values that `Out` keeps. IPython's own number makes the memory grow with each shown value.
OUT = 30


class KernelApp(IPKernelApp):
    """The kernel's application, which never drops a message that it publishes."""

    name = "wrenn-kernel"

    def init_iopub(self, context):
        # The library applies a limit of waiting messages when the socket binds. Beyond the usual
        # limit it drops messages silently.
        context.sndhwm = 0
        super().init_iopub(context)


def pack(message):
    """Encodes a part of a message. Each text arrives, also one that has no form in UTF-8.

    Halves of surrogate pairs become escapes of JSON, and NaN stays a word. The interpreter reads
    both. The library's own encoder drops the message, or warns in the user's output.
    """
    try:
        text = json.dumps(message, default=json_default, ensure_ascii=False)
    except (TypeError, ValueError):
        text = json.dumps(json_clean(message), default=json_default, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")


def config():
    """Returns the settings of kernels."""
    settings = Config()
    settings.Session.packer = "wrenn_kernel.launch.pack"
    settings.HistoryManager.enabled = False
    settings.InteractiveShell.cache_size = OUT
    settings.InteractiveShell.colors = "nocolor" if IPython.version_info[0] >= 9 else "NoColor"
    settings.Completer.use_jedi = False
    settings.IPCompleter.use_jedi = False
    settings.IPythonKernel.use_experimental_completions = False
    return settings


def prepare(connection_file):
    """Makes the kernel and opens its sockets. Returns the application, which is to be started."""
    # With the pid of a parent in it, the kernel would wake every second.
    os.environ.pop("JPY_PARENT_PID", None)
    bound_output()
    app = KernelApp.instance(config=config(), connection_file=connection_file)
    app.initialize([])
    shell = app.shell
    silence_cache(shell.displayhook)
    choose_backend()
    publish_figures(shell)
    from . import formatters, interrupts

    formatters.install(shell)
    interrupts.install(app.kernel)
    return app


# Characters of output after which a writer waits until they have left.
BUFFERED = 64 * 1024


def bound_output():
    """Makes a writer wait when much of its output has not left the kernel, and makes a flush
    complete. The kernel's own buffer has no limit, and leaves as a single message."""
    from ipykernel.iostream import OutStream

    write = OutStream.write
    flush = OutStream.flush

    @functools.wraps(flush)
    def complete(self):
        # The kernel's own flush waits until the message is queued, and not until it is sent. Code
        # that holds the interpreter's lock afterwards would keep the message back.
        flush(self)
        publisher = self.pub_thread
        thread = publisher.thread if publisher else None
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            sent = threading.Event()
            publisher.schedule(sent.set)
            sent.wait(self.flush_timeout)

    OutStream.flush = complete

    @functools.wraps(write)
    def bounded(self, string):
        if not isinstance(string, str):
            return write(self, string)
        for at in range(0, len(string), BUFFERED):
            piece = string[at : at + BUFFERED]
            write(self, piece)
            self._unsent = getattr(self, "_unsent", 0) + len(piece)
            if self._unsent >= BUFFERED:
                self._unsent = 0
                self.flush()
        return len(string)

    OutStream.write = bounded


def silence_cache(hook):
    """Keeps `Out` from warning in the user's output each time that it forgets values."""
    cull = hook.cull_cache

    @functools.wraps(cull)
    def quiet():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cull()

    hook.cull_cache = quiet


def choose_backend():
    """Gives a matplotlib that was imported before the environment was set the backend of it."""
    matplotlib = sys.modules.get("matplotlib")
    if matplotlib is not None:
        matplotlib.rcParams["backend"] = os.environ["MPLBACKEND"]


def publish_figures(shell):
    """Shows open figures at a cell's end also under the backend Agg, which shows nothing itself."""
    shell.display_formatter.formatters["image/png"].for_type_by_name(
        "matplotlib.figure", "Figure", png
    )
    shell.events.register("post_execute", functools.partial(show_open_figures, shell))


def png(figure):
    """Returns a figure as PNG. The inline backend replaces this once it is loaded."""
    from IPython.core.pylabtools import print_figure

    return print_figure(figure, "png")


def show_open_figures(shell):
    """Shows all open figures and closes them, if the backend is Agg."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None or not pyplot.get_fignums():
        return
    if pyplot.get_backend().lower() != "agg":
        return
    from IPython.display import display

    try:
        for number in pyplot.get_fignums():
            display(pyplot.figure(number))
    except Exception:
        shell.showtraceback()
    finally:
        pyplot.close("all")
