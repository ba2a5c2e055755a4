"""Error analysis: the examples that a sparse model lost and won against the dense one, and their slices."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

from results import columns
from runner.data.task import Dataset
from runner.records import runs
from runner.records.runs import Run
from runner.system.errors import UserError

RIGHT = "right answers"
_CLOSE = 1e-9  # sums of the same numbers in another order


@dataclass
class Compared:
    """An example with the answers and scores of both models. Scores are fractions."""

    id: str
    shown: dict[str, str]
    """Title -> text: see `runner.data.task.Dataset.shown`."""
    dense_answer: str
    sparse_answer: str
    dense: float
    sparse: float
    change: float
    """sparse - dense."""


@dataclass
class Slice:
    """The examples that have something in common, such as a length of 5 to 10 words."""

    name: str
    examples: int
    dense: float
    """Mean score."""
    sparse: float
    change: float
    """sparse - dense."""
    part: float
    """Contribution to the change of the whole score: those of all slices add up to it."""


@dataclass
class Diagnosis:
    """The examples of a run, compared. Each is counted once: as lost, won, same or both_wrong."""

    run: str
    model: str
    dataset: str
    pattern: str
    seed: int
    metric: str
    """The main metric, or RIGHT if that is not a mean over the examples."""
    dense: float
    sparse: float
    change: float
    """sparse - dense: the mean of all examples' changes."""
    examples: int
    lost: int
    """The sparse model scores lower."""
    won: int
    """The sparse model scores higher."""
    same: int
    """Both score the same, above 0."""
    both_wrong: int
    """Both score 0."""
    slices: dict[str, list[Slice]]
    """Slices by title, such as "Length"."""
    most_lost: list[Compared]
    """Largest changes first, then by id."""
    most_won: list[Compared]


def diagnose(run: Run, task: Dataset, lost: int, won: int) -> Diagnosis:
    """Compare the two models of a run, example by example.

    Args:
        task: the run's dataset.
        lost, won: maximum number of examples to show.

    Raises:
        UserError: the run has no sparse model, a file is missing, or the data are not those that it was scored on.
    """
    if run.result["sparse"] is None:
        raise UserError(f"{run.folder}: with prune=false there is no sparse model to compare with the dense one")
    try:
        examples = task.read(train=False)
    except UserError as error:
        raise runs.moved(run, error) from error
    if examples.evaluation_fingerprint != runs.made_by_of(run).evaluation:
        raise UserError(
            f"dataset.path={task.path}: these are not the examples that the run was scored on; add "
            "dataset.path=PLACE to this command to name a place where they are"
        )
    rows = {str(row["id"]): row for row in task.rows(examples.evaluation)}
    every = compared(run, task, rows)
    count = len(every)
    dense, sparse = (fsum(getattr(example, model) for example in every) / count for model in ("dense", "sparse"))
    is_mean = "statistics" not in _read(run, columns.SCORES)
    if is_mean:
        check_means(run, {"dense": dense, "sparse": sparse})
    by_size = sorted(every, key=lambda example: (-abs(example.change), example.id))
    losers, winners = ([e for e in by_size if sign * e.change > 0] for sign in (-1, 1))
    wrong = sum(1 for e in every if e.dense == e.sparse == 0)
    return Diagnosis(
        run=str(run.folder),
        **{key: run.result[key] for key in ("model", "dataset", "pattern", "seed")},
        metric=run.result["metric"] if is_mean else RIGHT,
        dense=dense,
        sparse=sparse,
        change=sparse - dense,
        examples=count,
        lost=len(losers),
        won=len(winners),
        same=count - len(losers) - len(winners) - wrong,
        both_wrong=wrong,
        slices=slices(every, {id: task.kinds(row) for id, row in rows.items()}),
        most_lost=losers[:lost],
        most_won=winners[:won],
    )


def check_means(run: Run, means: Mapping[str, float]) -> None:
    """Refuse scores by example whose means are not the scores in the run's result."""
    metric = run.result["metric"]
    for model, score in means.items():
        if abs(score - run.result[model][metric]) > _CLOSE:
            raise UserError(
                f"{run.folder / columns.SCORES}: its mean, {score:.6f}, is not the {model} {metric} of the run, "
                f"{run.result[model][metric]:.6f}: one of the two files was changed"
            )


def compared(run: Run, task: Dataset, rows: Mapping[str, Mapping[str, Any]]) -> list[Compared]:
    """Both models' answers and scores of each scored example, in the order of the data.

    Args:
        rows: the examples by id.
    """
    scores, dense, sparse = (
        _read(run, name) for name in (columns.SCORES, columns.DENSE_PREDICTIONS, columns.PREDICTIONS)
    )
    if not scores["dense"]:
        raise UserError(
            f"{run.folder}: {run.result['metric']} knows no right and wrong answers, so that no example is lost or won"
        )
    of_each = dict(zip(scores["id"], zip(scores["dense"], scores["sparse"], strict=True), strict=True))
    files = ((columns.SCORES, of_each), (columns.DENSE_PREDICTIONS, dense), (columns.PREDICTIONS, sparse))
    for name, values in files:
        # Scores cover the first evaluation split only.
        if not (of_each.keys() if values is of_each else rows.keys()) <= values.keys() <= rows.keys():
            raise UserError(f"{run.folder / name}: its examples are not those of the run: the file was changed")
    return [
        Compared(
            id, task.shown(row), _text(dense[id]), _text(sparse[id]), *of_each[id], of_each[id][1] - of_each[id][0]
        )
        for id, row in rows.items()
        if id in of_each
    ]


def slices(every: Sequence[Compared], of_each: Mapping[str, Mapping[str, str]]) -> dict[str, list[Slice]]:
    """The scores of each slice, by title.

    Args:
        of_each: id -> title -> the example's slice.
    """
    groups: defaultdict[str, defaultdict[str, list[Compared]]] = defaultdict(lambda: defaultdict(list))
    for example in every:
        for title, name in of_each[example.id].items():
            groups[title][name].append(example)
    return {
        title: [_slice(name, members[name], len(every)) for name in sorted(members, key=_natural)]
        for title, members in groups.items()
    }


def _slice(name: str, members: Sequence[Compared], count: int) -> Slice:
    dense, sparse = (fsum(getattr(e, model) for e in members) for model in ("dense", "sparse"))
    n = len(members)
    return Slice(name, n, dense / n, sparse / n, (sparse - dense) / n, (sparse - dense) / count)


def _natural(text: str) -> list[tuple[int, str]]:
    """A sort key in which "2 words" comes before "10 words"."""
    return [(int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", text)]


def _read(run: Run, name: str) -> Any:
    file = run.folder / name
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; run it again with force=true to make it") from error


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
