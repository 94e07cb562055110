"""Merges the charts of axes that share their place (`twinx`, `twiny`)."""

_MERGED = ("line", "scatter", "bar")


def twins(parts):
    """Returns the charts of axes and their twins. Twins of one kind become one chart."""
    (first, charts), *others = parts
    for ax, more in others:
        shared = _shared(first, ax)
        for chart in more:
            _inherit(chart, charts, shared)
        charts = _join(charts, more, shared)
    return charts


def _shared(first, second):
    """Returns the letter of the axis that twins share."""
    return "x" if first.get_shared_x_axes().joined(first, second) else "y"


def _inherit(chart, charts, letter):
    """Gives a twin the label of the axis that it shares, since only one of the two shows it."""
    if charts and f"{letter}_label" in chart and chart[f"{letter}_label"] is None:
        for key in (f"{letter}_label", f"{letter}_unit"):
            chart[key] = charts[0].get(key)


def _join(charts, more, shared):
    """Joins the charts of a twin to those before it."""
    same = len(charts) == len(more) == 1 and charts[0]["type"] == more[0]["type"]
    if not same or charts[0]["type"] not in _MERGED or "secondary" in charts[0]:
        return charts + more
    first, second = charts[0], more[0]
    other = "y_" if shared == "x" else "x_"
    first["title"] = first["title"] or second["title"]
    # Clients that know no second axis still find all series.
    first["secondary"] = {key: value for key, value in second.items() if key.startswith(other)}
    taken = {_name(element) for element in first["elements"]}
    for element in second["elements"]:
        if _name(element) in taken:
            element["label" if "points" in element else "group"] += " (secondary)"
        first["elements"].append({**element, "axis": "secondary"})
    return [first]


def _name(element):
    """Returns the name of an element's series."""
    return element["label"] if "points" in element else element["group"]
