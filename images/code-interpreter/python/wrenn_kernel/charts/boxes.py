"""Reads boxes with whiskers from their shapes, since matplotlib keeps no container of them.

A box is a patch or a closed line. Whiskers, caps, the median and outliers are lines whose
positions lie within the box's width. Positions run along the axis of labels, values across it.
"""

from dataclasses import dataclass, field

import numpy
from matplotlib.patches import PathPatch

from ..values import number
from . import naming

# Points of a box without and with a notch. A closed line repeats its first point, a patch may
# repeat it twice.
_PLAIN = (5, 6)
_NOTCHED = (11, 12)


@dataclass
class Mark:
    """A line that belongs to a box."""

    positions: numpy.ndarray
    values: numpy.ndarray
    is_marker: bool

    def __post_init__(self):
        self.low, self.high = float(self.positions.min()), float(self.positions.max())


@dataclass
class Found:
    """The boxes of axes, and the lines and patches that are no part of them."""

    boxes: list
    lines: list
    patches: list
    lying: bool

    def elements(self, ax, axis):
        """Returns the boxes for the chart. Boxes with one label are told by the legend."""
        elements = [box.element(axis) for box in self.boxes]
        labels = [element["label"] for element in elements]
        for box, element, label in zip(self.boxes, elements, labels):
            group = naming.in_legend(ax, box.color) if labels.count(label) > 1 else None
            element["label"] = f"{label} ({group})" if group else label
        return elements


@dataclass
class Box:
    """A box: the ends of its width, its quartiles, and the lines that belong to it."""

    low: float
    high: float
    first: float
    third: float
    # A notch stands at the median.
    notch: float | None
    color: object = None
    marks: list = field(default_factory=list)

    def key(self):
        """Returns the numbers by which two drawings of one box are equal."""
        return tuple(round(value, 9) for value in (self.low, self.high, self.first, self.third))

    def holds(self, mark):
        """Tells a line within the box's width."""
        edge = 1e-9 * max(1.0, abs(self.low), abs(self.high))
        return mark.low >= self.low - edge and mark.high <= self.high + edge

    def median(self):
        """Returns the value of the line across the box, or None.

        A cap that is as wide as the box may stand at a quartile, so other lines come first.
        """
        found = [float(mark.values[0]) for mark in self.marks if self.is_crossed(mark)]
        return min(found, key=lambda v: v in (self.first, self.third)) if found else None

    def is_crossed(self, mark):
        """Tells a line across the box, as long as the box or its notch is wide."""
        if len(mark.values) != 2 or mark.values[0] != mark.values[1] or mark.low == mark.high:
            return False
        if self.notch is not None:
            return bool(numpy.isclose(mark.values[0], self.notch))
        wide = numpy.isclose(mark.high - mark.low, self.high - self.low)
        return bool(wide and self.first <= mark.values[0] <= self.third)

    def whiskers(self):
        """Returns the ends of whiskers or caps. A box without them has its own ends."""
        spans = [(mark.values.min(), mark.values.max()) for mark in self.marks
                 if not mark.is_marker and len(mark.values) == 2]
        lows = [low for low, high in spans if high <= self.first]
        highs = [high for low, high in spans if low >= self.third]
        return float(min([self.first, *lows])), float(max([self.third, *highs]))

    def outliers(self, least, most):
        """Returns the values of the markers outside of the whiskers."""
        marks = [mark for mark in self.marks if mark.is_marker]
        # A marker of the mean comes before the markers of outliers.
        if len(marks) > 1 and len(marks[0].values) == 1:
            marks = marks[1:]
        return [float(v) for mark in marks for v in mark.values if v < least or v > most]

    def element(self, axis):
        """Returns the box for the chart."""
        least, most = self.whiskers()
        median = self.median()
        return {
            "label": axis.name((self.low + self.high) / 2),
            "min": number(least),
            "first_quartile": number(self.first),
            "median": None if median is None else number(median),
            "third_quartile": number(self.third),
            "max": number(most),
            "outliers": self.outliers(least, most),
        }


def find(patches, lines):
    """Finds the boxes among patches and lines."""
    shaped = [patch for patch in patches if _is_box_patch(patch)]
    closed = [line for line in lines if _is_box_line(line)]
    if not shaped and not closed:
        return Found([], lines, patches, False)
    lying = max((False, True), key=lambda lying: _medians(shaped, closed, lines, lying))
    boxes = [_box(patch.get_path().vertices, lying, patch.get_facecolor()) for patch in shaped]
    outlines = [(line, _box(line.get_xydata(), lying)) for line in closed]
    free = [line for line in lines if line not in closed]
    _assign(boxes + [box for _, box in outlines], free, lying)
    real = [(line, box) for line, box in outlines if box.median() is not None]
    boxes += [box for _, box in real]
    used = {line for line, _ in real} | {line for line in free if _owner(boxes, line, lying)}
    return Found(_distinct(boxes), [line for line in lines if line not in used],
                 [patch for patch in patches if patch not in shaped], lying)


def _is_box_patch(patch):
    """Tells a patch with as many corners as a box."""
    if not isinstance(patch, PathPatch):
        return False
    vertices = patch.get_path().vertices
    return len(vertices) in _PLAIN + _NOTCHED and bool(numpy.isfinite(vertices).all())


def _is_box_line(line):
    """Tells a closed line with as many corners as a box."""
    points = line.get_xydata()
    if len(points) not in (_PLAIN[0], _NOTCHED[0]) or not numpy.isfinite(points).all():
        return False
    return bool((points[0] == points[-1]).all())


def _medians(shaped, closed, lines, lying):
    """Counts the boxes that have a median if they stand, or if they lie."""
    outlines = [patch.get_path().vertices for patch in shaped]
    outlines += [line.get_xydata() for line in closed]
    boxes = [_box(outline, lying) for outline in outlines]
    _assign(boxes, [line for line in lines if line not in closed], lying)
    return sum(box.median() is not None for box in boxes)


def _box(vertices, lying, color=None):
    """Makes a box of its outline, which begins at the first quartile.

    The notch of an outline may reach beyond the quartiles.
    """
    positions, values = _turned(vertices, lying)
    notched = len(vertices) >= min(_NOTCHED)
    first, third = sorted((values[0], values[5 if notched else 2]))
    notch = float(values[3]) if notched else None
    return Box(positions.min(), positions.max(), first, third, notch, color)


def _turned(points, lying):
    """Returns positions and values. Boxes that lie have their values on the x axis."""
    points = numpy.asarray(points, float)
    return (points[:, 1], points[:, 0]) if lying else (points[:, 0], points[:, 1])


def _assign(boxes, lines, lying):
    """Gives each line to the boxes that hold it. A line that is drawn twice counts once."""
    for line in lines:
        mark = _mark(line, lying)
        for box in boxes:
            if mark is not None and box.holds(mark) and not _has(box, mark):
                box.marks.append(mark)


def _has(box, mark):
    """Tells a line that the box has."""
    return any(numpy.array_equal(mark.positions, other.positions)
               and numpy.array_equal(mark.values, other.values) for other in box.marks)


def _mark(line, lying):
    """Makes a mark of a line, or None of a line without points."""
    points = numpy.ma.filled(numpy.ma.asarray(line.get_xydata(), float), numpy.nan)
    points = points[numpy.isfinite(points).all(axis=1)]
    if not len(points):
        return None
    is_marker = str(line.get_linestyle()).strip().lower() in ("none", "")
    return Mark(*_turned(points, lying), is_marker)


def _owner(boxes, line, lying):
    """Returns a box that holds the line, or None."""
    mark = _mark(line, lying)
    held = (box for box in boxes if mark is not None and box.holds(mark))
    return next(held, None)


def _distinct(boxes):
    """Removes boxes that are drawn twice."""
    return list({box.key(): box for box in reversed(boxes)}.values())[::-1]
