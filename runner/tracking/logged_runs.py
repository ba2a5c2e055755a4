"""Status, tags and late artifacts of runs that have been logged."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

from runner.system.errors import UserError
from runner.tracking import operations
from runner.tracking.outbox import Operation, metric_entries
from runner.tracking.store import Tracking, Unreachable, connect, sqlite_file, with_retries

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


def is_finished(tracking: Tracking, run_id: str | None) -> bool:
    """Check that the MLflow run exists, is not deleted, and ended well.

    True if the store does not answer: a finished run is costly to repeat.
    """
    if run_id is None:
        return False
    file = sqlite_file(tracking)
    if file is not None:
        # Ask sqlite directly: MLflow takes seconds to import, too long to report that there is nothing to do.
        if not file.is_file():
            return False
        query = "SELECT status, lifecycle_stage FROM runs WHERE run_uuid = ?"
        try:
            with closing(sqlite3.connect(f"file:{quote(str(file.resolve()))}?mode=ro", uri=True)) as database:
                return database.execute(query, (run_id,)).fetchone() == ("FINISHED", "active")
        except sqlite3.Error:
            pass  # an unknown layout: ask MLflow
    from mlflow.exceptions import MlflowException

    try:
        client, _ = with_retries(tracking, lambda: connect(tracking))
        run = with_retries(tracking, lambda: client.get_run(run_id))
    except Unreachable as unreachable:
        log.warning("%s; the result stored in the run's folder is used", unreachable)
        return True
    except MlflowException:
        return False
    return (run.info.status, run.info.lifecycle_stage) == ("FINISHED", "active")


def tags_of(tracking: Tracking, run_id: str) -> dict[str, str]:
    """Read the tags of a run.

    Raises:
        UserError: the run does not exist, or the store does not answer.
    """
    with _client_for(tracking, run_id) as client:
        return dict(with_retries(tracking, lambda: client.get_run(run_id)).data.tags)


def add(
    tracking: Tracking,
    run_id: str,
    texts: Mapping[str, str],
    tags: Mapping[str, str],
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Add text artifacts, by file name, tags, and metrics of the whole run, to a run that has ended.

    Raises:
        UserError: the run does not exist, or the store does not answer.
    """
    additions = [Operation("text", [text, name]) for name, text in texts.items()]
    additions += [Operation("tags", dict(tags))] if tags else []
    additions += [Operation("metrics", metric_entries(metrics))] if metrics else []
    with _client_for(tracking, run_id) as client:
        with_retries(tracking, lambda: client.get_run(run_id))
        for operation in additions:
            with_retries(tracking, lambda operation=operation: operations.apply(client, run_id, operation))


@contextmanager
def _client_for(tracking: Tracking, run_id: str) -> Iterator[MlflowClient]:
    """A client for one existing run. Errors become UserErrors; no sqlite database is created."""
    from mlflow.exceptions import MlflowException

    file = sqlite_file(tracking)
    if file is not None and not file.is_file():
        raise UserError(f"tracking.uri={tracking.shown}: there is no such database")
    try:
        client, _ = with_retries(tracking, lambda: connect(tracking))
        yield client
    except Unreachable as unreachable:
        raise UserError(f"tracking.uri={tracking.shown}: {unreachable}") from unreachable
    except MlflowException as error:
        raise UserError(f"tracking.uri={tracking.shown} has no run {run_id}") from error
