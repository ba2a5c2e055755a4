"""MLflow: the only module that knows it. One run per experiment; names of tags and metrics are in `results.columns`."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # its migration of a fresh database says a lot

from filelock import FileLock

from results import columns
from runner.device import describe
from runner.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT_VARIABLE = "PRUNE_DISTILL_PARENT_RUN"  # MLFLOW_RUN_ID would make every child write into the parent
_SQLITE = "sqlite:///"
_ERROR = "error"  # the tag of a run that failed
_FLUSH_SECONDS = 5.0  # one write to sqlite takes up to 0.1 s: write seldom, in batches
_BATCH = 900  # MLflow takes at most 1000 metrics and 100 params at once
_PARAMS = 90


@dataclass
class Tracking:
    """Where runs are logged."""

    uri: str | None = None
    """MLflow tracking URI. If not given: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working folder."""
    experiment: str = "prune-distill"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        self.uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db"
        if not self.experiment:
            raise UserError("tracking.experiment is empty: give it a name")


def connect(tracking: Tracking) -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment, made if needed.

    A fresh sqlite database is set up by one process at a time: MLflow's own migration fails when several try.
    """
    import logging

    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback of what it raises as well
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri, location, lock, file = str(tracking.uri), None, None, Path()
    if uri.startswith(_SQLITE):
        file = Path(uri.removeprefix(_SQLITE)).expanduser().resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        uri, location = f"{_SQLITE}{file}", (file.parent / "mlartifacts").as_uri()
        lock = FileLock(f"{file}.lock")
    try:
        if lock is not None:
            lock.acquire()
            _make_store(file)
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(tracking.experiment)
        if found is not None and found.lifecycle_stage != "active":
            raise UserError(
                f"tracking.experiment={tracking.experiment} was deleted from {uri}; restore it, or choose another"
            )
        id = found.experiment_id if found else client.create_experiment(tracking.experiment, artifact_location=location)
        return client, id
    except MlflowException as error:
        raise UserError(f"tracking.uri={tracking.uri}: MLflow cannot use it: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise UserError(f"tracking.uri={tracking.uri}: {error}") from error
    finally:
        if lock is not None:
            lock.release()


def is_finished(tracking: Tracking, run_id: str) -> bool:
    """Whether the MLflow run is there, not deleted, and ended well."""
    uri = str(tracking.uri)
    if uri.startswith(_SQLITE):
        # MLflow itself takes seconds to import: too long to say that there is nothing to do.
        file = Path(uri.removeprefix(_SQLITE)).expanduser()
        if not file.is_file():
            return False
        query = "SELECT status, lifecycle_stage FROM runs WHERE run_uuid = ?"
        try:
            with closing(sqlite3.connect(f"file:{quote(str(file.resolve()))}?mode=ro", uri=True)) as database:
                return database.execute(query, (run_id,)).fetchone() == ("FINISHED", "active")
        except sqlite3.Error:
            pass  # another layout than the one known here: MLflow will tell
    from mlflow.exceptions import MlflowException

    client, _ = connect(tracking)
    try:
        run = client.get_run(run_id)
    except MlflowException:
        return False
    return (run.info.status, run.info.lifecycle_stage) == ("FINISHED", "active")


def _make_store(file: Path) -> None:
    """Make a fresh database, whole or not at all: MLflow cannot use one whose migrations were interrupted."""
    if file.exists():
        return
    from mlflow import MlflowClient

    fresh = file.with_name(f"{file.name}.new")
    for left in file.parent.glob(f"{fresh.name}*"):  # by a process that was killed
        left.unlink()
    MlflowClient(tracking_uri=f"{_SQLITE}{fresh}").search_experiments()
    fresh.rename(file)


class Tracker:
    """One MLflow run. Metrics by step are buffered and written in batches."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self._known: set[str] = set()  # params that an interrupted run logged before
        self._logged: dict[str, int] = {}  # prefix of metrics by step -> the last step that it logged
        self._final: set[str] = set()  # metrics of the whole run that it logged
        self._buffer: list[Any] = []
        self._flushed = time.monotonic()

    def params(self, values: Mapping[str, Any]) -> None:
        """Log params once; MLflow does not let them change."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:6000]) for key, value in values.items() if key not in self._known]
        for i in range(0, len(entries), _PARAMS):
            self.client.log_batch(self.run_id, params=entries[i : i + _PARAMS])

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(key, str(value)) for key, value in values.items()])

    def step(self, prefix: str, step: int, values: Mapping[str, float]) -> None:
        """Metrics of an optimizer step, as `prefix/name`; not those that an interrupted run logged before."""
        from mlflow.entities import Metric

        if step <= self._logged.get(prefix, -1):
            return

        now = int(time.time() * 1000)
        self._buffer += [Metric(f"{prefix}/{name}", float(value), now, step) for name, value in values.items()]
        if time.monotonic() - self._flushed > _FLUSH_SECONDS or len(self._buffer) > _BATCH - 100:
            self.flush()

    def metrics(self, values: Mapping[str, float]) -> None:
        """Metrics of the whole run; not those that it logged before it was interrupted in its last moment."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._buffer += [
            Metric(name, float(value), now, 0) for name, value in values.items() if name not in self._final
        ]
        self.flush()

    def flush(self) -> None:
        """Write what is buffered."""
        for i in range(0, len(self._buffer), _BATCH):
            self.client.log_batch(self.run_id, metrics=self._buffer[i : i + _BATCH])
        self._buffer, self._flushed = [], time.monotonic()

    def resume(self, tags: Mapping[str, Any]) -> None:
        """Go on with a run that was interrupted: it runs again, and what it logged stays as it is."""
        run = self.client.get_run(self.run_id)
        self.client.update_run(self.run_id, status="RUNNING")
        if _ERROR in run.data.tags:
            self.client.delete_tag(self.run_id, _ERROR)
        self.tags(tags)
        self._known = set(run.data.params)
        for key in run.data.metrics:
            prefix, _, name = key.rpartition("/")
            last = max(metric.step for metric in self.client.get_metric_history(self.run_id, key))
            if last == 0:
                self._final.add(key)
            elif name == "loss":
                self._logged[prefix] = last

    def text(self, text: str, name: str) -> None:
        """Log a text as an artifact."""
        self.client.log_text(self.run_id, text, name)


@contextmanager
def start(tracking: Tracking, name: str, tags: Mapping[str, Any], resumes: bool = False) -> Iterator[Tracker]:
    """An MLflow run that ends FINISHED, KILLED on an interrupt, or FAILED with the error as a tag.

    Args:
        resumes: go on with a run of the same identity and folder that did not end well (a sweep: however it ended), if
            there is one. The caller answers for that no process works on it.
    """
    client, experiment_id = connect(tracking)
    parent = os.environ.get(PARENT_VARIABLE)
    all_tags = {**provenance(), **tags, **({"mlflow.parentRunId": parent} if parent else {})}
    unfinished = _unfinished(client, experiment_id, tags) if resumes else None
    if unfinished is not None:
        tracker = Tracker(client, unfinished)
        tracker.resume(all_tags)
    else:
        run = client.create_run(experiment_id, run_name=name, tags={key: str(value) for key, value in all_tags.items()})
        tracker = Tracker(client, run.info.run_id)
    try:
        yield tracker
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        tracker.flush()
        tracker.tags({_ERROR: f"{type(error).__name__}: {error}"[:5000]})
        client.set_terminated(tracker.run_id, status)
        raise
    tracker.flush()
    client.set_terminated(tracker.run_id, "FINISHED")


def _unfinished(client: MlflowClient, experiment_id: str, tags: Mapping[str, Any]) -> str | None:
    """The newest run of the same identity and folder that did not end well; of a sweep, however it ended."""
    ended_well = "" if tags.get(columns.KIND) == columns.SWEEP else "FINISHED"
    same_identity = f"tags.`{columns.IDENTITY}` = '{tags[columns.IDENTITY]}'"
    for run in client.search_runs([experiment_id], same_identity, order_by=["attributes.start_time DESC"]):
        if run.info.status != ended_well and run.data.tags.get(columns.FOLDER) == str(tags[columns.FOLDER]):
            return run.info.run_id
    return None


@contextmanager
def sweep(tracking: Tracking, command: str, identity: str, folder: Path) -> Iterator[Tracker]:
    """A parent run for the runs of a sweep that this process, or one that it starts, makes meanwhile.

    Args:
        identity: hash of the jobs. The same sweep given again goes on in the same run.
        folder: where its jobs' outcomes are kept.
    """
    tags = {columns.KIND: columns.SWEEP, columns.IDENTITY: identity, columns.FOLDER: str(folder),
            "mlflow.note.content": f"`{command}`"}  # fmt: skip
    with start(tracking, "sweep", tags, resumes=True) as tracker:
        os.environ[PARENT_VARIABLE] = tracker.run_id
        try:
            yield tracker
        finally:
            del os.environ[PARENT_VARIABLE]


def provenance() -> dict[str, str]:
    """Tags that say by what and where a run was made."""
    packages = ("torch", "transformers", "datasets", "prune-distill")
    tags = {f"version.{name}": _version(name) for name in packages}
    tags |= {"version.python": platform.python_version(), "hardware": describe()}
    tags |= {"mlflow.source.name": "python -m runner", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags |= {"mlflow.source.git.commit": commit, "git.dirty": str(bool(_git("status", "--porcelain"))).lower()}
    return tags


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        return "unknown"


def _git(*arguments: str) -> str:
    """Output of git in the folder of this code; empty without git, or where it is installed without one."""
    here = Path(__file__).parent
    if "site-packages" in here.parts:
        return ""  # the repository around it, if any, is another project's
    command = ["git", "-C", str(here), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def command_line() -> str:
    """How this process was started, for a reader to repeat."""
    import shlex

    return "python -m runner " + shlex.join(sys.argv[1:])
