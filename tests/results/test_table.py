from dataclasses import replace

import pytest

from results import table
from results.rows import Row

PUBLISHED = Row(
    **{"model": "bert-mini", "dataset": "squad", "pattern": "4x1", "seeds": [0, 1], "ratio": 0.7993},
    **{"dense_mean": 0.7662, "dense_max": 0.7687, "sparse_mean": 0.7617, "sparse_max": 0.7627},
    **{"drop_max": -0.0060 / 0.7687, "drop_mean": -0.0045 / 0.7662},
    **{"metric": "f1", "differs": {}, "runs": ["r0", "r1"]},
)
GAIN = replace(PUBLISHED, model="distilbert", pattern="2:4", seeds=[7], runs=["r7"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.0060 / 0.7687, "-0.78%"),
        (0.0098, "+0.98%"),
        (-0.000001, "+0.00%"),
        (0.0, "+0.00%"),
        (None, "-"),
        (-1, "-100.00%"),
    ],
)
def test_percent(value, text):
    assert table.percent(value) == text


def test_one_number_where_mean_and_maximum_print_the_same():
    assert table.mean_max(0.8690, 0.8690) == "0.8690"
    assert table.mean_max(0.86901, 0.86904) == "0.8690"
    assert table.mean_max(0.86894, 0.86904) == "0.8689/0.8690"


@pytest.mark.parametrize(
    ("left_out", "notes"),
    [
        ({}, []),
        ({"failed": 1}, ["1 failed run is not shown."]),
        ({"killed": 2}, ["2 killed runs are not shown."]),
        (
            {"unverified": 1, "failed": 1, "unfinished": 2},
            ["2 unfinished, 1 failed and 1 unverified runs are not shown."],
        ),
        ({"failed": 1, "incomplete": 1}, ["1 failed and 1 incomplete runs are not shown."]),
        ({"repeated": 1}, ["1 repeat was left out: the newest run counts."]),
        ({"repeated": 2}, ["2 repeats were left out: the newest run counts."]),
    ],
)
def test_footnotes_count_what_is_not_shown(left_out, notes):
    assert table.footnotes([PUBLISHED], left_out) == notes
    assert table.footnotes([], left_out)[1:] == notes
    assert "Nothing" in table.footnotes([], left_out)[0]


def test_footnote_on_rows_without_a_param_that_differs():
    twin = replace(PUBLISHED, dense_max=0.9)
    (note,) = table.footnotes([PUBLISHED, twin, GAIN], {})
    assert note == "2 rows of bert-mini squad 4x1 differ in something that was not logged as a param."
    assert not table.footnotes([replace(PUBLISHED, differs={"lr": "1"}), replace(twin, differs={"lr": "2"})], {})


def test_marks():
    assert [table.mark(at) for at in (0, 1, 25, 26, 27, 51, 52, 701, 702)] == [
        *["a", "b", "z", "aa", "ab", "az", "ba", "zz", "aaa"]
    ]


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ([], "-"),
        ([7], "1 (7)"),
        ([0, 1, 2], "3 (0-2)"),
        ([0, 1, 2, 7, 9, 10], "6 (0-2, 7, 9-10)"),
        ([-1, 0], "2 (-1-0)"),
    ],
)
def test_seeds_are_counted_and_named(seeds, text):
    assert table.seeds(seeds) == text
