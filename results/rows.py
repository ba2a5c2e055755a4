"""Pools runs over their seeds into the rows of the table.

`results.intervals`, `results.published` and `results.caveats` add the rest of a row, in this order.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from statistics import fmean

from results import columns, speed
from results.columns import relative_drop
from results.controls import DENSE, Control, Group, control, trained_whole, undistilled_control
from results.runs import Run, natural
from results.speed import Latency

OFF = ("None", "null", "False", "false")  # what params of options that are not used say
DEFAULT = "(default)"  # stands for a param that a run did not log


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
    """The relative drop of the maxima, as printed there."""
    source: str
    difference: float | None = None
    """drop_max of our row less `drop`. None without runs of ours."""


@dataclass(frozen=True)
class Row:
    """One row of the table: a group of runs. The fields but `scores` are the keys of the JSON output, in its order."""

    model: str
    dataset: str
    pattern: str
    seeds: list[int]
    """Sorted. Empty in a published row that we have no runs of; then the scores are None."""
    ratio: float | None
    """Mean over the seeds; None unless all of them logged it, as with all other optional fields that are no score."""
    dense_mean: float | None
    dense_max: float | None
    sparse_mean: float | None
    sparse_max: float | None
    drop_max: float | None
    """(sparse_max - dense_max) / dense_max, a signed fraction: -0.0078 is -0.78 %. None unless dense_max is
    above 0."""
    drop_mean: float | None
    """(sparse_mean - dense_mean) / dense_mean; None unless dense_mean is above 0."""
    metric: str
    differs: dict[str, str]
    """The params that distinguish rows with equal labels; values that differ between the seeds joined by "|"."""
    runs: list[str]
    """MLflow run ids, in the order of the seeds."""
    drop_interval: list[float] | None = None
    """95 % interval of `drop_mean`: low, high. None where it was not computed."""
    change_interval: list[float] | None = None
    """95 % interval of sparse_mean - dense_mean: low, high. None where it was not computed."""
    dense_others: dict[str, float] = field(default_factory=dict)
    """Means of the dense scores by metrics other than the main one, such as {"exact_match": 0.68}."""
    sparse_others: dict[str, float] = field(default_factory=dict)
    """Means of the sparse scores by metrics other than the main one."""
    control: Control | None = None
    """`pattern=dense` with the same distillation and steps. None for a row of that pattern, and where there is none."""
    plain: Control | None = None
    """`pattern=dense distill=none` with the same steps, unless that is `control` already."""
    size_bytes: float | None = None
    """Size of the file of weights, dense or with zeros."""
    compressed_bytes: float | None = None
    """Size of the sparse file after gzip."""
    student_layers: str | None = None
    """Which of the dense model's layers the pruned one has, such as "3 of 6 layers (0, 2, 5)". None: all."""
    parameters: float | None = None
    """Parameters of the pruned model, zeros included."""
    parameters_dense: float | None = None
    """Parameters of the dense model."""
    macs_dense: float | None = None
    """Multiply-accumulates of the dense model for one example."""
    macs_sparse: float | None = None
    """Multiply-accumulates without those with a zero weight."""
    bytes_cut: float | None = None
    """Size of the weights without heads and channels that compute nothing, which exports cut out; other zeros count, as
    in the next two."""
    parameters_cut: float | None = None
    macs_cut: float | None = None
    steps: float | None = None
    """Optimizer steps of the training that prunes; 0 without training."""
    dense_models: int | None = None
    """How many dense models are behind the seeds."""
    train_examples: int | None = None
    """How many a run trained on; if the seeds differ, the fewest, as in the next three."""
    evaluation_examples: int | None = None
    holdout: str | None = None
    """The share of train that is scored instead of the evaluation split (dataset.holdout), such as "0.1"; None: the
    evaluation split."""
    official_train: int | None = None
    """How many the dataset's official split has."""
    official_evaluation: int | None = None
    rare_classes: str | None = None
    """The note on classes with few evaluation examples, of the first seed that has one."""
    other_circumstances: int | None = None
    """How many runs were made in part under other versions, on other hardware, or with other threads or ranks.
    None: none."""
    hidden_dropout: str | None = None
    """As logged; values that differ between seeds joined by "|", as in the next two."""
    attention_dropout: str | None = None
    precision: str | None = None
    selection: str | None = None
    """What scores on a part of train decided: early stopping, the best checkpoint. None: nothing."""
    finetuned: str | None = None
    """The checkpoint that was given as the dense model (model.finetuned); None: the run fine-tuned it."""
    recipe: str | None = None
    """The name of the recipe, as logged."""
    latency: Latency | None = None
    """The one in the table: see `results.speed.shown`. None where the sparse runtime was not timed."""
    latencies: list[Latency] = field(default_factory=list)
    """Times of every runtime and setting that was timed."""
    published: Published | None = None
    """Set by `results.published.compare`."""
    notes: list[str] = field(default_factory=list)
    """What the reader of this row must know; set by `results.caveats.add`."""
    scores: list[tuple[float, float]] = field(default_factory=list, compare=False)
    """Dense and sparse score of each seed, for pictures. In no output."""

    @property
    def scored_on(self) -> str:
        """The dataset, with the part of it that is scored where that is not the evaluation split. Only rows that agree
        in it have comparable scores."""
        return self.dataset if self.holdout is None else f"{self.dataset}, hold-out {self.holdout} of train"

    @property
    def is_control(self) -> bool:
        """True if nothing was pruned and no layer left out: other rows are compared with it."""
        return self.pattern == DENSE and self.student_layers is None


def pool(runs: Iterable[Run], among: Iterable[Run] | None = None) -> list[Row]:
    """One row a group, by dataset, model and pattern; the same rows whatever the order of the runs.

    Args:
        among: where controls are looked for; in `runs` if None.
    """
    runs = list(runs)
    dense = [group for group in grouped(runs if among is None else among) if trained_whole(group)]
    alike: defaultdict[tuple[str, ...], list[Group]] = defaultdict(list)
    for group in grouped(runs):
        alike[group[0].dataset, group[0].model, group[0].pattern].append(group)
    rows = (map(partial(row, dense), peers, differences(peers)) for peers in alike.values())
    return sorted(chain.from_iterable(rows), key=order)


def grouped(runs: Iterable[Run]) -> list[Group]:
    """The runs by group and metric, each group in the order of its seeds."""
    groups: defaultdict[tuple[str, str], Group] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.seed, run.run_id)):
        groups[run.group, run.metric].append(run)
    return list(groups.values())


def row(dense_groups: list[Group], group: Group, differs: dict[str, str]) -> Row:
    """The row of one group; its controls are among `dense_groups`."""
    dense, sparse = [run.dense for run in group], [run.sparse for run in group]
    ratios = [run.ratio for run in group if run.ratio is not None]
    models = [run.tags.get(columns.DENSE_MODEL) for run in group]
    latencies = speed.pool(group)
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
        control=control(group, dense_groups),
        plain=undistilled_control(group, dense_groups),
        dense_models=None if None in models else len(set(models)),
        size_bytes=measured.get(columns.BYTES),
        compressed_bytes=measured.get(columns.COMPRESSED),
        student_layers=group[0].tags.get(columns.STUDENT_LAYERS),
        parameters=measured.get(columns.PARAMETERS),
        parameters_dense=measured.get(columns.PARAMETERS_DENSE),
        macs_dense=measured.get(columns.MACS_DENSE),
        macs_sparse=measured.get(columns.MACS_SPARSE),
        bytes_cut=measured.get(columns.BYTES_CUT),
        parameters_cut=measured.get(columns.PARAMETERS_CUT),
        macs_cut=measured.get(columns.MACS_CUT),
        steps=measured.get(columns.STEPS),
        train_examples=fewest(group, columns.TRAIN_EXAMPLES),
        evaluation_examples=fewest(group, columns.EVALUATION_EXAMPLES),
        holdout=None if (share := setting(group, "dataset.holdout")) in (None, "0", "0.0") else share,
        official_train=fewest(group, columns.OFFICIAL_TRAIN),
        official_evaluation=fewest(group, columns.OFFICIAL_EVALUATION),
        rare_classes=next((run.tags[columns.RARE_CLASSES] for run in group if columns.RARE_CLASSES in run.tags), None),
        other_circumstances=sum(columns.OTHER_CIRCUMSTANCES in run.tags for run in group) or None,
        hidden_dropout=setting(group, "model.hidden_dropout"),
        attention_dropout=setting(group, "model.attention_dropout"),
        precision=setting(group, "train.precision"),
        selection=selection(group),
        finetuned=None if (given := setting(group, "model.finetuned")) in OFF else given,
        recipe=setting(group, "recipe"),
        latency=speed.shown(latencies),
        latencies=latencies,
        scores=list(zip(dense, sparse, strict=True)),
    )


def means(values: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each key that all mappings have."""
    values = list(values)
    return {key: fmean(each[key] for each in values) for key in values[0] if all(key in each for each in values)}


def fewest(group: Group, tag: str) -> int | None:
    """The least of the counts under a tag; None unless all runs have one."""
    counts = [run.tags.get(tag, "") for run in group]
    return min(map(int, counts)) if all(count.isdecimal() for count in counts) else None


def setting(group: Group, param: str) -> str | None:
    """The values of a param joined by "|"; None unless all runs logged it."""
    values = {run.params.get(param) for run in group}
    return None if None in values else "|".join(sorted(filter(None, values), key=natural))


def selection(group: Group) -> str | None:
    """What scores on a part of train decided in any of the runs."""
    kinds = {"train.patience": "stopped early", "train.best_checkpoint": "best checkpoint"}
    ways = [kind for param, kind in kinds.items() if any(run.params.get(param, "None") not in OFF for run in group)]
    return " and ".join(ways) or None


def differences(groups: list[Group]) -> list[dict[str, str]]:
    """For each of the groups with equal labels, the params in which the groups differ.

    A param that differs inside a group is among them too, even in the only group: such seeds should not be pooled.
    What follows from a choice is left out: `schedule.decay` where rows of one `schedule` agree in it.
    """
    keys = sorted({key for group in groups for run in group for key in run.params})
    values = {key: [{run.params.get(key, DEFAULT) for run in group} for group in groups] for key in keys}
    differing = [key for key in keys if len(set().union(*values[key])) > 1]
    cells = [{key: "|".join(sorted(values[key][at], key=natural)) for key in differing} for at in range(len(groups))]
    follows = {key for key in differing if _follows(key, cells)}
    return [{key: value for key, value in cell.items() if key not in follows} for cell in cells]


def _follows(key: str, cells: list[dict[str, str]]) -> bool:
    """Whether a key of an option has one value for each option of its group that the rows choose."""
    group = key.partition(".")[0]
    if group == key or group not in cells[0]:
        return False
    return len({(cell[group], cell[key]) for cell in cells}) == len({cell[group] for cell in cells})


def order(row: Row) -> tuple:
    """The sort key of a row: its labels; the rest only makes the order total."""
    labels = (natural(row.dataset), natural(row.model), natural(row.pattern))
    return *labels, row.metric, [natural(value) for value in row.differs.values()], row.seeds, row.runs
