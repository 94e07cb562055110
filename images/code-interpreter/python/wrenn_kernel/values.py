"""Converts Python values to values that JSON can hold.

The formatters of lists, dicts and DataFrames use it. It never imports numpy or pandas: a value of
theirs exists only if the user's program has imported them.
"""

import dataclasses
import datetime
import enum
import math
import sys
import uuid

# Most values of a result's data, counted with those of nested containers.
VALUES = 100_000
# Most characters of all strings in a result's data.
CHARACTERS = 8 << 20
# Deepest nesting. Readers of JSON commonly stop at 128 levels, of which a message uses some.
DEPTH = 64


class Refused(Exception):
    """A value has no form in JSON."""


class TooLarge(Exception):
    """A value exceeds a limit. `unit` names the thing counted, `instead` is the form to show."""

    def __init__(self, unit, count, limit, instead=None):
        super().__init__(f"{count} {unit} exceed the limit of {limit}")
        self.note = {unit: count, "limit": limit}
        self.instead = instead


def text(value):
    """Returns a string that UTF-8 can encode: surrogates become characters or U+FFFD."""
    value = str.__str__(value)
    if value.isascii():
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def number(value):
    """Returns a float, or None if it is not finite."""
    value = float(value)
    return value if math.isfinite(value) else None


def missing(value):
    """Tells a missing value of pandas (`NaT`, `NA`)."""
    return type(value).__name__ in ("NaTType", "NAType")


def moment(value):
    """Returns a numpy time in ISO form, with the fraction that it has, or None for `NaT`."""
    numpy = sys.modules["numpy"]
    if numpy.isnat(value):
        return None
    if value.dtype.kind == "m":
        return str(value)
    exact = value.astype("datetime64[us]").item()
    return exact.isoformat() if isinstance(exact, datetime.date) else str(value)


class Converter:
    """Converts values within limits that count for all values together."""

    def __init__(self, values=VALUES, characters=CHARACTERS, depth=DEPTH):
        self.limits = {"values": values, "characters": characters}
        self.used = {"values": 0, "characters": 0}
        self.depth = depth
        self.path = set()

    def spend(self, unit, count):
        """Counts values or characters, and raises TooLarge above the limit."""
        self.used[unit] += count
        if self.used[unit] > self.limits[unit]:
            raise TooLarge(unit, self.used[unit], self.limits[unit])

    def plain(self, value):
        """Converts a value, and raises Refused or TooLarge."""
        self.spend("values", 1)
        if value is None or value is True or value is False:
            return value
        for kinds, convert in _CONVERSIONS:
            if isinstance(value, kinds):
                return convert(self, value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self.fields(value)
        return self.foreign(value)

    def string(self, value):
        """Converts a string."""
        self.spend("characters", len(value))
        return text(value)

    def integer(self, value):
        """Converts an integer. Readers hold 64 bits, so a larger one is refused."""
        value = int.__int__(value)
        if not -(1 << 63) <= value < 1 << 64:
            raise Refused("integer beyond 64 bits")
        return value

    def time(self, value):
        """Converts a date, a time or both."""
        return None if missing(value) else value.isoformat()

    def nested(self, value, convert):
        """Converts a container's content, and refuses cycles and deep nesting."""
        if id(value) in self.path or len(self.path) >= self.depth:
            raise Refused("cycle or deep nesting")
        self.path.add(id(value))
        try:
            return convert()
        finally:
            self.path.discard(id(value))

    def sequence(self, value):
        """Converts a list or a tuple."""
        parent = list if isinstance(value, list) else tuple
        self.ahead(parent.__len__(value))
        return self.nested(value, lambda: [self.plain(item) for item in parent.__iter__(value)])

    def ahead(self, count):
        """Raises TooLarge before the work begins if a container alone exceeds the limit."""
        if self.used["values"] + count > self.limits["values"]:
            raise TooLarge("values", self.used["values"] + count, self.limits["values"])

    def mapping(self, value):
        """Converts a dict."""
        self.ahead(dict.__len__(value))
        return self.nested(value, lambda: self.pairs(dict.items(value)))

    def fields(self, value):
        """Converts a data class."""
        names = [field.name for field in dataclasses.fields(value)]
        return self.nested(value, lambda: self.pairs((n, getattr(value, n)) for n in names))

    def pairs(self, items):
        """Converts keys and values. Two keys that become equal are refused."""
        result = {}
        for key, item in items:
            key = self.key(key)
            if key in result:
                raise Refused("keys are equal as strings")
            result[key] = self.plain(item)
        return result

    def key(self, key):
        """Converts a key to a string. Containers are refused as keys."""
        if not isinstance(key, str):
            key = self.plain(key)
        if isinstance(key, str):
            return self.string(key)
        if isinstance(key, (list, dict)):
            raise Refused("key is a container")
        return _WORDS[key] if key is None or isinstance(key, bool) else str(key)

    def foreign(self, value):
        """Converts a value of numpy or pandas, and refuses all others."""
        numpy = sys.modules.get("numpy")
        if missing(value):
            return None
        if numpy is not None and isinstance(value, numpy.generic):
            return self.scalar(value)
        if numpy is not None and isinstance(value, numpy.ndarray):
            return self.array(value)
        raise Refused(type(value).__name__)

    def scalar(self, value):
        """Converts a numpy scalar."""
        if value.dtype.kind in "mM":
            return moment(value)
        if value.dtype.kind not in "biufU":
            raise Refused(f"numpy.{value.dtype}")
        return self.plain(value.item() if value.dtype != "longdouble" else float(value))

    def array(self, value):
        """Converts a numpy array."""
        self.ahead(value.size)
        if value.dtype.kind in "mM":
            flat = [moment(item) for item in value.ravel()]
            self.spend("values", value.size)
            return sys.modules["numpy"].array(flat, dtype=object).reshape(value.shape).tolist()
        if value.dtype.kind not in "biufUO":
            raise Refused(f"numpy.{value.dtype}")
        if value.dtype.char == "g":
            value = value.astype(float)
        return self.nested(value, lambda: self.plain(value.tolist()))


# JSON's words for keys.
_WORDS = {None: "null", True: "true", False: "false"}

# The order matters: an `IntEnum` is an `int`, and a `datetime` is a `date`.
_CONVERSIONS = (
    (enum.Enum, lambda self, value: self.plain(value.value)),
    (str, Converter.string),
    (int, Converter.integer),
    (float, lambda self, value: number(value)),
    (dict, Converter.mapping),
    ((list, tuple), Converter.sequence),
    ((datetime.date, datetime.time), Converter.time),
    (datetime.timedelta, lambda self, value: None if missing(value) else str(value)),
    (uuid.UUID, lambda self, value: str(value)),
)
