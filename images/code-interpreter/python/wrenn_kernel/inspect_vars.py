"""Lists the variables of a kernel: names, types, sizes, previews.

It calls no `__repr__` and no `__len__` of the user's classes, so a slow or faulty one does no harm.
"""

import reprlib
import sys
import types

from .values import text

# Most variables in a list.
VARIABLES = 1_000
# Longest preview, in characters.
PREVIEW = 200


class _Preview(reprlib.Repr):
    """Shortens values of Python's own types, and names the types of all others."""

    def __init__(self):
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 8
        self.maxstring = self.maxlong = 120

    def repr1(self, value, level):
        kind = type(value)
        if kind in _PLAIN:
            return repr(value)
        if kind in _SHORTENED:
            return super().repr1(value, level)
        return f"<{type_name(value)}>"


_PLAIN = (bool, type(None), float, complex, type(Ellipsis))
_SHORTENED = (str, int, list, tuple, dict, set, frozenset)
# Sizes of these types are cheap and run no code of the program.
_SIZED = (*_PLAIN, *_SHORTENED, bytes, bytearray)


def variables(shell):
    """Returns the variables that the program has made, sorted by name."""
    space, hidden = dict(shell.user_ns), shell.user_ns_hidden
    names = sorted(n for n, value in space.items() if _visible(n, value, hidden))
    return [_variable(name, space[name]) for name in names[:VARIABLES]]


def _visible(name, value, hidden):
    """Tells a variable of the program from the shell's own names and from modules."""
    if not isinstance(name, str) or name.startswith("_") or isinstance(value, types.ModuleType):
        return False
    return name not in hidden or hidden[name] is not value


def type_name(value):
    """Returns the name of a value's type, with its module unless that is Python's or the cell's."""
    kind = type(value)
    module, name = kind.__module__, kind.__qualname__
    return name if module in ("builtins", "__main__") else f"{module}.{name}"


def _variable(name, value):
    """Describes one variable."""
    found = {"name": text(name), "type": type_name(value)}
    for key, read in (("size", _size), ("shape", _shape)):
        result = _quietly(read, value)
        if result is not None:
            found[key] = result
    found["preview"] = _quietly(_preview, value) or f"<{found['type']}>"
    return found


def _quietly(read, value):
    """Calls a reader, and returns None if it fails."""
    try:
        return read(value)
    except Exception:
        return None


def _is(value, module, *names):
    """Tells an instance of a class of a library that the program has loaded."""
    loaded = sys.modules.get(module)
    classes = tuple(c for c in (getattr(loaded, name, None) for name in names) if c is not None)
    return isinstance(value, classes)


def _size(value):
    """Returns a value's own size in bytes, without the objects to which it refers."""
    if _is(value, "numpy", "ndarray", "generic"):
        return int(value.nbytes)
    if _is(value, "pandas", "DataFrame"):
        return int(value.memory_usage(deep=False).sum())
    if _is(value, "pandas", "Series", "Index"):
        return int(value.memory_usage(deep=False))
    return sys.getsizeof(value) if type(value) in _SIZED else None


def _shape(value):
    """Returns the shape of an array or a table, or the length of a container."""
    arrays = _is(value, "numpy", "ndarray") or _is(value, "torch", "Tensor")
    if arrays or _is(value, "pandas", "DataFrame", "Series", "Index"):
        return [int(length) for length in value.shape]
    sized = (str, bytes, bytearray, list, tuple, dict, set, frozenset)
    return [len(value)] if type(value) in sized else None


def _preview(value):
    """Returns a short text of a value."""
    return text(_words(value))[:PREVIEW]


def _words(value):
    """Returns a text of a value, without the limit on its length."""
    if _is(value, "pandas", "DataFrame"):
        return "columns: " + ", ".join(_column(label) for label in value.columns[:16])
    if _is(value, "pandas", "Series", "Index") or _is(value, "numpy", "ndarray"):
        first = value.ravel()[:8] if _is(value, "numpy", "ndarray") else value[:8]
        return f"{value.dtype}: {_Preview().repr(first.tolist())}"
    if _is(value, "numpy", "generic"):
        return str(value)
    if type(value) in (bytes, bytearray):
        return repr(bytes(value[:PREVIEW]))
    if isinstance(value, (types.FunctionType, type)):
        return f"<{'class' if isinstance(value, type) else 'function'} {value.__qualname__}>"
    return _Preview().repr(value)


def _column(label):
    """Returns a column's name."""
    return label if type(label) is str else _Preview().repr(label)
