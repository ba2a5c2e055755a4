"""The list of runs that MLflow's UI shows for an experiment, stored as one of its tags: which runs, which columns.

MLflow has no view that it opens by itself: the address of this one ends in `viewStateShareKey=results`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from results import columns

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ENDED_WELL = "attributes.status != 'FAILED' and attributes.status != 'KILLED'"
"""Runs with scores, and those in progress. MLflow adds the parents of the runs that it shows."""
_LABELS = [f"params.`{key}`" for key in (*columns.LABELS, columns.SEED)]
_ENDS = [f"metrics.`{key}`" for key in columns.OUTCOMES]
_MODELS = "attributes.`Models`"
_WIDTH, _NARROW = 95, 55
"""Pixels of a column, and of that of the seed."""


def show_scores(client: MlflowClient, experiment: str, metric: str) -> None:
    """Show runs with scores, and the columns of a results table, instead of all runs with names and times alone.

    Each main metric used in the experiment adds its pair of dense and sparse scores.
    """
    before = client.get_experiment(experiment).tags.get(columns.VIEW)
    scores = _scores(before) if before else []
    scores += [f"metrics.`{key}`" for key in (columns.dense(metric), columns.sparse(metric))]
    view = json.dumps(_view(list(dict.fromkeys(scores))))
    if view != before:
        client.set_experiment_tag(experiment, columns.VIEW, view)


def _scores(view: str) -> list[str]:
    """The pairs of scores among the columns of a stored view; none if it is not one of ours."""
    try:
        shown = [str(column) for column in json.loads(view)["selectedColumns"]]
    except (ValueError, KeyError, TypeError):
        return []
    return [column for column in shown if column not in (*_LABELS, *_ENDS, _MODELS)]


def _view(scores: list[str]) -> dict[str, Any]:
    """The state of MLflow's page. Columns that its order leaves out, such as the time, come last."""
    order = [*_LABELS, *scores, *_ENDS, _MODELS]
    return {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "searchFilter": _ENDED_WELL,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "selectedColumns": order,
        "columnOrder": order,
        "columnWidths": {column: _NARROW if column.endswith(f"`{columns.SEED}`") else _WIDTH for column in order},
    }
