"""The MLflow store: its settings, the connection, and retries while it does not answer."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit, urlunsplit

# MLflow reads these when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # the migration of a fresh database logs many lines
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # retries are ours, see tracking.patience
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # at the end of each run

from filelock import FileLock

from runner.system.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

log = logging.getLogger(__name__)

_SQLITE = "sqlite:///"


@dataclass
class Tracking:
    """The MLflow store that runs are logged to."""

    uri: str | None = None
    """MLflow tracking URI. If not given: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working folder."""
    experiment: str = "prune-distill"
    """MLflow experiment."""
    patience: float = 60.0
    """Seconds for which calls to a server that does not answer are retried, before a run continues without it."""

    def __post_init__(self) -> None:
        environment = os.environ.get("MLFLOW_TRACKING_URI")
        if self.uri and self.uri != environment and urlsplit(self.uri).password:
            raise UserError(
                f"tracking.uri={_without_password(self.uri)} was given with a password, which would be logged: give it "
                "as MLFLOW_TRACKING_URI in the environment, or the password alone as MLFLOW_TRACKING_PASSWORD"
            )
        self.uri = self.uri or environment or f"{_SQLITE}mlflow.db"
        if not self.experiment:
            raise UserError("tracking.experiment is empty: give it a name")
        if self.patience < 0:
            raise UserError(f"tracking.patience={self.patience} is out of range: seconds, not negative")

    @property
    def shown(self) -> str:
        """The URI without a password, for messages."""
        return _without_password(str(self.uri))


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class Unreachable(Exception):
    """The store does not answer."""


def with_retries(tracking: Tracking, call: Callable[[], T], seconds: float | None = None) -> T:
    """Make an idempotent call, and retry it while the store does not answer.

    Args:
        seconds: how long to retry; tracking.patience if not given.

    Raises:
        Unreachable: it still does not answer.
    """
    end, pause = None, 0.5
    seconds = tracking.patience if seconds is None else seconds
    while True:
        try:
            return call()
        except Exception as error:
            if not is_unreachable(error):
                raise
            reason = str(error).splitlines()[0][:200]
            if end is None:
                end = time.monotonic() + seconds
                if seconds:
                    log.warning("MLflow at %s does not answer; retrying for %g s", tracking.shown, seconds)
            left = end - time.monotonic()
            if left <= 0:
                raise Unreachable(f"MLflow at {tracking.shown} does not answer: {reason}") from error
        time.sleep(min(pause, left))
        pause = min(2 * pause, 15.0)


def is_unreachable(error: Exception) -> bool:
    """True if the store could not be reached or is overloaded, not if it refuses a request."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if isinstance(error, RequestException):
        return True
    if not isinstance(error, MlflowException):
        return False
    text = str(error)
    if "OperationalError" in text or error.__cause__.__class__.__name__ == "OperationalError":
        return "database is locked" in text
    return error.error_code in ("TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED") or (
        error.error_code == "INTERNAL_ERROR" and text.startswith(("API request to", "INTERNAL_ERROR"))
    )


def sqlite_file(tracking: Tracking) -> Path | None:
    """The database file; None if the store is a server."""
    uri = str(tracking.uri)
    return Path(uri.removeprefix(_SQLITE)).expanduser() if uri.startswith(_SQLITE) else None


def connect(tracking: Tracking) -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment, which is created if needed.

    One process at a time sets up a fresh sqlite database: MLflow's own migration fails when several try.

    Raises:
        UserError: MLflow cannot use the store, or the experiment was deleted.
    """
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it logs each attempt
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what it raises as well
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri, location, lock, file = str(tracking.uri), None, None, sqlite_file(tracking)
    if file is not None:
        file = file.resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        uri, location = f"{_SQLITE}{file}", (file.parent / "mlartifacts").as_uri()
        lock = FileLock(f"{file}.lock")
    try:
        if lock is not None and file is not None:
            lock.acquire()
            _create_database(file)
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is not None and experiment.lifecycle_stage != "active":
            raise UserError(
                f"tracking.experiment={tracking.experiment} was deleted from {tracking.shown}; restore it, or choose "
                "another"
            )
        if experiment is not None:
            return client, experiment.experiment_id
        return client, _create_experiment(client, tracking.experiment, location)
    except MlflowException as error:
        if is_unreachable(error):
            raise
        raise UserError(f"tracking.uri={tracking.shown}: MLflow cannot use it: {str(error).splitlines()[0]}") from error
    except OSError as error:
        if is_unreachable(error):
            raise
        raise UserError(f"tracking.uri={tracking.shown}: {error}") from error
    finally:
        if lock is not None:
            lock.release()


def _create_experiment(client: MlflowClient, name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:  # MLflow's UI has training pages for this kind; its default kind is for language models
        return client.create_experiment(name, location, tags={"mlflow.experimentKind": "custom_model_development"})
    except MlflowException:
        experiment = client.get_experiment_by_name(name)  # created by another process meanwhile
        if experiment is None:
            raise
        return experiment.experiment_id


def _create_database(file: Path) -> None:
    """Create the database atomically: MLflow cannot use one whose migrations were interrupted."""
    if file.exists():
        return
    from mlflow import MlflowClient

    fresh = file.with_name(f"{file.name}.new")
    for left in file.parent.glob(f"{fresh.name}*"):  # from a killed process
        left.unlink()
    MlflowClient(tracking_uri=f"{_SQLITE}{fresh}").search_experiments()
    fresh.rename(file)
