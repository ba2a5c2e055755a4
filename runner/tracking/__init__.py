"""MLflow: the only module that knows it. One run per experiment; names of tags and metrics are in `results.columns`.

Every call to the store is an `Operation`. While the store does not answer, a call is tried again; then the run goes on,
and its operations are kept in its folder until they can be uploaded.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

# MLflow reads these when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # its migration of a fresh database says a lot
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # ours are tracking.patience
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # at the end of each run

from filelock import FileLock

from results import columns
from runner.system import files
from runner.system.errors import UserError
from runner.system.provenance import provenance
from runner.tracking import outbox
from runner.tracking.outbox import Header, Operation, Outbox

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

log = logging.getLogger(__name__)

PARENT_VARIABLE = "PRUNE_DISTILL_PARENT_RUN"  # MLFLOW_RUN_ID would make every child write into the parent
_SQLITE = "sqlite:///"
_ERROR = "error"  # the tag of a run that failed
_PENDING = "pending"  # the tag of a run that an upload has begun
_FLUSH_SECONDS = 5.0  # one write to sqlite takes up to 0.1 s: write seldom, in batches
_BATCH = 900  # MLflow takes at most 1000 metrics and 100 params at once
_PARAMS = 90
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


@dataclass
class Tracking:
    """Where runs are logged."""

    uri: str | None = None
    """MLflow tracking URI. If not given: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working folder."""
    experiment: str = "prune-distill"
    """MLflow experiment."""
    patience: float = 60.0
    """Seconds for which a server that does not answer is tried again, before a run goes on without it."""

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
        """The URI, for messages."""
        return _without_password(str(self.uri))


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


# --- the store ----------------------------------------------------------------------------------------------


class Unreachable(Exception):
    """The store does not answer."""


def with_retries(tracking: Tracking, call: Callable[[], T], seconds: float | None = None) -> T:
    """Make a call that may be repeated; again while the store does not answer.

    Args:
        seconds: for how long; tracking.patience if not given.

    Raises:
        Away: it still does not.
    """
    end, pause = None, 0.5
    seconds = tracking.patience if seconds is None else seconds
    while True:
        try:
            return call()
        except Exception as error:
            if not _is_unreachable(error):
                raise
            reason = str(error).splitlines()[0][:200]
            if end is None:
                end = time.monotonic() + seconds
                if seconds:
                    log.warning("MLflow at %s does not answer; it is tried again for %g s", tracking.shown, seconds)
            left = end - time.monotonic()
            if left <= 0:
                raise Unreachable(f"MLflow at {tracking.shown} does not answer: {reason}") from error
        time.sleep(min(pause, left))
        pause = min(2 * pause, 15.0)


def _is_unreachable(error: Exception) -> bool:
    """Whether the store could not be reached, or is overloaded; not whether it refuses what it was asked."""
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


def connect(tracking: Tracking) -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment, made if needed.

    A fresh sqlite database is set up by one process at a time: MLflow's own migration fails when several try.
    """
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it tells of each attempt
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
                f"tracking.experiment={tracking.experiment} was deleted from {tracking.shown}; restore it, or choose "
                "another"
            )
        return client, found.experiment_id if found else _create_experiment(client, tracking.experiment, location)
    except MlflowException as error:
        if _is_unreachable(error):
            raise
        raise UserError(f"tracking.uri={tracking.shown}: MLflow cannot use it: {str(error).splitlines()[0]}") from error
    except OSError as error:
        if _is_unreachable(error):
            raise
        raise UserError(f"tracking.uri={tracking.shown}: {error}") from error
    finally:
        if lock is not None:
            lock.release()


def _create_experiment(client: MlflowClient, name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:  # of the kind whose pages in MLflow's UI are about training: not, as by default, about language models
        return client.create_experiment(name, location, tags={"mlflow.experimentKind": "custom_model_development"})
    except MlflowException:
        found = client.get_experiment_by_name(name)  # made by another process meanwhile
        if found is None:
            raise
        return found.experiment_id


def is_finished(tracking: Tracking, run_id: str | None) -> bool:
    """Whether the MLflow run is there, not deleted, and ended well. If nobody answers: yes, it was costly to make."""
    if run_id is None:
        return False
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

    try:
        client, _ = with_retries(tracking, lambda: connect(tracking))
        run = with_retries(tracking, lambda: client.get_run(run_id))
    except Unreachable as away:
        log.warning("%s; the result is taken as it lies in its folder", away)
        return True
    except MlflowException:
        return False
    return (run.info.status, run.info.lifecycle_stage) == ("FINISHED", "active")


def tags_of(tracking: Tracking, run_id: str) -> dict[str, str]:
    """The tags of a run.

    Raises:
        UserError: there is no such run, or the store does not answer.
    """
    with _asking(tracking, run_id) as client:
        return dict(with_retries(tracking, lambda: client.get_run(run_id)).data.tags)


def add(tracking: Tracking, run_id: str, texts: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Add artifacts, by name, and tags to a run that has ended.

    Raises:
        UserError: there is no such run, or the store does not answer.
    """
    operations = [Operation("text", [text, name]) for name, text in texts.items()]
    operations += [Operation("tags", dict(tags))] if tags else []
    with _asking(tracking, run_id) as client:
        with_retries(tracking, lambda: client.get_run(run_id))
        for operation in operations:
            with_retries(tracking, lambda operation=operation: _apply(client, run_id, operation))


@contextmanager
def _asking(tracking: Tracking, run_id: str) -> Iterator[MlflowClient]:
    """A client for what concerns one run; what goes wrong becomes a UserError. No store is made."""
    from mlflow.exceptions import MlflowException

    uri = str(tracking.uri)
    if uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).expanduser().is_file():
        raise UserError(f"tracking.uri={tracking.shown}: there is no such database")
    try:
        client, _ = with_retries(tracking, lambda: connect(tracking))
        yield client
    except Unreachable as away:
        raise UserError(f"tracking.uri={tracking.shown}: {away}") from away
    except MlflowException as error:
        raise UserError(f"tracking.uri={tracking.shown} has no run {run_id}") from error


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


def _apply(client: MlflowClient, run_id: str, operation: Operation) -> None:
    """The one place where a run is written to. Done twice it changes nothing: metrics have their time with them."""
    from mlflow.entities import Metric, Param, RunTag

    values = operation.values
    match operation.kind:
        case "params":
            entries = [Param(key, value) for key, value in values.items()]
            for i in range(0, len(entries), _PARAMS):
                client.log_batch(run_id, params=entries[i : i + _PARAMS])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])
        case "metrics":
            client.log_batch(run_id, metrics=[Metric(*entry) for entry in values])
        case "text":
            client.log_text(run_id, *values)
        case "input":
            client.log_inputs(run_id, [_dataset_input(**values)])
        case "end":
            _draw(client, run_id, values[0])
            client.set_terminated(run_id, *values)


def _draw(client: MlflowClient, run_id: str, status: str) -> None:
    """Log the pictures of a run that is about to end: of all that it logged, before an interruption too."""
    kind = client.get_run(run_id).data.tags.get(columns.KIND)
    if not ((kind == columns.PRUNED and status == "FINISHED") or (kind == columns.SWEEP and status != "KILLED")):
        return
    from results import pictures

    try:
        drawn = pictures.of_run(client, run_id) if kind == columns.PRUNED else pictures.of_sweep(client, run_id)
        for name, figure in drawn.items():
            client.log_figure(run_id, figure, f"pictures/{name}.png", save_kwargs={"dpi": 150})
    except Exception as error:  # no reason to lose a run that is complete
        if _is_unreachable(error):
            raise
        log.warning("the pictures of this run could not be drawn: %s: %s", type(error).__name__, error)


def _dataset_input(name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    made = Dataset(name, digest, "local", json.dumps({"uri": source}), profile=json.dumps(profile))
    return DatasetInput(made, [InputTag("mlflow.data.context", context)])


# --- a run --------------------------------------------------------------------------------------------------


class Logged:
    """What a run has in the store, or in its file, already: it is not logged again."""

    def __init__(self) -> None:
        self.params: set[str] = set()
        self.last: dict[str, int] = {}
        """Metric -> the last step logged; 0 for metrics of the whole run."""

    def of_run(self, client: MlflowClient, run_id: str) -> None:
        """Ask the store."""
        data = client.get_run(run_id).data
        self.params = set(data.params)
        for key in data.metrics:
            self.last[key] = max(metric.step for metric in client.get_metric_history(run_id, key))

    def of_file(self, operations: list[Operation]) -> None:
        """Look through a file."""
        for operation in operations:
            self.note(operation)

    def note(self, operation: Operation) -> None:
        """An operation is done."""
        if operation.kind == "params":
            self.params |= set(operation.values)
        if operation.kind == "metrics":
            for key, _, _, step in operation.values:
                self.last[key] = max(step, self.last.get(key, 0))

    def new(self, operation: Operation) -> Operation:
        """What of an operation was not logged before."""
        if operation.kind == "params":  # MLflow does not let them change
            return Operation("params", {k: v for k, v in operation.values.items() if k not in self.params})
        if operation.kind == "metrics":
            values = [entry for entry in operation.values if entry[3] > self.last.get(entry[0], -1)]
            return Operation("metrics", values)
        return operation


class Tracker:
    """One MLflow run. Metrics by step are buffered and written in batches."""

    def __init__(self, tracking: Tracking, header: Header, place: Path | None) -> None:
        """
        Args:
            place: where operations are kept if the store does not answer; None: then that is an error.
        """
        self.tracking, self.header, self.place = tracking, header, place
        self.client: MlflowClient | None = None
        self.pending: Outbox | None = None
        self.logged = Logged()
        self._buffer: list[Any] = []
        self._flushed = time.monotonic()
        self._patience = tracking.patience

    @property
    def run_id(self) -> str | None:
        """None until a run that was begun without the store is uploaded."""
        return self.header.run_id

    def params(self, values: Mapping[str, Any]) -> None:
        """Log params."""
        self._do("params", {key: str(value)[:6000] for key, value in values.items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags."""
        self._do("tags", {key: str(value)[:5000] for key, value in values.items()})

    def step(self, prefix: str, step: int, values: Mapping[str, float]) -> None:
        """Metrics of an optimizer step, as `prefix/name`."""
        now = _now()
        self._buffer += [[f"{prefix}/{name}", float(value), now, step] for name, value in values.items()]
        if time.monotonic() - self._flushed > _FLUSH_SECONDS or len(self._buffer) > _BATCH - 100:
            self.flush()

    def metrics(self, values: Mapping[str, float]) -> None:
        """Metrics of the whole run."""
        self._buffer += [[name, float(value), _now(), 0] for name, value in values.items()]
        self.flush()

    def input(self, name: str, digest: str, source: str, context: str, examples: int) -> None:
        """Log a dataset that the run uses.

        Args:
            digest: hash of its contents.
            context: what for: training, evaluation, ...
        """
        self._do("input", {"name": name, "digest": digest[:8], "source": source, "context": context,
                           "profile": {"num_rows": examples, "sha256": digest}})  # fmt: skip

    def text(self, text: str, name: str) -> None:
        """Log a text as an artifact."""
        self._do("text", [text, name])

    def flush(self) -> None:
        """Write what is buffered."""
        buffered, self._buffer, self._flushed = self._buffer, [], time.monotonic()
        for i in range(0, len(buffered), _BATCH):
            self._do("metrics", buffered[i : i + _BATCH])

    def end(self, status: str, error: BaseException | None = None) -> None:
        """Write what is left, and how the run ended."""
        if status == "KILLED":  # whoever asked does not wait long
            self._patience = 0.0
        self.flush()
        if error is not None:
            self.tags({_ERROR: f"{type(error).__name__}: {error}"})
        self._do("end", [status, _now()])
        if self.pending is not None:
            self._upload()

    def _do(self, kind: str, values: Any) -> None:
        operation = self.logged.new(Operation(kind, values))
        if not operation.values:
            return
        if self.pending is None:
            client, run_id = self.client, self.run_id
            assert client is not None
            assert run_id is not None
            try:
                with_retries(self.tracking, lambda: _apply(client, run_id, operation), self._patience)
                return
            except Unreachable as away:
                self.keep(away)
        assert self.pending is not None
        self.pending.add(operation)

    def keep(self, away: Unreachable) -> None:
        """From now on keep operations in the file."""
        if self.place is None:
            raise UserError(f"tracking.uri={self.tracking.shown}: {away}") from away
        self.pending = Outbox.of(self.place.parent) or Outbox.create(self.place, self.header)
        log.warning("%s; what is logged from now on is kept in %s", away, self.place)

    def _upload(self) -> None:
        """Try again at the end."""
        assert self.pending is not None
        folder = self.pending.file.parent
        try:
            with_retries(self.tracking, lambda: upload(self.tracking, folder), self._patience)
        except Unreachable:
            log.warning("MLflow at %s is still away. The run is complete and kept; this uploads it later:\n"
                        "  python -m runner.upload %s", self.tracking.shown, folder)  # fmt: skip
            return
        self.pending = None


@contextmanager
def start(tracking: Tracking, name: str, tags: Mapping[str, Any], resumes: bool = False) -> Iterator[Tracker]:
    """An MLflow run that ends FINISHED, KILLED on an interrupt, or FAILED with the error as a tag.

    Args:
        resumes: go on with a run of the same identity and folder that did not end well (a sweep: however it ended), if
            there is one. The caller answers for that no process works on it.

    Raises:
        UserError: the store cannot be used, or does not answer. In a sweep, whose parent run could be begun, and where
            the run was begun before, it goes on without.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    given = {**provenance(), **tags, **({"mlflow.parentRunId": parent} if parent else {})}
    header = Header(tracking.shown, tracking.experiment, name, {k: str(v) for k, v in given.items()}, None, _now())
    place = Path(tags[columns.FOLDER]) / outbox.NAME if columns.FOLDER in tags else None
    tracker = Tracker(tracking, header, place)
    try:
        with_retries(tracking, lambda: _begin(tracker, resumes))
    except Unreachable as away:
        kept = Outbox.of(place.parent) if place is not None else None
        if parent is None and kept is None:
            raise UserError(
                f"tracking.uri={tracking.shown}: {away}; start the server, or log into a file: "
                "tracking.uri=sqlite:///mlflow.db"
            ) from away
        if kept is not None:
            tracker.header = kept.header()
            tracker.logged.of_file(kept.operations())
        tracker.keep(away)
    try:
        yield tracker
    except BaseException as error:
        tracker.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", error)
        raise
    tracker.end("FINISHED")


def _begin(tracker: Tracker, resumes: bool) -> None:
    """Make the run, or find the one that was interrupted."""
    header = tracker.header
    client, experiment = connect(tracker.tracking)
    tracker.client = client
    if tracker.place is not None and Outbox.of(tracker.place.parent) is not None:
        upload(tracker.tracking, tracker.place.parent)
    if columns.METRIC in header.tags:
        _show(client, experiment, header.tags[columns.METRIC])
    unfinished = _unfinished(client, experiment, header.tags) if resumes else None
    if unfinished is not None:
        _reopen(client, unfinished, header.tags)
        tracker.logged.of_run(client, unfinished)
    header.run_id = unfinished or _create(client, experiment, header)


def _show(client: MlflowClient, experiment: str, metric: str) -> None:
    """Let MLflow's UI list the runs with what a table of results has, instead of names and times alone: with the scores
    by every main metric of the experiment's runs so far, one pair of columns after the other."""
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


def _create(client: MlflowClient, experiment: str, header: Header) -> str:
    run = client.create_run(experiment, run_name=header.name, tags=header.tags, start_time=header.start_ms)
    return run.info.run_id


def _reopen(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Let a run that was interrupted run again; what it logged stays as it is."""
    run = client.get_run(run_id)
    client.update_run(run_id, status="RUNNING")
    if _ERROR in run.data.tags:
        client.delete_tag(run_id, _ERROR)
    _apply(client, run_id, Operation("tags", dict(tags)))


@contextmanager
def failures(tracking: Tracking, name: str, folder: Path) -> Iterator[None]:
    """In a sweep: a run of MLflow for what fails before its own is begun. Outside of one, the message is enough."""
    try:
        yield
    except Exception as error:
        tags = {columns.IDENTITY: f"not prepared: {name}", columns.FOLDER: str(folder.resolve() / name)}
        if PARENT_VARIABLE in os.environ:
            with suppress(Exception), start(tracking, name, tags, resumes=True):
                raise error
        raise


def uploaded(tracking: Tracking, folder: Path) -> bool:
    """Whether a run ended well while the store was away; if so it is uploaded, if the store is back."""
    kept = Outbox.of(folder)
    if kept is None or kept.status() != "FINISHED":
        return False
    try:
        with_retries(tracking, lambda: upload(tracking, folder))
    except Unreachable as away:
        log.warning("%s; this uploads the result later: python -m runner.upload %s", away, folder)
    return True


def upload(tracking: Tracking, folder: Path) -> str | None:
    """Send what a run's folder keeps, each thing once, also if an upload was killed before.

    Returns:
        The MLflow run; None if there was nothing to send.
    """
    kept = Outbox.of(folder)
    if kept is None:
        return None
    header = kept.header()
    client, experiment = connect(Tracking(tracking.uri, header.experiment))
    tags = {**header.tags, _PENDING: header.id}
    run_id = header.run_id
    if run_id is None:
        begun = client.search_runs([experiment], f"tags.`{_PENDING}` = '{header.id}'")
        run_id = begun[0].info.run_id if begun else _create(client, experiment, replace(header, tags=tags))
    _reopen(client, run_id, tags)
    logged = Logged()
    logged.of_run(client, run_id)
    operations = kept.operations()
    for operation in operations:
        new = logged.new(operation)
        overcome = operation is not operations[-1] and operation.kind == "end"  # an interrupt, after which it went on
        if operation.kind == "tags" and _ERROR in new.values:
            overcome = kept.status() == "FINISHED"
        if new.values and not overcome:
            _apply(client, run_id, new)
    result = files.read_json(folder / "result.json")
    if result is not None and result["mlflow_run"] is None:
        files.write_json(folder / "result.json", {**result, "mlflow_run": run_id})
    kept.remove()
    return run_id


def _now() -> int:
    return int(time.time() * 1000)


def _unfinished(client: MlflowClient, experiment_id: str, tags: Mapping[str, Any]) -> str | None:
    """The newest run of the same identity and folder that did not end well; of a sweep, however it ended."""
    ended_well = "" if tags.get(columns.KIND) == columns.SWEEP else "FINISHED"
    same_identity = f"tags.`{columns.IDENTITY}` = '{tags[columns.IDENTITY]}'"
    for run in client.search_runs([experiment_id], same_identity, order_by=["attributes.start_time DESC"]):
        if run.info.status != ended_well and run.data.tags.get(columns.FOLDER) == str(tags[columns.FOLDER]):
            return run.info.run_id
    return None


@contextmanager
def sweep(tracking: Tracking, swept: str, command: str, identity: str, folder: Path) -> Iterator[Tracker]:
    """A parent run for the runs of a sweep that this process, or one that it starts, makes meanwhile.

    Args:
        swept: the overrides that tell its runs from each other.
        identity: hash of the jobs. The same sweep given again goes on in the same run.
        folder: where its jobs' outcomes are kept.
    """
    tags = {columns.KIND: columns.SWEEP, columns.IDENTITY: identity, columns.FOLDER: str(folder),
            "mlflow.note.content": f"`{command}`"}  # fmt: skip
    name = f"sweep {swept}"
    with start(tracking, name if len(name) < 100 else f"{name[:96]}...", tags, resumes=True) as tracker:
        assert tracker.run_id is not None  # without a store it would not have begun
        os.environ[PARENT_VARIABLE] = tracker.run_id
        try:
            yield tracker
        finally:
            del os.environ[PARENT_VARIABLE]
