"""Names series of a chart: by their own label, by the legend, else by a number."""

from matplotlib.collections import Collection
from matplotlib.colors import same_color
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..values import text


def series(ax, label, color, word, index):
    """Returns a series' name. matplotlib's own labels begin with an underscore."""
    label = str(label or "")
    if not is_private(label):
        return text(label)
    return in_legend(ax, color) or f"{word} {index}"


def is_private(label):
    """Tells a label that matplotlib has made or that hides an artist from the legend."""
    return not label or str(label).startswith("_")


def in_legend(ax, color):
    """Returns the one entry of the legend that has the colour, or None."""
    legend = ax.get_legend()
    if legend is None or color is None:
        return None
    handles = getattr(legend, "legend_handles", None) or getattr(legend, "legendHandles", [])
    found = [words.get_text() for handle, words in zip(handles, legend.get_texts())
             if _same(_color(handle), color)]
    return text(found[0]) if len(found) == 1 and found[0] else None


def _same(first, second):
    """Tells equal colours. Transparency does not count, since legends may differ in it."""
    if first is None:
        return False
    try:
        return same_color(first, second)
    except ValueError:
        return False


def _color(handle):
    """Returns the colour of a legend's handle, or None."""
    if isinstance(handle, Line2D):
        return handle.get_color()
    if isinstance(handle, Patch):
        return handle.get_facecolor()
    if isinstance(handle, Collection) and len(handle.get_facecolor()):
        return handle.get_facecolor()[0]
    return None
