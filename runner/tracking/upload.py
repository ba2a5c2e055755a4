"""Send the outbox of a run's folder to MLflow."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from runner.system import files
from runner.tracking import operations
from runner.tracking.operations import Logged, create_run, reopen
from runner.tracking.outbox import Outbox
from runner.tracking.store import Tracking, Unreachable, connect, with_retries

log = logging.getLogger(__name__)

_UPLOAD = "pending"
"""Tag of a run that an upload has created: the outbox's id, to find it when the upload is repeated."""


def uploaded(tracking: Tracking, folder: Path) -> bool:
    """Check that a run ended well while the store was unreachable, and upload it if the store answers now."""
    outbox = Outbox.read(folder)
    if outbox is None or outbox.status() != "FINISHED":
        return False
    try:
        with_retries(tracking, lambda: send(tracking, folder))
    except Unreachable as unreachable:
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
            operations.apply(client, run_id, new)
    result = files.read_json(folder / "result.json")
    if result is not None and result["mlflow_run"] is None:
        files.write_json(folder / "result.json", {**result, "mlflow_run": run_id})
    outbox.remove()
    return run_id
