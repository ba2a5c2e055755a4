"""From the store to the rows that are shown, with all that is known of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from mlflow import MlflowClient

from results import collect, doubts, intervals, published
from results.collect import Row
from results.filters import Filters


class NothingMatches(ValueError):
    """The filters keep no run; says what there is."""


def gather(
    client: MlflowClient,
    experiment: str | None = None,
    filters: Filters | None = None,
    with_intervals: bool = True,
    compare: bool = False,
) -> tuple[list[Row], Mapping[str, int]]:
    """The rows, and how many runs were left out for which reason.

    A row's controls are looked for among all runs of the experiment, also among those that the filters keep out.

    Args:
        experiment: its name; None: all active ones.
        with_intervals: reads an artifact of every run that is shown.
        compare: sets the published rows beside ours.

    Raises:
        collect.UnknownExperiment: there is none of that name.
        NothingMatches: the filters keep nothing.
        Exception: whatever MLflow raises for a store that it cannot read.
    """
    filters = filters or Filters()
    logged = collect.fetch(client, experiment)
    wanted = [run for run in logged if filters.keeps(run)]
    listed = compare and any(filters.keeps_labels(*labels) for labels in published.rows())
    if logged and not wanted and not listed:
        raise NothingMatches(filters.nothing(logged))
    runs, left_out = collect.select(wanted)
    among, _ = collect.select(logged)
    rows = collect.pool(runs, among)
    if with_intervals:
        rows = intervals.add(client, rows)
    if compare:
        rows = published.compare(rows, filters.keeps_labels)
    return doubts.find(rows), Counter(left_out)
