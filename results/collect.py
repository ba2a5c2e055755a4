"""From MLflow to rows: `fetch` reads the runs, `select` keeps those that may be shown, `pool` pools them over seeds."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from statistics import fmean

from mlflow import MlflowClient
from mlflow.entities import Run as LoggedRun
from mlflow.store.entities import PagedList

from results import columns

# Why a run is not shown, in the order in which a footnote names them.
REASONS = ("unfinished", "failed", "killed", "unverified", "incomplete")
REPEATED = "repeated"
DEFAULT = "(default)"  # stands for a param that a run did not log
STATUS_REASONS = {"FAILED": "failed", "KILLED": "killed"}  # any other status but FINISHED is unfinished


class UnknownExperiment(ValueError):
    """The store has no active experiment of that name."""


@dataclass(frozen=True)
class Run:
    """One finished and verified run. Scores and sparsities are fractions in [0, 1]."""

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


@dataclass(frozen=True)
class Row:
    """One row of the table: a group of runs. The fields are the keys of the JSON output, in its order."""

    model: str
    dataset: str
    pattern: str
    seeds: list[int]
    """Sorted."""
    ratio: float | None
    """Mean over the seeds; None unless all of them logged it."""
    dense_mean: float
    dense_max: float
    sparse_mean: float
    sparse_max: float
    drop_max: float | None
    """(sparse_max - dense_max) / dense_max, a signed fraction: -0.0078 is -0.78 %. None if dense_max is 0."""
    drop_mean: float | None
    """The same of the means."""
    metric: str
    differs: dict[str, str]
    """The params that tell this row from others of its labels; values that differ between its seeds joined by "|"."""
    runs: list[str]
    """MLflow run ids, in the order of the seeds."""


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
        rival = newest.setdefault(run.identity, run)
        if rival is not run:
            left_out[REPEATED] += 1
            newest[run.identity] = max(run, rival, key=lambda each: (each.ended, each.run_id))
    return list(newest.values()), left_out


def read(entry: LoggedRun) -> Run | str:
    """The run as a record, or which of REASONS keeps it out."""
    info, tags, params, metrics = entry.info, entry.data.tags, entry.data.params, entry.data.metrics
    if info.status != "FINISHED":
        return STATUS_REASONS.get(info.status, "unfinished")
    if tags.get(columns.VERIFIED) != "true":
        return "unverified"
    labels = {*columns.LABELS, columns.SEED}
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
            params={key: value for key, value in params.items() if key not in labels},
        )
    except (KeyError, ValueError):
        return "incomplete"
    # A score that is not a number is no score: it would poison the means of its group, and JSON cannot hold it.
    scores = (run.dense, run.sparse) if run.ratio is None else (run.dense, run.sparse, run.ratio)
    return run if all(math.isfinite(score) for score in scores) else "incomplete"


def pool(runs: Iterable[Run]) -> list[Row]:
    """One row a group, by dataset, model and pattern; the same rows whatever the order of the runs."""
    groups: defaultdict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.seed, run.run_id)):
        groups[run.group, run.metric].append(run)
    alike: defaultdict[tuple[str, ...], list[list[Run]]] = defaultdict(list)
    for group in groups.values():
        alike[group[0].dataset, group[0].model, group[0].pattern].append(group)
    rows = (map(row, peers, differences(peers)) for peers in alike.values())
    return sorted(chain.from_iterable(rows), key=order)


def row(group: list[Run], differs: dict[str, str]) -> Row:
    """The row of one group, its runs in the order of their seeds."""
    dense, sparse = [run.dense for run in group], [run.sparse for run in group]
    ratios = [run.ratio for run in group if run.ratio is not None]
    return Row(
        model=group[0].model,
        dataset=group[0].dataset,
        pattern=group[0].pattern,
        seeds=[run.seed for run in group],
        ratio=fmean(ratios) if len(ratios) == len(group) else None,
        dense_mean=fmean(dense),
        dense_max=max(dense),
        sparse_mean=fmean(sparse),
        sparse_max=max(sparse),
        drop_max=relative_drop(max(dense), max(sparse)),
        drop_mean=relative_drop(fmean(dense), fmean(sparse)),
        metric=group[0].metric,
        differs=differs,
        runs=[run.run_id for run in group],
    )


def relative_drop(dense: float, sparse: float) -> float | None:
    """(sparse - dense) / dense, a signed fraction; None if the dense score is 0."""
    return (sparse - dense) / dense if dense else None


def differences(groups: list[list[Run]]) -> list[dict[str, str]]:
    """For each of the groups that share their labels, the params in which they differ.

    A param that differs inside a group is among them too, even in the only group: such seeds should not be pooled.
    """
    keys = sorted({key for group in groups for run in group for key in run.params})
    values = {key: [{run.params.get(key, DEFAULT) for run in group} for group in groups] for key in keys}
    differing = [key for key in keys if len(set().union(*values[key])) > 1]
    return [{key: "|".join(sorted(values[key][at], key=natural)) for key in differing} for at in range(len(groups))]


def order(row: Row) -> tuple:
    """The sort key of a row; what follows the labels only makes the order total."""
    labels = (natural(row.dataset), natural(row.model), natural(row.pattern))
    return *labels, row.metric, [natural(value) for value in row.differs.values()], row.seeds, row.runs


def natural(text: str) -> tuple:
    """A sort key in which "dense" comes first, 4x1 before 16x1 and 5e-5 before 1e-4."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", text)  # text, number, text, ...
    return text != "dense", [float(part) if at % 2 else part for at, part in enumerate(parts)], text
