"""Reads series of points: lines, scattered points and the edges of filled areas."""

import numpy

from ..values import TooLarge, number
from . import naming

# Most points of a figure's chart.
POINTS = 100_000
# Most groups by colour within one collection of scattered points.
GROUPS = 50


class Budget:
    """Counts the points of all charts of a figure."""

    def __init__(self):
        self.points = 0

    def spend(self, count):
        """Counts points, and raises TooLarge above the limit."""
        self.points += count
        if self.points > POINTS:
            raise TooLarge("points", self.points, POINTS)


class Reader:
    """Makes elements of artists on axes."""

    def __init__(self, ax, x, y, budget):
        self.ax = ax
        self.x = x
        self.y = y
        self.budget = budget

    def lines(self, lines, labels, **more):
        """Returns an element for each line. `labels` has the labels of lines in containers."""
        return [{**self.line(line, labels.get(line, line.get_label()), index), **more}
                for index, line in enumerate(lines)]

    def line(self, line, label, index):
        """Returns a line's element."""
        x, y = line.get_xdata(orig=False), line.get_ydata(orig=False)
        given = (line.get_xdata(orig=True), line.get_ydata(orig=True))
        name = naming.series(self.ax, label, line.get_color(), "Line", index)
        return {"label": name, "points": self.points(x, y, *given)}

    def scatters(self, collections):
        """Returns an element for each group of scattered points."""
        groups = {}
        for index, collection in enumerate(collections):
            for name, points in self.scatter(collection, index):
                # One group may be drawn in several parts, each with the colour of its legend.
                key = name if self.ax.get_legend() is not None else (index, name)
                groups.setdefault(key, {"label": name, "points": []})["points"].extend(points)
        return list(groups.values())

    def scatter(self, collection, index):
        """Returns names and points of the groups in a collection."""
        offsets = numpy.ma.filled(numpy.ma.asarray(collection.get_offsets(), float), numpy.nan)
        points = self.points(offsets[:, 0], offsets[:, 1])
        faces = collection.get_facecolor()
        names = self.by_color(faces) if len(faces) == len(points) > 1 else None
        if names is not None:
            groups = {name: [] for name in names}
            for name, point in zip(names, points):
                groups[name].append(point)
            return list(groups.items())
        color = faces[0] if len(faces) == 1 else None
        return [(naming.series(self.ax, collection.get_label(), color, "Group", index), points)]

    def by_color(self, faces):
        """Returns the legend's name for each point's colour, or None if one is not there."""
        colors, owners = numpy.unique(faces, axis=0, return_inverse=True)
        if self.ax.get_legend() is None or len(colors) > GROUPS:
            return None
        names = [naming.in_legend(self.ax, color) for color in colors]
        return None if None in names else [names[owner] for owner in owners.ravel()]

    def areas(self, collections):
        """Returns an element for each filled area: the line that bounds it."""
        return [self.area(collection, index) for index, collection in enumerate(collections)]

    def area(self, collection, index):
        """Returns a filled area's element."""
        edges = [_edge(path.vertices) for path in collection.get_paths()]
        edge = numpy.concatenate(edges) if edges else numpy.empty((0, 2))
        faces = collection.get_facecolor()
        color = faces[0] if len(faces) else None
        name = naming.series(self.ax, collection.get_label(), color, "Area", index)
        return {"label": name, "points": self.points(edge[:, 0], edge[:, 1])}

    def points(self, x, y, given_x=None, given_y=None):
        """Returns pairs of values at positions."""
        x = numpy.ma.filled(numpy.ma.asarray(x, float), numpy.nan)
        y = numpy.ma.filled(numpy.ma.asarray(y, float), numpy.nan)
        self.budget.spend(len(x))
        first, second = self.x.values(given_x, x), self.y.values(given_y, y)
        first = _numbers(x) if first is None else first
        second = _numbers(y) if second is None else second
        return [list(pair) for pair in zip(first, second)]


def _numbers(positions):
    """Returns floats, and None for those that are not finite."""
    if numpy.isfinite(positions).all():
        return positions.tolist()
    return [number(position) for position in positions]


def _edge(vertices):
    """Returns the line that bounds an area filled between two lines.

    The polygon begins at a corner, follows the first line, turns at the other end and follows the
    second line back. The line that is not flat is the one with data, else the upper one.
    """
    half = (len(vertices) - 1) // 2
    first, second = vertices[1:half], vertices[half + 1 : 2 * half][::-1]
    if not len(first) or numpy.ptp(second[:, 1]) == 0:
        return first
    if numpy.ptp(first[:, 1]) == 0:
        return second
    return first if numpy.nanmean(first[:, 1]) > numpy.nanmean(second[:, 1]) else second


def is_violin(area):
    """Tells an area that is a violin: it runs along y, or is even about a middle."""
    if getattr(area, "t_direction", "x") != "x":
        return True
    for path in area.get_paths():
        half = (len(path.vertices) - 1) // 2
        first, second = path.vertices[1:half, 1], path.vertices[half + 1 : 2 * half, 1][::-1]
        if len(first) > 2 and numpy.ptp(first) > 0 and numpy.ptp(first + second) < 1e-9:
            return True
    return False


def is_flat(line):
    """Tells a line whose parts are all horizontal or vertical, as limits and error bars are."""
    points = numpy.ma.filled(numpy.ma.asarray(line.get_xydata(), float), numpy.nan)
    gaps = numpy.flatnonzero(~numpy.isfinite(points).all(axis=1))
    parts = [part[numpy.isfinite(part).all(axis=1)] for part in numpy.split(points, gaps)]
    drawn = [part for part in parts if len(part) > 1]
    return bool(drawn) and not any(numpy.ptp(part, axis=0).all() for part in drawn)


def is_series(line):
    """Tells a line with a course, which a single marker and a flat line have not."""
    return len(line.get_xydata()) > 1 and not is_flat(line) and not is_empty(line)


def is_aside(line):
    """Tells a flat line that is a limit or an error bar: it is short, stands or has no label."""
    points = line.get_xydata()
    if not is_flat(line):
        return False
    return len(points) <= 2 or naming.is_private(line.get_label()) or not numpy.ptp(points[:, 0])


def is_limit(line, lines):
    """Tells a line between two points that is no series beside the others.

    It stands beside lines with a course, or lies without a label beside longer lines.
    """
    if len(line.get_xydata()) != 2 or not is_flat(line):
        return False
    x = line.get_xdata(orig=False)
    if x[0] == x[1]:
        return any(is_series(other) for other in lines)
    longer = any(len(other.get_xydata()) > 2 for other in lines)
    return longer and naming.is_private(line.get_label())


def is_empty(line):
    """Tells a line without points."""
    return not numpy.isfinite(numpy.ma.filled(line.get_xydata(), numpy.nan)).all(axis=1).any()


def is_reference(ax, line):
    """Tells a line that spans the axes (`axhline`, `axvline`, `axline`) and has no data."""
    if type(line).__name__ in ("AxLine", "_AxLine"):
        return True
    return not all(line.get_transform().contains_branch_seperately(ax.transData))
