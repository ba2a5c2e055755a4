"""Metrics of text classification against their definitions, and published examples."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.data.classification_scores import METRICS, OF_NUMBERS

PROPERTY = settings(deadline=None, derandomize=True, max_examples=80)


def counted(predicted: list[int], gold: list[int], kind: int) -> tuple[int, int, int, int]:
    """tp, fp, fn, tn of a class."""
    pairs = list(zip(predicted, gold, strict=True))
    tp = sum(p == kind and g == kind for p, g in pairs)
    fp = sum(p == kind and g != kind for p, g in pairs)
    fn = sum(p != kind and g == kind for p, g in pairs)
    return tp, fp, fn, len(pairs) - tp - fp - fn


def f1_of(predicted: list[int], gold: list[int], kind: int) -> float:
    tp, fp, fn, _ = counted(predicted, gold, kind)
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


@st.composite
def classified(draw: st.DrawFn, kinds: int) -> tuple[list[int], list[int]]:
    pairs = draw(st.lists(st.tuples(*[st.integers(0, kinds - 1)] * 2), min_size=1, max_size=30))
    return [p for p, _ in pairs], [g for _, g in pairs]


def value(name: str, predicted: list, gold: list) -> float:
    return METRICS[name](np.array(predicted), np.array(gold))


@pytest.mark.parametrize("kinds", [2, 3])
@PROPERTY
@given(data=st.data())
def test_classes_are_counted_as_defined(kinds: int, data: st.DataObject) -> None:
    predicted, gold = data.draw(classified(kinds))
    assert value("accuracy", predicted, gold) == sum(map(int.__eq__, predicted, gold)) / len(gold)
    assert value("f1", predicted, gold) == pytest.approx(f1_of(predicted, gold, 1))
    there = sorted({*predicted, *gold})
    mean = sum(f1_of(predicted, gold, kind) for kind in there) / len(there)
    assert value("macro_f1", predicted, gold) == pytest.approx(mean)


@PROPERTY
@given(pair=classified(2))
def test_matthews_correlation_is_its_formula(pair: tuple[list[int], list[int]]) -> None:
    tp, fp, fn, tn = counted(*pair, 1)
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    expected = (tp * tn - fp * fn) / math.sqrt(below) if below else 0.0
    assert value("matthews_correlation", *pair) == pytest.approx(expected, abs=1e-12)


def correlation(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    below = math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))
    return above / below


def ranks(values: list[float]) -> list[float]:
    return [sum(b < a for b in values) + (sum(b == a for b in values) + 1) / 2 for a in values]


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=3, max_size=30))
def test_correlations_are_their_formulas(pairs: list[tuple[int, int]]) -> None:
    x, y = [p / 4 for p, _ in pairs], [g / 4 for _, g in pairs]
    constant = len(set(x)) == 1 or len(set(y)) == 1
    assert value("pearson", x, y) == pytest.approx(0.0 if constant else correlation(x, y))
    assert value("spearmanr", x, y) == pytest.approx(0.0 if constant else correlation(ranks(x), ranks(y)))


@pytest.mark.parametrize(
    ("name", "predicted", "gold", "expected"),
    [
        ("f1", [0, 0, 1, 1, 0], [0, 1, 0, 1, 0], 0.5),  # the card of evaluate's f1
        ("macro_f1", [0, 2, 1, 0, 0, 1], [0, 1, 2, 0, 1, 2], 0.27),  # the same, rounded there
        ("matthews_correlation", [1, 2, 2, 0, 3, 3], [1, 3, 2, 0, 3, 2], 0.54),  # the card of matthews_correlation
        ("accuracy", [0, 1, 1, 2, 1, 0], [0, 1, 2, 0, 1, 2], 0.5),  # the card of accuracy
        ("pearson", [10, 9, 2.5, 6, 4], [1, 2, 3, 4, 5], -0.74),  # the card of pearsonr
        ("spearmanr", [10, 9, 2.5, 6, 4], [1, 2, 3, 4, 5], -0.7),  # the card of spearmanr
    ],
)
def test_published_examples(name: str, predicted: list, gold: list, expected: float) -> None:
    assert round(value(name, predicted, gold), 2) == expected


@pytest.mark.parametrize("name", METRICS)
def test_sides_without_variety_are_no_error(name: str, recwarn: pytest.WarningsRecorder) -> None:
    found = value(name, [0, 0, 0], [0, 1, 0])
    assert found == {"accuracy": 2 / 3, "macro_f1": pytest.approx(0.4)}.get(name, 0.0)
    assert not recwarn.list


def test_correlations_are_the_metrics_of_numbers() -> None:
    assert {"pearson", "spearmanr"} == OF_NUMBERS
