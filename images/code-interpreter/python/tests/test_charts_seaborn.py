"""Charts that seaborn draws. The tests are skipped where it is not installed."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from shape import chart_of, column

seaborn = pytest.importorskip("seaborn")
FRAME = pd.DataFrame({
    "day": ["Mo", "Mo", "Tu", "Tu"] * 3,
    "value": np.arange(12.0),
    "weight": np.arange(12.0) ** 2,
    "team": ["x", "y"] * 6,
})


def drawn(name, **options):
    getattr(seaborn, name)(data=FRAME, **options)
    return chart_of(plt.gcf())


def test_bars_of_groups_have_names_of_legend():
    chart = drawn("barplot", x="day", y="value", hue="team")
    assert chart["type"] == "bar"
    assert column(chart, "label") == ["Mo", "Tu"] * 2
    assert column(chart, "group") == ["x", "x", "y", "y"]
    assert column(chart, "value") == [4, 6, 5, 7]


def test_lying_bars_with_caps_are_bars():
    chart = drawn("barplot", x="value", y="day", capsize=0.1)
    assert (chart["type"], chart["x_label"]) == ("bar", "day")
    assert list(zip(column(chart, "label"), column(chart, "value"))) == [("Mo", 4.5), ("Tu", 6.5)]


def test_boxes_of_groups_have_names_of_legend():
    chart = drawn("boxplot", x="day", y="value", hue="team")
    assert chart["type"] == "box_and_whisker"
    assert sorted(zip(column(chart, "label"), column(chart, "median"))) == [
        ("Mo (x)", 4), ("Mo (y)", 5), ("Tu (x)", 6), ("Tu (y)", 7)]


def test_points_of_groups_have_names_of_legend():
    chart = drawn("scatterplot", x="value", y="weight", hue="team")
    assert (chart["type"], column(chart, "label")) == ("scatter", ["x", "y"])
    assert chart["elements"][1]["points"][:2] == [[1, 1], [3, 9]]


def test_lines_of_groups_have_names_of_legend():
    chart = drawn("lineplot", x="value", y="weight", hue="team")
    assert (chart["type"], column(chart, "label")) == ("line", ["x", "y"])


def test_errors_of_points_are_no_series():
    chart = drawn("pointplot", x="day", y="value", hue="team")
    assert (chart["type"], column(chart, "label")) == ("line", ["x", "y"])
    assert chart["elements"][0]["points"] == [["Mo", 4], ["Tu", 6]]


def test_regression_is_scatter_with_line():
    chart = drawn("regplot", x="value", y="weight")
    assert chart["type"] == "scatter"
    assert [element.get("kind") for element in chart["elements"]] == [None, "line"]


def test_histogram_with_density_makes_two_charts():
    seaborn.histplot(FRAME.value, kde=True)
    assert column(chart_of(plt.gcf()), "type") == ["bar", "line"]


@pytest.mark.parametrize("name", ["violinplot", "boxenplot"])
def test_distributions_are_unknown(name):
    assert drawn(name, x="day", y="value")["type"] == "unknown"


def test_heatmap_is_unknown():
    seaborn.heatmap(np.eye(3))
    assert chart_of(plt.gcf())["type"] == "unknown"


def test_grid_of_plots_is_superchart():
    seaborn.jointplot(data=FRAME, x="value", y="weight")
    assert column(chart_of(plt.gcf()), "type") == ["scatter", "bar", "bar"]
