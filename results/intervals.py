"""Intervals of the drops of rows, from the scores by example (`columns.SCORES`) that their runs logged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mlflow import MlflowClient

from results import columns
from results.bootstrap import FROM_MEANS, Sample, intervals
from results.controls import Control
from results.progress import reported
from results.rows import Row
from results.runs import artifact

_TOLERANCE = 1e-6  # between a logged score and the one computed from its examples
_AT_ONCE = 4  # requests
_LARGEST = 1e15


class Unusable(Exception):
    """The reason why the scores by example of a run give no interval, in a few words."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The numbers of each example, in the order of `ids`."""

    ids: list[str]
    dense: np.ndarray
    """float64[examples, k]. k is 1 where the main metric is a mean of fractions. For other metrics k may differ between
    models: some have numbers for each class that occurs."""
    sparse: np.ndarray
    """float64[examples, k]"""
    statistic: str = "mean"
    """How the metric is computed from the means over the examples: a name in `FROM_MEANS`."""


def add(client: MlflowClient, rows: list[Row], places: Mapping[str, str | None] | None = None) -> list[Row]:
    """The rows with their intervals. A row whose scores by example cannot be used gets a note instead.

    Args:
        places: run id -> artifact URI, as far as it is known.
    """
    wanted = [run for row in rows for group in (row, row.control, row.plain) if group for run in group.runs]
    scores = read(client, wanted, places)
    return [_with_intervals(row, scores) for row in rows]


def _with_intervals(row: Row, scores: Mapping[str, Scores | Unusable]) -> Row:
    if not row.runs:
        return row
    try:
        ids, dense, sparse = _samples(row, scores)
        _check(dense, row.dense_mean)
        _check(sparse, row.sparse_mean)
        relative, change = _intervals(dense, sparse)
        notes = [*row.notes, *_unchanged(dense, sparse)]
        row = replace(row, drop_interval=relative, change_interval=change, notes=notes)
    except Unusable as error:
        return replace(row, notes=[*row.notes, f"no interval: {error}"])
    for name in ("control", "plain"):
        control: Control | None = getattr(row, name)
        if control is None:
            continue
        try:
            control, notes = _against(control, ids, sparse, scores)
            row = replace(row, notes=[*row.notes, *notes], **{name: control})
        except Unusable as error:
            row = replace(row, notes=[*row.notes, f"no interval against the control: {error}"])
    return row


def _against(
    control: Control, ids: list[str], sparse: Sample, scores: Mapping[str, Scores | Unusable]
) -> tuple[Control, list[str]]:
    """The control with the intervals of the drop against it, and notes."""
    control_ids, _, control_sample = _samples(control, scores)
    if control_ids != ids:
        raise Unusable("it was scored on other examples")
    _check(control_sample, control.mean)
    notes = [f"against the control: {note}" for note in _unchanged(control_sample, sparse)]
    relative, change = _intervals(control_sample, sparse)
    return replace(control, interval=relative, change_interval=change), notes


def _unchanged(dense: Sample, sparse: Sample) -> list[str]:
    """The note on two samples in which no example scores differently, with any of the seeds."""
    if dense.seeds != sparse.seeds or not all(map(np.array_equal, dense.scores, sparse.scores)):
        return []
    return [columns.none_changes(dense.examples, dense.metric() if dense.statistic == "mean" else None)]


def _intervals(dense: Sample, sparse: Sample) -> tuple[list[float], list[float]]:
    relative, change = intervals(dense, sparse)
    if relative is None:
        raise Unusable(
            "the score that it is relative to may be 0" + " or negative" * (dense.statistic in columns.CORRELATIONS)
        )
    return relative, change


def _samples(group: Row | Control, scores: Mapping[str, Scores | Unusable]) -> tuple[list[str], Sample, Sample]:
    """Ids in their order, and the samples of the dense and the sparse models. Raises Unusable."""
    by_seed: list[Scores] = []
    for run in group.runs:
        each = scores[run]
        if isinstance(each, Unusable):
            raise each
        by_seed.append(each)
    ids = sorted(by_seed[0].ids)
    if any(sorted(each.ids) != ids for each in by_seed):
        raise Unusable("its seeds were scored on different examples")
    if len({each.statistic for each in by_seed}) > 1:
        raise Unusable("its seeds logged different statistics")
    orders = [np.argsort(np.array(each.ids, dtype=object)) for each in by_seed]
    dense = [each.dense[order] for each, order in zip(by_seed, orders, strict=True)]
    sparse = [each.sparse[order] for each, order in zip(by_seed, orders, strict=True)]
    name = by_seed[0].statistic
    return ids, Sample(group.seeds, dense, name), Sample(group.seeds, sparse, name)


def _check(sample: Sample, mean: float | None) -> None:
    if mean is None or not abs(sample.metric() - mean) <= _TOLERANCE:
        raise Unusable(f"{columns.SCORES} and the logged scores do not agree")


# --- scores by example from the artifacts -------------------------------------------------------------------


def read(
    client: MlflowClient, runs: Iterable[str], places: Mapping[str, str | None] | None = None
) -> dict[str, Scores | Unusable]:
    """What each of these runs logged as `columns.SCORES`, or an error where that is missing or damaged."""
    wanted = list(dict.fromkeys(runs))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        scores = pool.map(lambda run_id: _attempt(client, run_id, (places or {}).get(run_id)), wanted)
        return dict(zip(wanted, reported(scores, "scores", len(wanted), few=200), strict=True))


def _attempt(client: MlflowClient, run_id: str, place: str | None) -> Scores | Unusable:
    try:
        text = artifact(client, run_id, columns.SCORES, place)
    except Exception:  # MLflow passes on whatever its stores and drivers raise
        text = None
    if text is None:
        return Unusable(f"{columns.SCORES} is missing or cannot be fetched")
    try:
        return parse(json.loads(text))
    except (ValueError, RecursionError):
        return Unusable(f"{columns.SCORES} of run {run_id[:8]} is damaged")


def parse(content: Any) -> Scores:
    """Check the content of the artifact: unique ids, and for each a fraction or the numbers of a statistic.

    Raises:
        ValueError: it is not that.
    """
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("id", "dense", "sparse")
    ):
        raise ValueError("not three lists")
    ids = [str(each) for each in content["id"]]
    if not ids or len(set(ids)) != len(ids):
        raise ValueError("no ids, or the same twice")
    if "statistics" in content:
        return _of_statistics(ids, content["statistics"])
    dense, sparse = (_fractions(content[key], len(ids)) for key in ("dense", "sparse"))
    return Scores(ids, dense, sparse)


def _of_statistics(ids: list[str], content: Any) -> Scores:
    if not isinstance(content, dict) or content.get("name") not in list(FROM_MEANS):  # the name may be a list
        raise ValueError("no known statistic")
    name = content["name"]
    dense, sparse = (_numbers(content.get(key), len(ids)) for key in ("dense", "sparse"))
    for numbers in (dense, sparse):
        FROM_MEANS[name](numbers.mean(axis=0))  # raises ValueError for a wrong k
    return Scores(ids, dense, sparse, name)


def _fractions(values: list[Any], count: int) -> np.ndarray:
    if not all(type(value) in (int, float) and 0 <= value <= 1 for value in values):  # NaN fails as well
        raise ValueError("not numbers in [0, 1]")
    if len(values) != count:
        raise ValueError("not as many scores as ids")
    return np.array(values, dtype=np.float64)[:, None]


def _numbers(rows: Any, count: int) -> np.ndarray:
    if not isinstance(rows, list) or len(rows) != count or not all(isinstance(row, list) and row for row in rows):
        raise ValueError("not a row of numbers for each id")
    if not all(type(value) in (int, float) and abs(value) < _LARGEST for row in rows for value in row):  # nor is NaN
        raise ValueError("not numbers that can be squared and added")
    return np.array(rows, dtype=np.float64)  # raises ValueError for rows that differ in length
