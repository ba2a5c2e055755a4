"""The main metric of each example, from the artifacts of the runs: what the intervals are computed from."""

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

_AT_ONCE = 4  # requests


class Unusable(Exception):
    """Why the scores by example of a run give no interval, in a few words."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The main metric by example, fractions in the order of `ids`."""

    ids: list[str]
    dense: np.ndarray
    """float64[examples]"""
    sparse: np.ndarray
    """float64[examples]"""


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
    """Check what was read. Raises ValueError for anything but numbers in [0, 1] and as many different ids."""
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("id", "dense", "sparse")
    ):
        raise ValueError("not three lists")
    ids = [str(each) for each in content["id"]]
    dense, sparse = (_numbers(content[key]) for key in ("dense", "sparse"))
    if not ids or len(set(ids)) != len(ids) or dense.shape != (len(ids),) or sparse.shape != (len(ids),):
        raise ValueError("not as many scores as different ids")
    return Scores(ids, dense, sparse)


def _numbers(values: list[Any]) -> np.ndarray:
    if not all(type(value) in (int, float) and 0 <= value <= 1 for value in values):  # NaN fails as well
        raise ValueError("not numbers in [0, 1]")
    return np.array(values, dtype=np.float64)
