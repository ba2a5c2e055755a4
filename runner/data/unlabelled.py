"""Training examples whose labels are not read: of a file, a folder, another split, or what is left of train."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.data import arrow, classes, files, sources
from runner.data.layout import TRAIN
from runner.data.splits import Part, Splits
from runner.data.text_files import suffix_of
from runner.system.errors import UserError
from runner.system.files import check_regular
from runner.system.spelling import did_you_mean

if TYPE_CHECKING:
    import datasets

    from runner.data.task import Dataset

log = logging.getLogger(__name__)


def read(task: Dataset, splits: Splits, training: Part, labelled: Part, scored: Sequence[datasets.Dataset]) -> Part:
    """The examples that `dataset.unlabelled` names, with the columns that a model reads and ids, without labels.

    Args:
        splits: of the source, as read.
        training: the training split, with the columns of the task, without what is held out.
        labelled: those of it that are used with their labels.
        scored: examples that models are scored on.

    Raises:
        UserError: there are no such examples, or a text is missing.
    """
    key = f"dataset.unlabelled={task.unlabelled}"
    if task.unlabelled in splits.evaluation:
        raise UserError(f"{key}: a model is not scored on what it is trained on")
    if task.unlabelled in (task.train_split, TRAIN):
        used = set(labelled.rows)
        part = training.select([i for i, row in enumerate(training.rows) if row not in used])
        if not len(part.examples):
            raise UserError(
                f"{key}: all {len(training.examples)} training examples are used with their labels; set "
                "dataset.max_train_samples, or name a file"
            )
        part = part.holding(part.examples.select_columns([*task.columns(), "id"]))
    else:
        part = _part(task, splits)
        if not len(part.examples):
            raise UserError(f"{part.name}: there are no examples")
        ids = part.ids(None)
        part = part.renamed(task.columns())
        part = part.holding(part.examples.add_column("id", ids))  # type: ignore[call-arg]
    _check(task, part, labelled.examples)
    groups = {group for examples in scored for group in task.groups(examples)}
    shared = [i for i, group in enumerate(task.groups(part.examples)) if group in groups]
    if shared:
        log.info("%s: %d of %d examples share a text with examples that are scored, and are left out (the first is "
                 "%s)", key, len(shared), len(part.examples), part.where(shared[0]))  # fmt: skip
    part = part.without(shared).subset(task.max_unlabelled_samples, task.data_seed)
    if not len(part.examples):
        raise UserError(f"{key}: there are no examples but those that are scored")
    return part


def _part(dataset: Dataset, splits: Splits) -> Part:
    """The examples with the data's columns.

    Args:
        splits: those of the dataset; what is taken of them is no longer unused.

    Raises:
        UserError: there is no such split, file or folder, or it cannot be read.
    """
    name = dataset.unlabelled or ""
    key, other = f"dataset.unlabelled={name}", splits.others.get(name)
    if isinstance(other, Part):
        splits.unused.remove(name)
        return other
    path = other or Path(os.path.expanduser(name))
    try:
        if path.exists():
            check_regular(path)
            splits.unused[:] = [each for each in splits.unused if not _is_file(splits.others.get(each), path)]
            return _folder(path, key, dataset) if path.is_dir() else _file(path, key, dataset)
    except OSError as error:
        raise UserError(f"{key} cannot be read: {error.strerror or error}") from error
    names = ", ".join(["train (what is not used of it)", *splits.others])
    raise UserError(f"{key}: there is no such file, folder or split{did_you_mean(path)}; the splits are {names}")


def _is_file(other: Part | Path | None, path: Path) -> bool:
    return isinstance(other, Path) and other.samefile(path)


def _file(path: Path, key: str, dataset: Dataset) -> Part:
    readable = sources.suffixes(dataset, labels=False)
    if suffix_of(path) not in readable:
        raise UserError(f"{key}: this type of file cannot be read; those that can are {', '.join(readable)}")
    return sources.part([path], dataset, labels=False)


def _folder(path: Path, key: str, dataset: Dataset) -> Part:
    """All files of a folder, or the examples of one that `save_to_disk` wrote."""
    import datasets

    readable = sources.suffixes(dataset, labels=False)
    found = sorted(file for file in path.iterdir() if suffix_of(file) in readable and not file.name.startswith("."))
    if not sources.is_saved(path):
        if not found:
            raise UserError(f"{key}: this folder has no {', '.join(readable)} file")
        return sources.part(found, dataset, labels=False)
    check_regular(*path.rglob("*"))
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets and pyarrow raise several kinds
        raise UserError(f"{key}: this folder of save_to_disk cannot be read: {error}; copy it again") from error
    if not isinstance(loaded, datasets.Dataset):
        first = path / str(next(iter(loaded)))
        raise UserError(f"{key}: this folder has splits; name the folder of one, such as {first}")
    whole = files.common_types(loaded)
    return Part(whole, [(str(path), len(whole))])


def _check(task: Dataset, part: Part, like: datasets.Dataset) -> None:
    """Refuse what is not text, or lists of words.

    Args:
        like: the labelled examples, which are checked.
    """
    for name, data_column in task.columns().items():
        listed = classes.is_listed(Part(like, []), name)
        classes.check_kind(part, name, data_column, listed)
        if not listed:
            part.check_text(name, data_column)
            continue
        for i, words in enumerate(arrow.lists(arrow.table(part.examples, name)[name])):
            if not words or not all(isinstance(word, str) for word in words):
                problem = "not all words are text" if words else "there are no words"
                raise UserError(f"{part.where(i)}: column {data_column}: {problem}")
