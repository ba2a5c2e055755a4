"""Reads runs from MLflow (`fetch`) and selects those that may be shown (`select`)."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.entities import Run as LoggedRun
from mlflow.store.entities import PagedList
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from results import columns

# Why a run is not shown, in the order in which a footnote names them.
REASONS = ("unfinished", "failed", "killed", "unverified", "incomplete")
REPEATED = "repeated"
STATUS_REASONS = {"FAILED": "failed", "KILLED": "killed"}  # any other status but FINISHED is unfinished
MEASURES = (
    columns.BYTES,
    columns.COMPRESSED,
    columns.PARAMETERS,
    columns.PARAMETERS_DENSE,
    columns.MACS_DENSE,
    columns.MACS_SPARSE,
    columns.BYTES_CUT,
    columns.PARAMETERS_CUT,
    columns.MACS_CUT,
    columns.STEPS,
)


class UnknownExperiment(ValueError):
    """The store has no active experiment of that name."""


@dataclass(frozen=True)
class Run:
    """One finished and verified run. Scores and sparsities are fractions in [0, 1]; correlations are in [-1, 1]."""

    run_id: str
    identity: str
    """Equal in repeats of one run."""
    group: str
    """Equal in runs that differ only in their seed."""
    ended: int
    """When the run ended: milliseconds since 1970."""
    model: str
    dataset: str
    pattern: str
    seed: int
    metric: str
    """The main metric, such as "f1"."""
    dense: float
    sparse: float
    ratio: float | None
    """`columns.RATIO`; None where it was not logged."""
    params: Mapping[str, str]
    """All params but the labels and the seed."""
    dense_others: Mapping[str, float]
    """Scores of the dense model by metrics other than the main one."""
    sparse_others: Mapping[str, float]
    """Scores of the sparse model by metrics other than the main one."""
    measures: Mapping[str, float]
    """Those of MEASURES that were logged."""
    times: Mapping[str, float]
    """Latencies in milliseconds and speedups, by their names in `columns`; empty unless the CPU is known."""
    tags: Mapping[str, str]
    """All tags of the MLflow run."""


def fetch(client: MlflowClient, experiment: str | None = None, page_size: int = 1000) -> list[LoggedRun]:
    """Every run of kind PRUNED, whatever its status, in one experiment or (None) in all active ones.

    Raises `UnknownExperiment`, and whatever MLflow raises for a store that it cannot read.
    """
    ids = {entry.name: entry.experiment_id for entry in pages(client.search_experiments)}
    if experiment is not None and experiment not in ids:
        raise UnknownExperiment(f"no experiment {experiment!r}; there are: {', '.join(sorted(ids)) or 'none'}")
    wanted = list(ids.values()) if experiment is None else [ids[experiment]]
    if not wanted:
        return []
    kind = f"tags.`{columns.KIND}` = '{columns.PRUNED}'"
    search = partial(client.search_runs, wanted, filter_string=kind, max_results=page_size)
    # By id: pages are offsets, so a run that starts while we read would show the last run of a page again.
    return list({run.info.run_id: run for run in pages(search)}.values())


def fetch_children(client: MlflowClient, parent: str) -> list[LoggedRun]:
    """Every run of kind PRUNED of a sweep, whatever its status."""
    of_parent = f"tags.`{columns.KIND}` = '{columns.PRUNED}' and tags.`mlflow.parentRunId` = '{parent}'"
    experiment = client.get_run(parent).info.experiment_id
    return list(pages(partial(client.search_runs, [experiment], filter_string=of_parent)))


def pages(search: Callable[..., PagedList]) -> Iterator:
    """The entries of all pages of an MLflow search."""
    token = None
    while token != "":
        page = search(page_token=token)
        yield from page
        token = page.token or ""


class ForeignServer(ValueError):
    """A local store whose artifacts are on a server that only the store names."""


def artifact(client: MlflowClient, run_id: str, name: str, place: str | None = None) -> str | None:
    """The text of an artifact of a run, or None if the run did not log it.

    Args:
        place: the run's artifact URI, if it is known: the store is then not asked for it.

    Raises `ForeignServer`: MLflow would send the user's password there.
    """
    place = (client.get_run(run_id).info.artifact_uri if place is None else place) or ""
    if place.startswith(("http:", "https:")) and not client.tracking_uri.startswith(("http:", "https:")):
        raise ForeignServer(f"run {run_id} has its artifacts at {place}, a server that only this file names: it is not "
                            "asked, as it would get your password for MLflow; leave the run out")  # fmt: skip
    if is_local_uri(place, is_tracking_or_registry_uri=False):
        file = Path(local_file_uri_to_path(place), name)  # MLflow would ask the store four times
        return file.read_text(encoding="utf-8") if file.is_file() else None
    if name not in {entry.path for entry in client.list_artifacts(run_id)}:
        return None
    with TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, name, folder)).read_text(encoding="utf-8")


def select(logged: Iterable[LoggedRun]) -> tuple[list[Run], Counter[str]]:
    """The runs that may be shown, the newest of each identity, and how many were left out for each of REASONS and
    as REPEATED. Runs of another kind than PRUNED are neither."""
    left_out: Counter[str] = Counter()
    newest: dict[str, Run] = {}
    for entry in logged:
        if entry.data.tags.get(columns.KIND) != columns.PRUNED:
            continue
        run = read(entry)
        if isinstance(run, str):
            left_out[run] += 1
            continue
        other = newest.setdefault(run.identity, run)
        if other is not run:
            left_out[REPEATED] += 1
            newest[run.identity] = max(run, other, key=lambda each: (each.ended, each.run_id))
    return list(newest.values()), left_out


def read(entry: LoggedRun) -> Run | str:
    """The run as a record, or which of REASONS excludes it."""
    info, tags, params, metrics = entry.info, entry.data.tags, entry.data.params, entry.data.metrics
    if info.status != "FINISHED":
        return STATUS_REASONS.get(info.status, "unfinished")
    if tags.get(columns.VERIFIED) != "true":
        return "unverified"
    try:
        metric = tags[columns.METRIC]
        run = Run(
            run_id=info.run_id,
            identity=tags[columns.IDENTITY],
            group=tags[columns.GROUP],
            ended=info.end_time or info.start_time,
            model=params[columns.MODEL],
            dataset=params[columns.DATASET],
            pattern=params[columns.PATTERN],
            seed=int(params[columns.SEED]),
            metric=metric,
            dense=metrics[columns.dense(metric)],
            sparse=metrics[columns.sparse(metric)],
            ratio=metrics.get(columns.RATIO),
            params={key: value for key, value in params.items() if key not in {*columns.LABELS, columns.SEED}},
            dense_others=others(metrics, columns.dense(""), metric),
            sparse_others=others(metrics, columns.sparse(""), metric),
            measures={name: metrics[name] for name in MEASURES if math.isfinite(metrics.get(name, math.nan))},
            times=times(metrics) if tags.get(columns.CPU) else {},
            tags=tags,
        )
    except (KeyError, ValueError):
        return "incomplete"
    # A NaN would spoil the means of its group, and JSON cannot hold it.
    scores = (run.dense, run.sparse) if run.ratio is None else (run.dense, run.sparse, run.ratio)
    return run if all(math.isfinite(score) for score in scores) else "incomplete"


def others(metrics: Mapping[str, float], prefix: str, main: str) -> dict[str, float]:
    """The finite metrics under a prefix, by their names without it, but for the main one."""
    named = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
    return {name: value for name, value in sorted(named.items()) if name != main and math.isfinite(value)}


def times(metrics: Mapping[str, float]) -> dict[str, float]:
    """The finite latencies and speedups."""
    return {name: value for name, value in metrics.items() if columns.setting(name) and math.isfinite(value)}


def natural(text: str) -> tuple:
    """A sort key in which "dense" comes first, 4x1 before 16x1 and 5e-5 before 1e-4."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", text)  # text, number, text, ...
    return text != "dense", [float(part) if at % 2 else part for at, part in enumerate(parts)], text
