"""Conversion of DataFrames to columns."""

import json

import numpy as np
import pandas as pd
import pytest
from wrenn_kernel import frames
from wrenn_kernel.values import TooLarge


def data(frame):
    result = frames.data(frame)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    return result


def test_columns_become_lists_without_index():
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [True, False, True]}, index=["x", "y", "z"])
    assert data(frame) == {"a": [1, 2, 3], "b": [True, False, True]}


def test_missing_values_become_null():
    frame = pd.DataFrame({
        "float": [1.5, np.nan, np.inf],
        "object": ["x", None, np.nan],
        "int": pd.array([1, None, 3], dtype="Int64"),
        "text": pd.array(["p", None, "q"], dtype="string"),
        "time": pd.to_datetime(["2024-01-02 00:00", None, "2024-01-03 04:05"]),
    })
    assert data(frame) == {
        "float": [1.5, None, None],
        "object": ["x", None, None],
        "int": [1, None, 3],
        "text": ["p", None, "q"],
        "time": ["2024-01-02T00:00:00", None, "2024-01-03T04:05:00"],
    }


def test_cells_of_any_type_have_a_form():
    frame = pd.DataFrame({
        "zone": pd.date_range("2024-01-01", periods=2, tz="UTC"),
        "delta": pd.to_timedelta(["1h", None]),
        "period": pd.period_range("2024-01", periods=2, freq="M"),
        "category": pd.Categorical(["u", "v"]),
        "nested": [[1, {"a": np.int64(2)}], (3, 4)],
        "complex": [1 + 2j, 3j],
        "odd": [{1}, b"x"],
        "large": [10**30, 1],
    })
    assert data(frame) == {
        "zone": ["2024-01-01T00:00:00+00:00", "2024-01-02T00:00:00+00:00"],
        "delta": ["0 days 01:00:00", None],
        "period": ["2024-01", "2024-02"],
        "category": ["u", "v"],
        "nested": [[1, {"a": 2}], [3, 4]],
        "complex": ["(1+2j)", "3j"],
        "odd": ["{1}", "b'x'"],
        "large": ["1" + "0" * 30, 1],
    }


def test_names_of_columns_become_strings():
    frame = pd.DataFrame([[1, 2, 3, 4]])
    frame.columns = pd.Index([0, None, ("a", 1), pd.Timestamp("2024-01-02")], tupleize_cols=False)
    assert list(data(frame)) == ["0", "None", "a / 1", "2024-01-02T00:00:00"]


def test_equal_names_of_columns_are_numbered():
    frame = pd.DataFrame([[1, 2, 3]], columns=["a", "a", "a"])
    assert data(frame) == {"a": [1], "a.1": [2], "a.2": [3]}


def test_levels_of_columns_are_joined():
    frame = pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")]))
    assert data(frame) == {"a / x": [1], "a / y": [2]}


def test_subclass_is_read_as_frame():
    class Table(pd.DataFrame):
        pass

    assert data(Table({"a": [1]})) == {"a": [1]}


def test_empty_frame_has_empty_columns():
    assert data(pd.DataFrame({"a": []})) == {"a": []}
    assert data(pd.DataFrame()) == {}


@pytest.mark.parametrize("shape", [(50_001, 2), (1, 100_001), (0, 100_001)])
def test_too_many_cells_are_refused(shape):
    with pytest.raises(TooLarge) as refused:
        frames.data(pd.DataFrame(np.zeros(shape)))
    assert refused.value.note["limit"] == 100_000
    assert refused.value.note["cells"] > 100_000


def test_most_cells_are_converted():
    assert len(data(pd.DataFrame(np.zeros((50_000, 2))))["0"]) == 50_000
