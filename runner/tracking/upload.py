"""Send the outbox of a run's folder to MLflow."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from results.safe_text import without_secrets
from runner.system import files
from runner.system.errors import UserError
from runner.tracking import operations
from runner.tracking.operations import Logged, create_run, reopen
from runner.tracking.outbox import Outbox
from runner.tracking.store import Tracking, Unreachable, connect, is_unreachable, with_retries

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_UPLOAD = "pending"
"""Tag of a run that an upload has created: the outbox's id, to find it when the upload is repeated."""


class BegunElsewhere(UserError):
    """The run of an outbox was begun in another store than the one that it is sent to."""


def uploaded(tracking: Tracking, folder: Path) -> bool:
    """Check that a run ended well while the store was unreachable, and upload it if the store answers now."""
    outbox = Outbox.read(folder)
    if outbox is None or outbox.status() != "FINISHED":
        return False
    try:
        with_retries(tracking, lambda: send(tracking, folder))
    except (Unreachable, BegunElsewhere) as unreachable:
        log.warning("%s; this uploads the result later: python -m runner.upload %s", unreachable, folder)
    return True


def send(tracking: Tracking, folder: Path) -> str | None:
    """Send the outbox of a run's folder and remove it. Each operation is applied once, even after a killed upload.

    Returns:
        The id of the MLflow run; None if there is no outbox.
    """
    outbox = Outbox.read(folder)
    if outbox is None:
        return None
    header = outbox.header()
    client, experiment = connect(Tracking(tracking.uri, header.experiment))
    if header.run_id is not None and not _has(client, header.run_id):
        raise BegunElsewhere(
            f"tracking.uri={tracking.shown} has no run {header.run_id}, or a deleted one, which {outbox.file} "
            f"continues: it was begun in {without_secrets(header.uri)}; name that store by --tracking-uri or "
            "MLFLOW_TRACKING_URI"
        )
    tags = {**header.tags, _UPLOAD: header.id}
    run_id = header.run_id
    if run_id is None:
        begun = client.search_runs([experiment], f"tags.`{_UPLOAD}` = '{header.id}'")
        run_id = begun[0].info.run_id if begun else create_run(client, experiment, replace(header, tags=tags))
    reopen(client, run_id, tags)
    logged = Logged()
    logged.read_run(client, run_id)
    waiting = outbox.operations()
    for operation in waiting:
        new = logged.new(operation)
        # The run resumed after an interruption: leave out its end and, if it then finished, its error.
        obsolete = operation is not waiting[-1] and operation.kind == "end"
        if operation.kind == "tags" and operations.ERROR in new.values:
            obsolete = outbox.status() == "FINISHED"
        if new.values and not obsolete:
            operations.apply(client, run_id, new, folder)
    result = files.read_json(folder / "result.json")
    if result is not None and result["mlflow_run"] is None:
        files.write_json(folder / "result.json", {**result, "mlflow_run": run_id})
    outbox.remove()
    return run_id


def _has(client: MlflowClient, run_id: str) -> bool:
    """Whether the store has a run that is not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if is_unreachable(error):
            raise
        return False
