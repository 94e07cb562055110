"""Interrupts that reach the user's code and nothing else.

IPython's kernel turns a signal into an exception wherever it comes. Beside the user's code, the
exception takes the reply of a request away, or ends the kernel with all of its state. In a cell
that awaits something, it does nothing to a loop. The interpreter repeats an interrupt that comes
too early.
"""

import contextlib
import signal

from IPython.core.interactiveshell import InteractiveShell

# The function of IPython that executes the code of a cell, and catches whatever it raises.
_RUN = InteractiveShell.run_code.__code__


def install(kernel):
    """Replaces the kernel's handlers of interrupts."""
    shell, cancel = kernel.shell, kernel._cancel_on_sigint

    def before_request():
        kernel.saved_sigint_handler = signal.signal(signal.SIGINT, _handler(shell))

    @contextlib.contextmanager
    def while_awaited(future):
        with cancel(future):
            signal.signal(signal.SIGINT, _handler(shell, signal.getsignal(signal.SIGINT)))
            yield

    kernel.pre_handler_hook = before_request
    kernel._cancel_on_sigint = while_awaited
    _shorten_tracebacks(shell)


def _shorten_tracebacks(shell):
    """Makes tracebacks of interrupts end where the user's code does."""
    known = shell._get_exc_info

    def shortened(exc_tuple=None):
        kind, value, traceback = known(exc_tuple)
        entry = traceback
        while entry is not None and entry.tb_next is not None:
            if entry.tb_next.tb_frame.f_code.co_filename == __file__:
                entry.tb_next = None
            entry = entry.tb_next
        return kind, value, traceback

    shell._get_exc_info = shortened


def _handler(shell, otherwise=None):
    """Makes a handler that interrupts a cell that executes, and else calls another handler."""

    def interrupt(number, frame):
        if executes(shell, frame):
            raise KeyboardInterrupt
        if otherwise is not None:
            otherwise(number, frame)

    return interrupt


def executes(shell, frame):
    """Tells if a frame is that of a cell, or of something that a cell has called."""
    while frame is not None:
        caller = frame.f_back
        if caller is not None and caller.f_code is _RUN and frame.f_globals is shell.user_global_ns:
            return True
        frame = caller
    return False
