"""Gives the kernel's results the forms that clients of the code interpreter expect.

The launcher calls `install` once the shell exists. Each hook is lazy: a library is touched only
after the user's program has loaded it. A hook that fails leaves its form out and says nothing in
the cell.
"""

import sys
import warnings

from IPython.core.formatters import BaseFormatter
from traitlets import ObjectName, Unicode

from . import aio, frames, images
from .on_import import call
from .values import Converter, TooLarge

DATA = "e2b/data"
CHART = "e2b/chart"
JSON = "application/json"
# Key that names the forms of a result that exceeded a limit, each with its size and the limit. The
# interpreter hands it on in the result's `extra`.
OMITTED = "omitted"

_FRAMES = (("pandas.core.frame", "DataFrame"), ("pandas", "DataFrame"))
_FIGURE = ("matplotlib.figure", "Figure")


class DataFormatter(BaseFormatter):
    """Makes a table's columns."""

    format_type = Unicode(DATA)
    print_method = ObjectName("_repr_e2b_data_")
    _return_type = dict


class ChartFormatter(BaseFormatter):
    """Makes a figure's chart."""

    format_type = Unicode(CHART)
    print_method = ObjectName("_repr_e2b_chart_")
    _return_type = dict

    def lookup_by_type(self, typ):
        # IPython removes all makers for figures when a program sets the format of pictures.
        if any((kind.__module__, kind.__qualname__) == _FIGURE for kind in typ.__mro__):
            return self.make
        return super().lookup_by_type(typ)


class OmittedFormatter(BaseFormatter):
    """Makes the notes on forms that the formatters before it left out."""

    format_type = Unicode(OMITTED)
    print_method = ObjectName("_repr_wrenn_omitted_")
    _return_type = dict

    def __call__(self, value):
        return self.notes.take(value)


class Notes:
    """Forms that were left out of the result that is being made."""

    def __init__(self):
        self.owner = None
        self.notes = {}

    def add(self, value, form, note):
        """Notes a form that is left out. Notes on another value are dropped."""
        if self.owner != id(value):
            self.owner, self.notes = id(value), {}
        self.notes[form] = note

    def take(self, value):
        """Returns the notes on a value, or None."""
        owner, notes = self.owner, self.notes
        self.owner, self.notes = None, {}
        return notes if owner == id(value) and notes else None


def install(shell):
    """Installs all hooks in a shell. A hook that cannot be installed is left out."""
    call(_install_forms, shell)
    call(images.install, shell)
    call(aio.install, shell)


def _install_forms(shell):
    """Registers the formatters."""
    display, notes = shell.display_formatter, Notes()
    formatters = display.formatters
    formatters["text/plain"].max_seq_length = 0
    for formatter in (DataFormatter, ChartFormatter, OmittedFormatter):
        made = formatter(parent=display)
        formatters[made.format_type] = made
    # The notes come last, when all other forms are made.
    formatters[OMITTED].notes = notes
    for module, name in _FRAMES:
        formatters[DATA].for_type_by_name(module, name, _quiet(frames.data, DATA, notes))
    formatters[CHART].make = _quiet(_figure, CHART, notes)
    for kind in (list, dict):
        formatters[JSON].for_type(kind, _quiet(_container, JSON, notes))


def _quiet(make, form, notes):
    """Wraps a maker of a form: no exception and no warning of it reaches the cell."""

    def made(value):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return make(value)
        except TooLarge as error:
            notes.add(value, form, error.note)
            return error.instead
        except Exception:
            return None

    return made


def _figure(figure):
    """Makes the chart of a Figure."""
    return _charts().chart(figure)


def _charts():
    """Returns the extractor of charts, which loads parts of matplotlib."""
    from . import charts

    return charts


def _container(value):
    """Makes the JSON of a list or a dict. A class that has its own JSON keeps it."""
    own = getattr(type(value), "_repr_json_", None)
    if own is not None:
        return own(value)
    return Converter().plain(value), {"expanded": True}


# In a fork server that has loaded matplotlib, all kernels share the extractor.
if "matplotlib.pyplot" in sys.modules:
    call(_charts)
