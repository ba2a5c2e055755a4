"""Sources of examples: the hub, folders saved by the datasets library, or local files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.data import files, layout
from runner.data.arrow import without_bars
from runner.data.splits import Part, Splits
from runner.data.text_files import stem_of, suffix_of
from runner.system.errors import UserError
from runner.system.files import check_regular, checksums, difference, read_json, write_json
from runner.system.hub import explain
from runner.system.progress import on_terminal
from runner.system.spelling import did_you_mean

if TYPE_CHECKING:
    import datasets

    from runner.data.task import Dataset

_HINTS = {
    "scripts are no longer supported": "many have a copy as parquet, with dataset.revision=refs/convert/parquet",
    "Config name is missing": "name it with dataset.name",
    "BuilderConfig": "name another with dataset.name",
}
"""Part of an error message of the datasets library -> the remedy."""
_CHECKSUMS = "checksums.prune-distill.json"  # in datasets' cache, next to the files


def load(dataset: Dataset) -> Splits:
    """Read the splits that a dataset's fields ask for.

    Raises:
        UserError: there is no such dataset, or it cannot be reached or read.
    """
    return _local(dataset) or _hub(dataset)


def _local(dataset: Dataset) -> Splits | None:
    """The splits of a file or a folder; None if the path can only be a hub id."""
    path = Path(os.path.expanduser(dataset.path))  # Path.expanduser raises for an unknown user
    try:
        if path.exists():
            check_regular(path)
            return _folder(path, dataset) if path.is_dir() else _single(path, dataset)
    except OSError as error:
        raise UserError(f"dataset.path={dataset.path} cannot be read: {error.strerror or error}") from error
    if path.is_absolute() or dataset.path.startswith((".", "~")) or suffix_of(path) in suffixes(dataset):
        raise UserError(f"dataset.path={dataset.path}: there is no such file or folder{did_you_mean(path)}")
    return None


def suffixes(dataset: Dataset, labels: bool = True) -> tuple[str, ...]:
    """The suffixes of the files that can be read."""
    return tuple(dict.fromkeys((*files.SUFFIXES, *dataset.readers(labels))))


def _hub(dataset: Dataset) -> Splits:
    import datasets
    from datasets import config

    path = dataset.path
    with explain("dataset", "dataset.path", path):
        try:
            with without_bars(not on_terminal()):
                loaded = datasets.load_dataset(path, dataset.name, revision=dataset.revision)
        except Exception as error:
            hint = next((remedy for words, remedy in _HINTS.items() if words in str(error)), None)
            if hint is not None:
                reason = " ".join(str(error).split("Example of usage")[0].split())
                raise UserError(f"dataset.path={path}: the dataset cannot be loaded: {reason}; {hint}") from error
            if not _may_be_damage(error):
                raise
            cache = Path(config.HF_DATASETS_CACHE) / path.replace("/", "___")
            raise UserError(
                f"dataset.path={path}: the dataset cannot be loaded: {str(error) or repr(error)}; if its cached "
                f"copy is damaged, delete {cache}: it is created again"
            ) from error
    _check_cache(path, {Path(file["filename"]) for split in loaded.values() for file in split.cache_files})
    described = (
        path + (f", {dataset.name}" if dataset.name else "") + (f"@{dataset.revision}" if dataset.revision else "")
    )
    return _choose(dataset, loaded, described)


def _choose(dataset: Dataset, loaded: Mapping[Any, datasets.Dataset], source: str) -> Splits:
    """Train and evaluation splits among named ones, of the hub or of a folder that the datasets library saved."""
    parts = {
        str(name): Part(examples, [(f"{dataset.path}, {name} split", len(examples))])
        for name, examples in loaded.items()
    }
    asked = [*([dataset.train_split] if dataset.train_split else []), *dataset.evaluation_splits]
    missing = [name for name in asked if name not in parts]
    if missing:
        raise UserError(
            f"dataset.path={dataset.path} has no split {', '.join(missing)}; it has {', '.join(parts)}: name them in "
            "dataset.train_split and dataset.evaluation_splits"
        )
    train = dataset.train_split or next(iter(_of_kind(layout.TRAIN, parts)), None)
    others = [name for name in parts if name != train]
    usual = [names for kind in layout.KINDS if kind != layout.TRAIN and (names := _of_kind(kind, others))]
    evaluation = dataset.evaluation_splits or next(iter(usual), [])
    if train is None and not evaluation:
        raise UserError(
            f"dataset.path={dataset.path} has neither a train nor an evaluation split with a usual name; it has "
            f"{', '.join(parts)}: name them in dataset.train_split and dataset.evaluation_splits"
        )
    unused = [name for name in others if name not in evaluation]
    scored = {name: parts[name] for name in evaluation}
    return Splits(parts[train] if train else None, scored, source, unused, {name: parts[name] for name in unused})


def _of_kind(kind: str, names: Iterable[str]) -> list[str]:
    """The splits of a kind: the one whose name is a word for it, or else all whose names have one, such as
    validation_matched; of train only if it is a single one."""
    fitting = [name for name in names if layout.kinds_of(name)[:1] == [kind]]
    exact = [name for word in layout.KINDS[kind] for name in fitting if name.lower() == word][:1]
    return exact or ([] if kind == layout.TRAIN and len(fitting) > 1 else fitting)


def _may_be_damage(error: Exception) -> bool:
    """True if an error may come from a damaged file in the cache. Errors of the hub have classes of their own."""
    import pyarrow as pa

    kinds = (pa.ArrowException, json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError)
    return isinstance(error, kinds) or type(error) in (OSError, FileNotFoundError, IsADirectoryError, ValueError)


def _check_cache(path: str, cached: set[Path]) -> None:
    """Refuse files in the cache that have changed since they were first read: the datasets library does not check.

    Raises:
        UserError: a file is damaged.
    """
    for folder in {file.parent for file in cached}:
        record = folder / _CHECKSUMS
        known = read_json(record) or {}
        problem = difference(folder, known)
        if problem is not None:
            raise UserError(
                f"dataset.path={path}: the datasets library's cache in {folder} is damaged ({problem}); delete this "
                "folder: it is created again"
            )
        new = [file for file in cached if file.parent == folder and file.name not in known]
        if new:
            with suppress(OSError):  # a read-only folder of someone else, who answers for it
                write_json(record, known | checksums(folder, new))


def _folder(path: Path, dataset: Dataset) -> Splits:
    """The splits of a folder: as `save_to_disk` wrote it, or with files whose names say which split they are."""
    readable = suffixes(dataset)
    inside = list(path.iterdir())
    if is_saved(path) or (any(map(is_saved, inside)) and not any(suffix_of(file) in readable for file in inside)):
        return _saved(path, dataset)
    asked = layout.Asked(f"dataset.path={path}", dataset.train_split, dataset.evaluation_splits, readable)
    found = layout.find(path, asked)
    unused = layout.names(found.unused, path)
    return Splits(
        part(found.train, dataset) if found.train else None,
        {name: part(paths, dataset) for name, paths in found.evaluation.items()},
        str(path),
        unused,
        {stem_of(file): file for file in found.unused} | dict(zip(unused, found.unused, strict=True)),
    )


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _saved(path: Path, dataset: Dataset) -> Splits:
    """The splits of a folder that `save_to_disk` wrote, or whose folders it wrote; a single dataset is as a single
    file."""
    import datasets

    check_regular(*path.rglob("*"))
    places = [path] if is_saved(path) else sorted(filter(is_saved, path.iterdir()))
    try:
        loaded: Any = {place.name: datasets.load_from_disk(str(place)) for place in places}
    except Exception as error:  # datasets and pyarrow raise several kinds
        raise UserError(
            f"dataset.path={path}: this folder of save_to_disk cannot be read: {error}; copy it again"
        ) from error
    if places == [path]:
        loaded = loaded[path.name]
    if isinstance(loaded, datasets.Dataset):
        whole = files.common_types(loaded)
        return _all_or_evaluation(path, dataset, lambda: Part(whole, [(str(path), len(whole))]))
    nested = [name for name, part in loaded.items() if not isinstance(part, datasets.Dataset)]
    if nested:
        raise UserError(f"dataset.path={path}: {nested[0]} has splits of its own; set dataset.path to it")
    return _choose(dataset, {name: files.common_types(part) for name, part in loaded.items()}, str(path))


def _single(path: Path, dataset: Dataset) -> Splits:
    """A single file."""
    if suffix_of(path) not in suffixes(dataset):
        raise UserError(
            f"dataset.path={path}: this type of file cannot be read; those that can are {', '.join(suffixes(dataset))}"
        )
    splits = _all_or_evaluation(path, dataset, lambda: part([path], dataset))
    if splits.train is not None:
        with suppress(OSError):  # a folder whose files may be read, and not listed
            for other in sorted(path.parent.iterdir()):
                kinds = layout.kinds_of(stem_of(other)) if suffix_of(other) in suffixes(dataset) else []
                if kinds and layout.TRAIN not in kinds:
                    splits.unused.append(f"{other.name} in the same folder, whose name says {kinds[0]}")
    return splits


def _all_or_evaluation(path: Path, dataset: Dataset, read: Callable[[], Part]) -> Splits:
    """A single source: an evaluation split if its name says so, else all examples, to be divided."""
    name = stem_of(path)
    asked = [each for each in dataset.evaluation_splits if each.lower() in name.lower()]
    if dataset.evaluation_splits and not asked:
        raise UserError(
            f"dataset.evaluation_splits={dataset.evaluation_splits}: dataset.path={path} is one file, and its name has "
            "none of these; give a folder with a file for each split"
        )
    kinds = layout.kinds_of(name)
    if layout.TRAIN in kinds and len(kinds) > 1 and not asked and not dataset.train_split:
        raise UserError(
            f"dataset.path={path}: its name says {' and '.join(kinds)}; set dataset.train_split={kinds[0]} to train on "
            f"it, or dataset.evaluation_splits=[{kinds[1]}] to score on it"
        )
    if asked or (not dataset.train_split and kinds and layout.TRAIN not in kinds):
        return Splits(None, {name: read()}, str(path))
    return Splits(read(), {}, str(path))


def part(paths: list[Path], dataset: Dataset, labels: bool = True) -> Part:
    """Files as one split; without `labels` the task's own formats need not have them."""
    import datasets

    tables = [files.read(path, dataset.text_columns(), dataset.readers(labels)) for path in paths]
    try:
        whole = datasets.concatenate_datasets(tables)
    except Exception as error:  # datasets and pyarrow raise several kinds
        raise UserError(
            f"{', '.join(map(str, paths))}: their columns differ, so they cannot be one split: {error}"
        ) from error
    return Part(whole, [(str(path), len(table)) for path, table in zip(paths, tables, strict=True)])
