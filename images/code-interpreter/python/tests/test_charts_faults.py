"""Charts that extractors commonly read wrongly, and failures, which are never silent."""

import datetime

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from shape import chart_of, column
from wrenn_kernel import charts
from wrenn_kernel.values import TooLarge


def labels_and_values(chart):
    return list(zip(column(chart, "label"), column(chart, "value")))


@pytest.mark.parametrize("names, values", [(["A"], [5]), (["A", "B"], [5, 5]),
                                           (["A", "B"], [0, -3])])
@pytest.mark.parametrize("method", ["bar", "barh"])
def test_bars_of_any_length_keep_orientation(method, names, values):
    _, ax = plt.subplots()
    getattr(ax, method)(names, values)
    (ax.set_xlabel if method == "bar" else ax.set_ylabel)("names")
    chart = chart_of(ax.figure)
    assert chart["type"] == "bar"
    assert labels_and_values(chart) == list(zip(names, values))
    # The x axis of a client's chart is the axis of the labels.
    assert (chart["x_label"], chart["y_label"]) == ("names", None)


def test_bars_with_errors_and_limits_are_bars():
    _, ax = plt.subplots()
    ax.bar(["A", "B"], [5, 6], yerr=[1, 1])
    ax.axvline(0.5)
    ax.axhline(3)
    ax.axvspan(0, 1)
    ax.hlines([2], 0, 1)
    chart = chart_of(ax.figure)
    assert chart["type"] == "bar"
    assert labels_and_values(chart) == [("A", 5), ("B", 6)]


def test_groups_of_bars_have_names_of_their_ticks():
    _, ax = plt.subplots()
    x = np.arange(3)
    ax.bar(x - 0.2, [1, 2, 3], 0.4, label="men")
    ax.bar(x + 0.2, [4, 5, 6], 0.4, label="women")
    ax.set_xticks(x, ["q", "r", "s"])
    chart = chart_of(ax.figure)
    assert column(chart, "label") == ["q", "r", "s"] * 2
    assert column(chart, "group") == ["men"] * 3 + ["women"] * 3


def test_bars_on_numbers_have_numbers_as_names():
    _, ax = plt.subplots()
    ax.bar([2020, 2021, 2022], [1, np.nan, 3], width=1)
    assert labels_and_values(chart_of(ax.figure)) == [("2020", 1), ("2021", None), ("2022", 3)]


def test_bars_on_dates_have_dates_as_names():
    _, ax = plt.subplots()
    ax.bar([datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)], [1, 2])
    assert column(chart_of(ax.figure), "label") == ["2024-01-01T00:00:00", "2024-01-02T00:00:00"]


def test_histogram_has_ranges_as_names():
    _, ax = plt.subplots()
    ax.hist([1, 2, 2, 3, 3, 3, 9], bins=4)
    chart = chart_of(ax.figure)
    assert column(chart, "label") == ["1 – 3", "3 – 5", "5 – 7", "7 – 9"]
    assert column(chart, "value") == [3, 3, 0, 1]


def test_bars_under_line_make_two_charts():
    _, ax = plt.subplots()
    ax.bar(["a", "b", "c"], [1, 2, 3])
    ax.plot(["a", "b", "c"], [3, 1, 2])
    ax.set_title("Both")
    chart = chart_of(ax.figure)
    assert (chart["type"], chart["title"]) == ("superchart", "Both")
    assert column(chart, "type") == ["bar", "line"]


def test_twins_of_one_kind_make_one_chart():
    _, ax = plt.subplots()
    ax.plot([1, 2], [3, 4], label="near")
    ax.set(xlabel="time", ylabel="metres")
    twin = ax.twinx()
    twin.plot([1, 2], [30, 40], label="far")
    twin.set_ylabel("distance [km]")
    chart = chart_of(ax.figure)
    assert (chart["type"], chart["y_label"]) == ("line", "metres")
    assert column(chart, "label") == ["near", "far"]
    assert chart["elements"][1]["axis"] == "secondary"
    assert chart["secondary"]["y_label"] == "distance [km]"
    assert chart["secondary"]["y_unit"] == "km"


def test_twins_without_names_have_different_names():
    _, ax = plt.subplots()
    ax.plot([1, 2], [3, 4])
    ax.twinx().plot([1, 2], [30, 40])
    assert column(chart_of(ax.figure), "label") == ["Line 0", "Line 0 (secondary)"]


def test_twins_of_two_kinds_make_two_charts():
    _, ax = plt.subplots()
    ax.bar(["a", "b"], [3, 4])
    ax.set_xlabel("name")
    ax.twinx().plot(["a", "b"], [30, 40])
    chart = chart_of(ax.figure)
    assert chart["type"] == "superchart"
    assert column(chart, "type") == ["bar", "line"]
    assert column(chart, "x_label") == ["name", "name"]


def test_box_without_whiskers_ends_at_quartiles():
    _, ax = plt.subplots()
    ax.bxp([{"med": 2, "q1": 1, "q3": 3, "whislo": 1, "whishi": 3, "fliers": [], "label": "a"}])
    for line in list(ax.lines):
        if len(set(line.get_xdata())) == 1:
            line.remove()
    (box,) = chart_of(ax.figure)["elements"]
    assert (box["label"], box["min"], box["median"], box["max"]) == ("a", 1, 2, 3)


def test_median_at_edge_of_cap_is_median():
    _, ax = plt.subplots()
    ax.boxplot([[1, 2, 3, 10]], patch_artist=True)
    (box,) = chart_of(ax.figure)["elements"]
    assert (box["median"], box["max"], box["outliers"]) == (2.5, 4.75, [10])


def test_box_keeps_all_outliers():
    _, ax = plt.subplots()
    ax.boxplot([[*range(20), 100, 200]])
    assert chart_of(ax.figure)["elements"][0]["outliers"] == [100, 200]


@pytest.mark.parametrize("options", [{"patch_artist": True}, {"notch": True}, {}])
def test_lying_boxes_are_read_across(options):
    _, ax = plt.subplots()
    data = [[1, 2, 3, 4, 5], [2, 4, 6, 8, 10]]
    ax.boxplot(data, orientation="horizontal", tick_labels=["a", "b"], **options)
    ax.set_ylabel("names")
    chart = chart_of(ax.figure)
    assert chart["x_label"] == "names"
    assert column(chart, "label") == ["a", "b"]
    assert column(chart, "median") == [3, 6]
    assert column(chart, "first_quartile") == [2, 4]
    assert column(chart, "max") == [5, 10]


def test_boxes_of_pandas_are_boxes():
    ax = pd.DataFrame({"a": [1, 2, 3], "b": [4, 5, 6]}).boxplot()
    chart = chart_of(ax.figure)
    assert chart["type"] == "box_and_whisker"
    assert column(chart, "label") == ["a", "b"]
    assert column(chart, "median") == [2, 5]


def test_error_bars_make_line_with_label():
    _, ax = plt.subplots()
    ax.errorbar([1, 2, 3], [4, 5, 6], yerr=0.1, xerr=0.1, capsize=3, label="measured")
    chart = chart_of(ax.figure)
    assert chart["type"] == "line"
    assert chart["elements"] == [{"label": "measured", "points": [[1, 4], [2, 5], [3, 6]]}]


def test_stems_make_line():
    _, ax = plt.subplots()
    ax.stem([4, 5, 6])
    (element,) = chart_of(ax.figure)["elements"]
    assert element == {"label": "Line 0", "points": [[0, 4], [1, 5], [2, 6]]}


def test_area_makes_line_of_its_edge():
    _, ax = plt.subplots()
    ax.fill_between([1, 2, 3], [3, 4, 5], label="area")
    chart = chart_of(ax.figure)
    assert chart["type"] == "line"
    assert chart["elements"] == [{"label": "area", "points": [[1, 3], [2, 4], [3, 5]]}]


def test_stacked_areas_make_lines_of_their_upper_edges():
    _, ax = plt.subplots()
    ax.stackplot([1, 2, 3], [3, 4, 5], [1, 1, 1], labels=["p", "q"])
    chart = chart_of(ax.figure)
    assert column(chart, "label") == ["p", "q"]
    assert chart["elements"][1]["points"] == [[1, 4], [2, 5], [3, 6]]


def test_area_about_line_is_no_series():
    _, ax = plt.subplots()
    ax.plot([1, 2, 3], [3, 4, 5], label="mean")
    ax.fill_between([1, 2, 3], [2, 3, 4], [4, 5, 6], alpha=0.3)
    assert column(chart_of(ax.figure), "label") == ["mean"]


def test_even_area_about_line_is_no_violin():
    _, ax = plt.subplots()
    x = np.arange(5.0)
    ax.plot(x, 2 * x, label="rise")
    ax.fill_between(x, -x, x)
    assert column(chart_of(ax.figure), "label") == ["rise"]


def test_flat_series_with_label_stays_beside_points():
    _, ax = plt.subplots()
    ax.scatter([1, 2, 3], [3, 5, 4], label="data")
    ax.plot([1, 2, 3], [4, 4, 4], label="mean")
    ax.plot([1, 3], [5, 5])
    assert column(chart_of(ax.figure), "label") == ["data", "mean"]


@pytest.mark.parametrize("options", [{}, {"orientation": "horizontal"}, {"showextrema": False},
                                     {"orientation": "horizontal", "showextrema": False}])
def test_violins_are_unknown(options):
    _, ax = plt.subplots()
    ax.violinplot([[1, 2, 3, 9], [2, 3, 4, 5]], **options)
    assert chart_of(ax.figure)["type"] == "unknown"


def test_scatter_with_fitted_line_keeps_both():
    _, ax = plt.subplots()
    ax.scatter([1, 2, 3], [3, 5, 5], label="data")
    ax.plot([1, 3], [3, 5.5], label="fit")
    chart = chart_of(ax.figure)
    assert (chart["type"], column(chart, "label")) == ("scatter", ["data", "fit"])
    assert chart["elements"][1]["kind"] == "line"


def test_colorbar_is_no_chart():
    figure, ax = plt.subplots()
    points = ax.scatter([1, 2, 3], [3, 4, 5], c=[1, 2, 3])
    figure.colorbar(points)
    assert chart_of(figure)["type"] == "scatter"


def test_axes_without_data_are_left_out():
    figure, axes = plt.subplots(2, 2)
    axes[0, 0].plot([1, 2, 3])
    figure.suptitle("Alone")
    chart = chart_of(figure)
    assert (chart["type"], chart["title"]) == ("line", "Alone")


def test_line_alone_may_be_flat():
    _, ax = plt.subplots()
    ax.plot([1, 2], [2, 2])
    assert chart_of(ax.figure)["elements"] == [{"label": "Line 0", "points": [[1, 2], [2, 2]]}]


def test_limit_alone_is_unknown():
    _, ax = plt.subplots()
    ax.axhline(3)
    assert chart_of(ax.figure)["type"] == "unknown"


def test_line_without_ticks_has_empty_ticks():
    _, ax = plt.subplots()
    ax.plot([1, 2, 3])
    ax.set_xticks([])
    ax.set_yticks([])
    chart = chart_of(ax.figure)
    assert (chart["x_ticks"], chart["y_tick_labels"], chart["x_scale"]) == ([], [], "linear")


def test_values_that_are_not_finite_become_null():
    _, ax = plt.subplots()
    ax.plot([1, 2, 3, 4], [1, np.nan, np.inf, 4])
    ax.plot([1, 2], np.ma.masked_equal([7, 8], 8))
    first, second = chart_of(ax.figure)["elements"]
    assert first["points"] == [[1, 1], [2, None], [3, None], [4, 4]]
    assert second["points"] == [[1, 7], [2, None]]


@pytest.mark.parametrize("freq, second", [("D", "2024-01-02T00:00:00"),
                                          ("MS", "2024-02-01T00:00:00"),
                                          ("h", "2024-01-01T01:00:00")])
def test_dates_of_pandas_are_iso(freq, second):
    series = pd.Series([1.0, 2.0, np.nan], index=pd.date_range("2024-01-01", periods=3, freq=freq))
    for draw in (lambda: series.plot(), lambda: plt.plot(series.index, series),
                 lambda: plt.scatter(series.index[:2], series[:2])):
        plt.figure()
        draw()
        chart = chart_of(plt.gcf())
        assert chart["x_scale"] == "datetime"
        assert chart["elements"][0]["points"][:2] == [["2024-01-01T00:00:00", 1], [second, 2]]
        assert all(datetime.datetime.fromisoformat(tick) for tick in chart["x_ticks"])


def test_missing_dates_become_null():
    _, ax = plt.subplots()
    ax.plot(pd.to_datetime(["2024-01-01", None]), [1, 2])
    assert chart_of(ax.figure)["elements"][0]["points"] == [["2024-01-01T00:00:00", 1], [None, 2]]


def test_bars_of_pandas_have_names():
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4]}, index=["u", "v"])
    for ax in (frame.plot.bar(), frame.plot.barh(stacked=True)):
        chart = chart_of(ax.figure)
        assert labels_and_values(chart) == [("u", 1), ("v", 2), ("u", 3), ("v", 4)]
        assert column(chart, "group") == ["a", "a", "b", "b"]


def test_scatter_on_categories_has_names():
    _, ax = plt.subplots()
    ax.scatter(["u", "v"], [1, 2])
    assert chart_of(ax.figure)["elements"][0]["points"] == [["u", 1], ["v", 2]]


def test_pie_without_labels_has_names_of_legend():
    _, ax = plt.subplots()
    ax.pie([1, 3])
    ax.legend(["x", "y"])
    assert column(chart_of(ax.figure), "label") == ["x", "y"]


@pytest.mark.parametrize("draw", [
    lambda ax: ax.imshow(np.eye(3)), lambda ax: ax.pcolormesh(np.eye(3)),
    lambda ax: ax.contour(np.eye(3)), lambda ax: ax.quiver([1], [1], [1], [1]),
    lambda ax: ax.hexbin([1, 2], [1, 2], gridsize=2),
])
def test_other_kinds_are_unknown_with_title(draw):
    _, ax = plt.subplots()
    draw(ax)
    ax.set_title("Field")
    assert chart_of(ax.figure) == {"type": "unknown", "title": "Field", "elements": []}


def test_space_of_three_dimensions_is_unknown():
    ax = plt.figure().add_subplot(projection="3d")
    ax.plot([1, 2], [2, 3], [3, 4])
    assert chart_of(ax.figure)["type"] == "unknown"


def test_failure_in_axes_makes_unknown_with_title(monkeypatch):
    _, ax = plt.subplots()
    ax.plot([1, 2, 3])
    ax.set_title("Broken")
    monkeypatch.setattr(type(ax.xaxis), "get_majorticklocs", lambda self: 1 / 0)
    assert chart_of(ax.figure) == {"type": "unknown", "title": "Broken", "elements": []}


def test_failure_in_one_axes_leaves_others(monkeypatch):
    figure, (left, right) = plt.subplots(1, 2)
    left.plot([1, 2, 3])
    right.bar(["a"], [1])
    monkeypatch.setattr(left, "get_title", lambda *_: 1 / 0)
    assert column(chart_of(figure), "type") == ["unknown", "bar"]


def test_too_many_points_are_refused_with_count():
    _, ax = plt.subplots()
    ax.plot(np.arange(60_000))
    ax.plot(np.arange(60_000))
    ax.set_title("Long")
    with pytest.raises(TooLarge) as refused:
        charts.chart(ax.figure)
    assert refused.value.note == {"points": 120_000, "limit": 100_000}
    assert refused.value.instead == {"type": "unknown", "title": "Long", "elements": []}


def test_lone_surrogates_in_labels_become_replacements():
    _, ax = plt.subplots()
    ax.plot([1, 2], label="a\ud800")
    ax.set_title("b\udfff")
    chart = chart_of(ax.figure)
    assert chart["title"] == "b\ufffd"
    assert column(chart, "label") == ["a\ufffd"]


def test_figure_is_not_changed_by_reading():
    figure, ax = plt.subplots()
    ax.bar(["a", "b"], [1, 2])
    figure.canvas.draw()
    before = np.asarray(figure.canvas.buffer_rgba()).copy()
    charts.chart(figure)
    figure.canvas.draw()
    assert (before == np.asarray(figure.canvas.buffer_rgba())).all()
