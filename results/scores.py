"""What the main metric follows from, by example, from the artifacts of the runs: the intervals are computed from it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient

from results import columns
from results.statistics import OF

_AT_ONCE = 4  # requests
_LARGEST = 1e15


class Unusable(Exception):
    """Why the scores by example of a run give no interval, in a few words."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The numbers of each example, in the order of `ids`."""

    ids: list[str]
    dense: np.ndarray
    """float64[examples, k]: k is 1 where the main metric is a mean, of fractions. For other metrics k may differ
    between models: some have numbers for each class that occurs."""
    sparse: np.ndarray
    """float64[examples, k]"""
    statistic: str = "mean"
    """How the metric follows from the means over the examples: a name in `results.statistics.OF`."""


def read(client: MlflowClient, runs: Iterable[str]) -> dict[str, Scores | Unusable]:
    """What each of these runs logged as `columns.SCORES`; an error stands in for what is missing or damaged."""
    wanted = list(dict.fromkeys(runs))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(wanted, pool.map(lambda run_id: _attempt(client, run_id), wanted), strict=True))


def _attempt(client: MlflowClient, run_id: str) -> Scores | Unusable:
    with tempfile.TemporaryDirectory() as folder:
        try:
            text = Path(client.download_artifacts(run_id, columns.SCORES, folder)).read_bytes()
        except Exception:  # MLflow lets through whatever its stores and drivers raise, also where nothing was logged
            return Unusable(f"{columns.SCORES} is missing or cannot be fetched")
    try:
        return parse(json.loads(text))
    except (ValueError, RecursionError):
        return Unusable(f"{columns.SCORES} of run {run_id[:8]} is damaged")


def parse(content: Any) -> Scores:
    """Check what was read: fractions, or the numbers of a statistic where there are any, and as many different ids.

    Raises:
        ValueError: anything else.
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
    if not isinstance(content, dict) or content.get("name") not in list(OF):  # it may be a list itself
        raise ValueError("no known statistic")
    name = content["name"]
    dense, sparse = (_numbers(content.get(key), len(ids)) for key in ("dense", "sparse"))
    for numbers in (dense, sparse):
        OF[name](numbers.mean(axis=0))  # raises ValueError for another k than it takes
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
