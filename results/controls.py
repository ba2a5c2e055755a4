"""Same-budget dense controls: runs of `pattern=dense` with the steps and data of a pruned group, and the drop against
them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from results import columns
from results.columns import relative_drop
from results.runs import Run

DENSE = "dense"  # the pattern of controls
DISTILL, NO_DISTILLATION = "distill", "none"  # a param and its value

Group = list[Run]
"""Runs that differ only in their seed, in the order of their seeds."""


@dataclass(frozen=True)
class Control:
    """Scores of a control, and the drop of a row against it. The fields are keys of the JSON output."""

    mean: float
    max: float
    drop_max: float | None
    """(sparse_max - max) / max, with sparse_max of the row; None unless `max` is above 0."""
    drop_mean: float | None
    """(sparse_mean - mean) / mean, with sparse_mean of the row; None unless `mean` is above 0."""
    interval: list[float] | None
    """95 % interval of `drop_mean`: low, high. None where it was not computed."""
    seeds: list[int]
    """Sorted; they may differ from the row's."""
    runs: list[str]
    """MLflow run ids, in the order of the seeds."""
    rivals: int = 1
    """How many groups of runs could be the control; this is the one with most seeds."""
    change_interval: list[float] | None = None
    """95 % interval of sparse_mean - `mean`, with sparse_mean of the row. None where it was not computed."""


def trained_whole(group: Group) -> bool:
    """True for runs whose student was neither pruned nor has fewer layers: they are controls of others."""
    return group[0].pattern == DENSE and columns.STUDENT_LAYERS not in group[0].tags


def control(group: Group, dense: list[Group]) -> Control | None:
    """Trained like the group but with all layers and without pruning, from the groups that are `trained_whole`; None
    for such a group itself."""
    same = sharing(columns.CONTROL, group, dense)
    return None if trained_whole(group) or not same else against(group, same)


def undistilled_control(group: Group, dense: list[Group]) -> Control | None:
    """Trained for as many steps without pruning and distillation; None for a group that was not distilled itself."""
    if trained_whole(group) or group[0].params.get(DISTILL) == NO_DISTILLATION:
        return None
    same = [other for other in sharing(columns.BUDGET, group, dense) if other[0].params.get(DISTILL) == NO_DISTILLATION]
    return against(group, same) if same else None


def sharing(tag: str, group: Group, dense: list[Group]) -> list[Group]:
    """The dense groups with the group's value of a tag, and its metric."""
    value, metric = group[0].tags.get(tag), group[0].metric
    return [
        other for other in dense if value is not None and other[0].tags.get(tag) == value and other[0].metric == metric
    ]


def against(group: Group, candidates: list[Group]) -> Control:
    """The candidate with most seeds as the control of the group."""
    chosen = max(candidates, key=lambda runs: (len(runs), [run.run_id for run in runs]))
    scores, sparse = [run.sparse for run in chosen], [run.sparse for run in group]
    return Control(
        mean=fmean(scores),
        max=max(scores),
        drop_max=relative_drop(max(scores), max(sparse)),
        drop_mean=relative_drop(fmean(scores), fmean(sparse)),
        interval=None,
        seeds=[run.seed for run in chosen],
        runs=[run.run_id for run in chosen],
        rivals=len(candidates),
    )
