"""Silent steps around the user's code: variables, and the seeds of generators.

The interpreter calls `apply` before a run and `restore` after it, each in a message of its own. So
the user's lines keep their numbers, and values need no quotes.
"""

import base64
import json
import os
import random
import signal
import sys
import time

# Values from before the run that is under way, by name. None stands for a variable that was not
# set.
_kept = {}


class _Uninterrupted:
    """Context in which an interrupt does nothing. The interpreter repeats it."""

    def __enter__(self):
        self.handler = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __exit__(self, *_):
        signal.signal(signal.SIGINT, self.handler)


def apply(encoded):
    """Makes the changes of a run, which come as JSON in base64.

    `set` and `removed` are the capsule's variables, `run` the variables of this run alone, `seed`
    hex digits or null.
    """
    given = json.loads(base64.b64decode(encoded))
    with _Uninterrupted():
        _restore()
        _change({**dict.fromkeys(given["removed"]), **given["set"]})
        _kept.update((name, os.environ.get(name)) for name in given["run"])
        _change(given["run"])
        if given["seed"]:
            reseed(bytes.fromhex(given["seed"]))


def restore():
    """Restores the variables that the run had for itself."""
    with _Uninterrupted():
        _restore()


def variables():
    """Returns the user's variables as JSON."""
    from IPython import get_ipython
    from IPython.display import JSON

    from . import inspect_vars

    return JSON(inspect_vars.variables(get_ipython()))


def reseed(seed):
    """Seeds all generators that are loaded with 32 bytes. Copies of a machine draw alike without."""
    random.seed(seed)
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed([int.from_bytes(seed[at : at + 4], "big") for at in range(0, len(seed), 4)])
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        # The next temporary name begins a new sequence.
        tempfile._name_sequence = None
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        ssl.RAND_add(seed + os.urandom(32), 32.0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(int.from_bytes(seed[:7], "big"))


def _restore():
    """Sets what a run has kept, and forgets it."""
    kept = dict(_kept)
    _kept.clear()
    _change(kept)


def _change(variables):
    """Sets variables, or removes those whose value is None."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if "TZ" in variables:
        time.tzset()
