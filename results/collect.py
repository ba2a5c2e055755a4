"""From MLflow to rows: `fetch` reads the runs, `select` keeps those that may be shown, `pool` pools them over seeds.

What a row lacks then, `results.intervals`, `results.published` and `results.doubts` add, in this order.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from statistics import fmean

from mlflow import MlflowClient
from mlflow.entities import Run as LoggedRun
from mlflow.store.entities import PagedList

from results import columns
from results.columns import relative_drop

# Why a run is not shown, in the order in which a footnote names them.
REASONS = ("unfinished", "failed", "killed", "unverified", "incomplete")
REPEATED = "repeated"
DEFAULT = "(default)"  # stands for a param that a run did not log
STATUS_REASONS = {"FAILED": "failed", "KILLED": "killed"}  # any other status but FINISHED is unfinished


class UnknownExperiment(ValueError):
    """The store has no active experiment of that name."""


@dataclass(frozen=True)
class Run:
    """One finished and verified run. Scores and sparsities are fractions in [0, 1]; correlations lie in [-1, 1]."""

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
    """The same of the sparse model."""
    measures: Mapping[str, float]
    """Those of MEASURES that were logged."""
    tags: Mapping[str, str]
    """All tags of the MLflow run."""


@dataclass(frozen=True)
class Control:
    """The dense rival of a row: as many steps on the same data, from the same dense model, and nothing pruned."""

    mean: float
    max: float
    drop_max: float | None
    """(sparse_max - max) / max of the row that this is the control of; None unless `max` is above 0."""
    drop_mean: float | None
    """The same of the means."""
    interval: list[float] | None
    """95 % interval of `drop_mean`: low, high. None where it was not computed."""
    seeds: list[int]
    """Sorted; they may be others than the row's."""
    runs: list[str]
    """MLflow run ids, in the order of the seeds."""
    rivals: int = 1
    """How many groups of runs could be the control; this is the one with most seeds."""


@dataclass(frozen=True)
class Published:
    """What somebody else reported for the labels of a row. Scores are fractions; None: not stated."""

    metric: str
    ratio: float | None
    dense_mean: float | None
    dense_max: float | None
    sparse_mean: float | None
    sparse_max: float | None
    drop: float | None
    """As printed there: of the maxima."""
    source: str


@dataclass(frozen=True)
class Row:
    """One row of the table: a group of runs. The fields are the keys of the JSON output, in its order."""

    model: str
    dataset: str
    pattern: str
    seeds: list[int]
    """Sorted. Empty in a published row that we have no runs of; then the scores are None."""
    ratio: float | None
    """Mean over the seeds; None unless all of them logged it. So are all other fields that may be None and no score."""
    dense_mean: float | None
    dense_max: float | None
    sparse_mean: float | None
    sparse_max: float | None
    drop_max: float | None
    """(sparse_max - dense_max) / dense_max, a signed fraction: -0.0078 is -0.78 %. None unless dense_max is
    above 0."""
    drop_mean: float | None
    """The same of the means."""
    metric: str
    differs: dict[str, str]
    """The params that tell this row from others of its labels; values that differ between its seeds joined by "|"."""
    runs: list[str]
    """MLflow run ids, in the order of the seeds."""
    drop_interval: list[float] | None = None
    """95 % interval of `drop_mean`: low, high. None where it was not computed."""
    dense_others: dict[str, float] = field(default_factory=dict)
    """Means of the dense scores by metrics other than the main one, such as {"exact_match": 0.68}."""
    sparse_others: dict[str, float] = field(default_factory=dict)
    """The same of the sparse scores."""
    control: Control | None = None
    """`pattern=dense` with the same distillation and steps. None for a row of that pattern, and where there is none."""
    plain: Control | None = None
    """`pattern=dense distill=none` with the same steps, unless that is `control` already."""
    size_bytes: float | None = None
    """Of the file of weights, dense or with zeros."""
    compressed_bytes: float | None = None
    """Of the sparse file after gzip."""
    macs_dense: float | None = None
    """Multiply-accumulates of the dense model for one example."""
    macs_sparse: float | None = None
    """The same without those with a zero weight."""
    dense_models: int | None = None
    """How many dense models are behind the seeds."""
    train_examples: int | None = None
    """How many a run trained on; the fewest, if its seeds differ. So are the next three."""
    evaluation_examples: int | None = None
    official_train: int | None = None
    """How many the dataset's official split has."""
    official_evaluation: int | None = None
    hidden_dropout: str | None = None
    """As logged; values that differ between seeds joined by "|". So are the next two."""
    attention_dropout: str | None = None
    precision: str | None = None
    published: Published | None = None
    """Set by `results.published.compare`."""
    notes: list[str] = field(default_factory=list)
    """What the reader of this row must know; set by `results.doubts.find`."""


MEASURES = (columns.BYTES, columns.COMPRESSED, columns.MACS_DENSE, columns.MACS_SPARSE)
DENSE = "dense"  # the pattern of controls
DISTILL, NO_DISTILLATION = "distill", "none"  # a param and its value


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
            tags=tags,
        )
    except (KeyError, ValueError):
        return "incomplete"
    # A score that is not a number is no score: it would poison the means of its group, and JSON cannot hold it.
    scores = (run.dense, run.sparse) if run.ratio is None else (run.dense, run.sparse, run.ratio)
    return run if all(math.isfinite(score) for score in scores) else "incomplete"


def others(metrics: Mapping[str, float], prefix: str, main: str) -> dict[str, float]:
    """The finite metrics under a prefix, by their names without it, but for the main one."""
    named = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
    return {name: value for name, value in sorted(named.items()) if name != main and math.isfinite(value)}


def pool(runs: Iterable[Run], among: Iterable[Run] | None = None) -> list[Row]:
    """One row a group, by dataset, model and pattern; the same rows whatever the order of the runs.

    Args:
        among: where controls are looked for; in `runs` if None.
    """
    runs = list(runs)
    rivals = [group for group in grouped(runs if among is None else among) if group[0].pattern == DENSE]
    alike: defaultdict[tuple[str, ...], list[list[Run]]] = defaultdict(list)
    for group in grouped(runs):
        alike[group[0].dataset, group[0].model, group[0].pattern].append(group)
    rows = (map(partial(row, rivals), peers, differences(peers)) for peers in alike.values())
    return sorted(chain.from_iterable(rows), key=order)


def grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs that differ only in their seed together, in the order of the seeds."""
    groups: defaultdict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.seed, run.run_id)):
        groups[run.group, run.metric].append(run)
    return list(groups.values())


def row(rivals: list[list[Run]], group: list[Run], differs: dict[str, str]) -> Row:
    """The row of one group, its runs in the order of their seeds; `rivals` are the groups without pruning."""
    dense, sparse = [run.dense for run in group], [run.sparse for run in group]
    ratios = [run.ratio for run in group if run.ratio is not None]
    models = [run.tags.get(columns.DENSE_MODEL) for run in group]
    measured = means(run.measures for run in group)
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
        dense_others=means(run.dense_others for run in group),
        sparse_others=means(run.sparse_others for run in group),
        control=control(group, rivals),
        plain=plain(group, rivals),
        dense_models=None if None in models else len(set(models)),
        size_bytes=measured.get(columns.BYTES),
        compressed_bytes=measured.get(columns.COMPRESSED),
        macs_dense=measured.get(columns.MACS_DENSE),
        macs_sparse=measured.get(columns.MACS_SPARSE),
        train_examples=fewest(group, columns.TRAIN_EXAMPLES),
        evaluation_examples=fewest(group, columns.EVALUATION_EXAMPLES),
        official_train=fewest(group, columns.OFFICIAL_TRAIN),
        official_evaluation=fewest(group, columns.OFFICIAL_EVALUATION),
        hidden_dropout=setting(group, "model.hidden_dropout"),
        attention_dropout=setting(group, "model.attention_dropout"),
        precision=setting(group, "train.precision"),
    )


def control(group: list[Run], rivals: list[list[Run]]) -> Control | None:
    """The same training without pruning."""
    same = tagged(group, rivals, columns.CONTROL)
    return None if group[0].pattern == DENSE or not same else against(group, same)


def plain(group: list[Run], rivals: list[list[Run]]) -> Control | None:
    """As many steps without pruning and without distillation; None for a group that was not distilled itself."""
    if group[0].pattern == DENSE or group[0].params.get(DISTILL) == NO_DISTILLATION:
        return None
    same = tagged(group, rivals, columns.BUDGET)
    same = [rival for rival in same if rival[0].params.get(DISTILL) == NO_DISTILLATION]
    return against(group, same) if same else None


def tagged(group: list[Run], rivals: list[list[Run]], tag: str) -> list[list[Run]]:
    """The rivals that share the group's value of a tag, and its metric."""
    value = group[0].tags.get(tag)
    return [
        rival
        for rival in rivals
        if value is not None and rival[0].tags.get(tag) == value and rival[0].metric == group[0].metric
    ]


def against(group: list[Run], rivals: list[list[Run]]) -> Control:
    """The group set against the rival with most seeds."""
    rival = max(rivals, key=lambda runs: (len(runs), [run.run_id for run in runs]))
    scores, sparse = [run.sparse for run in rival], [run.sparse for run in group]
    return Control(
        mean=fmean(scores),
        max=max(scores),
        drop_max=relative_drop(max(scores), max(sparse)),
        drop_mean=relative_drop(fmean(scores), fmean(sparse)),
        interval=None,
        seeds=[run.seed for run in rival],
        runs=[run.run_id for run in rival],
        rivals=len(rivals),
    )


def means(values: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each key that all mappings have."""
    values = list(values)
    return {key: fmean(each[key] for each in values) for key in values[0] if all(key in each for each in values)}


def fewest(group: list[Run], tag: str) -> int | None:
    """The least of the counts under a tag; None unless all runs have one."""
    counts = [run.tags.get(tag, "") for run in group]
    return min(map(int, counts)) if all(count.isdecimal() for count in counts) else None


def setting(group: list[Run], param: str) -> str | None:
    """The values of a param joined by "|"; None unless all runs logged it."""
    values = {run.params.get(param) for run in group}
    return None if None in values else "|".join(sorted(filter(None, values), key=natural))


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
