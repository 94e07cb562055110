"""Charts that clients of E2B test: the same figures, and the values that clients expect."""

import datetime

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.lines import Line2D
from shape import chart_of, column

SECONDS = [datetime.date(2023, 9, 1) + datetime.timedelta(seconds=i) for i in range(100)]
TURN = np.linspace(0, 2 * np.pi, 100)
SCORES = {
    "Class A": [85, 90, 78, 92, 88],
    "Class B": [95, 89, 76, 91, 84, 87],
    "Class C": [75, 82, 88, 79, 86],
}


def test_bar_chart_has_labels_values_and_group():
    _, ax = plt.subplots()
    authors = [f"Author {letter}" for letter in "ABCD"]
    ax.bar(authors, [100, 200, 300, 400], label="Books Sold", color="blue")
    ax.set(xlabel="Authors", ylabel="Number of Books Sold", title="Book Sales by Authors")
    chart = chart_of(ax.figure)
    assert (chart["type"], chart["title"]) == ("bar", "Book Sales by Authors")
    assert (chart["x_label"], chart["y_label"]) == ("Authors", "Number of Books Sold")
    assert (chart["x_unit"], chart["y_unit"]) == (None, None)
    assert column(chart, "label") == authors
    assert column(chart, "value") == [100, 200, 300, 400]
    assert column(chart, "group") == ["Books Sold"] * 4


def test_blank_figure_has_no_chart():
    assert chart_of(plt.subplots()[0]) == {}
    assert chart_of(plt.figure()) == {}


def boxes(ax, **options):
    ax.boxplot(list(SCORES.values()), tick_labels=list(SCORES), **options)
    ax.set(title="Exam Scores Distribution", xlabel="Class", ylabel="Score")


def check_boxes(chart):
    assert (chart["type"], chart["title"]) == ("box_and_whisker", "Exam Scores Distribution")
    assert (chart["x_label"], chart["y_label"]) == ("Class", "Score")
    assert column(chart, "label") == list(SCORES)
    assert column(chart, "outliers") == [[], [76], []]
    assert column(chart, "min") == [78, 84, 75]
    assert column(chart, "first_quartile") == [85, 84.75, 79]
    assert column(chart, "median") == [88, 88, 82]
    assert column(chart, "third_quartile") == [90, 90.5, 86]
    assert column(chart, "max") == [92, 95, 88]


@pytest.mark.parametrize("options", [{"patch_artist": True}, {}, {"showmeans": True},
                                     {"showcaps": False}, {"patch_artist": True, "notch": True}])
def test_boxes_drawn_in_any_way_have_quartiles(options):
    _, ax = plt.subplots()
    boxes(ax, **options)
    check_boxes(chart_of(ax.figure))


def test_boxes_drawn_twice_count_once():
    _, ax = plt.subplots()
    boxes(ax)
    boxes(ax, patch_artist=True)
    check_boxes(chart_of(ax.figure))


def test_text_on_axis_makes_scale_categorical():
    _, ax = plt.subplots()
    ax.plot([1, 2, 3, 4, 5], list("ABCDE"))
    chart = chart_of(ax.figure)
    assert (chart["type"], chart["x_scale"], chart["y_scale"]) == ("line", "linear", "categorical")
    assert chart["elements"][0]["points"][0] == [1.0, "A"]


def test_dates_on_axis_make_scale_datetime():
    _, ax = plt.subplots()
    ax.plot(SECONDS, np.sin(TURN), label="sin(x)")
    chart = chart_of(ax.figure)
    assert (chart["type"], chart["x_scale"], chart["y_scale"]) == ("line", "datetime", "linear")


def test_line_chart_of_dates_has_iso_points_and_ticks():
    _, ax = plt.subplots()
    ax.plot(SECONDS, np.sin(TURN), label="sin(x)")
    ax.plot(SECONDS, np.cos(TURN), label="cos(x)")
    ax.set(xlabel="Time (s)", ylabel="Amplitude (Hz)", title="Plot of sin(x) and cos(x)")
    chart = chart_of(ax.figure)
    assert chart["title"] == "Plot of sin(x) and cos(x)"
    assert (chart["x_label"], chart["y_label"]) == ("Time (s)", "Amplitude (Hz)")
    assert (chart["x_unit"], chart["y_unit"]) == ("s", "Hz")
    assert all(datetime.datetime.fromisoformat(tick) for tick in chart["x_ticks"])
    assert all(isinstance(tick, float) for tick in chart["y_ticks"])
    assert all(isinstance(label, str) for label in chart["x_tick_labels"] + chart["y_tick_labels"])
    assert column(chart, "label") == ["sin(x)", "cos(x)"]
    for element in chart["elements"]:
        assert len(element["points"]) == 100
        assert all(datetime.datetime.fromisoformat(x) for x, _ in element["points"])
        assert all(isinstance(y, float) for _, y in element["points"])


def test_log_scale_is_named():
    _, ax = plt.subplots()
    x = np.linspace(0, 100, 100)
    ax.plot(x, np.exp(x), label="y = e^x")
    ax.set_yscale("log")
    ax.set(xlabel="X-axis", ylabel="Y-axis (log scale)", title="Chart with Log Scale on Y-axis")
    ax.legend()
    ax.grid(True)
    chart = chart_of(ax.figure)
    assert (chart["x_scale"], chart["y_scale"]) == ("linear", "log")
    assert (chart["x_unit"], chart["y_unit"]) == (None, "log scale")
    assert all(isinstance(tick, float) for tick in chart["x_ticks"] + chart["y_ticks"])
    (element,) = chart["elements"]
    assert element["label"] == "y = e^x"
    assert element["points"][-1] == [100.0, float(np.exp(100.0))]


def test_pie_has_exact_angles():
    _, ax = plt.subplots()
    ax.pie([90, 10], labels=["No", "No, in blue"], autopct="%1.1f%%", startangle=90)
    ax.axis("equal")
    ax.set(title="Will I wake up early tomorrow?", xlabel="x")
    chart = chart_of(ax.figure)
    assert (chart["type"], chart["title"]) == ("pie", "Will I wake up early tomorrow?")
    assert column(chart, "label") == ["No", "No, in blue"]
    assert column(chart, "angle") == [324, 36]
    assert column(chart, "radius") == [1, 1]


def test_scatter_chart_has_groups():
    _, ax = plt.subplots()
    rng = np.random.default_rng(1)
    first, second = rng.random((5, 2)), rng.random((10, 2))
    ax.scatter(*first.T, c="blue", label="Dataset 1")
    ax.scatter(*second.T, c="red", label="Dataset 2")
    ax.set(xlabel="A", ylabel="B")
    chart = chart_of(ax.figure)
    assert (chart["type"], chart["title"]) == ("scatter", None)
    assert (chart["x_scale"], chart["y_scale"]) == ("linear", "linear")
    assert column(chart, "label") == ["Dataset 1", "Dataset 2"]
    assert chart["elements"][0]["points"] == first.tolist()
    assert chart["elements"][1]["points"] == second.tolist()


def test_several_axes_make_superchart():
    figure, (left, right) = plt.subplots(1, 2)
    figure.suptitle("Multiple Charts Example")
    left.plot(np.linspace(0, 10, 100), np.sin(np.linspace(0, 10, 100)), "r")
    left.set_title("Sine Wave")
    left.grid(True)
    right.scatter([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], label="Dataset 1")
    right.set(xlabel="X", ylabel="Y", title="Scatter Plot")
    chart = chart_of(figure)
    assert (chart["type"], chart["title"]) == ("superchart", "Multiple Charts Example")
    first, second = chart["elements"]
    assert (first["type"], first["title"], first["x_label"]) == ("line", "Sine Wave", None)
    assert [len(element["points"]) for element in first["elements"]] == [100]
    assert (second["type"], second["title"]) == ("scatter", "Scatter Plot")
    assert (second["x_label"], second["y_label"]) == ("X", "Y")
    assert [len(element["points"]) for element in second["elements"]] == [5]


def test_circles_are_unknown_with_title():
    _, ax = plt.subplots()
    for radius in (1, 2):
        ax.add_artist(plt.Circle((0, 0), radius, fill=False))
    ax.grid(True)
    ax.set_title("Two Concentric Circles")
    chart = chart_of(ax.figure)
    assert chart == {"type": "unknown", "title": "Two Concentric Circles", "elements": []}


@pytest.mark.parametrize("labels, scale", [(["1", "2", "3"], "linear"),
                                           (["First", "Second", "Third"], "categorical"),
                                           (["0", "1", "2"], "linear"), (["", "", ""], "linear")])
def test_scale_with_labelled_ticks_depends_on_labels(labels, scale):
    _, ax = plt.subplots()
    ax.plot([0, 1, 2], [5, 6, 7])
    ax.set_xticks([0, 1, 2], labels)
    assert chart_of(ax.figure)["x_scale"] == scale


@pytest.mark.parametrize("x, y, flat", [([1, 2], [2, 3], False), ([1, 2], [2, 2], True),
                                        ([1, 1], [2, 3], True), ([1, 2, 3], [2, 2, 3], False)])
def test_limit_across_bars_is_no_series(x, y, flat):
    _, ax = plt.subplots()
    ax.bar([1, 2], [3, 4])
    ax.add_line(Line2D(x, y))
    assert (chart_of(ax.figure)["type"] == "bar") is flat
