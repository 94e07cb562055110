"""Extracts the data of a matplotlib figure as a chart.

`chart` makes the object that clients read under `e2b/chart`. A chart that cannot be read is
`unknown` and keeps its title. This package reads figures and never draws or changes them.
"""

from ..values import TooLarge
from . import merge, plot
from .axis import caption
from .points import Budget


def chart(figure):
    """Returns a figure's chart, `{}` for a figure without data. Too many points raise TooLarge."""
    try:
        return _of_groups(figure, _groups(figure))
    except TooLarge as error:
        error.instead = unknown(_title(figure))
        raise
    except Exception:
        return unknown(_title(figure))


def unknown(title):
    """Returns a chart of unknown kind."""
    return {"type": "unknown", "title": title, "elements": []}


def _of_groups(figure, groups):
    """Makes the chart of groups of axes that share their place."""
    if not groups:
        return {}
    budget = Budget()
    charts = [made for group in groups for made in _of_group(group, budget)]
    if len(charts) > 1:
        shared = plot.title(groups[0][0]) if len(groups) == 1 else None
        return {"type": "superchart", "title": _suptitle(figure) or shared, "elements": charts}
    charts[0]["title"] = charts[0]["title"] or _suptitle(figure)
    return charts[0]


def _of_group(group, budget):
    """Makes the charts of axes that share their place."""
    try:
        parts = [(ax, plot.charts(ax, budget)) for ax in group]
        return merge.twins(parts) or [unknown(plot.title(group[0]))]
    except TooLarge:
        raise
    except Exception:
        return [unknown(_quiet_title(group[0]))]


def _groups(figure):
    """Groups the axes that have data: twins stand beside the axes of which they are twins."""
    groups = []
    for ax in figure.axes:
        if not ax.get_visible() or _is_colorbar(ax) or not (ax.has_data() or ax.containers):
            continue
        group = next((group for group in groups if _are_twins(group[0], ax)), None)
        if group is None:
            groups.append([ax])
        else:
            group.append(ax)
    return groups


def _is_colorbar(ax):
    """Tells axes that explain the colours of others."""
    return getattr(ax, "_colorbar", None) is not None or ax.get_label() == "<colorbar>"


def _are_twins(first, second):
    """Tells two axes that `twinx` or `twiny` has put in one place."""
    twins = getattr(first, "_twinned_axes", None)
    return twins is not None and twins.joined(first, second)


def _suptitle(figure):
    """Returns a figure's own title, or None. Old versions of matplotlib have no getter."""
    artist = getattr(figure, "_suptitle", None)
    return caption(artist.get_text()) if artist is not None else None


def _title(figure):
    """Returns the title of a figure that could not be read."""
    titles = [_quiet_title(ax) for ax in figure.axes] if len(figure.axes) == 1 else []
    return next(filter(None, titles), None) or _suptitle(figure)


def _quiet_title(ax):
    """Returns the title of axes that could not be read."""
    try:
        return plot.title(ax)
    except Exception:
        return None
