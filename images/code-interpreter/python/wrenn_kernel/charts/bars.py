"""Reads bars from the containers that `bar`, `barh` and `hist` make."""

import numpy
from matplotlib.patches import Rectangle

from ..values import number
from . import naming
from .axis import plain


def elements(ax, containers, x, y):
    """Returns the bars of all containers."""
    return [bar for index, container in enumerate(containers)
            for bar in _container(ax, container, index, x, y)]


def horizontal(containers):
    """Tells bars that lie. Containers know their orientation, whatever the bars' lengths are."""
    return bool(containers) and getattr(containers[0], "orientation", None) == "horizontal"


def _container(ax, container, index, x, y):
    """Returns the bars of a container."""
    bars = [patch for patch in container if isinstance(patch, Rectangle)]
    lying = horizontal([container])
    colors = {bar.get_facecolor() for bar in bars}
    color = colors.pop() if len(colors) == 1 else None
    group = naming.series(ax, container.get_label(), color, "Group", index)
    labels = _labels([_span(bar, lying) for bar in bars], y if lying else x)
    values = [number(bar.get_width() if lying else bar.get_height()) for bar in bars]
    return [{"label": label, "group": group, "value": value}
            for label, value in zip(labels, values)]


def _span(bar, lying):
    """Returns the positions at which a bar begins and ends on the axis of its label."""
    begin, length = (bar.get_y(), bar.get_height()) if lying else (bar.get_x(), bar.get_width())
    return min(begin, begin + length), max(begin, begin + length)


def _labels(spans, axis):
    """Returns the bars' labels: the names of their ticks, or the ranges of a histogram."""
    if axis.kind == "number" and not axis.is_named() and _is_histogram(spans):
        return [_range(low, high) for low, high in spans]
    return [axis.name((low + high) / 2) for low, high in spans]


def _range(low, high):
    """Returns a histogram bar's label."""
    return f"{plain(low)} \N{EN DASH} {plain(high)}"


def _is_histogram(spans):
    """Tells bars that touch each other, unless each stands around an integer."""
    if len(spans) < 2:
        return False
    lows, highs = numpy.array(spans, float).T
    centers = (lows + highs) / 2
    counted = numpy.allclose(highs - lows, 1) and numpy.allclose(centers, numpy.round(centers))
    return not counted and bool(numpy.allclose(highs[:-1], lows[1:]))
