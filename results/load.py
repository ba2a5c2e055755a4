"""Loads the rows to show, with intervals, published rows and notes, from the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run as LoggedRun

from results import caveats, intervals, published, sqlite
from results.filters import Filters
from results.rows import Row, pool
from results.runs import ForeignServer, UnknownExperiment, fetch, select


class NothingMatches(ValueError):
    """The filters select no run; the message lists what there is."""


class Unreadable(Exception):
    """There is nothing to show; the message says why, and what to do."""


def client_of(uri: str) -> MlflowClient:
    """A client of the store.

    Raises:
        Unreadable: MLflow has no such store, or a sqlite URI names no database of MLflow.
    """
    file = sqlite.file_of(uri)
    if file is not None:
        problem = sqlite.fault(file) if file.exists() else f"there is no MLflow database {file.absolute()}"
        if problem:
            remedy = "run `python -m runner` first, or give the store of the runs by --tracking-uri"
            raise Unreadable(f"{problem}: {remedy}")
    elif "://" not in uri and Path(uri).is_file():
        raise Unreadable(f"{uri} is a file, not the URI of a store: write sqlite:///{uri}")
    try:
        return MlflowClient(tracking_uri=sqlite.absolute(uri))
    except Exception as error:
        raise _unreadable(uri, error) from error


@contextmanager
def readable(uri: str) -> Iterator[None]:
    """Raise whatever MLflow raises for a store as `Unreadable`, as are an unknown experiment or run."""
    try:
        yield
    except (UnknownExperiment, NothingMatches, ForeignServer) as error:
        raise Unreadable(f"{error} (in {uri})") from error
    except Exception as error:  # MLflow passes on whatever its stores and drivers raise
        raise _unreadable(uri, error) from error


def _unreadable(uri: str, error: Exception) -> Unreadable:
    return Unreadable(f"cannot read {uri}: {type(error).__name__}: {' '.join(str(error).split())}")


def load(
    client: MlflowClient,
    experiment: str | None = None,
    filters: Filters | None = None,
    with_intervals: bool = True,
    compare: bool = False,
    logged: list[LoggedRun] | None = None,
) -> tuple[list[Row], Counter[str]]:
    """The rows, and how many runs were left out for which reason.

    A row's controls are looked for among all runs of the experiment, also among those that the filters exclude.

    Args:
        experiment: its name; None: all active ones.
        with_intervals: reads an artifact of every run that is shown.
        compare: adds the published rows.
        logged: the runs, if `fetch` was called before.

    Raises:
        UnknownExperiment: no experiment has that name.
        NothingMatches: the filters select nothing.
        Exception: whatever MLflow raises for a store that it cannot read.
    """
    filters = filters or Filters()
    logged = fetch(client, experiment) if logged is None else logged
    wanted = [run for run in logged if filters.match(run)]
    listed = compare and any(filters.match_labels(*labels) for labels in published.rows())
    if logged and not wanted and not listed:
        raise NothingMatches(filters.explain_no_match(logged))
    runs, left_out = select(wanted)
    rows = pool(runs, among=select(logged)[0])
    if with_intervals:
        rows = intervals.add(client, rows, {run.info.run_id: run.info.artifact_uri for run in logged})
    if compare:
        rows = published.compare(rows, filters.match_labels)
    return caveats.add(rows), left_out
