"""Conversion of values to JSON: forms, refusals and limits."""

import dataclasses
import datetime
import decimal
import enum
import json
import uuid

import numpy as np
import pandas as pd
import pytest
from wrenn_kernel.values import Converter, Refused, TooLarge, text


class Colour(enum.IntEnum):
    RED = 1


@dataclasses.dataclass
class Place:
    name: str
    at: tuple


def plain(value, **limits):
    result = Converter(**limits).plain(value)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    return result


IDENTITY = uuid.UUID(int=7)


@pytest.mark.parametrize("value, expected", [
    ([1, 2.5, True, None, "x"], [1, 2.5, True, None, "x"]),
    ([float("nan"), float("inf"), np.float32("nan"), pd.NaT, pd.NA], [None] * 5),
    ((1, [2, {"a": (3,)}]), [1, [2, {"a": [3]}]]),
    ([np.int64(1), np.float32(0.5), np.bool_(True), np.str_("s")], [1, 0.5, True, "s"]),
    (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (np.array([1.0, np.nan]), [1.0, None]),
    (np.array(["2024-01-02", "NaT"], "datetime64[D]"), ["2024-01-02T00:00:00", None]),
    (np.datetime64("2024-01-02T03:04:05"), "2024-01-02T03:04:05"),
    (pd.Timestamp("2024-01-02 03:04"), "2024-01-02T03:04:00"),
    (datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc), "2024-01-02T00:00:00+00:00"),
    (datetime.time(1, 2), "01:02:00"),
    (datetime.timedelta(hours=1), "1:00:00"),
    (Colour.RED, 1),
    (IDENTITY, str(IDENTITY)),
    (Place("here", (1, 2)), {"name": "here", "at": [1, 2]}),
    ({2: "a", None: "b", True: "c", 2.5: "d", np.int64(3): "e"},
     {"2": "a", "null": "b", "true": "c", "2.5": "d", "3": "e"}),
    ({datetime.date(2024, 1, 2): 1}, {"2024-01-02": 1}),
])
def test_value_becomes_plain(value, expected):
    assert plain(value) == expected


@pytest.mark.parametrize("value", [
    [object()], {1, 2}, b"x", [1 + 2j], [decimal.Decimal(1)], [10**30], {(1, 2): 3},
    {"1": "a", 1: "b"}, np.array([1j]), [len], Place,
])
def test_value_without_form_is_refused(value):
    with pytest.raises(Refused):
        plain(value)


def test_container_with_own_methods_is_read_past_them():
    broken = type("Broken", (list,), {"__len__": lambda self: 1 / 0, "__iter__": None})
    assert plain(broken([1, 2])) == [1, 2]


def test_cycle_is_refused():
    ring = [1]
    ring.append({"again": ring})
    with pytest.raises(Refused):
        plain(ring)


def test_value_that_occurs_twice_is_no_cycle():
    shared = [1]
    assert plain([shared, shared]) == [[1], [1]]


def test_deep_nesting_is_refused():
    nested = []
    for _ in range(100):
        nested = [nested]
    with pytest.raises(Refused):
        plain(nested)


@pytest.mark.parametrize("value", [list(range(11)), [[1] * 6, [1] * 6], np.zeros(11),
                                   {str(i): i for i in range(11)}])
def test_too_many_values_are_counted(value):
    with pytest.raises(TooLarge) as refused:
        plain(value, values=10)
    assert refused.value.note["limit"] == 10
    assert refused.value.note["values"] > 10


def test_too_many_characters_are_counted():
    with pytest.raises(TooLarge) as refused:
        plain(["aaaa", "bbbb"], characters=7)
    assert refused.value.note == {"characters": 8, "limit": 7}


@pytest.mark.parametrize("words, expected", [
    ("plain", "plain"), ("é😀", "é😀"), ("a\ud800b", "a\ufffdb"), ("\ud83d\ude00", "😀"),
])
def test_text_can_always_be_encoded(words, expected):
    assert text(words) == expected
    assert text(words).encode("utf-8")
