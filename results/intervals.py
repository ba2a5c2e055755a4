"""Intervals of the drops of rows, from the scores by example (`columns.SCORES`) that their runs logged."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from statistics import fmean
from typing import Any

import numpy as np
from mlflow import MlflowClient

from results import columns
from results.bootstrap import FROM_MEANS, Sample, of_resamples, resample
from results.controls import Control
from results.progress import reported
from results.rows import Row
from results.runs import artifact

_TOLERANCE = 1e-6  # between a logged score and the one computed from its examples
_AT_ONCE = 4  # requests
_TOGETHER = 32  # runs that are read and resampled together: 5 MB of scores on SQuAD
_LARGEST = 1e15


class Unusable(Exception):
    """The reason why the scores by example of a run give no interval, in a few words."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The numbers of each example, in the order of `ids`."""

    ids: list[str]
    """Sorted."""
    dense: np.ndarray
    """float64[examples, k]. k is 1 where the main metric is a mean of fractions. For other metrics k may differ between
    models: some have numbers for each class that occurs."""
    sparse: np.ndarray
    """float64[examples, k]"""
    statistic: str = "mean"
    """How the metric is computed from the means over the examples: a name in `FROM_MEANS`."""


@dataclass(frozen=True, eq=False)
class Resampled:
    """What the intervals need of a model's scores by example, without these: they are 1 MB for a run on SQuAD."""

    metric: float
    """The score over all examples."""
    drawn: np.ndarray
    """float64[resamples, 1]: the metric in each resample of the examples."""
    digest: bytes
    """Equal in models that score each example alike."""


@dataclass(frozen=True)
class Scored:
    """A run's models, resampled."""

    examples: int
    ids: bytes
    """A digest: equal in runs that were scored on the same examples."""
    statistic: str
    dense: Resampled
    sparse: Resampled


def add(client: MlflowClient, rows: list[Row], places: Mapping[str, str | None] | None = None) -> list[Row]:
    """The rows with their intervals. A row whose scores by example cannot be used gets a note instead.

    Args:
        places: run id -> artifact URI, as far as it is known.
    """
    wanted = [run for row in rows for group in (row, row.control, row.plain) if group for run in group.runs]
    scores = read(client, wanted, places)
    return [_with_intervals(row, scores) for row in rows]


def _with_intervals(row: Row, scores: Mapping[str, Scored | Unusable]) -> Row:
    if not row.runs:
        return row
    try:
        runs = _scored(row, scores)
        dense, sparse = [run.dense for run in runs], [run.sparse for run in runs]
        _check(dense, row.dense_mean)
        _check(sparse, row.sparse_mean)
        relative, change = _intervals(runs[0], row.seeds, dense, row.seeds, sparse)
        notes = [*row.notes, *_unchanged(runs[0], dense, sparse)]
        row = replace(row, drop_interval=relative, change_interval=change, notes=notes)
    except Unusable as error:
        return replace(row, notes=[*row.notes, f"no interval: {error}"])
    for name in ("control", "plain"):
        control: Control | None = getattr(row, name)
        if control is None:
            continue
        try:
            control, notes = _against(control, row.seeds, runs, scores)
            row = replace(row, notes=[*row.notes, *notes], **{name: control})
        except Unusable as error:
            row = replace(row, notes=[*row.notes, f"no interval against the control: {error}"])
    return row


def _against(
    control: Control, seeds: list[int], runs: list[Scored], scores: Mapping[str, Scored | Unusable]
) -> tuple[Control, list[str]]:
    """The control with the intervals of the drop against it, and notes.

    Args:
        seeds: of `runs`, the row's.
    """
    theirs = _scored(control, scores)
    if theirs[0].ids != runs[0].ids:
        raise Unusable("it was scored on other examples")
    dense, sparse = [run.sparse for run in theirs], [run.sparse for run in runs]
    _check(dense, control.mean)
    unchanged = _unchanged(theirs[0], dense, sparse) if control.seeds == seeds else []
    relative, change = _intervals(theirs[0], control.seeds, dense, seeds, sparse)
    notes = [f"against the control: {note}" for note in unchanged]
    return replace(control, interval=relative, change_interval=change), notes


def _unchanged(run: Scored, dense: list[Resampled], sparse: list[Resampled]) -> list[str]:
    """The note on two groups of models with the same seeds in which no example scores differently, with any of them.

    Args:
        run: has the number of examples and the statistic.
    """
    if [model.digest for model in dense] != [model.digest for model in sparse]:
        return []
    return [columns.none_changes(run.examples, _mean(dense) if run.statistic == "mean" else None)]


def _intervals(
    run: Scored, dense_seeds: list[int], dense: list[Resampled], seeds: list[int], sparse: list[Resampled]
) -> tuple[list[float], list[float]]:
    below, above = (np.concatenate([model.drawn for model in models], axis=1) for models in (dense, sparse))
    relative, change = of_resamples(dense_seeds, below, seeds, above)
    if relative is None:
        raise Unusable(
            "the score that it is relative to may be 0" + " or negative" * (run.statistic in columns.CORRELATIONS)
        )
    return relative, change


def _scored(group: Row | Control, scores: Mapping[str, Scored | Unusable]) -> list[Scored]:
    """The runs of a group, in its order. Raises Unusable."""
    runs: list[Scored] = []
    for run_id in group.runs:
        run = scores[run_id]
        if isinstance(run, Unusable):
            raise run
        runs.append(run)
    if any(run.ids != runs[0].ids for run in runs):
        raise Unusable("its seeds were scored on different examples")
    if any(run.statistic != runs[0].statistic for run in runs):
        raise Unusable("its seeds logged different statistics")
    return runs


def _check(models: list[Resampled], mean: float | None) -> None:
    if mean is None or not abs(_mean(models) - mean) <= _TOLERANCE:
        raise Unusable(f"{columns.SCORES} and the logged scores do not agree")


def _mean(models: list[Resampled]) -> float:
    return fmean(model.metric for model in models)


# --- scores by example from the artifacts -------------------------------------------------------------------


def read(
    client: MlflowClient, runs: Iterable[str], places: Mapping[str, str | None] | None = None
) -> dict[str, Scored | Unusable]:
    """What each of these runs logged as `columns.SCORES`, resampled, or an error where that is missing or damaged."""
    wanted = list(dict.fromkeys(runs))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        parts = (wanted[at : at + _TOGETHER] for at in range(0, len(wanted), _TOGETHER))
        batches = (
            pool.map(lambda run_id: _attempt(client, run_id, (places or {}).get(run_id)), part) for part in parts
        )
        scored = (each for batch in batches for each in _resampled(list(batch)))
        return dict(zip(wanted, reported(scored, "scores", len(wanted), few=200), strict=True))


def _resampled(scores: Sequence[Scores | Unusable]) -> list[Scored | Unusable]:
    """The runs resampled, those with as many examples together."""
    by_size: defaultdict[int, list[Scores]] = defaultdict(list)
    for each in scores:
        if isinstance(each, Scores):
            by_size[len(each.ids)].append(each)
    drawn: dict[int, list[Resampled]] = {}
    for runs in by_size.values():
        samples = [Sample([0], [model], run.statistic) for run in runs for model in (run.dense, run.sparse)]
        models = [
            Resampled(sample.metric(), values, sha256(np.ascontiguousarray(sample.scores[0]).tobytes()).digest())
            for sample, values in zip(samples, resample(samples), strict=True)
        ]
        drawn |= {id(run): models[2 * at : 2 * at + 2] for at, run in enumerate(runs)}
    return [
        Scored(len(each.ids), sha256("\0".join(each.ids).encode(errors="surrogatepass")).digest(), each.statistic,
               *drawn[id(each)])
        if isinstance(each, Scores) else each
        for each in scores
    ]  # fmt: skip


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
    given = [str(each) for each in content["id"]]
    if not given or len(set(given)) != len(given):
        raise ValueError("no ids, or the same twice")
    if "statistics" in content:
        name, dense, sparse = _of_statistics(len(given), content["statistics"])
    else:
        name = "mean"
        dense, sparse = (_fractions(content[key], len(given)) for key in ("dense", "sparse"))
    order = sorted(range(len(given)), key=given.__getitem__)
    return Scores([given[at] for at in order], dense[order], sparse[order], name)


def _of_statistics(count: int, content: Any) -> tuple[str, np.ndarray, np.ndarray]:
    if not isinstance(content, dict) or content.get("name") not in list(FROM_MEANS):  # the name may be a list
        raise ValueError("no known statistic")
    name = content["name"]
    dense, sparse = (_numbers(content.get(key), count) for key in ("dense", "sparse"))
    for numbers in (dense, sparse):
        FROM_MEANS[name](numbers.mean(axis=0))  # raises ValueError for a wrong k
    return name, dense, sparse


def _fractions(values: list[Any], count: int) -> np.ndarray:
    if len(values) != count:
        raise ValueError("not as many scores as ids")
    if not (set(map(type, values)) <= {int, float} and min(values) >= 0 and max(values) <= 1):
        raise ValueError("not numbers in [0, 1]")
    scores = np.array(values, dtype=np.float64)
    if np.isnan(scores).any():  # min and max of a list may pass over it
        raise ValueError("not a number")
    return scores[:, None]


def _numbers(rows: Any, count: int) -> np.ndarray:
    if not isinstance(rows, list) or len(rows) != count or not all(isinstance(row, list) and row for row in rows):
        raise ValueError("not a row of numbers for each id")
    if not all(type(value) in (int, float) and abs(value) < _LARGEST for row in rows for value in row):  # nor is NaN
        raise ValueError("not numbers that can be squared and added")
    return np.array(rows, dtype=np.float64)  # raises ValueError for rows that differ in length
