"""Everything that is written to a run of MLflow, once each."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from results import columns
from runner.tracking import means
from runner.tracking.logged_model import log_model
from runner.tracking.outbox import Header, Operation
from runner.tracking.store import is_unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

ERROR = "error"
"""Tag of a failed run: the exception."""
METRICS_PER_BATCH = 900  # MLflow takes at most 1000 metrics and 100 params at once
_PARAMS_PER_BATCH = 90


class Logged:
    """What a run has logged already, in the store or in its outbox, so that nothing is logged twice."""

    def __init__(self) -> None:
        self.params: set[str] = set()
        self.steps: dict[str, set[int]] = {}
        """Metric -> the steps logged; 0 for metrics of the whole run."""

    def read_run(self, client: MlflowClient, run_id: str) -> None:
        """Read the params and metrics from the store."""
        data = client.get_run(run_id).data
        self.params = set(data.params)
        for key in data.metrics:
            self.steps[key] = {metric.step for metric in client.get_metric_history(run_id, key)}

    def read_operations(self, operations: list[Operation]) -> None:
        """Read the params and metrics from the operations of an outbox."""
        for operation in operations:
            if operation.kind == "params":
                self.params |= set(operation.values)
            if operation.kind == "metrics":
                for key, _, _, step in operation.values:
                    self.steps.setdefault(key, set()).add(step)

    def new(self, operation: Operation) -> Operation:
        """The operation without the values logged before."""
        if operation.kind == "params":  # MLflow does not let them change
            return Operation("params", {k: v for k, v in operation.values.items() if k not in self.params})
        if operation.kind == "metrics":
            values = [entry for entry in operation.values if entry[3] not in self.steps.get(entry[0], ())]
            return Operation("metrics", values)
        return operation


def create_run(client: MlflowClient, experiment: str, header: Header) -> str:
    """Create a run and return its id."""
    run = client.create_run(experiment, run_name=header.name, tags=header.tags, start_time=header.start_ms)
    return run.info.run_id


def reopen(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set an interrupted run to running again, with new tags; its params and metrics stay."""
    run = client.get_run(run_id)
    client.update_run(run_id, status="RUNNING")
    for obsolete in {ERROR, columns.CONTINUED_BY} & run.data.tags.keys():
        client.delete_tag(run_id, obsolete)
    apply(client, run_id, Operation("tags", dict(tags)))


def take_over(client: MlflowClient, before: Mapping[str, str] | None, store: str, run_id: str) -> None:
    """Mark a run as the continuation of the one to which an interrupted process logged, and close that one if it is in
    this store and did not end.

    Args:
        before: store and id of the other run; None, or the run itself: there is nothing to take over.
    """
    from mlflow.exceptions import MlflowException

    if before is None or before["run"] == run_id:
        return
    other, place = before["run"], f" in {before['store']}" if before["store"] != store else ""
    log.info("this run logged to MLflow run %s%s before; all of it is logged to %s now", other, place, run_id)
    client.set_tag(run_id, columns.CONTINUES, f"{other}{place}")
    if place:
        return
    try:
        info = client.get_run(other).info
        if info.lifecycle_stage == "active" and info.status != "FINISHED":
            client.set_terminated(other, "KILLED")
            client.set_tag(other, columns.CONTINUED_BY, run_id)
    except MlflowException as error:
        if is_unreachable(error):
            raise
        log.info("MLflow run %s is not in this store any more", other)


def apply(client: MlflowClient, run_id: str, operation: Operation, folder: Path | None = None) -> None:
    """Write one operation to a run. Idempotent: metrics carry their own time stamps.

    Args:
        folder: the run's own, which has the model and gets its pictures at the end.
    """
    from mlflow.entities import Metric, Param, RunTag

    values = operation.values
    match operation.kind:
        case "params":
            entries = [Param(key, value) for key, value in values.items()]
            for i in range(0, len(entries), _PARAMS_PER_BATCH):
                client.log_batch(run_id, params=entries[i : i + _PARAMS_PER_BATCH])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])
        case "metrics":
            client.log_batch(run_id, metrics=[Metric(*entry) for entry in values])
        case "text":
            client.log_text(run_id, *values)
        case "input":
            client.log_inputs(run_id, [_dataset_input(**values)])
        case "model":
            log_model(client, run_id, values, folder)
        case "end":
            tags = client.get_run(run_id).data.tags
            kind, status, parent = tags.get(columns.KIND), values[0], tags.get(means.PARENT)
            _log_pictures(client, run_id, kind, status, folder)
            client.set_terminated(run_id, *values)
            if parent is not None and status == "FINISHED":
                means.update(client, parent)


def _log_pictures(client: MlflowClient, run_id: str, kind: str | None, status: str, folder: Path | None) -> None:
    """Draw a run that is about to end, from all its metrics: those before an interruption too. MLflow gets them as
    PNG, the folder as PNG, SVG and PDF."""
    if not ((kind == columns.PRUNED and status == "FINISHED") or (kind == columns.SWEEP and status != "KILLED")):
        return
    from results import pictures

    try:
        figures = pictures.of_run(client, run_id) if kind == columns.PRUNED else pictures.of_sweep(client, run_id)
        with TemporaryDirectory() as temporary:
            for file in pictures.write(figures, folder / "pictures" if folder is not None else Path(temporary)):
                if file.suffix == ".png":
                    client.log_artifact(run_id, str(file), "pictures")
    except Exception as error:  # no reason to lose a complete run
        if is_unreachable(error):
            raise
        log.warning("the pictures of this run could not be drawn: %s: %s", type(error).__name__, error)


def _dataset_input(name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(name, digest, "local", json.dumps({"uri": source}), profile=json.dumps(profile))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
