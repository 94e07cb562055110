"""Checks the shape of charts: the keys that clients require, and the types of their values."""

import json

PLANE = {"x_label": (str, type(None)), "y_label": (str, type(None)),
         "x_unit": (str, type(None)), "y_unit": (str, type(None))}
POINTS = {**PLANE, "x_ticks": list, "y_ticks": list, "x_tick_labels": list,
          "y_tick_labels": list, "x_scale": str, "y_scale": str}
CHARTS = {"line": POINTS, "scatter": POINTS, "bar": PLANE, "box_and_whisker": PLANE,
          "pie": {}, "superchart": {}, "unknown": {}}
NUMBER = (float, type(None))
ELEMENTS = {
    "line": {"label": str, "points": list},
    "scatter": {"label": str, "points": list},
    "bar": {"label": str, "group": str, "value": NUMBER},
    "pie": {"label": str, "angle": float, "radius": float},
    "box_and_whisker": {"label": str, "min": NUMBER, "first_quartile": NUMBER, "median": NUMBER,
                        "third_quartile": NUMBER, "max": NUMBER, "outliers": list},
}
SCALES = {"linear", "datetime", "categorical", "log", "symlog", "logit", "function",
          "functionlog", "asinh"}


def chart_of(figure):
    """Returns a figure's chart after a trip through JSON, and checks its shape."""
    from wrenn_kernel import charts

    chart = json.loads(json.dumps(charts.chart(figure), allow_nan=False))
    if chart:
        check(chart)
    return chart


def check(chart):
    """Asserts that a chart has the keys and types of its kind."""
    kind = chart["type"]
    has(chart, {"title": (str, type(None)), "elements": list, **CHARTS[kind]})
    for scale in ("x_scale", "y_scale"):
        assert chart.get(scale, "linear") in SCALES
    for element in chart["elements"]:
        if kind == "superchart":
            check(element)
        else:
            has(element, ELEMENTS[kind])
    for points in (element.get("points", []) for element in chart["elements"]):
        assert all(len(point) == 2 for point in points)
        assert all(isinstance(v, (float, str, type(None))) for point in points for v in point)


def has(found, keys):
    """Asserts that an object has the keys with values of the types."""
    for key, types in keys.items():
        assert key in found, f"{key} is missing in {found}"
        assert isinstance(found[key], types), f"{key} is {found[key]!r}"


def column(chart, key):
    """Returns one value of each element."""
    return [element[key] for element in chart["elements"]]
