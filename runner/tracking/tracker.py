"""The MLflow run of an experiment or of a sweep.

While the store does not answer, each call is retried; then the run continues, and its operations go to its outbox.
The names of tags and metrics are in `results.columns`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import columns
from results.safe_text import without_secrets
from runner.system.errors import UserError
from runner.system.provenance import provenance
from runner.tracking import operations, outbox
from runner.tracking.curve import Curve
from runner.tracking.means import PARENT
from runner.tracking.operations import ERROR, METRICS_PER_BATCH, Logged, create_run, reopen, take_over
from runner.tracking.outbox import Header, Operation, Outbox
from runner.tracking.store import Tracking, Unreachable, connect, not_begun, with_retries
from runner.tracking.upload import BegunElsewhere, send
from runner.tracking.view import show_scores

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from runner.tracking.logger import TrainingLogger

log = logging.getLogger(__name__)

PARENT_VARIABLE = "PRUNE_DISTILL_PARENT_RUN"  # MLFLOW_RUN_ID would make every child write into the parent
_FLUSH_SECONDS = 5.0  # one write to sqlite takes up to 0.1 s: write seldom, in batches


class Tracker:
    """One MLflow run. Metrics by step are buffered and written in batches."""

    def __init__(self, tracking: Tracking, header: Header, place: Path | None) -> None:
        """
        Args:
            place: the outbox file if the store does not answer; None: that is an error.
        """
        self.tracking, self.header, self.place = tracking, header, place
        self.client: MlflowClient | None = None
        self.outbox: Outbox | None = None
        """Set from the first operation that the store did not answer."""
        self.logged = Logged()
        self.curve: Curve | None = None
        """The metrics by step in the run's folder; None without one."""
        self._buffer: list[Any] = []
        self._flushed = time.monotonic()
        self._patience = tracking.patience

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run; None until a run begun without the store is uploaded."""
        return self.header.run_id

    def logger(self, prefix: str) -> TrainingLogger:
        """A logger for one training, whose metrics are named `prefix/name`."""
        return _PrefixLogger(self, prefix)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log params."""
        self._do("params", {key: without_secrets(str(value))[:6000] for key, value in values.items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags."""
        self._do("tags", {key: without_secrets(str(value))[:5000] for key, value in values.items()})

    def step(self, prefix: str, step: int, values: Mapping[str, float]) -> None:
        """Log metrics of an optimizer step, as `prefix/name`."""
        now = outbox.now()
        entries = [[f"{prefix}/{name}", float(value), now, step] for name, value in values.items()]
        if self.curve is not None:
            self.curve.add(entries)
        self._buffer += entries
        if time.monotonic() - self._flushed > _FLUSH_SECONDS or len(self._buffer) > METRICS_PER_BATCH - 100:
            self.flush()

    def metrics(self, values: Mapping[str, float]) -> None:
        """Log metrics of the whole run."""
        self._buffer += outbox.metric_entries(values)
        self.flush()

    def input(self, name: str, digest: str, source: str, context: str, examples: int) -> None:
        """Log a dataset that the run uses.

        Args:
            digest: hash of its contents.
            context: its use: training, evaluation, ...
        """
        self._do("input", {"name": name, "digest": digest[:8], "source": without_secrets(source), "context": context,
                           "profile": {"num_rows": examples, "sha256": digest}})  # fmt: skip

    def text(self, text: str, name: str, is_data: bool = False) -> None:
        """Log a text as an artifact.

        Args:
            is_data: it holds texts of the dataset, which stay as they are.
        """
        self._do("text", [text if is_data else without_secrets(text), name])

    def model(self, values: Mapping[str, Any]) -> None:
        """Log the model, after the metrics: see `logged_model.log_model`."""
        self._do("model", dict(values))

    def begin(self, prefix: str, step: int) -> None:
        """Log the metrics of a training up to the step from which it resumes that the store lacks."""
        if self.curve is not None:
            self._buffer += self.curve.resumed(prefix, step)
            self.flush()

    def flush(self) -> None:
        """Write the buffered metrics."""
        if self.curve is not None:
            self.curve.flush()
        buffered, self._buffer, self._flushed = self._buffer, [], time.monotonic()
        for i in range(0, len(buffered), METRICS_PER_BATCH):
            self._do("metrics", buffered[i : i + METRICS_PER_BATCH])

    def end(self, status: str, error: BaseException | None = None) -> None:
        """Write what is buffered, the error as a tag, and the final status: FINISHED, FAILED or KILLED."""
        if status == "KILLED":  # an interrupted user does not want to wait
            self._patience = 0.0
        self._buffer += self.curve.rest() if self.curve is not None else []
        self.flush()
        if error is not None:
            self.tags({ERROR: f"{type(error).__name__}: {error}"})
        self._do("end", [status, outbox.now()])
        if self.outbox is not None:
            self._upload()

    def use_outbox(self, unreachable: Unreachable) -> None:
        """Write to the outbox from now on.

        Raises:
            UserError: the run has no folder for one.
        """
        if self.place is None:
            raise UserError(f"tracking.uri={self.tracking.shown}: {unreachable}") from unreachable
        self.outbox = Outbox.read(self.place.parent) or Outbox.create(self.place, self.header)
        log.warning("%s; from now on this run logs to %s", unreachable, self.place)

    def _do(self, kind: str, values: Any) -> None:
        operation = self.logged.new(Operation(kind, values))
        if not operation.values:
            return
        if self.outbox is None:
            client, run_id, folder = self.client, self.run_id, self.place.parent if self.place else None
            assert client is not None
            assert run_id is not None
            try:
                with_retries(self.tracking, lambda: operations.apply(client, run_id, operation, folder), self._patience)
                return
            except Unreachable as unreachable:
                self.use_outbox(unreachable)
        assert self.outbox is not None
        self.outbox.add(operation)

    def _upload(self) -> None:
        assert self.outbox is not None
        folder = self.outbox.file.parent
        try:
            with_retries(self.tracking, lambda: send(self.tracking, folder), self._patience)
        except Unreachable:
            log.warning("MLflow at %s still does not answer. The run is complete; this uploads it later:\n"
                        "  python -m runner.upload %s", self.tracking.shown, folder)  # fmt: skip
            return
        self.outbox = None


class _PrefixLogger:
    """The TrainingLogger of a run: metrics are named `prefix/name`."""

    def __init__(self, tracker: Tracker, prefix: str) -> None:
        self._tracker, self._prefix = tracker, prefix

    def begin(self, step: int) -> None:
        self._tracker.begin(self._prefix, step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._tracker.step(self._prefix, step, values)

    def flush(self) -> None:
        self._tracker.flush()


@contextmanager
def start(tracking: Tracking, name: str, tags: Mapping[str, Any], resumes: bool = False) -> Iterator[Tracker]:
    """An MLflow run that ends FINISHED, KILLED on an interrupt, or FAILED with the error as a tag.

    Args:
        resumes: continue a run of the same identity and folder that did not end well (a sweep: however it ended), if
            there is one. The caller makes sure that no other process works on it.

    Raises:
        UserError: the store cannot be used, or does not answer. In a sweep, whose parent run could be begun, and for
            a run begun before, a store that does not answer is no error.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    all_tags = {**provenance(), **tags, **({PARENT: parent} if parent else {})}
    clean = {key: without_secrets(str(value)) for key, value in all_tags.items()}
    header = Header(tracking.shown, tracking.experiment, without_secrets(name), clean, None, outbox.now())
    place = Path(tags[columns.FOLDER]) / outbox.NAME if columns.FOLDER in tags else None
    tracker = Tracker(tracking, header, place)
    if place is not None and place.parent.is_dir():
        tracker.curve = Curve(place.parent)
    try:
        with_retries(tracking, lambda: _begin(tracker, resumes))
    except Unreachable as unreachable:
        earlier = Outbox.read(place.parent) if place is not None else None
        if parent is None and earlier is None:
            raise not_begun(tracking, unreachable) from unreachable
        if earlier is not None:
            tracker.header = earlier.header()
            tracker.logged.read_operations(earlier.operations())
        tracker.use_outbox(unreachable)
    try:
        yield tracker
    except BaseException as error:
        tracker.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", error)
        raise
    tracker.end("FINISHED")


def _begin(tracker: Tracker, resumes: bool) -> None:
    """Create the run, or reopen an interrupted one."""
    header = tracker.header
    client, experiment = connect(tracker.tracking)
    tracker.client = client
    if tracker.place is not None and (waiting := Outbox.read(tracker.place.parent)) is not None:
        try:
            send(tracker.tracking, tracker.place.parent)
        except BegunElsewhere:
            waiting.remove()  # this process logs all of it again, and the curve has the steps
    if columns.METRIC in header.tags:
        show_scores(client, experiment, header.tags[columns.METRIC])
    unfinished = _unfinished(client, experiment, header.tags) if resumes else None
    if unfinished is not None:
        reopen(client, unfinished, header.tags)
        tracker.logged.read_run(client, unfinished)
    header.run_id = unfinished or create_run(client, experiment, header)
    if tracker.curve is not None:
        take_over(client, tracker.curve.place, header.uri, header.run_id)
        tracker.curve.log_in(header.uri, tracker.tracking.experiment, header.run_id)


def _unfinished(client: MlflowClient, experiment_id: str, tags: Mapping[str, Any]) -> str | None:
    """The newest run of the same identity and folder that did not end well; of a sweep, however it ended."""
    ended_well = "" if tags.get(columns.KIND) == columns.SWEEP else "FINISHED"
    same_identity = f"tags.`{columns.IDENTITY}` = '{tags[columns.IDENTITY]}'"
    for run in client.search_runs([experiment_id], same_identity, order_by=["attributes.start_time DESC"]):
        if run.info.status != ended_well and run.data.tags.get(columns.FOLDER) == str(tags[columns.FOLDER]):
            return run.info.run_id
    return None


@contextmanager
def failures(tracking: Tracking, name: str, folder: Path) -> Iterator[None]:
    """Log what fails before its run has begun as a run of its own, in a sweep only: elsewhere the message is enough."""
    try:
        yield
    except Exception as error:
        tags = {columns.IDENTITY: f"not prepared: {name}", columns.FOLDER: str(folder.resolve() / name)}
        if PARENT_VARIABLE in os.environ:
            with suppress(Exception), start(tracking, name, tags, resumes=True):
                raise error
        raise


@contextmanager
def sweep(tracking: Tracking, swept: str, command: str, identity: str, folder: Path) -> Iterator[Tracker]:
    """The parent run of the runs that this process, or one that it starts, makes meanwhile.

    Args:
        swept: the overrides that vary.
        identity: hash of the jobs. The same sweep started again continues in the same run.
        folder: where the outcomes of its jobs are stored.
    """
    tags = {columns.KIND: columns.SWEEP, columns.IDENTITY: identity, columns.FOLDER: str(folder),
            "mlflow.note.content": f"`{command}`"}  # fmt: skip
    name = f"sweep {swept}"
    with start(tracking, name if len(name) < 100 else f"{name[:96]}...", tags, resumes=True) as tracker:
        assert tracker.run_id is not None  # a sweep does not start without a store
        os.environ[PARENT_VARIABLE] = tracker.run_id
        try:
            yield tracker
        finally:
            del os.environ[PARENT_VARIABLE]
