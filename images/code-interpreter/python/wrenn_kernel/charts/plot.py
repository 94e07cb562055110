"""Makes the charts of axes: their kinds are told by containers first and by artists after them.

Axes with artists of several kinds, such as bars under a line, give one chart for each kind.
"""

from dataclasses import dataclass, field

from matplotlib.collections import LineCollection, PathCollection
from matplotlib.container import BarContainer, ErrorbarContainer, StemContainer
from matplotlib.patches import Wedge

from . import bars, boxes, pies, points
from .axis import Axis, caption

# Containers whose artists are read as one thing.
_OWNERS = (BarContainer, ErrorbarContainer, StemContainer)


@dataclass
class Artists:
    """The artists on axes by their meaning."""

    bars: list
    patches: list
    lines: list
    labels: dict
    scatters: list = field(default_factory=list)
    areas: list = field(default_factory=list)
    # Artists with data of kinds that no chart has, such as images.
    others: list = field(default_factory=list)


def title(ax):
    """Returns the title of axes, or None."""
    titles = (ax.get_title(loc) for loc in ("center", "left", "right"))
    return caption(next(filter(None, titles), None))


def charts(ax, budget):
    """Returns the charts of axes, none if their kind is unknown."""
    if ax.name == "3d":
        return []
    artists = _sort(ax)
    x, y = Axis(ax.xaxis), Axis(ax.yaxis)
    wedges = [patch for patch in artists.patches if isinstance(patch, Wedge)]
    if wedges:
        return [{"type": "pie", "title": title(ax), "elements": pies.elements(ax, wedges)}]
    if artists.others:
        return []
    found = boxes.find(artists.patches, artists.lines)
    artists.lines = found.lines
    made = []
    if artists.bars:
        budget.spend(sum(len(container) for container in artists.bars))
        elements = bars.elements(ax, artists.bars, x, y)
        made.append(_labelled(ax, "bar", elements, x, y, bars.horizontal(artists.bars)))
    if found.boxes:
        elements = found.elements(ax, y if found.lying else x)
        made.append(_labelled(ax, "box_and_whisker", elements, x, y, found.lying))
    return made + _points(ax, artists, points.Reader(ax, x, y, budget), bool(made))


def _sort(ax):
    """Sorts the artists on axes by their meaning."""
    containers = list(ax.containers)
    bar_containers = [c for c in containers if isinstance(c, BarContainer)]
    owned = {id(artist) for c in containers if isinstance(c, _OWNERS) for artist in _parts(c)}
    lines, labels = _lines(ax, containers, owned)
    patches = [patch for patch in ax.patches if id(patch) not in owned]
    artists = Artists(bar_containers, patches, lines, labels)
    for collection in ax.collections:
        if id(collection) not in owned:
            _sort_collection(collection, artists)
    artists.others += ax.images
    if not any(points.is_series(line) for line in lines):
        artists.others += [area for area in artists.areas if points.is_violin(area)]
    return artists


def _parts(container):
    """Returns all artists of a container."""
    for part in container:
        if isinstance(part, (tuple, list)):
            yield from part
        elif part is not None:
            yield part


def _lines(ax, containers, owned):
    """Returns the lines with data, and the labels of those that containers have."""
    labels = {}
    for container in containers:
        # The first part of error bars and of stems is the line with the data.
        if isinstance(container, (ErrorbarContainer, StemContainer)) and container[0] is not None:
            labels[container[0]] = container.get_label()
    lines = [line for line in ax.lines if line in labels or id(line) not in owned]
    return [line for line in lines if not points.is_reference(ax, line)], labels


def _sort_collection(collection, artists):
    """Sorts a collection. Collections of lines are limits, error bars or parts of violins."""
    if isinstance(collection, PathCollection):
        artists.scatters.append(collection)
    elif type(collection).__name__ == "FillBetweenPolyCollection":
        artists.areas.append(collection)
    elif not isinstance(collection, LineCollection):
        artists.others.append(collection)


def _points(ax, artists, reader, beside):
    """Returns the chart of scattered points, lines or areas, none if there are none.

    Beside other kinds, most flat lines are limits or error bars and areas are ranges.
    """
    lines = [line for line in artists.lines if not points.is_limit(line, artists.lines)]
    if beside or artists.scatters or artists.areas:
        lines = [line for line in lines if not (points.is_aside(line) or points.is_empty(line))]
    if artists.scatters:
        elements = reader.scatters(artists.scatters)
        elements += reader.lines(lines, artists.labels, kind="line")
        return [_pointed(ax, "scatter", elements, reader)]
    if lines:
        return [_pointed(ax, "line", reader.lines(lines, artists.labels), reader)]
    if beside or artists.lines or not artists.areas:
        return []
    return [_pointed(ax, "line", reader.areas(artists.areas), reader)]


def _pointed(ax, kind, elements, reader):
    """Makes a chart of points. Series without points explain others, if there are others."""
    drawn = [element for element in elements if element["points"]]
    made = _labelled(ax, kind, drawn or elements, reader.x, reader.y)
    return {**made, **reader.x.fields("x"), **reader.y.fields("y")}


def _labelled(ax, kind, elements, x, y, lying=False):
    """Makes a chart with labels and units. The x axis of charts that lie is the labels' axis."""
    if lying:
        x, y = y, x
    return {"type": kind, "title": title(ax), "x_label": x.label, "y_label": y.label,
            "x_unit": x.unit(), "y_unit": y.unit(), "elements": elements}
