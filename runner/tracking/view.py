"""The columns that MLflow's UI shows for an experiment, stored as one of its tags."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from results import columns

if TYPE_CHECKING:
    from mlflow import MlflowClient

_VIEW = {
    "orderByKey": "attributes.start_time",
    "orderByAsc": False,
    "searchFilter": "",
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "runsExpanded": {},
    "runsPinned": [],
    "runsHidden": [],
}


def show_scores(client: MlflowClient, experiment: str, metric: str) -> None:
    """Show the columns of a results table in the list of runs, instead of names and times alone.

    Each main metric used in the experiment adds its pair of dense and sparse scores.
    """
    ends = [f"metrics.`{key}`" for key in (columns.RELATIVE_DROP, columns.RATIO)]
    view = client.get_experiment(experiment).tags.get(columns.VIEW)
    labels = [f"params.`{key}`" for key in (*columns.LABELS, columns.SEED)]
    shown = json.loads(view)["selectedColumns"] if view else [*labels, *ends]
    scores = [f"metrics.`{key}`" for key in (columns.dense(metric), columns.sparse(metric))]
    new = [column for column in scores if column not in shown]
    if new:
        at = shown.index(ends[0]) if ends[0] in shown else len(shown)
        shown[at:at] = new
        client.set_experiment_tag(experiment, columns.VIEW, json.dumps({**_VIEW, "selectedColumns": shown}))
