"""Loads the rows to show, with intervals, published rows and notes, from the store."""

from __future__ import annotations

from collections import Counter

from mlflow import MlflowClient

from results import caveats, intervals, published
from results.filters import Filters
from results.rows import Row, pool
from results.runs import fetch, select


class NothingMatches(ValueError):
    """The filters select no run; the message lists what there is."""


def load(
    client: MlflowClient,
    experiment: str | None = None,
    filters: Filters | None = None,
    with_intervals: bool = True,
    compare: bool = False,
) -> tuple[list[Row], Counter[str]]:
    """The rows, and how many runs were left out for which reason.

    A row's controls are looked for among all runs of the experiment, also among those that the filters exclude.

    Args:
        experiment: its name; None: all active ones.
        with_intervals: reads an artifact of every run that is shown.
        compare: adds the published rows.

    Raises:
        UnknownExperiment: no experiment has that name.
        NothingMatches: the filters select nothing.
        Exception: whatever MLflow raises for a store that it cannot read.
    """
    filters = filters or Filters()
    logged = fetch(client, experiment)
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
