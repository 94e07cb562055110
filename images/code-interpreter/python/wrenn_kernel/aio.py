"""Makes `asyncio.run` work inside cells.

A cell runs inside the kernel's own event loop, in which `asyncio.run` refuses to start another
loop. There it runs the coroutine in a thread with a loop of its own and waits for its end.
"""

import asyncio
import contextvars
import ctypes
import functools
import threading

# Longest wait for a cancelled coroutine, in seconds, before its thread is interrupted.
GRACE = 1.0


def install(shell):
    """Replaces `asyncio.run`. A second call changes nothing."""
    original = asyncio.run
    if getattr(original, "_inside_cells", False):
        return

    @functools.wraps(original)
    def run(main, **options):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return original(main, **options)
        return _Run(original, main, options).result()

    run._inside_cells = True
    asyncio.run = run
    asyncio.runners.run = run


class _Run:
    """One run of a coroutine in a thread of its own."""

    def __init__(self, original, main, options):
        self.original = original
        self.main = main
        self.options = options
        self.loop = self.task = self.value = self.error = None
        # An interrupted `Thread.join` takes the thread for ended, so its end has its own event.
        self.ended = threading.Event()

    def result(self):
        """Runs the coroutine, and returns its value or raises its exception."""
        # The context makes prints of the coroutine belong to the cell.
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self.work,), daemon=True)
        try:
            thread.start()
            self.ended.wait()
        except BaseException:
            self.stop(thread)
            raise
        if self.error is not None:
            raise self.error.with_traceback(_of_user(self.error.__traceback__))
        return self.value

    def work(self):
        """Runs in the thread and keeps the coroutine's value or exception."""
        main = self.follow(self.main) if asyncio.iscoroutine(self.main) else self.main
        try:
            self.value = self.original(main, **self.options)
        except BaseException as error:
            self.error = error
        finally:
            self.ended.set()

    async def follow(self, main):
        """Awaits the coroutine and notes the task, so that an interrupt can cancel it."""
        self.loop = asyncio.get_running_loop()
        self.task = asyncio.current_task()
        return await main

    def stop(self, thread):
        """Cancels the coroutine, and interrupts its thread if it does not end."""
        if self.task is not None:
            try:
                self.loop.call_soon_threadsafe(self.task.cancel)
            except RuntimeError:
                pass  # The loop is closed, so the thread is about to end.
            self.ended.wait(GRACE)
        if not self.ended.is_set() and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt)
            )
            self.ended.wait(GRACE)


def _of_user(traceback):
    """Returns the part of a traceback that begins in the user's code."""
    own = (__file__, asyncio.runners.__file__, asyncio.base_events.__file__)
    found = traceback
    while found is not None and found.tb_frame.f_code.co_filename in own:
        found = found.tb_next
    return found or traceback
