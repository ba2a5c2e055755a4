"""Intervals of the drops of rows, from what their runs logged of each example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from mlflow import MlflowClient

from results import columns, scores
from results.bootstrap import Sample, interval
from results.collect import Control, Row
from results.scores import Scores, Unusable

_TOLERANCE = 1e-6  # between a logged score and what follows from its examples


def add(client: MlflowClient, rows: list[Row]) -> list[Row]:
    """The rows with their intervals. A row whose scores by example cannot be used has a note instead, no error."""
    wanted = [run for row in rows for group in (row, row.control, row.plain) if group for run in group.runs]
    read = scores.read(client, wanted)
    return [_with_intervals(row, read) for row in rows]


def _with_intervals(row: Row, read: Mapping[str, Scores | Unusable]) -> Row:
    if not row.runs:
        return row
    try:
        ids, dense, sparse = _samples(row, read)
        _check(dense, row.dense_mean)
        _check(sparse, row.sparse_mean)
        row = replace(row, drop_interval=_interval(dense, sparse))
    except Unusable as error:
        return replace(row, notes=[*row.notes, f"no interval: {error}"])
    for name in ("control", "plain"):
        rival: Control | None = getattr(row, name)
        if rival is None:
            continue
        try:
            row = replace(row, **{name: replace(rival, interval=_against(rival, ids, sparse, read))})
        except Unusable as error:
            row = replace(row, notes=[*row.notes, f"no interval against the control: {error}"])
    return row


def _against(rival: Control, ids: list[str], sparse: Sample, read: Mapping[str, Scores | Unusable]) -> list[float]:
    their_ids, _, theirs = _samples(rival, read)
    if their_ids != ids:
        raise Unusable("it was scored on other examples")
    _check(theirs, rival.mean)
    return _interval(theirs, sparse)


def _interval(dense: Sample, sparse: Sample) -> list[float]:
    found = interval(dense, sparse)
    if found is None:
        raise Unusable(
            "the score that it is relative to may be 0" + " or negative" * (dense.statistic in columns.CORRELATIONS)
        )
    return found


def _samples(group: Row | Control, read: Mapping[str, Scores | Unusable]) -> tuple[list[str], Sample, Sample]:
    """Ids in their order, and the samples of the dense and the sparse models. Raises Unusable."""
    found: list[Scores] = []
    for run in group.runs:
        each = read[run]
        if isinstance(each, Unusable):
            raise each
        found.append(each)
    ids = sorted(found[0].ids)
    if any(sorted(each.ids) != ids for each in found):
        raise Unusable("its seeds were scored on different examples")
    if len({each.statistic for each in found}) > 1:
        raise Unusable("its seeds logged different statistics")
    orders = [np.argsort(np.array(each.ids, dtype=object)) for each in found]
    dense = [each.dense[order] for each, order in zip(found, orders, strict=True)]
    sparse = [each.sparse[order] for each, order in zip(found, orders, strict=True)]
    name = found[0].statistic
    return ids, Sample(group.seeds, dense, name), Sample(group.seeds, sparse, name)


def _check(sample: Sample, mean: float | None) -> None:
    if mean is None or not abs(sample.metric() - mean) <= _TOLERANCE:
        raise Unusable(f"{columns.SCORES} and the logged scores do not agree")
