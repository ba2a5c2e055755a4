"""The scores of a sweep's parent run: means, extremes and standard deviations of its children."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from results import columns
from runner.tracking.outbox import now
from runner.tracking.store import is_unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"
"""MLflow's tag of a run below another one."""
_METRICS_AT_ONCE = 900  # MLflow takes at most 1000


def update(client: MlflowClient, parent: str) -> None:
    """Compute the scores of a parent run anew, from the finished children in the store.

    Safe if children end at once, on several machines: the number of children is the metrics' step, and MLflow shows
    the value of the highest step. So a child that saw fewer finished children hides nothing, whoever writes last.
    """
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    try:
        children = list(_finished(client, parent))
        values = summary([run.data.metrics for run in _newest(children)])
        metrics = [Metric(key, value, now(), len(children)) for key, value in values.items()]
        for i in range(0, len(metrics), _METRICS_AT_ONCE):
            client.log_batch(parent, metrics=metrics[i : i + _METRICS_AT_ONCE])
    except MlflowException as error:  # no reason to lose a complete run
        if is_unreachable(error):
            raise
        log.warning("the sweep's run %s in MLflow does not get the means of its runs: %s", parent, error)


def summary(children: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each score over the children that have it, under the score's own name, as MLflow's list of runs shows
    one column for both; and `NAME/min`, `NAME/max` and, of two or more, the sample's standard deviation `NAME/std`.
    """
    values: dict[str, float] = {"children": float(len(children))} if children else {}
    for key in dict.fromkeys(
        key for child in children for key in child if key.startswith(columns.SIDES) or key in columns.OUTCOMES
    ):
        numbers = [child[key] for child in children if key in child]
        values |= {key: statistics.fmean(numbers), f"{key}/min": min(numbers), f"{key}/max": max(numbers)}
        if len(numbers) > 1:
            values[f"{key}/std"] = statistics.stdev(numbers)
    return values


def _finished(client: MlflowClient, parent: str) -> Iterator:
    """The finished runs of a sweep, the newest first."""
    experiment = client.get_run(parent).info.experiment_id
    query = f"attributes.status = 'FINISHED' and tags.`{PARENT}` = '{parent}'"
    token = None
    while token != "":
        page = client.search_runs([experiment], query, order_by=["attributes.start_time DESC"], page_token=token)
        yield from page
        token = page.token or ""


def _newest(children: Sequence) -> Iterator:
    """The newest run of each identity: with force=true a job runs again."""
    seen: set[str] = set()
    for run in children:
        identity = run.data.tags.get(columns.IDENTITY, run.info.run_id)
        if identity not in seen:
            seen.add(identity)
            yield run
