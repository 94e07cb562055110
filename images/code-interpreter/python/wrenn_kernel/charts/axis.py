"""Reads an axis: label, unit, scale, ticks, and the values at its positions."""

import datetime
import re

import matplotlib.dates
import numpy
from matplotlib.category import StrCategoryConverter
from matplotlib.ticker import FixedLocator

from ..values import missing, moment, number, text

# A unit stands in a label as " (unit)" or "[unit]".
_UNIT = re.compile(r"\s\((.*?)\)|\[(.*?)\]")
_DATES = (
    matplotlib.dates.DateConverter,
    matplotlib.dates.ConciseDateConverter,
    matplotlib.dates._SwitchableDateConverter,
)


def caption(words):
    """Returns a label's or title's text, or None if it is empty."""
    return text(words) if words else None


class Axis:
    """An x or y axis. Its `kind` is number, date, period (of pandas) or category."""

    def __init__(self, axis):
        self.axis = axis
        self.label = caption(axis.get_label_text())
        self.kind = _kind(_converter(axis))
        self._ticks = None

    def unit(self):
        """Returns the unit in the label, or None."""
        found = _UNIT.search(self.label or "")
        return (found.group(1) or found.group(2)) if found else None

    def ticks(self):
        """Returns the positions and the labels of the major ticks."""
        if self._ticks is None:
            positions = [float(p) for p in self.axis.get_majorticklocs()]
            labels = [text(label.get_text()) for label in self.axis.get_majorticklabels()]
            self._ticks = (positions, labels)
        return self._ticks

    def fields(self, letter):
        """Returns a point chart's fields for the axis, whose names begin with `x` or `y`."""
        positions, labels = self.ticks()
        dated = self.kind in ("date", "period")
        ticks = self.at(positions) if dated else [number(p) for p in positions]
        return {f"{letter}_ticks": ticks, f"{letter}_tick_labels": labels,
                f"{letter}_scale": self.scale()}

    def scale(self):
        """Returns the scale's name."""
        if self.kind in ("date", "period"):
            return "datetime"
        if self.axis.get_scale() != "linear":
            return self.axis.get_scale()
        return "categorical" if self.kind == "category" or names(*self.ticks()) else "linear"

    def at(self, positions):
        """Returns the values at positions: numbers, ISO times or categories."""
        return [self.value(position) for position in positions]

    def value(self, position):
        """Returns the value at a position."""
        position = number(position)
        if position is None or self.kind == "number":
            return position
        if self.kind == "date":
            return matplotlib.dates.num2date(position, datetime.timezone.utc).isoformat()
        if self.kind == "period":
            return self.period(position).to_timestamp().isoformat()
        return self.categories().get(round(position), position)

    def period(self, position):
        """Returns the pandas period whose ordinal stands at a position."""
        import pandas

        return pandas.Period(ordinal=round(position), freq=self.axis.freq)

    def categories(self):
        """Returns the categories by position."""
        mapping = getattr(self.axis.units, "_mapping", {})
        return {position: text(str(name)) for name, position in mapping.items()}

    def values(self, given, positions):
        """Returns an artist's values: those given to it, if they are times or categories."""
        if self.kind == "number":
            return None
        given = list(given) if given is not None and len(given) == len(positions) else positions
        return [self.given(value, float(p)) for value, p in zip(given, positions)]

    def given(self, value, position):
        """Returns one value that was given to an artist."""
        if isinstance(value, str):
            return text(value)
        if isinstance(value, numpy.datetime64):
            return moment(value)
        if isinstance(value, datetime.date):
            return None if missing(value) else value.isoformat()
        found = self.value(position)
        # Times that were given have no zone, so times that are computed have none either.
        return found.removesuffix("+00:00") if self.kind == "date" and found else found

    def name(self, position):
        """Returns the name of a bar or a box at a position, from the ticks if they have names."""
        position = number(position)
        if position is None:
            return ""
        if self.kind != "number":
            value = self.given(None, position)
            return value if isinstance(value, str) else plain(value)
        return self.tick_near(position) or plain(position)

    def tick_near(self, position):
        """Returns the label of the tick that belongs to a position, or None."""
        ticks = [(abs(p - position), label) for p, label in zip(*self.ticks()) if label.strip()]
        if not ticks:
            return None
        distance, label = min(ticks, key=lambda tick: tick[0])
        if self.is_fixed():
            # Ticks that the program has set name groups of bars, which stand beside each other.
            return label if distance <= self.spacing() / 2 * (1 + 1e-9) else None
        exact = distance <= 1e-9 * max(1, abs(position))
        return label if exact and _as_number(label) is None else None

    def is_fixed(self):
        """Tells ticks that the program has set."""
        return isinstance(self.axis.get_major_locator(), FixedLocator)

    def is_named(self):
        """Tells ticks that the program has set and whose labels are names, not numbers."""
        labels = [label for label in self.ticks()[1] if label.strip()]
        return self.is_fixed() and bool(labels) and all(_as_number(l) is None for l in labels)

    def spacing(self):
        """Returns the smallest distance of two ticks, 1 if there is none."""
        positions = numpy.unique(self.ticks()[0])
        return float(numpy.diff(positions).min()) if len(positions) > 1 else 1.0


def names(positions, labels):
    """Tells ticks at 0, 1, 2… whose labels are no numbers: names of categories."""
    if not positions or positions != list(map(float, range(len(positions)))):
        return False
    return all(label.strip() and _as_number(label) is None for label in labels)


def plain(value):
    """Returns a number as text, with six digits unless it is an integer."""
    value = float(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def _as_number(label):
    """Returns the number that a tick's label shows, or None."""
    try:
        return float(label.replace("\N{MINUS SIGN}", "-").replace(",", ""))
    except ValueError:
        return None


def _converter(axis):
    """Returns an axis's converter of units. Old versions of matplotlib have no getter."""
    getter = getattr(axis, "get_converter", None)
    return getter() if getter is not None else axis.converter


def _kind(converter):
    """Returns the kind of values that a converter makes positions of."""
    # pandas derives its converter of periods from that of dates.
    if type(converter).__name__ == "PeriodConverter":
        return "period"
    if isinstance(converter, _DATES):
        return "date"
    return "category" if isinstance(converter, StrCategoryConverter) else "number"
