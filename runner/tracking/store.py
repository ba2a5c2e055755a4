"""The MLflow store: its settings, the connection, and retries while it does not answer."""

from __future__ import annotations

import glob
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

# MLflow reads these when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # the migration of a fresh database logs many lines
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # retries are ours, see tracking.patience
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # at the end of each run

from filelock import FileLock

from results import sqlite
from results.safe_text import HIDDEN, credentials_of, remember, without_secrets
from runner.system.errors import UserError
from runner.tracking.check import refuse_silent, refuse_unusable

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

log = logging.getLogger(__name__)

START_SECONDS = 5.0
"""How long a run that begins waits for a server, at most: nothing is lost if it is refused."""
LONGEST_NAME = 500
"""Characters of an experiment's name, at most."""


class Logging(Enum):
    """How MLflow gets a run's model."""

    none = "none"
    link = "link"
    copy = "copy"


@dataclass
class Tracking:
    """The MLflow store that runs are logged to."""

    uri: str | None = None
    """MLflow tracking URI. If not given: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working folder."""
    experiment: str = "prune-distill"
    """MLflow experiment."""
    patience: float = 60.0
    """Seconds for which calls to a server that does not answer are retried, before a run continues without it."""
    log_model: Logging = Logging.link
    """How MLflow gets the model, which mlflow.pyfunc.load_model then loads: `link`, a few kilobytes that name the run's
    folder on this machine; `copy`, the weights too, which take their size once more; `none`."""

    def __post_init__(self) -> None:
        if any(not _is_in_environment(secret) for secret in credentials_of(self.uri or "")):
            raise UserError(
                f"tracking.uri={without_secrets(str(self.uri))} was given with a password or a token, which would be "
                "logged: give it as MLFLOW_TRACKING_URI in the environment, or the password alone as "
                "MLFLOW_TRACKING_PASSWORD"
            )
        remember(self.uri or "")
        if not self.experiment:
            raise UserError("tracking.experiment is empty: give it a name")
        if len(self.experiment) > LONGEST_NAME or not self.experiment.isprintable():
            raise UserError(
                f"tracking.experiment={self.experiment[:60]}: MLflow takes names of at most {LONGEST_NAME} printable "
                f"characters, this one has {len(self.experiment)}; choose another"
            )
        if self.patience < 0:
            raise UserError(f"tracking.patience={self.patience} is out of range: seconds, not negative")

    @property
    def store(self) -> str:
        """The URI of the store, with its credentials: as given, else that of today's environment."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"

    @property
    def shown(self) -> str:
        """The URI without credentials, for messages and records."""
        return without_secrets(self.store).replace(f"{HIDDEN}@", "")

    @property
    def artifacts(self) -> Path | None:
        """The folder of artifacts next to a database file; None: a server has them."""
        file = sqlite.file_of(self.store)
        return None if file is None else file.resolve().parent / "mlartifacts"


def _is_in_environment(secret: str) -> bool:
    """Whether a credential comes from a variable of the environment, and is in no file or command line."""
    return any(secret in value for value in os.environ.values())


def credentials_given() -> str | None:
    """The place where MLflow would find credentials, which it sends to any server; None if nowhere."""
    names = ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4", "CLIENT_CERT_PATH")
    given = next((name for name in names if os.environ.get(f"MLFLOW_TRACKING_{name}")), None)
    file = Path("~/.mlflow/credentials").expanduser()
    return f"MLFLOW_TRACKING_{given}" if given else str(file) if file.is_file() else None


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
            reason = without_secrets(str(error).splitlines()[0])[:200]
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
    if isinstance(error, ConnectionError):
        return True
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
    return sqlite.file_of(tracking.store)


def connect(tracking: Tracking) -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment, which is created if needed.

    One process at a time sets up a fresh sqlite database: MLflow's own migration fails when several try.

    Raises:
        UserError: MLflow cannot use the store, or the experiment was deleted.
    """
    refuse_unusable(tracking)
    location, lock, file, artifacts = None, None, sqlite_file(tracking), tracking.artifacts
    if file is not None and artifacts is not None:
        file = file.resolve()
        location, lock = artifacts.as_uri(), FileLock(f"{file}.lock")
    with explained(tracking):
        try:
            if lock is not None and file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire()
                _create_database(file)
            client = client_of(tracking)
            experiment = client.get_experiment_by_name(tracking.experiment)
            if experiment is None:
                return client, _create_experiment(client, tracking.experiment, location)
        finally:
            if lock is not None:
                lock.release()
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment={tracking.experiment} was deleted from {tracking.shown}; restore it, or choose "
            "another"
        )
    if file is not None and experiment.artifact_location.startswith(("http:", "https:")):
        raise UserError(
            f"tracking.uri={tracking.shown}: its experiment {tracking.experiment} has its artifacts at "
            f"{without_secrets(experiment.artifact_location)}, a server that only the file names, which would get this "
            "user's password; choose another tracking.experiment"
        )
    return client, experiment.experiment_id


def check(tracking: Tracking, waits: bool) -> None:
    """Refuse, before anything is loaded, a store that a run could not log to. Nothing is written.

    Args:
        waits: a server that does not answer is no error: the run was begun before, or is a job of a sweep.

    Raises:
        UserError: the store cannot be used, or does not answer.
    """
    refuse_unusable(tracking)
    if sqlite_file(tracking) is not None:
        return
    seconds = min(tracking.patience, START_SECONDS)
    try:
        with_retries(tracking, lambda: _look(tracking), seconds)
    except Unreachable as unreachable:
        if not waits:
            raise not_begun(tracking, unreachable) from unreachable


def not_begun(tracking: Tracking, unreachable: Unreachable) -> UserError:
    """The error about a server that does not answer when a run would begin."""
    return UserError(
        f"tracking.uri={tracking.shown}: {unreachable}; start the server, or log into a file: "
        "tracking.uri=sqlite:///mlflow.db"
    )


def _look(tracking: Tracking) -> None:
    refuse_silent(tracking)
    with explained(tracking):
        client_of(tracking).search_experiments(max_results=1)


def client_of(tracking: Tracking) -> MlflowClient:
    """A client of a store that exists, or is a server."""
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it logs each attempt
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what it raises as well
    import mlflow.store.db.utils
    from mlflow import MlflowClient

    mlflow.store.db.utils.MAX_RETRY_COUNT = 2  # ten take a minute and a half; retries are ours
    return MlflowClient(tracking_uri=sqlite.absolute(tracking.store))


@contextmanager
def explained(tracking: Tracking) -> Iterator[None]:
    """Turn the errors of a store that refuses, or that MLflow cannot use, into UserErrors."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        if is_unreachable(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise UserError(
            f"tracking.uri={tracking.shown}: MLflow cannot use it: {without_secrets(reason)}; see to it, or log into a "
            "file: tracking.uri=sqlite:///mlflow.db"
        ) from error


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
    for left in file.parent.glob(f"{glob.escape(fresh.name)}*"):  # from a killed process
        left.unlink()
    MlflowClient(tracking_uri=sqlite.absolute(f"sqlite:///{fresh}")).search_experiments()
    fresh.rename(file)
