"""The examples of a run: read from the splits, checked, cut to the limits; a hold-out of train if asked for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runner.data import unlabelled
from runner.data.layout import TRAIN
from runner.data.splits import Part, held_out, joined
from runner.system.errors import UserError

if TYPE_CHECKING:
    import datasets

    from runner.data.task import Dataset

log = logging.getLogger(__name__)

UNSPLIT = 0.1
"""The fraction of train that becomes the evaluation split if the data have none."""


@dataclass
class Examples:
    """The examples of a run, checked, cut to the sample limits, before tokenisation."""

    train: datasets.Dataset | None
    """None if the run does not train."""
    evaluation: datasets.Dataset
    """Has a column `split` if there are several splits."""
    train_fingerprint: str
    evaluation_fingerprint: str
    """Hashes of the contents, whatever file they came from."""
    source: str
    """A description for people, with the revision if known."""
    held_out: float = 0.0
    """The fraction of train that became the evaluation examples; 0: they are a split of their own."""
    has_split: bool = True
    """Whether the data have an evaluation split."""
    origin: str = ""
    """The files, or splits of the hub, that each split came from."""
    unused: Sequence[str] = ()
    """Files, or splits of the hub, that are not used."""
    validation: datasets.Dataset | None = None
    """The part of train that is scored during training and not trained on, without a column `split`."""
    unlabelled: datasets.Dataset | None = None
    """Training examples without labels, for the distillation alone."""
    unlabelled_fingerprint: str = ""
    """Hash of their contents."""


def read(task: Dataset, train: bool) -> Examples:
    """Load, check and cut the examples of a task.

    Args:
        train: also the training examples, for a run that trains.

    Raises:
        UserError: the data cannot be used.
    """
    if train and (task.train_split or TRAIN) in task.evaluation_splits:
        raise UserError(
            f"dataset.evaluation_splits={task.evaluation_splits}: a model is not scored on what it is trained on; "
            "leave the training split out"
        )
    splits = task.splits()
    _check_filled(splits.parts)
    named = task.named(splits)
    training, evaluation = named.train, named.evaluation
    fraction, has_split = 0.0, bool(evaluation)
    if task.holdout or not evaluation:
        fraction = task.holdout or UNSPLIT
        training, held = _held_out(task, training, fraction, splits.source)
        others = [part.name for part in evaluation.values()]
        splits, evaluation = replace(splits, evaluation={}, unused=[*splits.unused, *others]), {"holdout": held}
    if train and training is None:
        raise UserError(
            f"{splits.source} has no train split: name a file train* in dataset.path, or set dataset.train_split"
        )
    training = training if train else None
    validation = ready = more = None
    if training is not None and task.validation:
        training, held = _split(task, training, task.validation)
        validation = _ready(task, held, task.max_eval_samples).examples
        _check_ids(task, validation)
    if training is not None:
        ready = _ready(task, training, task.max_train_samples)
    scored = joined({name: _ready(task, part, task.max_eval_samples).examples for name, part in evaluation.items()})
    _check_ids(task, scored)
    if training is not None and ready is not None and task.unlabelled:
        more = unlabelled.read(task, splits, training, ready, [scored, *([validation] if validation else [])])
    return Examples(
        ready.examples if ready is not None else None,
        scored,
        train_fingerprint=task.fingerprint(ready.examples) if ready is not None else "",
        evaluation_fingerprint=task.fingerprint(scored),
        source=splits.source,
        held_out=fraction,
        has_split=has_split,
        origin=splits.origin if more is None else f"{splits.origin}; unlabelled: {more.described}",
        unused=splits.unused,
        validation=validation,
        unlabelled=more.examples if more is not None else None,
        unlabelled_fingerprint=task.digest(more.examples) if more is not None else "",
    )


def _check_filled(parts: Sequence[Part]) -> None:
    for part in parts:
        if not len(part.examples):
            raise UserError(f"{part.name}: there are no examples")


def _held_out(task: Dataset, training: Part | None, fraction: float, source: str) -> tuple[Part, Part]:
    """The training examples without a fraction of them, and that fraction, to score on."""
    if training is None:
        wish = f"dataset.holdout={task.holdout}" if task.holdout else "an evaluation split made of train"
        raise UserError(f"{wish} needs a train split, and {source} has none")
    if not task.holdout:
        log.info("%s has no evaluation split: %g of train becomes it, drawn with dataset.data_seed=%d",
                 source, fraction, task.data_seed)  # fmt: skip
    return _split(task, training, fraction)


def _split(task: Dataset, part: Part, fraction: float) -> tuple[Part, Part]:
    """The examples without a fraction of them, and that fraction, drawn by `data_seed`."""
    groups, strata = task.groups(part.examples), task.strata(part.examples)
    rest, held = held_out(groups, fraction, task.data_seed, strata)
    if not rest or not held:
        raise UserError(
            f"{part.name}: it cannot be split, because all examples belong together (share a text, say) "
            "or each class has a single one: provide an evaluation split"
        )
    return part.select(rest), part.select(held)


def _ready(task: Dataset, part: Part, limit: int | None) -> Part:
    part = task.checked(part.subset(limit, task.data_seed))
    _check_filled([part])
    return part


def _check_ids(task: Dataset, examples: datasets.Dataset) -> None:
    """Refuse ids that occur twice: predictions are stored by id."""
    seen: set[str] = set()
    twice = [id for id in map(str, examples["id"]) if id in seen or seen.add(id)]
    if twice:
        raise UserError(
            f"dataset.path={task.path}: {len(twice)} ids of evaluation examples occur twice (such as {twice[0]}): "
            "make them unique"
        )
